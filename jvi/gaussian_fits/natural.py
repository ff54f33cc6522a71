"""Natural-gradient variational inference with a full-rank Gaussian."""

from __future__ import annotations

from functools import partial
from time import perf_counter

import numpy as np

from jvi._checks import check_count
from jvi._targets import Density
from jvi._typing import Data, PRNGKey
from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._shared import LogJoint, begin, climbed, finish_member, settled
from jvi.gaussian_fits._triangular import Triangular
from jvi.posterior import Posterior
from jvi.spaces import Space

__all__ = ["natural_gradient"]


def natural_gradient(
    rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data = None, *, num_steps: int = 100, num_starts: int = 4
) -> Posterior:
    """A full-rank Gaussian by natural-gradient steps on fixed draws, whose mean is zero and whose covariance is the identity.

    For q = N(m, S) a step of rate r takes S^-1 to (1 - r) S^-1 - r E[Hessian] and m to m + r S E[gradient], with the new S; the
    expected Hessian comes from gradients by Stein's identity. The rate is one, halves where the ELBO would fall and doubles where
    it rose; the draws double until fresh ones give the same ELBO.

    Args:
      rng: key.
      log_joint: log p(x, z), nats: `(x, z) -> scalar`, or `(z) -> scalar` when `x` is None.
      space: where the latent lives.
      x: data.
      num_steps: at most, for each number of draws.
      num_starts: ascents to begin from; the best is refined.

    Example:
      >>> import jax, jvi
      >>> normal = jax.scipy.stats.norm.logpdf
      >>> fit = jvi.gaussian_fits.natural_gradient(jax.random.key(0), lambda z: normal(z, 1.0, 2.0), jvi.space(jvi.real()))
      >>> round(float(fit.params.guide.loc[0]), 3)
      1.0

    References:
      Khan and Lin (2017), Conjugate-Computation Variational Inference; Lin, Schmidt and Khan (2020), Handling the Positive-Definite
      Constraint in the Bayesian Learning Rule.
    """
    began = perf_counter()
    density, generator = begin(rng, log_joint, space, x)
    refine = partial(_refined, num_steps=check_count(num_steps, "num_steps"))
    start = Triangular.of(climbed(density, generator, num_starts), (tuple(range(space.size)),))
    member = settled(density, generator, start, refine)
    return finish_member(density, generator, member, began, "a full-rank Gaussian by natural gradients")


def natural_ascent(density: Density, start: Gaussian, draws: np.ndarray, *, num_steps: int = 100) -> Gaussian:
    """Natural-gradient steps from `start`, none of which lowers the sample-average ELBO.

    Args:
      density: the target.
      start: where to begin.
      draws: standard normal [N, D], `whitened`; held fixed.
      num_steps: at most, those included that the guard refused.

    Returns:
      The Gaussian with its sample-average ELBO; the start, with minus infinity, where the target is not finite at its draws.
    """
    count, size = draws.shape
    loc, root = start.loc, start.chol
    # The root is not triangular on the way: symmetric changes keep each draw where it is, so that the ELBOs can be compared.
    log_det = float(np.sum(np.log(np.diag(root))))
    values, grads = density.grads(loc + draws @ root.T)
    elbo = _elbo(values, log_det, size)
    if not np.isfinite(elbo):
        return start._replace(elbo=-np.inf)
    rate = 1.0
    for _ in range(num_steps):
        pulled = grads @ root
        outer = pulled.T @ draws / count
        curvature, vectors = np.linalg.eigh(-0.5 * (outer + outer.T))
        precision = _precision(curvature, rate)
        change = vectors / np.sqrt(precision) @ vectors.T
        loc_new = loc + rate * root @ (change @ (change @ pulled.mean(0)))
        root_new, log_det_new = root @ change, log_det - 0.5 * float(np.sum(np.log(precision)))
        values, grads_new = density.grads(loc_new + draws @ root_new.T)
        gain = _elbo(values, log_det_new, size) - elbo
        if gain < 0.0 and rate > 1e-4:
            rate *= 0.5
            continue
        if gain < 0.0:
            break
        loc, root, log_det, grads, elbo, rate = loc_new, root_new, log_det_new, grads_new, elbo + gain, min(1.0, 2.0 * rate)
        if gain < 1e-9 + 10.0 * density.eps * abs(elbo):
            break
    chol = np.transpose(np.linalg.qr(root.T)[1])
    return Gaussian(loc, chol * np.sign(np.diag(chol)), elbo)


def _precision(curvature: np.ndarray, rate: float) -> np.ndarray:
    """The eigenvalues of the new precision, in the frame of the Gaussian, from those of the expected negative Hessian.

    Where one is negative Lin, Schmidt and Khan's term of second order keeps the precision positive; elsewhere it would only make
    the step miss a quadratic's answer.
    """
    change = rate * (curvature - 1.0)
    return np.where(curvature > 0.0, 1.0 + change, 0.5 * (1.0 + (1.0 + change) ** 2))


def _elbo(values: np.ndarray, log_det: float, size: int) -> float:
    return float(np.mean(values)) + log_det + 0.5 * size * (1.0 + LOG_2PI)


def _refined(density: Density, member: Triangular, noise: np.ndarray, *, num_steps: int) -> tuple[Triangular, float]:
    found = natural_ascent(density, Gaussian(member.loc, member.roots[0][0], -np.inf), noise, num_steps=num_steps)
    return Triangular.of(found, (tuple(range(len(found.loc))),)), found.elbo
