"""Draws of a proposal weighed against a target, and the posterior made of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from jvi._frames import Frame
from jvi._mixtures import Mixture
from jvi._particles import Particles
from jvi._precision import precise
from jvi._targets import Density
from jvi._typing import PyTree
from jvi.diagnostics.psis import khat_of, smooth
from jvi.guides.functions import Guide
from jvi.guides.gaussian import FullRank, dense
from jvi.objectives import Params
from jvi.posterior import Posterior
from jvi.report import Report

KHAT = 0.7
ESS = 2_000.0  # effective draws: means of 10 quantities are then within 0.1 sd with probability 0.9999
DRAWS = 10_000


class Weighed(NamedTuple):
    """Draws of a proposal, weighed against the target.

    Attributes:
      u: coordinates [S, D].
      log_w: log-weights [S].
      smoothed: Pareto-smoothed, normalized [S].
      khat, khat_se: tail shape, the mean of four batches, and its standard error.
      log_evidence, log_evidence_se: nats; the error allows for a tail of weights that the draws have not seen.
      ess: effective number of draws.
      elbo, elbo_se: mean log-weight, nats: the proposal's ELBO.
    """

    u: np.ndarray
    log_w: np.ndarray
    smoothed: np.ndarray
    khat: float
    khat_se: float
    log_evidence: float
    log_evidence_se: float
    ess: float
    elbo: float
    elbo_se: float

    @property
    def good(self) -> bool:
        """Whether the weights pass: k-hat is low, and they are even enough for what they rest on to have been seen.

        Where most draws count in full, the tail that k-hat describes carries next to nothing.
        """
        share = self.ess / len(self.u)
        if share > 0.5:
            return self.khat < 1.0 or share > 0.99  # equal weights have no tail to fit
        return self.khat + self.khat_se < KHAT and self.ess >= ESS and share > (0.15 if self.khat < 0.5 else 0.3)

    @property
    def quality(self) -> tuple[bool, float]:
        """Larger is better."""
        return self.good, self.ess / len(self.u) - max(self.khat - KHAT, 0.0)


def weigh(density: Density, frame: Frame, mixture: Mixture, rng: np.random.Generator, num_samples: int = DRAWS) -> Weighed:
    """Draw from a mixture in a frame, and weigh."""
    v = mixture.sample(rng, num_samples)
    u = frame.out(v)
    return weighed(u, density.values(u) + frame.log_det(v) - mixture.log_prob(v))


def weighed(u: np.ndarray, raw: np.ndarray) -> Weighed:
    """What draws u [S, D] of log-weights `raw` [S] tell; S is a multiple of four."""
    num_samples = len(u)
    finite = np.isfinite(raw)
    if not finite.any():
        nothing = np.full(num_samples, -np.log(num_samples))
        return Weighed(u, raw, nothing, np.inf, 0.0, -np.inf, np.inf, 0.0, -np.inf, np.inf)
    log_w = np.where(finite, raw, -1e300)
    khats = np.array([khat_of(batch) for batch in np.split(log_w, 4)])
    smoothed = smooth(log_w)
    log_z = float(logsumexp(log_w)) - float(np.log(num_samples))
    khat, khat_se = float(khats.mean()), float(khats.std(ddof=1) / 2.0)
    error = float(np.std(np.exp(log_w - log_z)) / np.sqrt(num_samples)) * slower(khat + khat_se, num_samples)
    return Weighed(
        u, log_w, smoothed, khat, khat_se, log_z, error, float(np.exp(-logsumexp(2.0 * smoothed))),
        float(np.mean(raw)) if finite.all() else -np.inf, float(np.std(raw[finite]) / np.sqrt(num_samples)),
    )  # fmt: skip


def slower(khat: float, count: int) -> float:
    """How many times as far as their sample variance says the mean of `count` weights lies off: it tells too little of a heavy tail.

    Example:
      >>> from jvi.gaussian_fits._weigh import slower
      >>> [round(slower(khat, 10_000), 1) for khat in (0.0, 0.3, 0.5, 0.6, 0.7)]
      [1.0, 1.0, 1.6, 3.0, 6.6]

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling: the rate of convergence by k-hat.
    """
    if not khat > 0.0:
        return 1.0
    k, n = min(khat, 0.99), float(count)
    k = k + 1e-6 if abs(k - 0.5) < 1e-6 else k  # where numerator and denominator vanish
    rate = (2.0 * (k - 1.0) * n ** (2.0 * k + 1.0) + (1.0 - 2.0 * k) * n ** (2.0 * k) + n**2) / (
        (n - 1.0) * (n - n ** (2.0 * k))
    )
    return float(n ** (0.5 - 0.5 * np.clip(rate, 0.0, 1.0)))


def posterior_of(
    density: Density, loc: np.ndarray, chol: np.ndarray, report: Report, u: np.ndarray, log_w: np.ndarray, generations: int = 1
) -> Posterior:
    """The posterior of a Gaussian N(loc, chol chol') with weighed draws."""
    with precise():
        params = dense(jnp.asarray(loc), jnp.asarray(chol))
    return posterior_with(density, FullRank(density.target.space), params, report, u, log_w, generations)


def posterior_with(
    density: Density, guide: Guide, params: PyTree, report: Report, u: np.ndarray, log_w: np.ndarray, generations: int = 1
) -> Posterior:
    """The posterior of any guide with weighed draws."""
    particles = Particles(density.constrain(u), log_w, generations)
    with precise():
        params, x = jax.device_get(Params((), params)), jax.device_get(density.x)
    return Posterior(density.target.model, guide, params, x, particles, report)
