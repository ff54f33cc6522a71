"""The posterior that a fit stands for: draws, densities, predictions, evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi._checks import check_data
from jvi._loops import monte_carlo
from jvi._spec import spec
from jvi._typing import Array, Data, Estimate, Latent, PRNGKey, PyTree, Scalar
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives import Params
from jvi.svi import SVI, State

__all__ = ["Posterior", "log_weights"]


@partial(jax.tree_util.register_dataclass, data_fields=["params", "x"], meta_fields=["model", "guide"])
@dataclass(frozen=True)
class Posterior:
    """q(z | x) at fitted parameters, beside the model it was fitted to. A pytree: it may be passed into jitted functions.

    Attributes:
      model, guide: what was fitted to what.
      params: their parameters.
      x: the data it is conditioned on: one datum where the objective was `per_example`.

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
        """Draw from q(z | x).

        Args:
          rng: key.
          num_samples: S.
          chunk_size: how many to draw at once, to bound memory.

        Returns:
          Draws, a pytree like one latent with a leading axis [S, ...].

        Raises:
          TypeError, ValueError: for an old-style key, or a count less than 1.
        """
        return monte_carlo(_draw, rng, self, num_samples=num_samples, chunk_size=chunk_size)

    def log_prob(self, z: Latent) -> Scalar:
        """log q(z | x) of one latent, nats; use `jax.vmap` for many.

        Raises:
          TypeError: if the guide's density is intractable.
        """
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
        return monte_carlo(_Predict(function), rng, self, num_samples=num_samples, chunk_size=chunk_size)

    def log_evidence(self, rng: PRNGKey, num_samples: int = 10_000, *, chunk_size: int | None = None) -> Estimate:
        """log p(x) by importance sampling from q, nats, with the delta method's standard error.

        In expectation it is a lower bound, the importance-weighted one of `num_samples` draws. Where k-hat is above its threshold
        neither the estimate nor its standard error can be relied on.

        Args:
          rng: key.
          num_samples: S, at least 2.
          chunk_size: how many to draw at once, to bound memory.

        Raises:
          TypeError, ValueError: for an old-style key, or a count less than 2.

        References:
          Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
        """
        return evidence_of(log_weights(self, rng, num_samples=num_samples, chunk_size=chunk_size))


def log_weights(posterior: Posterior, rng: PRNGKey, *, num_samples: int, chunk_size: int | None = None) -> Array:
    """Fresh log-weights log p(x, z) - log q(z | x), [S], nats: what all diagnostics are made of.

    Args:
      posterior: of one datum, or of all data where the latents are global.
      rng: key.
      num_samples: S.
      chunk_size: how many to draw at once, to bound memory.

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
    return monte_carlo(_log_weight, rng, posterior, num_samples=num_samples, chunk_size=chunk_size)


def evidence_of(log_w: Array) -> Estimate:
    """log mean_s w_s with its delta-method standard error sd(w) / (mean(w) sqrt(S))."""
    num_samples = log_w.shape[0]
    if num_samples < 2:
        raise ValueError(f"num_samples must be 2 or more for a standard error, got {num_samples}.")
    log_mean = logsumexp(log_w) - math.log(num_samples)
    relative = jnp.exp(log_w - log_mean)
    return Estimate(log_mean, jnp.std(relative, ddof=1) / math.sqrt(num_samples))


def _draw(rng: PRNGKey, posterior: Posterior) -> Latent:
    return posterior.guide.sample_and_log_prob(posterior.params.guide, rng, posterior.x)[0]


def _log_weight(rng: PRNGKey, posterior: Posterior) -> Scalar:
    z, log_q = posterior.guide.sample_and_log_prob(posterior.params.guide, rng, posterior.x)
    return posterior.model.log_joint(posterior.params.model, posterior.x, z) - log_q


@spec
class _Predict:
    function: Callable[..., PyTree]

    def __call__(self, rng: PRNGKey, posterior: Posterior) -> PyTree:
        latent, predictive = jax.random.split(rng)
        z = _draw(latent, posterior)
        if jax.tree.leaves(posterior.params.model):
            return self.function(posterior.params.model, predictive, z)
        return self.function(predictive, z)
