"""Guides made of guides."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.guides.functions import Guide


@spec
class Parts:
    """Named guides, and how they are drawn one after the other."""

    parts: tuple[tuple[str, Any], ...]
    chained: bool  # whether each sees (x, earlier draws) in place of x

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a guide needs at least one part, as in jvi.guides.product(a=guide_of_a, b=guide_of_b).")
        for name, part in self.parts:
            if not isinstance(part, Guide):
                raise TypeError(f"{name} must be a guide, with the methods init and sample_and_log_prob, got {part!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(name for name, _ in self.parts)

    @property
    def reparameterized(self) -> bool:
        """Whether all parts are known to have a path."""
        return all(getattr(part, "reparameterized", False) for _, part in self.parts)

    def seen(self, x: Data, before: dict[str, Latent]) -> Data:
        """What a part sees that comes after those in `before`."""
        return (x, dict(before)) if self.chained else x

    def init(self, rng: PRNGKey, x: Data) -> dict[str, Params]:
        """Initial parameters by part."""
        params, before = {}, {}
        for (name, part), key in zip(self.parts, jax.random.split(rng, len(self.parts)), strict=True):
            params[name] = part.init(key, self.seen(x, before))
            if self.chained:
                before[name] = part.sample_and_log_prob(params[name], key, self.seen(x, before))[0]
        return params

    def sample_and_log_prob(self, params: dict[str, Params], rng: PRNGKey, x: Data) -> tuple[dict[str, Latent], Scalar]:
        """One draw and its log-density."""
        z, total = {}, jnp.zeros(())
        for (name, part), key in zip(self.parts, jax.random.split(rng, len(self.parts)), strict=True):
            z[name], log_q = part.sample_and_log_prob(params[name], key, self.seen(x, z))
            total = total + log_q
        return z, total


@spec
class Composed:
    """A guide over a dict of latents. Made by `product` and `sequence`."""

    inner: Parts

    @property
    def parts(self) -> tuple[tuple[str, Any], ...]:
        """Guides by name, in the order in which they are drawn."""
        return self.inner.parts

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return self.inner.names

    @property
    def reparameterized(self) -> bool:
        """Whether all parts are known to have a path."""
        return self.inner.reparameterized

    def seen(self, x: Data, before: dict[str, Latent]) -> Data:
        """What a part sees that comes after those in `before`."""
        return self.inner.seen(x, before)

    def init(self, rng: PRNGKey, x: Data) -> dict[str, Params]:
        """Initial parameters by part."""
        return self.inner.init(rng, x)

    def sample_and_log_prob(self, params: dict[str, Params], rng: PRNGKey, x: Data) -> tuple[dict[str, Latent], Scalar]:
        """One draw and its log-density."""
        return self.inner.sample_and_log_prob(params, rng, x)

    def log_prob(self, params: dict[str, Params], x: Data, z: dict[str, Latent]) -> Scalar:
        """The log-density of `z`, nats."""
        total, before = jnp.zeros(()), {}
        for name, part in self.parts:
            total = total + part.log_prob(params[name], self.seen(x, before), z[name])
            before[name] = z[name]
        return total


def product(**parts: Any) -> Guide:
    """Independent parts: q(a, b | x) = q(a | x) q(b | x), over a dict of latents.

    Args:
      parts: guides by name.

    Raises:
      TypeError: if a part is no guide.
      ValueError: if there is none.

    Example:
      >>> import jax, jvi
      >>> part = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> guide = jvi.guides.product(a=part, b=part)
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> sorted(z), log_q.shape
      (['a', 'b'], ())
    """
    return _composed(Parts(tuple(parts.items()), chained=False))


def sequence(**parts: Any) -> Guide:
    """Parts that see what came before: q(a, b | x) = q(a | x) q(b | x, a), over a dict of latents.

    Args:
      parts: guides by name, in the order in which they are drawn. Each gets `(x, earlier)` in place of `x`, where `earlier` is the
        dict of the draws so far.

    Raises:
      TypeError: if a part is no guide.
      ValueError: if there is none.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> first = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> second = jvi.guides.from_distribution(
      ...     lambda rng, x: jnp.ones(()), lambda params, x: distrax.Normal(params * x[1]["a"], 1.0)
      ... )
      >>> guide = jvi.guides.sequence(a=first, b=second)
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> sorted(z), log_q.shape
      (['a', 'b'], ())
    """
    return _composed(Parts(tuple(parts.items()), chained=True))


def _composed(parts: Parts) -> Guide:
    return Composed(parts) if all(hasattr(part, "log_prob") for _, part in parts.parts) else parts
