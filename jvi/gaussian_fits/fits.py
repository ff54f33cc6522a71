"""Gaussian fits that need no learning rate, each usable alone: `(rng, log_joint, space, x) -> Posterior`."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from scipy.linalg import solve_triangular

from jvi._frames import Affine
from jvi._mixtures import Mixture
from jvi._targets import Density, target_of
from jvi._typing import Data, PRNGKey
from jvi.gaussian_fits._climb import Gaussian, climb
from jvi.gaussian_fits._draws import whitened
from jvi.gaussian_fits._saa import M, fitted
from jvi.gaussian_fits._shared import LogJoint, begin, finish, finish_member, member_of, settled, starts
from jvi.gaussian_fits.families import Family, FullRank
from jvi.posterior import Posterior
from jvi.spaces import Space

__all__ = ["laplace", "linear_response", "moment_matched", "pathfinder"]

_FULL_RANK = FullRank()
_ROUNDS = 3


def moment_matched(
    rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data = None, *, family: Family = _FULL_RANK, num_starts: int = 4
) -> Posterior:
    """The Gaussian of largest ELBO of a family, on fixed draws whose mean is zero and whose covariance is the identity.

    L-BFGS maximizes the sample average; the draws double until fresh ones give the same ELBO.

    Args:
      rng: key.
      log_joint: log p(x, z), nats: `(x, z) -> scalar`, or `(z) -> scalar` when `x` is None.
      space: where the latent lives.
      x: data.
      family: of `jvi.gaussian_fits.families`: which coordinates may depend on which. `LowRank`, `Markov` and small `Blocks` are fitted
        in time and memory linear in D.
      num_starts: ascents to begin from; the best is refined.

    Returns:
      The posterior; its guide is `MeanField`, `LowRank`, or for the other families `FullRank`.

    Raises:
      ValueError: if the family does not fit the space.

    Example:
      >>> import jax, jvi
      >>> normal = jax.scipy.stats.norm.logpdf
      >>> fit = jvi.gaussian_fits.moment_matched(jax.random.key(0), lambda z: normal(z, 1.0, 2.0), jvi.space(jvi.real()))
      >>> round(float(fit.params.guide.loc[0]), 3), abs(fit.report.elbo) < 1e-6  # exact: log Z = 0
      (1.0, True)

    References:
      Burroni, Domke and Sheldon (2024), Sample Average Approximation for Black-Box VI; Giordano, Ingram and Broderick (2024), DADVI.
    """
    began = perf_counter()
    density, generator = begin(rng, log_joint, space, x)
    _check_family(family, space)
    member = settled(density, generator, member_of(family, density, generator, num_starts), _refined)
    return finish_member(density, generator, member, began, f"the best Gaussian of {family}")


def laplace(rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data = None, *, num_starts: int = 4) -> Posterior:
    """The Gaussian of the curvature at the highest mode that ascents from several starts found.

    Args:
      rng, log_joint, space, x: as for `moment_matched`.
      num_starts: ascents.

    Example:
      >>> import jax, jvi
      >>> normal = jax.scipy.stats.norm.logpdf
      >>> fit = jvi.gaussian_fits.laplace(jax.random.key(0), lambda z: normal(z, 1.0, 2.0), jvi.space(jvi.real()))
      >>> round(float(fit.params.guide.loc[0]), 3)
      1.0

    References:
      Tierney and Kadane (1986), Accurate Approximations for Posterior Moments and Marginal Densities.
    """
    began = perf_counter()
    density, generator = begin(rng, log_joint, space, x)
    climbs = climb(density, starts(density, generator, num_starts), generator)
    top = max(climbs, key=lambda one: one.log_density)
    return finish(density, generator, Gaussian(top.mode, top.chol, np.nan), began, "the Laplace approximation")


def pathfinder(rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data = None, *, num_paths: int = 8) -> Posterior:
    """Of all Gaussians on the ascents to the modes, those of largest ELBO, one a path, mixed and importance-weighted.

    The paths are Newton's, on differences of gradients, where Pathfinder's are those of L-BFGS.

    Args:
      rng, log_joint, space, x: as for `moment_matched`.
      num_paths: ascents.

    Example:
      >>> import jax, jvi
      >>> normal = jax.scipy.stats.norm.logpdf
      >>> fit = jvi.gaussian_fits.pathfinder(jax.random.key(0), lambda z: normal(z, 1.0, 2.0), jvi.space(jvi.real()))
      >>> fit.report.khat < 0.7
      True

    References:
      Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: Parallel Quasi-Newton Variational Inference.
    """
    began = perf_counter()
    density, generator = begin(rng, log_joint, space, x)
    climbs = climb(density, starts(density, generator, num_paths), generator)
    fits = sorted((one.best for one in climbs if np.isfinite(one.best.elbo)), key=lambda fit: -fit.elbo)
    frame = Affine(fits[0].loc, fits[0].chol)
    share = np.exp(np.array([fit.elbo for fit in fits]) - fits[0].elbo)
    mixture = Mixture(
        np.log(share / share.sum() + 1e-300),
        np.stack([frame.into(fit.loc[None])[0] for fit in fits]),
        np.stack([solve_triangular(frame.chol, fit.chol, lower=True) for fit in fits]),
        1e6,  # Gaussian
    )
    return finish(density, generator, fits[0], began, f"{len(fits)} paths", mixture)


def linear_response(posterior: Posterior) -> np.ndarray:
    """Covariances [D, D] of the coordinates from a mean-field fit's means: how they respond to a tilt of the log-joint.

    The ELBO's maximum over the means at the fitted widths moves with the tilt by the inverse of its curvature, which is the
    posterior covariance where the posterior is Gaussian, however wrong the mean-field variances are.

    Args:
      posterior: of `moment_matched(..., family=families.Diagonal())`, or any Gaussian fit.

    Returns:
      The covariance [D, D], in the order of `space.names`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> precision = jnp.array([[2.0, 1.2], [1.2, 1.0]])
      >>> log_joint = lambda z: -0.5 * z @ precision @ z
      >>> family = jvi.gaussian_fits.families.Diagonal()
      >>> fit = jvi.gaussian_fits.moment_matched(jax.random.key(0), log_joint, jvi.space(jvi.real(2)), family=family)
      >>> jvi.gaussian_fits.linear_response(fit).round(2) + 0.0
      array([[ 1.79, -2.14],
             [-2.14,  3.57]])

    References:
      Giordano, Broderick and Jordan (2018), Covariances, Robustness, and Variational Bayes.
    """
    guide = posterior.params.guide
    density = Density(target_of(posterior.model, posterior.guide.space), posterior.x)  # pyright: ignore[reportAttributeAccessIssue]
    loc, scale = np.asarray(guide.loc, float), np.exp(np.asarray(guide.log_scale, float))
    draws = whitened(np.random.default_rng(0), max(64, 4 * len(loc)), len(loc), dense=len(loc) <= 500)
    step = 1e-4 * scale
    gradients = [np.mean(density.grads(loc + sign * h + scale * draws)[1], 0) for h in np.diag(step) for sign in (1.0, -1.0)]
    hessian = (np.stack(gradients[::2]) - np.stack(gradients[1::2])) / (2.0 * step[:, None])
    return np.linalg.inv(-0.5 * (hessian + hessian.T))


def _refined(density: Density, member: M, noise: np.ndarray) -> tuple[M, float]:
    """The best member on fixed noise; each round of L-BFGS begins in the frame of what the last one found."""
    member, elbo = fitted(density, member, noise)
    for _ in range(_ROUNDS):
        before = elbo
        member, elbo = fitted(density, member, noise)
        if not elbo > before + 1e-3:
            break
    return member, elbo


def _check_family(family: Family, space: Space) -> None:
    if not isinstance(family, Family):
        raise TypeError(f"family must be one of jvi.gaussian_fits.families, as in FullRank() or LowRank(4); got {family!r}.")
    family.check(space)
