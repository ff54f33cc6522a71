"""Models made of log-densities: log p(x, z) of one datum and one draw, as a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar


@runtime_checkable
class Model(Protocol):
    """p(x, z): any spec with these two methods is a model.

    One that also has `log_prior(params, z)` and `log_likelihood(params, x, z)` can be annealed.

    Example:
      >>> import jvi
      >>> isinstance(jvi.model(lambda x, z: -(z**2)), jvi.models.Model)
      True
    """

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        ...

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z), a scalar in nats."""
        ...


@spec
class _Joint:
    function: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        return () if self.initialize is None else self.initialize(rng, x)

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        value = self.function(x, z) if self.initialize is None else self.function(params, x, z)
        return check_log_density(value, "the log-joint")


@spec
class Split:
    """A model whose log-joint is a log-prior plus a log-likelihood. Made by `split`."""

    prior: Callable[..., Scalar]
    likelihood: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        return () if self.initialize is None else self.initialize(rng, x)

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z), nats."""
        value = self.prior(z) if self.initialize is None else self.prior(params, z)
        return check_log_density(value, "the log-prior")

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x | z), nats."""
        value = self.likelihood(x, z) if self.initialize is None else self.likelihood(params, x, z)
        return check_log_density(value, "the log-likelihood")

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z), nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)


@spec
class WithoutData:
    """`function(z)` as a log-joint of no data."""

    function: Callable[[Latent], Scalar]

    def __call__(self, x: Data, z: Latent) -> Scalar:
        """log p(z), nats."""
        return self.function(z)


def model(log_joint: Callable[[Data, Latent], Scalar]) -> Model:
    """A model with nothing to learn, from `log_joint(x, z) -> scalar`.

    Args:
      log_joint: log p(x, z) of one datum and one draw, constants included, in nats. Specs compare functions by identity:
        one defined once, at module level, compiles once.

    Raises:
      TypeError: if `log_joint` is not a function; once traced, a log-joint that is not one scalar is a ValueError.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> float(model.log_joint((), 1.0, jnp.array(3.0)))
      -2.0
    """
    return _Joint(check_callable("log_joint", log_joint))


def learned(init: Callable[[PRNGKey, Data], Params], log_joint: Callable[[Params, Data, Latent], Scalar]) -> Model:
    """A model with parameters that are fitted by maximizing the bound, such as a decoder's weights.

    Args:
      init: `(rng, x) -> params`, a pytree of arrays.
      log_joint: `(params, x, z) -> scalar`, nats.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.learned(lambda rng, x: jnp.zeros(()), lambda mean, x, z: -0.5 * (z - mean) ** 2 - 0.5 * (x - z) ** 2)
      >>> params = model.init(jax.random.key(0), 1.0)
      >>> float(model.log_joint(params, 1.0, jnp.array(2.0)))
      -2.5
    """
    return _Joint(check_callable("log_joint", log_joint), check_callable("init", init))


def split(
    log_prior: Callable[..., Scalar],
    log_likelihood: Callable[..., Scalar],
    *,
    init: Callable[[PRNGKey, Data], Params] | None = None,
) -> Split:
    """A model in two terms, so that the likelihood can be told from the prior (annealing, better error reports).

    Args:
      log_prior: `(z) -> scalar`, or `(params, z)` when `init` is given.
      log_likelihood: `(x, z) -> scalar`, or `(params, x, z)` when `init` is given.
      init: `(rng, x) -> params` for a learned model.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> model = jvi.split(lambda z: -0.5 * z**2, lambda x, z: -0.5 * (x - z) ** 2)
      >>> float(model.log_joint((), 1.0, jnp.array(2.0)))
      -2.5
    """
    init = None if init is None else check_callable("init", init)
    return Split(check_callable("log_prior", log_prior), check_callable("log_likelihood", log_likelihood), init)


def check_log_density(value: Any, what: str) -> Array:
    """Return `value` if it is one real number.

    Raises:
      ValueError: if it has another shape.
      TypeError: if it is not a number.
    """
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, float, int)):
        raise TypeError(f"{what} must return a scalar, got {type(value).__name__}.")
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != ():
        raise ValueError(
            f"{what} must return a scalar, one number for one datum and one draw; got shape {list(shape)}. Sum over events; "
            "for independent data in a batch use jvi.per_example."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{what} must return a floating-point scalar, got {dtype.name}.")
    return jnp.asarray(value)


def check_callable(name: str, value: Any) -> Any:
    """Return `value` if it is a function; TypeError if not."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r} ({type(value).__name__}).")
    return value
