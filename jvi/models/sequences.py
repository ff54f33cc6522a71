"""Models of sequences, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi.models.densities import check_callable, check_log_density


@spec
class StateSpace:
    """A Markov chain of latents, each with a datum. Made by `state_space`.

    Whole sequences are pytrees whose leaves have a leading axis [T, ...].
    """

    initial: Callable[..., Scalar]
    transition: Callable[..., Scalar]
    emission: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        return () if self.initialize is None else self.initialize(rng, x)

    def log_initial(self, params: Params, z: Latent) -> Scalar:
        """log p(z_0), nats."""
        return self._density("initial", params, z)

    def log_transition(self, params: Params, z_prev: Latent, z: Latent) -> Scalar:
        """log p(z_t | z_{t-1}), nats."""
        return self._density("transition", params, z_prev, z)

    def log_emission(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x_t | z_t), nats."""
        return self._density("emission", params, x, z)

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z[0:T]), nats."""
        first, before, after = (jax.tree.map(lambda leaf, at=at: leaf[at], z) for at in (0, slice(-1), slice(1, None)))
        steps = jax.vmap(lambda z_prev, z: self.log_transition(params, z_prev, z))(before, after)
        return self.log_initial(params, first) + jnp.sum(steps)

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x[0:T] | z[0:T]), nats."""
        return jnp.sum(jax.vmap(lambda x, z: self.log_emission(params, x, z))(x, z))

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x[0:T], z[0:T]), nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)

    def _density(self, name: str, params: Params, *at: Any) -> Array:
        function = getattr(self, name)
        value = function(*at) if self.initialize is None else function(params, *at)
        return check_log_density(value, f"log_{name}")


def state_space(
    log_initial: Callable[..., Scalar],
    log_transition: Callable[..., Scalar],
    log_emission: Callable[..., Scalar],
    *,
    init: Callable[[PRNGKey, Data], Params] | None = None,
) -> StateSpace:
    """A state-space model p(z_0) p(x_0 | z_0) prod_t p(z_t | z_{t-1}) p(x_t | z_t), from the densities of one step.

    As a model of whole sequences it goes into any objective; step by step, into `jvi.objectives.fivo`.

    Args:
      log_initial: `(z) -> scalar`, nats, or `(params, z)` when `init` is given; so the others.
      log_transition: `(z_prev, z) -> scalar`.
      log_emission: `(x_t, z) -> scalar`.
      init: `(rng, x) -> params` for a learned model, `x` a whole sequence.

    Raises:
      TypeError: if one of them is no function; once traced, a density that is not one scalar is a ValueError.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> model = jvi.models.state_space(lambda z: -0.5 * z**2, lambda z_prev, z: -0.5 * (z - z_prev) ** 2, lambda x, z: x * z)
      >>> float(model.log_joint((), jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0])))  # -0.5 - 2 + 3
      0.5

    References:
      Durbin and Koopman (2012), Time Series Analysis by State Space Methods.
    """
    return StateSpace(
        check_callable("log_initial", log_initial),
        check_callable("log_transition", log_transition),
        check_callable("log_emission", log_emission),
        None if init is None else check_callable("init", init),
    )
