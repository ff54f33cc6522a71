"""Guides made of guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.guides._places import check_guide, part, with_part
from jvi.guides._strata import strata_of_parts
from jvi.guides.functions import Guide


@spec
class Parts:
    """Named guides, and how they are drawn one after the other."""

    parts: tuple[tuple[str, Any], ...]
    chained: bool  # whether each sees (x, earlier draws) in place of x

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a guide needs at least one part, as in jvi.guides.product(a=guide_of_a, b=guide_of_b).")
        for name, one in self.parts:
            with part(name):
                check_guide(one)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(name for name, _ in self.parts)

    @property
    def reparameterized(self) -> bool:
        """Whether all parts are known to have a path."""
        return all(getattr(one, "reparameterized", False) for _, one in self.parts)

    def seen(self, x: Data, before: dict[str, Latent]) -> Data:
        """What a part sees that comes after those in `before`."""
        return (x, dict(before)) if self.chained else x

    def init(self, rng: PRNGKey, x: Data) -> dict[str, Params]:
        """Initial parameters by part."""
        params, before = {}, {}
        for (name, one), key in zip(self.parts, jax.random.split(rng, len(self.parts)), strict=True):
            with part(name):
                params[name] = one.init(key, self.seen(x, before))
                if self.chained:
                    before[name] = one.sample_and_log_prob(params[name], key, self.seen(x, before))[0]
        return params

    def sample_and_log_prob(self, params: dict[str, Params], rng: PRNGKey, x: Data) -> tuple[dict[str, Latent], Scalar]:
        """One draw and its log-density."""
        self.check("the parameters", params)
        z, total = {}, jnp.zeros(())
        for (name, one), key in zip(self.parts, jax.random.split(rng, len(self.parts)), strict=True):
            with part(name):
                z[name], log_q = one.sample_and_log_prob(params[name], key, self.seen(x, z))
            total = total + log_q
        return z, total

    def check(self, what: str, tree: Any) -> None:
        """Refuse a dict that has not the parts' names."""
        if not isinstance(tree, dict) or set(tree) != set(self.names):
            came = ", ".join(map(str, tree)) if isinstance(tree, dict) else _tree.shapes(tree)
            raise ValueError(f"{what} must be a dict by part, of {', '.join(self.names)}; got {came}.")

    def with_part(self, path: Sequence[str], change: Callable[[Any], Any]) -> Guide:
        """The same with the part at `path` changed."""
        if path[0] not in self.names:
            raise ValueError(f"there is no part {path[0]!r}; the parts are {', '.join(self.names)}.")
        with part(path[0]):
            changed = {path[0]: with_part(dict(self.parts)[path[0]], path[1:], change)}
        return _composed(Parts(tuple((name, changed.get(name, one)) for name, one in self.parts), self.chained))


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
    def chained(self) -> bool:
        """Whether each part sees what came before it."""
        return self.inner.chained

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
        self.inner.check("the parameters", params)
        self.inner.check("z", z)
        total, before = jnp.zeros(()), {}
        for name, one in self.parts:
            with part(name):
                total = total + one.log_prob(params[name], self.seen(x, before), z[name])
            before[name] = z[name]
        return total

    def with_part(self, path: Sequence[str], change: Callable[[Any], Any]) -> Guide:
        """The same with the part at `path` changed."""
        return self.inner.with_part(path, change)

    @property
    def strata(self) -> Callable[..., Any]:
        """`(params, rng, x) -> (z, log_mass)`, a draw from each stratum; absent where no part has strata, as a mixture has."""
        if not any(hasattr(part, "strata") for _, part in self.parts):
            raise AttributeError("strata")
        return partial(strata_of_parts, self)


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
    return Composed(parts) if all(hasattr(one, "log_prob") for _, one in parts.parts) else parts
