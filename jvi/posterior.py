"""The posterior that a fit stands for: draws, densities, predictions, evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi import plots
from jvi._checks import check_count, check_data, check_key
from jvi._loops import call, monte_carlo
from jvi._one_draw import Each, Predict, PredictEach, draw, log_weight
from jvi._particles import Particles, Summary, named, summarize
from jvi._precision import precise
from jvi._typing import Array, Data, Estimate, Latent, PRNGKey, PyTree, Scalar
from jvi.guides.functions import Guide, is_point
from jvi.models import Model
from jvi.objectives import Params
from jvi.report import Report
from jvi.svi import SVI, State

__all__ = ["Posterior", "log_weights"]


@partial(jax.tree_util.register_dataclass, data_fields=["params", "x", "particles"], meta_fields=["model", "guide", "report"])
@dataclass(frozen=True)
class Posterior:
    """q(z | x) at fitted parameters, beside the model it was fitted to. A pytree: it may be passed into jitted functions.

    One that `jvi.infer` made also holds weighted draws of the posterior itself, and its methods use these in place of q's.

    Attributes:
      model, guide: what was fitted to what.
      params: their parameters.
      x: the data it is conditioned on: one datum where the objective was `per_example`.
      particles: weighted draws of the posterior, or None.
      report: how far to trust it, or None.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z["mean"]) + jax.scipy.stats.norm.logpdf(x, z["mean"]))
      >>> guide = jvi.guides.MeanField(jvi.space({"mean": jvi.real()}))
      >>> svi = jvi.SVI(jvi.elbo(model, guide))
      >>> state, _ = jvi.fit(svi, jax.random.key(0), 2.0, num_steps=5_000)
      >>> posterior = jvi.Posterior.of(svi, state, 2.0)
      >>> draws = posterior.sample(jax.random.key(1), 1_000)["mean"]
      >>> draws.shape, bool(abs(draws.mean() - 1.0) < 0.1)
      ((1000,), True)
    """

    model: Model
    guide: Guide
    params: Params
    x: Data
    particles: Particles | None = None
    report: Report | None = None

    @classmethod
    def of(cls, svi: SVI, state: State, x: Data = None) -> Posterior:
        """The posterior of a run: of its model and guide, at its state's parameters.

        Args:
          svi: what was run; its objective is one of a model and a guide, `per_example` or not.
          state: the run's state.
          x: the data to condition on: what the objective takes, without the batch axis under `per_example`.

        Raises:
          TypeError: if the objective has no model or no guide.
        """
        objective: Any = svi.objective
        while not hasattr(objective, "guide") and hasattr(objective, "objective"):
            objective = objective.objective
        if not (hasattr(objective, "guide") and hasattr(objective, "model")):
            raise TypeError(f"svi.objective must be of a model and a guide, got {objective!r}.")
        return cls(objective.model, objective.guide, state.params, jax.tree.map(jnp.asarray, check_data(x)))

    def sample(self, rng: PRNGKey, num_samples: int, *, chunk_size: int | None = None) -> Latent:
        """Draw from q(z | x); from the particles where there are any.

        Args:
          rng: key.
          num_samples: S.
          chunk_size: how many to draw at once, to bound memory.

        Returns:
          Draws, a pytree like one latent with a leading axis [S, ...]; NumPy arrays, in double precision, from particles, which
          repeat where more are asked for than there are (`report.ess` says how many draws they are worth).

        Raises:
          TypeError, ValueError: for an old-style key, a count less than 1, or a guide that is a point (`jvi.guides.Delta`).
        """
        if self.particles is not None:
            chosen = self.particles.resample(check_key(rng), check_count(num_samples, "num_samples"))
            return jax.tree.map(lambda leaf: leaf[chosen], self.particles.z)
        return monte_carlo(draw, rng, self, num_samples=num_samples, chunk_size=chunk_size)

    def log_prob(self, z: Latent) -> Scalar:
        """log q(z | x) of one latent, nats; use `jax.vmap` for many.

        Of a posterior that `jvi.infer` made, log p(x, z) less the log evidence: the posterior's own density.

        Raises:
          TypeError: if the guide's density is intractable.
        """
        if self.report is not None and self.particles is not None:
            with precise():
                return self.model.log_joint(self.params.model, self.x, z) - self.report.log_evidence
        guide: Any = self.guide
        if not hasattr(guide, "log_prob"):
            raise TypeError(f"{type(guide).__name__} has no log_prob: its density is intractable.")
        return guide.log_prob(self.params.guide, self.x, z)

    def predictive(
        self, rng: PRNGKey, function: Callable[..., PyTree], num_samples: int, *, chunk_size: int | None = None
    ) -> PyTree:
        """Draw from the posterior predictive: `function` of fresh draws of the latent.

        Args:
          rng: key.
          function: `(rng, z) -> prediction`, a pytree of arrays; `(params, rng, z)` with the model's parameters where the model
            is learned. Compared by identity: one defined once compiles once.
          num_samples: S.
          chunk_size: how many to make at once, to bound memory.

        Returns:
          Predictions [S, ...].

        Raises:
          TypeError, ValueError: for an old-style key, or a count less than 1.

        Example:
          >>> import jax, jvi
          >>> model = jvi.model(lambda x, z: -0.5 * z**2)
          >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
          >>> params = jvi.objectives.Params((), guide.init(jax.random.key(0), None))
          >>> posterior = jvi.Posterior(model, guide, params, None)
          >>> posterior.predictive(jax.random.key(1), lambda rng, z: z + jax.random.normal(rng, (3,)), 5).shape
          (5, 3)
        """
        if self.particles is not None:
            draw, predict = jax.random.split(check_key(rng))
            z = jax.tree.map(jnp.asarray, self.sample(draw, num_samples))
            keys = jax.random.split(predict, num_samples)
            return call(PredictEach(function, chunk_size or num_samples), keys, z)
        return monte_carlo(Predict(function), rng, self, num_samples=num_samples, chunk_size=chunk_size)

    def expectation(self, function: Callable[[Latent], PyTree]) -> PyTree:
        """E[function(z)] under the posterior's particles, with Monte Carlo standard errors.

        Args:
          function: `z -> value`, a pytree of arrays. Compared by identity.

        Returns:
          A pytree of `Estimate`s like the value.

        Raises:
          ValueError: if the posterior has no particles: take the mean of `sample` instead.

        Example:
          >>> import jax, jvi
          >>> normal = jax.scipy.stats.norm.logpdf
          >>> posterior = jvi.infer(jax.random.key(0), lambda z: normal(z, 1.0, 2.0), jvi.space(jvi.real()))
          >>> estimate = posterior.expectation(lambda z: z**2)
          >>> abs(float(estimate.value) - 5.0) < 5 * float(estimate.standard_error)
          True
        """
        particles = self._particles()
        with precise():
            values = jax.device_get(call(Each(function), particles.z))
        return jax.tree.map(particles.mean, values)

    def summary(self) -> Summary:
        """Mean, sd, quantiles, standard error, ESS and k-hat of every entry of the latent.

        Raises:
          ValueError: if the posterior has no particles.
        """
        return summarize(self._particles())

    def to_arviz(self, *, num_chains: int = 4) -> Any:
        """The particles as equally weighted draws in ArviZ's container: a DataTree (ArviZ 1) or an InferenceData (before).

        Args:
          num_chains: into how many chains to deal the draws, which are independent of one another.

        Raises:
          ImportError: if ArviZ is not installed.
          ValueError: if the posterior has no particles.
        """
        import arviz

        particles = self._particles()
        chosen = particles.resample(jax.random.key(0), len(particles.log_w) // num_chains * num_chains)

        def deal(leaf: Any) -> Any:
            return leaf[chosen].reshape(num_chains, -1, *leaf.shape[1:])

        draws = {name or "z": deal(leaf) for name, leaf in named(particles.z)}
        groups: Any = {"posterior": draws}
        return arviz.from_dict(groups) if int(arviz.__version__.split(".")[0]) else arviz.from_dict(**groups)

    def plot(self) -> Any:
        """Histograms of every entry of the latent, a matplotlib figure.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        return plots.marginals(self.sample(jax.random.key(0), 5_000))

    def __str__(self) -> str:
        if self.report is None:
            return repr(self)
        return f"{self.report}\n\n{self.summary()}" if self.particles is not None else str(self.report)

    def _particles(self) -> Particles:
        if self.particles is None:
            raise ValueError("this posterior has no particles: jvi.infer makes them; here use sample(rng, num_samples).")
        return self.particles

    def log_evidence(self, rng: PRNGKey | None = None, num_samples: int = 10_000, *, chunk_size: int | None = None) -> Estimate:
        """log p(x), nats, with its standard error: the report's where `jvi.infer` made it, else by importance sampling from q.

        In expectation it is a lower bound, the importance-weighted one of `num_samples` draws. Where k-hat is above its threshold
        neither the estimate nor its standard error can be relied on.

        Args:
          rng: key; not used where there is a report.
          num_samples: S, at least 2.
          chunk_size: how many to draw at once, to bound memory.

        Raises:
          TypeError, ValueError: for no key or an old-style one, or a count less than 2.

        References:
          Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
        """
        if self.report is not None:
            return Estimate(self.report.log_evidence, self.report.log_evidence_se)
        return evidence_of(log_weights(self, check_key(rng), num_samples=num_samples, chunk_size=chunk_size))


