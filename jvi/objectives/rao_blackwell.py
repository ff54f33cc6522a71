"""The score-function gradient of every group of latents from the terms that it has a part in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi import bounds, gradients
from jvi import noise as noises
from jvi._additive import additive_terms
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.controls import Control
from jvi.guides._places import opened
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._particles import Noise, check_particles, each_particle
from jvi.objectives._terms import NO_PRIOR
from jvi.objectives.monte_carlo import check_scored, default_control
from jvi.schedules import is_one

Terms = list[tuple[frozenset[str], Scalar]]


@spec
class RaoBlackwell:
    """The ELBO of a guide of named parts, each scored by its own terms. Made by `rao_blackwell`."""

    model: Model
    guide: Any
    num_samples: int
    control: Control
    noise: Noise
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_parts(self.model, self.guide)
        check_particles(self.num_samples, self.noise, self.chunk_size)
        if not hasattr(self.guide, "parts") or not hasattr(self.guide, "log_prob"):
            raise ValueError(
                "rao_blackwell needs a guide of named parts with a log_prob, made by jvi.guides.product or sequence; "
                f"got {self.guide!r}. Without parts, use jvi.objectives.score."
            )
        if self.num_samples > 1 and noises.are_joint(self.noise):
            check_scored(bounds.elbo, self.control)

    @property
    def bound(self) -> Callable[[Array], Scalar]:
        """The ELBO, of log-weights."""
        return bounds.elbo

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; the control variate has its own for every part."""
        model, guide = jax.random.split(rng)
        control = {name: self.control.init(jax.random.fold_in(rng, 2 + i), x) for i, name in enumerate(self.guide.names)}
        return Params(self.model.init(model, x), self.guide.init(guide, x), control)

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The ELBO, nats, and the log-weights [K]."""

        def one(key: PRNGKey) -> tuple[Scalar, dict[str, Array], dict[str, Array]]:
            return self._particle(params, key, x, beta)

        log_w, signals, scores = each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)
        value, surrogate, updates = jnp.mean(log_w), jnp.zeros(()), {}
        for name in self.guide.names:
            signal = jax.lax.stop_gradient(signals[name])
            baseline = self.control(params.control[name], x, bounds.elbo, signal)
            surrogate += jnp.mean(jax.lax.stop_gradient(signal - baseline.value) * scores[name]) - baseline.loss
            updates[name] = baseline.updates
        left = all(update is None for update in updates.values())
        return value + (surrogate - jax.lax.stop_gradient(surrogate)), Aux(log_w, None if left else updates)

    def absorb(self, params: Params, aux: Aux) -> Params:
        """The parameters after a step, with what the optimizer does not change."""
        return params if aux.updates is None else params._replace(control=aux.updates)

    def _particle(self, params: Params, rng: PRNGKey, x: Data, beta: Any) -> tuple[Scalar, dict[str, Array], dict[str, Array]]:
        """The log-weight; by part, the terms that depend on it; and the log-density to score."""
        z = jax.lax.stop_gradient(self.guide.sample_and_log_prob(params.guide, rng, x)[0])
        scores, before, terms = {}, {}, self._terms(params, x, z, beta)
        guide, of_parts, seen = opened(self.guide, params.guide, x)
        above: dict[str, frozenset[str]] = {}  # what a part's distribution depends on, directly or by other parts
        for name, one in guide.parts:

            def density(before: dict[str, Latent], name: str = name, one: Any = one) -> Scalar:
                return one.log_prob(of_parts[name], guide.seen(seen, before), z[name])

            scores[name] = density(before)
            parents = frozenset().union(*(names for names, _ in additive_terms(density, before)))
            above[name] = parents.union(*(above[parent] for parent in parents))
            terms.append((parents | {name}, -beta * jax.lax.stop_gradient(scores[name])))
            before[name] = z[name]
        reached = [(names.union(*(above[name] for name in names)), value) for names, value in terms]
        signals = {name: sum((value for names, value in reached if name in names), jnp.zeros(())) for name in self.guide.names}
        return sum((value for _, value in terms), jnp.zeros(())), signals, scores

    def _terms(self, params: Params, x: Data, z: dict[str, Latent], beta: Any) -> Terms:
        model: Any = self.model
        if not hasattr(model, "log_prior"):
            if not is_one(beta):
                raise ValueError(NO_PRIOR)
            return additive_terms(lambda z: model.log_joint(params.model, x, z), z)
        prior = additive_terms(lambda z: model.log_prior(params.model, z), z)
        likelihood = additive_terms(lambda z: model.log_likelihood(params.model, x, z), z)
        return likelihood + [(names, beta * value) for names, value in prior]


def rao_blackwell(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 2,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> RaoBlackwell:
    """The ELBO with a score-function gradient in which every part of the guide is judged by what depends on it alone.

    The terms of the log-joint that do not depend on a part have mean zero beside its score, and only add noise: they are left out. They
    are found in the log-joint's own sums, so write it as a sum of log-densities.

    Args:
      model: p(x, z), z a dict by part.
      guide: of named parts, by `jvi.guides.product` or `sequence`; in a sequence, later parts depend on all earlier ones.
      num_samples: draws per evaluation, K.
      control: of `jvi.controls`, one for every part; by default `leave_one_out`, and `none` for a single draw.
      noise, chunk_size: as in `jvi.elbo`.

    Raises:
      ValueError: if the guide has no parts.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> bit = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: jnp.log(0.3 + 0.4 * z["a"]) + jnp.log(0.3 + 0.4 * z["b"]))
      >>> objective = jvi.objectives.rao_blackwell(model, jvi.guides.product(a=bit, b=bit))
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> aux.log_w.shape
      (2,)

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """
    control = default_control(gradients.score, num_samples, control)
    return RaoBlackwell(model, guide, num_samples, control, noise, chunk_size)
