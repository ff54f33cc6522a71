"""Bent frames fitted to a target, on fixed draws."""

from __future__ import annotations

import numpy as np

from jvi._frames import LEADERS, Affine, Bent, entries, rounded
from jvi._targets import Density
from jvi.gaussian_fits._climb import LOG_2PI
from jvi.gaussian_fits._draws import whitened

_SKEW, _LOG_TAIL = 2.0, 1.0  # at most: what they can make of a normal draw stays finite
_DRAWS = 2_048


def best_bent(density: Density, base: Affine, rng: np.random.Generator) -> tuple[Bent, float]:
    """The bent frame over `base` that gains most: of several starts the one that is ahead after a few steps goes on, with more draws.

    Args:
      density: the target.
      base: a frame in which the target is about N(0, I).
      rng: of the draws.
    """
    size = len(base.loc)
    few = whitened(rng, _DRAWS, size)
    tries = [bent(density, start, few, num_steps=20) for start in unbent(density, base, few)]
    # The more coordinates, the more entries to tell from chance.
    draws = whitened(rng, max(_DRAWS, 64 * size), size)
    return bent(density, max(tries, key=lambda found: found[1])[0], draws, num_steps=150 if size <= 50 else 60)


def unbent(density: Density, base: Affine, draws: np.ndarray) -> list[Bent]:
    """Bent frames that are `base` as yet, each ready to bend in another way.

    Coordinates that change the scale of others come first; how much one does is read off the gradients at `draws`: of a Gaussian
    target, v_k times the gradient by v_k has no trend in any v_j. Next may come those that neither change a scale nor have theirs
    changed: the place of a group, say, before its members, which lie around it as closely as the scale says. Or first come those whose
    scale others change: a curved ridge looks like that from where it bends.

    And what the map does to a coordinate either carries over to those that are correlated with it, as where one is the sum of others,
    or these follow its draw, as where they share a scale.

    Args:
      density: the target.
      base: a frame in which the target is about N(0, I).
      draws: standard normal [N, D].
    """
    size = draws.shape[1]
    _, grads = density.grads(base.out(draws))
    strength = np.nan_to_num(np.abs(np.corrcoef((base.pull(draws, grads) * draws).T, draws.T)[:size, size:]))  # [k, j]
    np.fill_diagonal(strength, 0.0)
    sets, is_set = strength.sum(0), strength.sum(1)
    first, free, led = (np.argsort(-merit, kind="stable") for merit in (sets, np.sum(strength.T**2 - strength**2, 1), is_set))
    carried = [Bent(base, order, np.zeros(_count(size))) for order in (free, led)]
    return carried + [following(base, order) for order in (first, free)]


def bent(density: Density, start: Bent, draws: np.ndarray, *, num_steps: int) -> tuple[Bent, float]:
    """The bent frame of largest sample-average ELBO, with that ELBO.

    Args:
      density: the target.
      start: where to begin.
      draws: standard normal [N, D]; held fixed.
      num_steps: of L-BFGS, at most.
    """
    (count, size), base, order = draws.shape, start.base, start.order
    lead = draws[:, :LEADERS]
    below, few = entries(size)

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        frame = Bent(base, order, params)
        values, grads = density.grads(frame.out(draws))
        if not np.isfinite(values).all():
            return 1e300, np.zeros_like(params)
        g = base.pull(draws, grads)[:, order]
        scale, t = frame.parts(draws)
        stretch = g * scale * np.sinh(t) + 1.0
        own = g * scale * np.cosh(t) + np.tanh(t)
        pairs = (g, draws), (stretch, lead), (g, lead**2 - 1.0), (stretch, rounded(lead))
        matrices = [(left.T @ right / count)[where] for (left, right), where in zip(pairs, (below, few, few, few), strict=True)]
        each = g.mean(0), stretch.mean(0), np.mean(own, 0) * np.exp(frame.log_tail), np.mean(own * t, 0) + 1.0
        slope = np.concatenate([*each, *matrices])
        return -(np.mean(values + frame.log_det(draws)) + 0.5 * size * (1.0 + LOG_2PI)), -slope

    most = np.full(len(start.params), np.inf)
    most[2 * size : 4 * size] = np.repeat([_SKEW, _LOG_TAIL], size)
    options = {"maxcor": 20, "ftol": 1e-8, "gtol": 1e-4, "maxfun": num_steps, "maxiter": num_steps}
    from scipy.optimize import minimize  # a tenth of a second, which importing jvi need not take

    result = minimize(loss, start.params, jac=True, method="L-BFGS-B", bounds=np.stack([-most, most], 1), options=options)
    return Bent(base, order, result.x), -float(result.fun)


def following(base: Affine, order: np.ndarray) -> Bent:
    """The same Gaussian, by a map that mixes draws only: its base mixes nothing."""
    size = len(order)
    root = np.linalg.cholesky((base.chol @ base.chol.T)[np.ix_(order, order)])
    own, widths = np.diag(root), np.empty(size)
    widths[order] = own
    below, _ = entries(size)
    params = np.zeros(_count(size))
    params[4 * size : 4 * size + len(below[0])] = (root / own[:, None])[below]
    return Bent(Affine(base.loc, np.diag(widths)), order, params)


def _count(size: int) -> int:
    below, few = entries(size)
    return 4 * size + len(below[0]) + 3 * len(few[0])
