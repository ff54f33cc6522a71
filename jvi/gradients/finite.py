"""The exact gradient of finite latents: all their values, each with its probability."""

from __future__ import annotations

from typing import Any

import jax

from jvi import _distributions
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.gradients._draw import Draw, draw
from jvi.gradients.reparameterized import default


@spec
class Enumerated:
    """Exact enumeration: a finite latent takes all of its values, and the bound is their mean under q, without any noise.

    Needs a guide with a `support(params, x)`, each leaf [V, ...], and a `log_prob`: those made by `guides.from_distribution` and
    `guides.conditional` of Bernoulli and categorical distributions have one. For the ELBO only.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda params, x: distrax.Categorical(params))
      >>> model = jvi.model(lambda x, z: jnp.log(jnp.array([0.2, 0.3, 0.5]))[z])
      >>> objective = jvi.objectives.enumerate_elbo(model, guide)
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> round(float(value), 3)  # (log 0.2 + log 0.3 + log 0.5) / 3 + log 3
      -0.07

    References:
      Titsias and Lázaro-Gredilla (2015), Local Expectation Gradients.
    """

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """All values, each leaf [V, ...], and their log-probabilities [V]."""
        found = self.draw(guide, params, rng, x)
        return found.z, found.log_q

    def draw(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> Draw:
        """The same, marked as enumerated."""
        z = guide.support(params, x)
        log_q = jax.vmap(lambda one: guide.log_prob(params, x, one))(z)
        return Draw(z, log_q, log_mass=log_q)

    def check(self, guide: Any) -> None:
        """Refuse a guide whose values cannot be listed."""
        if not (hasattr(guide, "support") and hasattr(guide, "log_prob")):
            raise ValueError(
                f"gradients.enumerated needs a guide with a support and a log_prob, and {guide!r} has none: make it with "
                "jvi.guides.from_distribution of a Bernoulli or categorical distribution, or use gradients.score."
            )


@spec
class WhereFinite:
    """`enumerated` for a part of a finite distribution, the default estimator for any other."""

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, or all values."""
        found = self.draw(guide, params, rng, x)
        return found.z, found.log_q

    def draw(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> Draw:
        """The same, marked as enumerated where it is."""
        finite = hasattr(guide, "distribution") and _distributions.is_finite(guide.distribution(params, x))
        return draw(enumerated if finite else default(guide), guide, params, rng, x)


enumerated = Enumerated()
where_finite = WhereFinite()
