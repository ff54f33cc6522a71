"""Gaussian fits that need no learning rate, each usable alone: `(rng, log_joint, space, x) -> Posterior`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import jax
import numpy as np
from scipy.linalg import solve_triangular

from jvi._checks import check_count, check_data, check_key
from jvi._frames import Affine
from jvi._mixtures import Mixture
from jvi._targets import Density, target_of
from jvi._typing import Data, PRNGKey, Scalar
from jvi.gaussian_fits._climb import Gaussian, climb, entropy
from jvi.gaussian_fits._saa import diagonal as fit_diagonal
from jvi.gaussian_fits._saa import full_rank, whitened
from jvi.gaussian_fits._weigh import posterior_of, weigh
from jvi.posterior import Posterior
from jvi.report import Report
from jvi.spaces import Space

__all__ = ["batch_and_match", "laplace", "linear_response", "moment_matched", "pathfinder"]

LogJoint = Callable[..., Scalar]


def moment_matched(
    rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data = None, *, diagonal: bool = False, num_starts: int = 4
) -> Posterior:
    """The Gaussian of largest ELBO, on fixed draws whose mean is zero and whose covariance is the identity.

    L-BFGS maximizes the sample average; the draws double until fresh ones give the same ELBO.

    Args:
      rng: key.
      log_joint: log p(x, z), nats: `(x, z) -> scalar`, or `(z) -> scalar` when `x` is None.
      space: where the latent lives.
      x: data.
      diagonal: fit a mean-field Gaussian in place of a full-rank one.
      num_starts: ascents to begin from; the best is refined.

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
    density, generator = _begin(rng, log_joint, space, x)
    fit = _climbed(density, generator, num_starts)
    size, refine = space.size, fit_diagonal if diagonal else full_rank
    if diagonal:
        fit = fit._replace(chol=np.diag(np.diag(fit.chol)))
    # Cross moments matter to a mean-field fit too; it can do without where that many draws are too many.
    dense = not diagonal or size <= 500
    count = max(64, 8 * size) if dense else 64
    while True:
        fit = refine(density, fit, whitened(generator, count + count % 2, size, dense=dense))
        values = density.values(Affine(fit.loc, fit.chol).out(generator.normal(size=(8_192, size)))) + entropy(fit.chol)
        gap, error = fit.elbo - float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))
        if not gap > max(0.02, 2.0 * error) or count >= 2**14:
            return _finish(density, generator, fit, began, "a mean-field Gaussian" if diagonal else "a full-rank Gaussian")
        count *= 2


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
    density, generator = _begin(rng, log_joint, space, x)
    climbs = climb(density, _starts(density, generator, num_starts), generator)
    top = max(climbs, key=lambda one: one.log_density)
    return _finish(density, generator, Gaussian(top.mode, top.chol, np.nan), began, "the Laplace approximation")


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
    density, generator = _begin(rng, log_joint, space, x)
    climbs = climb(density, _starts(density, generator, num_paths), generator)
    fits = sorted((one.best for one in climbs if np.isfinite(one.best.elbo)), key=lambda fit: -fit.elbo)
    frame = Affine(fits[0].loc, fits[0].chol)
    share = np.exp(np.array([fit.elbo for fit in fits]) - fits[0].elbo)
    mixture = Mixture(
        np.log(share / share.sum() + 1e-300),
        np.stack([frame.into(fit.loc[None])[0] for fit in fits]),
        np.stack([solve_triangular(frame.chol, fit.chol, lower=True) for fit in fits]),
        1e6,  # Gaussian
    )
    return _finish(density, generator, fits[0], began, f"{len(fits)} paths", mixture)


def batch_and_match(
    rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data = None, *, num_steps: int = 60, num_draws: int | None = None
) -> Posterior:
    """A full-rank Gaussian whose score matches the posterior's on batches of draws, by closed-form proximal steps.

    Args:
      rng, log_joint, space, x: as for `moment_matched`.
      num_steps: proximal steps.
      num_draws: B, draws of a step; max(32, 2 D) by default.

    Example:
      >>> import jax, jvi
      >>> normal = jax.scipy.stats.norm.logpdf
      >>> fit = jvi.gaussian_fits.batch_and_match(jax.random.key(0), lambda z: normal(z, 1.0, 2.0), jvi.space(jvi.real()))
      >>> round(float(fit.params.guide.loc[0]), 2)
      1.0

    References:
      Cai et al. (2024), Batch and Match: Black-Box Variational Inference with a Score-Based Divergence.
    """
    began = perf_counter()
    density, generator = _begin(rng, log_joint, space, x)
    count = max(32, 2 * space.size) if num_draws is None else check_count(num_draws, "num_draws", least=2)
    fit = _climbed(density, generator, 4)
    best, frame = fit, Affine(fit.loc, fit.chol)
    for t in range(check_count(num_steps, "num_steps")):
        eps = generator.normal(size=(count, space.size))
        values, grads = density.grads(frame.out(eps))
        elbo = float(np.mean(values)) + entropy(frame.chol)
        if not np.isfinite(elbo):
            break
        best = Gaussian(frame.loc, frame.chol, elbo)
        frame = _matched(frame, eps, grads @ frame.chol, count * space.size / (t + 1.0))
    return _finish(density, generator, best, began, "a full-rank Gaussian whose scores match")


