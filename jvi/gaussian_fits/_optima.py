"""Several optima: which of them are distinct, and whether there are more."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from jvi._frames import Affine
from jvi._targets import Density
from jvi.gaussian_fits._climb import Gaussian, climb

MASS = 12.0  # nats by which an optimum's ELBO may lie below the best one's: e^-12 of the mass is none


def distinct(fits: list[Gaussian]) -> list[Gaussian]:
    """Those whose centre lies outside of what a better one covers; `fits` come best first."""
    out: list[Gaussian] = []
    for fit in fits:
        squares = [np.sum(solve_triangular(other.chol, fit.loc - other.loc, lower=True) ** 2) for other in out]
        if all(square > len(fit.loc) + 6.0 * np.sqrt(2.0 * len(fit.loc)) for square in squares):
            out.append(fit)
    return out


def others(
    density: Density, fits: list[Gaussian], rng: np.random.Generator, *, num_starts: int = 48, num_steps: int = 40
) -> list[Gaussian]:
    """Optima that ascents from afar find beside those known.

    They ascend in the best fit's metric, a gradient each a step, from points 2 to 100 of its sds away from a known one; what ends
    elsewhere than in these climbs on by `climb`.

    Args:
      density: the target.
      fits: the known optima, best first.
      rng: of the starting points.
      num_starts: ascents.
      num_steps: of each.
    """
    frame, size = Affine(fits[0].loc, fits[0].chol), len(fits[0].loc)
    far = 2.0 * 50.0 ** rng.uniform(size=(num_starts, 1)) * min(1.0, 3.0 / np.sqrt(size))
    centres = frame.into(np.stack([fit.loc for fit in fits]))[rng.integers(len(fits), size=num_starts)]
    v = centres + far * rng.normal(size=(num_starts, size))
    value, grad = density.grads(frame.out(v))
    step = np.ones(num_starts)
    for _ in range(num_steps):
        slope = grad @ frame.chol
        # No step goes farther than the way back, however steep the slope.
        most = (1.0 + np.linalg.norm(v, axis=1)) / np.maximum(np.linalg.norm(slope, axis=1), 1e-300)
        trial = v + (step * np.minimum(most, 1.0))[:, None] * slope
        value_new, grad_new = density.grads(frame.out(trial))
        better = value_new > value
        value = np.where(better, value_new, value)
        v, grad = (np.where(better[:, None], new, old) for new, old in ((trial, v), (grad_new, grad)))
        step = np.where(better, np.minimum(1.5 * step, 2.0), 0.3 * step)
    # A point so far below the best optimum that a Gaussian there would hold no mass is no candidate.
    least = density.values(fits[0].loc[None])[0] - MASS - 8.0 - 2.0 * size
    ends = [Gaussian(u, frame.chol, float(f)) for u, f in zip(frame.out(v), value, strict=True) if f > least]
    new = distinct([*fits, *sorted(ends, key=lambda end: -end.elbo)])[len(fits) :][:12]
    if not new:
        return []
    climbed = [one.best for one in climb(density, np.stack([end.loc for end in new]), rng)]
    climbed = [fit for fit in climbed if fit.elbo > fits[0].elbo - MASS]
    return distinct([*fits, *sorted(climbed, key=lambda fit: -fit.elbo)])[len(fits) :]
