"""Guides made of the user's own functions and distributions, and the protocol that all guides follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvi import _distributions
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.spaces import Space


@runtime_checkable
class Guide(Protocol):
    """q(z | x): any spec with these methods is a guide. `log_prob(params, x, z)` is absent where it is intractable.

    Example:
      >>> import jvi
      >>> isinstance(jvi.guides.MeanField(jvi.space(jvi.real())), jvi.guides.Guide)
      True
    """

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        ...

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density, a scalar in nats."""
        ...


@spec
class _Distribution:
    initialize: Callable[[PRNGKey, Data], Params]
    dist: Callable[[Params, Data], Any]
    space: Space | None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        return self.initialize(rng, x)

    def distribution(self, params: Params, x: Data) -> Any:
        return self.dist(params, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        distribution = self.dist(params, x)
        with jax.numpy_rank_promotion("allow"):
            return checked_draw(distribution, rng, self.space)

    def support(self, params: Params, x: Data) -> Latent:
        with jax.numpy_rank_promotion("allow"):
            return _distributions.finite_support(self.dist(params, x))

    def log_prob(self, params: Params, x: Data, z: Latent) -> Scalar:
        distribution = self.dist(params, x)
        with jax.numpy_rank_promotion("allow"):  # distrax and TFP rely on it
            return _check_scalar(distribution.log_prob(z))


@spec
class _Sampler:
    initialize: Callable[[PRNGKey, Data], Params]
    sampler: Callable[[Params, PRNGKey, Data], tuple[Latent, Scalar]]
    space: Space | None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        return self.initialize(rng, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        z, log_q = self.sampler(params, rng, x)
        return _check_draw(z, self.space), _check_scalar(log_q)


@spec
class _Functions:
    sampler: _Sampler
    density: Callable[[Params, Data, Latent], Scalar]

    def init(self, rng: PRNGKey, x: Data) -> Params:
        return self.sampler.init(rng, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        return self.sampler.sample_and_log_prob(params, rng, x)

    def log_prob(self, params: Params, x: Data, z: Latent) -> Scalar:
        return _check_scalar(self.density(params, x, z))


def from_distribution(
    init: Callable[[PRNGKey, Data], Params], dist: Callable[[Params, Data], Any], *, space: Space | None = None
) -> Guide:
    """A guide from any distrax or TFP distribution.

    Args:
      init: `(rng, x) -> params`.
      dist: `(params, x) -> distribution` over the latent itself (not its unconstrained coordinates), without batch
        shape: wrap with `distrax.Independent`. A pytree of latents is a `distrax.Joint`.
      space: if given, draws are checked against it.

    Raises:
      ValueError: once traced, if the log-density is not a scalar or the draws are not of `space`.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(
      ...     lambda rng, x: {"loc": jnp.zeros(3), "raw": jnp.zeros(3)},
      ...     lambda params, x: distrax.MultivariateNormalDiag(params["loc"], jax.nn.softplus(params["raw"])),
      ... )
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> z.shape, log_q.shape
      ((3,), ())
    """
    return _Distribution(init, dist, space)


def from_functions(
    init: Callable[[PRNGKey, Data], Params],
    sample_and_log_prob: Callable[[Params, PRNGKey, Data], tuple[Latent, Scalar]],
    log_prob: Callable[[Params, Data, Latent], Scalar] | None = None,
    *,
    space: Space | None = None,
) -> Guide:
    """A guide from bare functions.

    Args:
      init: `(rng, x) -> params`.
      sample_and_log_prob: `(params, rng, x) -> (z, log_q)`.
      log_prob: `(params, x, z) -> scalar`; leave out where the density is intractable.
      space: if given, draws are checked against it.

    Raises:
      ValueError: once traced, if `log_q` is not a scalar or the draws are not of `space`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> def shifted(params, rng, x):
      ...     eps = jax.random.normal(rng)
      ...     return params + eps, jax.scipy.stats.norm.logpdf(eps)
      >>> guide = jvi.guides.from_functions(lambda rng, x: jnp.zeros(()), shifted)
      >>> hasattr(guide, "log_prob")
      False
    """
    sampler = _Sampler(init, sample_and_log_prob, space)
    return sampler if log_prob is None else _Functions(sampler, log_prob)


def is_point(guide: Any) -> bool:
    """Whether some of a guide's latents are a point, without density: a `Delta`, alone or anywhere in a composition."""
    if hasattr(guide, "guide"):  # the combinators of one guide, whose parts are those of the guide inside
        return is_point(guide.guide)
    inside = (*getattr(guide, "guides", ()), *(part for _, part in getattr(guide, "parts", ())))
    return getattr(guide, "point", False) or any(is_point(one) for one in inside)


def checked_draw(distribution: Any, rng: PRNGKey, space: Space | None) -> tuple[Latent, Scalar]:
    """One draw of a distribution and its log-density, of the right shapes."""
    if hasattr(distribution, "sample_and_log_prob"):
        z, log_q = distribution.sample_and_log_prob(seed=rng)
    elif hasattr(distribution, "experimental_sample_and_log_prob"):
        z, log_q = distribution.experimental_sample_and_log_prob(seed=rng)
    else:
        raise TypeError(f"dist must return a distrax or TFP distribution, got {type(distribution).__name__}.")
    return _check_draw(z, space), _check_scalar(log_q)


def _check_scalar(log_q: Any) -> Scalar:
    if jnp.shape(log_q) != ():
        raise ValueError(
            f"the guide's log-density must be a scalar, got shape {list(jnp.shape(log_q))}: the distribution has a batch shape. "
            "Make it part of the event with distrax.Independent, or use distrax.MultivariateNormalDiag."
        )
    return log_q


def _check_draw(z: Latent, space: Space | None) -> Latent:
    return z if space is None else space.check(jax.tree.map(jnp.asarray, z), "the guide's draw")