def _matched(frame: Affine, eps: np.ndarray, grads: np.ndarray, rate: float) -> Affine:
    """One proximal step, in the frame of the Gaussian: the scores `grads` at standard normal draws, weighed by `rate`."""
    identity = np.eye(eps.shape[1])
    mean, score = eps.mean(0), grads.mean(0)
    pull = rate / (1.0 + rate)
    u = rate * np.cov(grads.T, bias=True).reshape(identity.shape) + pull * np.outer(score, score)
    v = identity + rate * np.cov(eps.T, bias=True).reshape(identity.shape) + pull * np.outer(mean, mean)
    root = np.linalg.cholesky(v)
    values, vectors = np.linalg.eigh(root.T @ u @ root)
    # S solves S u S + S = v.
    scaled = vectors * np.sqrt(2.0 / (1.0 + np.sqrt(1.0 + 4.0 * np.maximum(values, 0.0))))
    covariance = (root @ scaled) @ (root @ scaled).T
    loc = frame.loc + frame.chol @ (pull * (covariance @ score + mean))
    return Affine(loc, frame.chol @ np.linalg.cholesky(covariance))


def linear_response(posterior: Posterior) -> np.ndarray:
    """Covariances [D, D] of the coordinates from a mean-field fit's means: how they respond to a tilt of the log-joint.

    The ELBO's maximum over the means at the fitted widths moves with the tilt by the inverse of its curvature, which is the
    posterior covariance where the posterior is Gaussian, however wrong the mean-field variances are.

    Args:
      posterior: of `moment_matched(..., diagonal=True)`, or any Gaussian fit.

    Returns:
      The covariance [D, D], in the order of `space.names`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> precision = jnp.array([[2.0, 1.2], [1.2, 1.0]])
      >>> log_joint = lambda z: -0.5 * z @ precision @ z
      >>> fit = jvi.gaussian_fits.moment_matched(jax.random.key(0), log_joint, jvi.space(jvi.real(2)), diagonal=True)
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


def _begin(rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data) -> tuple[Density, np.random.Generator]:
    rng = check_key(rng)
    density = Density(target_of(log_joint, space, with_data=x is not None), check_data(x))
    return density, np.random.default_rng(np.asarray(jax.random.key_data(rng)))


def _starts(density: Density, rng: np.random.Generator, count: int) -> np.ndarray:
    size = density.target.space.size
    points = np.concatenate([np.zeros((1, size)), rng.uniform(-2.0, 2.0, size=(63, size))])
    finite = np.isfinite(density.grads(points)[0])
    if not finite.any():
        raise ValueError(
            f"the log-joint is finite at none of {len(points)} points around the origin of {density.target.space}."
        )
    return points[finite][: check_count(count, "count")]


def _climbed(density: Density, rng: np.random.Generator, count: int) -> Gaussian:
    climbs = climb(density, _starts(density, rng, count), rng)
    return max((one.best for one in climbs), key=lambda fit: fit.elbo)


def _finish(
    density: Density, rng: np.random.Generator, fit: Gaussian, began: float, method: str, mixture: Mixture | None = None
) -> Posterior:
    frame, size = Affine(fit.loc, fit.chol), len(fit.loc)
    mixture = mixture or Mixture(np.zeros(1), np.zeros((1, size)), np.eye(size)[None], 1e6)
    weighed = weigh(density, frame, mixture, rng)
    why = f"k-hat {weighed.khat:.2f} with {weighed.ess:,.0f} effective of {len(weighed.u):,} draws"
    report = Report(
        trusted=weighed.good, reasons=(why if weighed.good else f"{why}: the fit misses part of the posterior",),
        advice=() if weighed.good else ("Use jvi.infer, which corrects what a Gaussian misses.",), method=method,
        elbo=weighed.elbo, elbo_se=weighed.elbo_se, log_evidence=weighed.log_evidence, log_evidence_se=weighed.log_evidence_se,
        khat=weighed.khat, khat_se=weighed.khat_se, ess=weighed.ess, num_draws=len(weighed.u),
        num_grads=density.num_grads, num_densities=density.num_values, seconds=perf_counter() - began,
    )  # fmt: skip
    return posterior_of(density, fit.loc, fit.chol, report, weighed.u, weighed.smoothed)
