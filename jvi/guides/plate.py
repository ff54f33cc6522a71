"""Repeated latents: copies of a guide along a leading axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import distrax
import jax
import jax.numpy as jnp

from jvi import _distributions, _tree
from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.guides._places import check_guide, has, with_part
from jvi.guides.functions import Guide


@spec
class Copies:
    """Independent copies of a guide. Made by `plate`."""

    guide: Any
    num: int
    shared: bool
    axes: Any

    @property
    def reparameterized(self) -> bool:
        """Whether draws are known to have a path."""
        return getattr(self.guide, "reparameterized", False)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters, of each copy or of all."""
        if self.shared:
            self.check(x)
            first = jax.tree.map(
                lambda axis, tree: tree if axis is None else _first(tree, axis), self.axes, x, is_leaf=_is_none
            )
            return self.guide.init(rng, first)
        return jax.vmap(lambda key: self.guide.init(key, x))(jax.random.split(rng, self.num))

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw of each copy, every leaf [num, ...], and the sum of their log-densities."""
        z, log_q = self.each(self.guide.sample_and_log_prob, params, x, 1)(jax.random.split(rng, self.num))
        return z, jnp.sum(log_q)

    @property
    def log_prob(self) -> Callable[[Params, Data, Latent], Scalar]:
        """`(params, x, z)` -> the sum of the copies' log-densities, nats."""
        has(self.guide, "log_prob")
        return Summed(self, "log_prob")

    @property
    def entropy(self) -> Callable[[Params, Data, Latent], Scalar]:
        """`(params, x, z)` -> the sum of the copies' entropies, nats."""
        has(self.guide, "entropy")
        return Summed(self, "entropy")

    @property
    def distribution(self) -> Callable[[Params, Data], Any]:
        """`(params, x)` -> the copies' distributions as one over [num, ...]; None where they do not batch."""
        has(self.guide, "distribution")
        return Batched(self)

    def with_part(self, path: Sequence[str], change: Callable[[Any], Any]) -> Copies:
        """The same with a part of the guide inside changed."""
        return dataclasses.replace(self, guide=with_part(self.guide, path, change))

    def each(self, method: Callable[..., Any], params: Params, x: Data, place: int) -> Callable[[PyTree], Any]:
        """A method of the guide as a function of its argument for every copy, [num, ...], which is the one at `place`."""
        if self.shared:
            self.check(x)

        def one(params: Params, x: Data, value: PyTree) -> Any:
            return method(*((params, value, x) if place == 1 else (params, x, value)))

        in_axes = (None, self.axes, 0) if self.shared else (0, None, 0)
        return lambda values: jax.vmap(one, in_axes)(params, x, values)

    def check(self, x: Data) -> None:
        """Refuse data that has not one slice for every copy."""

        def lengths(axis: int | None, tree: PyTree) -> list[bool]:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
            return [axis is None or (len(shape) > axis and shape[axis] == self.num) for shape in shapes]

        try:
            fit = jax.tree.leaves(jax.tree.map(lengths, self.axes, x, is_leaf=_is_none))
        except ValueError:
            fit = [False]
        if not all(fit):
            raise ValueError(
                f"a shared plate of {self.num} gives each copy its slice of x, along axes {self.axes}, so these must be of length "
                f"{self.num}; got {_tree.shapes(x)}. What all copies see has the axis None, as in plate(..., axes=(0, None))."
            )


@spec
class Summed:
    """The sum over copies of a density or an entropy; compares by value."""

    copies: Copies
    name: str

    def __call__(self, params: Params, x: Data, z: Latent) -> Scalar:
        """Of all copies at `z`, nats."""
        if any(jnp.shape(leaf)[:1] != (self.copies.num,) for leaf in jax.tree.leaves(z)):
            raise ValueError(f"every leaf of a plate's z must have {self.copies.num} copies in front; got {_tree.shapes(z)}.")
        return jnp.sum(self.copies.each(getattr(self.copies.guide, self.name), params, x, 2)(z))


@spec
class Batched:
    """The copies' distributions as one; compares by value."""

    copies: Copies

    def __call__(self, params: Params, x: Data) -> Any:
        """One distribution, its batch made an axis of the event."""

        def one(params: Params, x: Data, _: Any) -> Any:
            return self.copies.guide.distribution(params, x)

        found = self.copies.each(one, params, x, 2)(jnp.arange(self.copies.num))
        leaves, tree = jax.tree.flatten(_distributions.unjoined(found), is_leaf=_distributions.is_distribution)
        if not leaves or any(tuple(leaf.batch_shape) != (self.copies.num,) for leaf in leaves):
            return None
        joined = tree.unflatten([distrax.Independent(leaf, 1) for leaf in leaves])
        return joined if tree == jax.tree.structure(0) else distrax.Joint(joined)


def plate(guide: Guide, num: int, *, shared: bool = False, axes: Any = 0) -> Guide:
    """Independent copies of a guide, for repeated local latents: q(z | x) = prod_i q(z_i | x_i).

    Draws are those of the guide with an axis in front, [num, ...], and log q is the sum.

    Args:
      guide: of one copy.
      num: how many.
      shared: False: each copy has parameters of its own, [num, ...], and sees all of `x`. True: all have the same parameters, and
        copy i sees slice i of every leaf of `x` (amortized locals).
      axes: with `shared`, which axis of `x` is that of the copies, as `in_axes` of `jax.vmap`: 0, or None for what all of them see;
        a tuple of these by entry. As a part of a `sequence`, `x` is `(x, earlier)`: `axes=(0, None)` hands the earlier draws to all.

    Raises:
      TypeError: if `guide` is no guide, or `num` not a whole number.
      ValueError: if `num` is less than 1; while traced, if a shared plate's `x` has not `num` slices.

    Example:
      >>> import jax, jax.numpy as jnp, jvi, flax.linen as nn
      >>> local = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> guide = jvi.guides.plate(jvi.guides.amortize(local, nn.Dense(2)), 100, shared=True)
      >>> x = jnp.ones((100, 7))
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> z.shape, log_q.shape
      ((100,), ())
    """
    return Copies(check_guide(guide), check_count(num, "num"), bool(shared), axes)


def _first(tree: PyTree, axis: int) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.take(leaf, 0, axis), tree)


def _is_none(axis: Any) -> bool:
    return axis is None
