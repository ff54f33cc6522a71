"""Estimates from fresh draws, and what they say together about a fit."""

from __future__ import annotations

import math
from time import perf_counter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvi import sharding
from jvi._checks import check_count
from jvi._typing import Array, Data, Estimate, PRNGKey
from jvi.bounds import ess
from jvi.diagnostics.psis import khat_threshold, pareto_khat
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives import Params
from jvi.posterior import Posterior, evidence_of, log_weights
from jvi.report import Report

__all__ = ["Verdict", "diagnose", "elbo_estimate", "mean_of", "verdict"]

BATCHES = 4  # k-hat of one sample of 4,000 has a standard error of about 0.1


class Verdict(NamedTuple):
    """What fresh draws say about a fit. Printed, it is one line.

    Attributes:
      elbo: E_q[log p(x, z) - log q(z | x)], nats.
      log_evidence: log p(x) by importance sampling, nats.
      khat: tail shape of the weights: the mean over four batches of the draws, with its standard error.
      threshold: the k-hat up to which a batch of weighted draws is reliable.
      ess: effective sample size of the weights, out of `num_samples`.
      num_samples: S.
    """

    elbo: Estimate
    log_evidence: Estimate
    khat: Estimate
    threshold: float
    ess: float
    num_samples: int

    @property
    def reliable(self) -> bool:
        """Whether k-hat is below its threshold by its own standard error at least.

        Necessary, not sufficient: k-hat cannot see a mode that q never visits.
        """
        return bool(self.khat.value + self.khat.standard_error < self.threshold)

    def __str__(self) -> str:
        facts = f"k-hat {self.khat} (limit {self.threshold:.2f}), ELBO {self.elbo}, log evidence {self.log_evidence}, "
        facts += f"ESS {self.ess:.0f} of {self.num_samples}."
        if not self.reliable:
            return f"NOT RELIABLE: {facts} q misses part of the posterior: try a richer guide, or reparameterize the model."
        if self.khat.value < 0.5:
            return f"reliable: {facts}"
        return f"reliable once weighted: {facts} Weight the draws before taking means."


def elbo_estimate(posterior: Posterior, rng: PRNGKey, *, num_samples: int = 1_000, chunk_size: int | None = None) -> Estimate:
    """The ELBO from fresh draws, nats, with its standard error.

    Args:
      posterior: a model and a guide at fitted parameters.
      rng: key, not the one of the fit.
      num_samples: S, at least 2.
      chunk_size: how many to draw at once, to bound memory.

    Raises:
      TypeError, ValueError: for an old-style key, or a count less than 2.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, 0.0, 0.1))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))  # starts as the exact posterior of this model
      >>> params = jvi.objectives.Params((), guide.init(jax.random.key(0), None))
      >>> elbo = jvi.diagnostics.elbo_estimate(jvi.Posterior(model, guide, params, None), jax.random.key(1))
      >>> bool(abs(elbo.value) < 1e-5)  # log p(x) = 0
      True
    """
    return mean_of(log_weights(posterior, rng, num_samples=num_samples, chunk_size=chunk_size))


def verdict(
    posterior: Posterior, rng: PRNGKey, *, num_samples: int = 40_000, chunk_size: int | None = None, mesh: Mesh | None = None
) -> Verdict:
    """Judge a fit by fresh draws.

    Args:
      posterior: a model and a guide at fitted parameters, on one datum or on all data where the latents are global.
      rng: key, not the one of the fit.
      num_samples: S, at least 100.
      chunk_size: how many to draw at once, to bound memory.
      mesh: devices to split the draws over, made by `jvi.sharding`.

    Raises:
      TypeError, ValueError: for an old-style key, or too few samples.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, 0.0, 0.11))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> params = jvi.objectives.Params((), guide.init(jax.random.key(0), None))
      >>> jvi.diagnostics.verdict(jvi.Posterior(model, guide, params, None), jax.random.key(1)).reliable
      True

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference.
    """
    check_count(num_samples, "num_samples", least=100)
    log_w = log_weights(posterior, rng, num_samples=num_samples, chunk_size=chunk_size, mesh=sharding.check_mesh(mesh))
    size = num_samples // BATCHES
    khat = mean_of(jnp.stack([pareto_khat(log_w[i * size : (i + 1) * size]) for i in range(BATCHES)]))
    return Verdict(mean_of(log_w), evidence_of(log_w), khat, khat_threshold(size), float(ess(log_w)), num_samples)


def diagnose(
    rng: PRNGKey,
    model: Model,
    guide: Guide,
    params: Params,
    x: Data = None,
    *,
    num_samples: int = 40_000,
    mesh: Mesh | None = None,
) -> Report:
    """The report of any guide, however it was trained.

    Args:
      rng: key, not the one of the fit.
      model, guide: what was fitted to what.
      params: their parameters, as a state holds them.
      x: the data it is conditioned on.
      num_samples: fresh draws, at least 100.
      mesh: devices to split the draws over, made by `jvi.sharding`.

    Raises:
      TypeError, ValueError: as `verdict`.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, 0.0, 0.11))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> params = jvi.objectives.Params((), guide.init(jax.random.key(0), None))
      >>> jvi.diagnose(jax.random.key(1), model, guide, params).trusted
      True

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference.
    """
    began = perf_counter()
    found = verdict(Posterior(model, guide, params, x), rng, num_samples=num_samples, mesh=mesh)
    why = f"k-hat {found.khat} with {found.ess:,.0f} effective of {num_samples:,} draws"
    # Equal weights have no tail to fit, and an even half of them carries the answer whatever the tail.
    fine = found.ess > 0.5 * num_samples or (found.reliable and found.ess > 0.05 * num_samples)
    return Report(
        trusted=fine, reasons=(why if fine else f"{why}: the guide misses part of the posterior",),
        advice=() if fine else ("Train longer, take a richer guide, or let jvi.infer correct what is missed.",),
        method=type(guide).__name__, elbo=float(found.elbo.value), elbo_se=float(found.elbo.standard_error),
        log_evidence=float(found.log_evidence.value), log_evidence_se=float(found.log_evidence.standard_error),
        khat=float(found.khat.value), khat_se=float(found.khat.standard_error), ess=found.ess, num_draws=num_samples,
        num_densities=num_samples, seconds=perf_counter() - began,
    )  # fmt: skip


def mean_of(values: Array) -> Estimate:
    """The mean of independent values [S] with its standard error.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> print(jvi.diagnostics.mean_of(jnp.array([1.0, 3.0])))
      2.0 ± 1.0

    Raises:
      ValueError: if there are fewer than 2.
    """
    if np.shape(values)[0] < 2:
        raise ValueError(f"a standard error needs 2 or more samples, got {np.shape(values)[0]}.")
    return Estimate(jnp.mean(values), jnp.std(values, ddof=1) / math.sqrt(values.shape[0]))