def log_weights(
    posterior: Posterior, rng: PRNGKey, *, num_samples: int, chunk_size: int | None = None, mesh: Any = None
) -> Array:
    """Fresh log-weights log p(x, z) - log q(z | x), [S], nats: what all diagnostics are made of.

    Args:
      posterior: of one datum, or of all data where the latents are global.
      rng: key.
      num_samples: S.
      chunk_size: how many to draw at once, to bound memory.
      mesh: of devices to split the draws over, or None.

    Raises:
      TypeError, ValueError: for an old-style key, or a count less than 1.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, 0.0, 0.1))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))  # starts as the exact posterior of this model
      >>> params = jvi.objectives.Params((), guide.init(jax.random.key(0), None))
      >>> log_w = jvi.posterior.log_weights(jvi.Posterior(model, guide, params, None), jax.random.key(1), num_samples=3)
      >>> log_w.shape, bool(abs(log_w).max() < 1e-5)
      ((3,), True)
    """
    if is_point(posterior.guide):
        raise ValueError(
            "a jvi.guides.Delta is a point, without a density: its weights say nothing of the evidence or of how good it is. The "
            "objective's own value is log p(x, z) there."
        )
    bare = replace(posterior, particles=None, report=None)  # else every report would compile anew
    return monte_carlo(log_weight, rng, bare, num_samples=num_samples, chunk_size=chunk_size, mesh=mesh)


def evidence_of(log_w: Array) -> Estimate:
    """log mean_s w_s with its delta-method standard error sd(w) / (mean(w) sqrt(S))."""
    num_samples = log_w.shape[0]
    if num_samples < 2:
        raise ValueError(f"num_samples must be 2 or more for a standard error, got {num_samples}.")
    log_mean = logsumexp(log_w) - math.log(num_samples)
    relative = jnp.exp(log_w - log_mean)
    return Estimate(log_mean, jnp.std(relative, ddof=1) / math.sqrt(num_samples))
