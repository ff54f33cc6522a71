"""Draws of the guide, weighted towards the posterior."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvi import bounds, gradients
from jvi import noise as noises
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.gradients._paths import check_path
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Params, check_parts
from jvi.objectives._particles import Noise, check_particles, each_particle, gradient_only
from jvi.objectives._steered import check_independent, steerable
from jvi.objectives._terms import log_weight, masked, terms_of

_HALVINGS = 24


class Particle(NamedTuple):
    """One draw of the guide.

    Attributes:
      log_w: log-weight, nats; it moves with the model's parameters and, with `gradients.stl`, with the draw.
      scored: log q(z | x) of the draw held fixed, nats; zero with `gradients.stl`.
      handle: of the draw, as `steered` takes it; zero with `gradients.score`.
    """

    log_w: Scalar
    scored: Scalar
    handle: Scalar


@spec
class Weighted:
    """Draws of the guide, weighted towards the posterior.

    Attributes:
      model, guide: what is fitted to what.
      num_samples: K.
      gradient: `gradients.score`, or `gradients.stl` for the doubly reparameterized one.
      ess_target: the share of K that the effective sample size of the guide's weights must reach; None leaves them as they are.
      noise, chunk_size: as in `MonteCarlo`.
    """

    model: Model
    guide: Guide
    num_samples: int
    gradient: Any = gradients.score
    ess_target: float | None = None
    noise: Noise = noises.independent
    chunk_size: int | None = None

    def check(self, name: str) -> None:
        """Refuse what does not fit together; `name` is the objective's."""
        check_parts(self.model, self.guide)
        check_particles(self.num_samples, self.noise, self.chunk_size, least=2)
        if not hasattr(self.guide, "log_prob"):
            raise ValueError(f"{name} needs a guide with a log_prob, and {self.guide!r} has none; use jvi.elbo.")
        if self.gradient not in (gradients.score, gradients.stl):
            raise ValueError(
                f"{name} takes gradients.score, which holds the draws fixed, or gradients.stl, which takes the path alone (doubly "
                f"reparameterized); got {self.gradient!r}."
            )
        if self.gradient is gradients.stl:
            check_independent(f"{name} with gradients.stl", self.noise)
        if self.ess_target is not None:
            if not 0.0 < self.ess_target <= 1.0:
                raise ValueError(f"ess_target is a share of num_samples, more than 0 and at most 1; got {self.ess_target!r}.")
            if self.gradient is gradients.stl:
                raise ValueError(
                    "ess_target needs gradients.score: how far the weights are tempered depends on the draws, which "
                    "gradients.stl would differentiate."
                )

    def particles(self, params: Params, rng: PRNGKey, x: Data) -> Particle:
        """K particles, each leaf [K]."""

        def one(key: PRNGKey) -> Particle:
            terms, scored, handle = self._terms(params, key, x)
            log_q = terms.pop("log q")
            return Particle(log_weight(terms, log_q, 1.0), scored, handle)

        return each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], nats."""

        def one(key: PRNGKey) -> dict[str, Array]:
            return self._terms(params, key, x)[0]

        return each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)

    def fitted(self, found: Particle) -> Scalar:
        """Zero, with the guide's gradient where its draws are held fixed: the weighted mean of grad log q."""
        log_w = jax.lax.stop_gradient(found.log_w)
        weights = jax.nn.softmax(log_w if self.ess_target is None else tempered(log_w, self.ess_target))
        return gradient_only(jnp.sum(jax.lax.stop_gradient(weights) * found.scored))

    def _terms(self, params: Params, rng: PRNGKey, x: Data) -> tuple[dict[str, Array], Array, Array]:
        guide: Any = self.guide
        of_guide = masked(guide, params.guide, rng)
        fixed, seen = jax.lax.stop_gradient((of_guide, x))
        if self.gradient is gradients.stl:
            z, _ = guide.sample_and_log_prob(of_guide, rng, seen)
            check_path(guide, of_guide, rng, x, z)
            z, handle = steerable(z)
            log_q, scored = guide.log_prob(fixed, seen, z), jnp.zeros(())
        else:
            z = jax.lax.stop_gradient(guide.sample_and_log_prob(fixed, rng, seen)[0])
            scored, handle = guide.log_prob(of_guide, seen, z), jnp.zeros(())
            log_q = jax.lax.stop_gradient(scored)
        terms = terms_of(self.model, params.model, rng, x, z, batched=True)
        return {**terms, "log q": log_q}, scored, handle


def tempered(log_w: Array, ess_target: float) -> Array:
    """`t log_w` with the largest t <= 1 at which the effective sample size is `ess_target` times K, or as near as can be.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> from jvi.objectives._posterior_draws import tempered
      >>> round(float(jvi.bounds.ess(tempered(jnp.array([0.0, 1.0, 9.0, 30.0]), 0.5))), 3)
      2.0
    """
    # Particles without weight have none at any temperature.
    log_w = jnp.where(jnp.isneginf(log_w), log_w, log_w - jnp.max(log_w))

    def at(t: Any) -> Array:
        return jnp.where(jnp.isneginf(log_w), log_w, t * log_w)

    def halve(_: int, between: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = between
        middle = 0.5 * (low + high)
        reached = bounds.ess(at(middle)) >= ess_target * len(log_w)
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    whole = bounds.ess(log_w) >= ess_target * len(log_w)
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(log_w[0]), jnp.ones_like(log_w[0])))
    return at(jnp.where(whole, 1.0, low))
