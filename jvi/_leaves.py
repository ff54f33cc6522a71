"""Trees of arrays as a store holds them: leaves by number, each with its name and what it is."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree
from jvi._typing import PyTree


def described(tree: PyTree) -> list[list[str]]:
    """The leaves' names and what they are."""
    return [[name, f"{jnp.result_type(leaf)}[{','.join(map(str, np.shape(leaf)))}]"] for name, leaf in _tree.named_leaves(tree)]


def difference(saved: list[list[str]], wanted: list[list[str]]) -> str | None:
    """The first leaf that differs, of what `described` says of two trees; None where none does."""
    for there, here in itertools.zip_longest(saved, wanted):
        if there != here:
            if here is None:
                return f"{there[0]} ({there[1]}) is only there"
            if there is None:
                return f"{here[0]} ({here[1]}) is only here"
            if there[0] == here[0]:
                return f"{there[0]} is {there[1]} there and {here[1]} here"
            return f"{there[0]} ({there[1]}) there stands where {here[0]} ({here[1]}) does here"
    return None


def encoded(tree: PyTree) -> dict[str, Any]:
    """The leaves by number. On a CPU they are copied: the buffers may be donated while they are written."""

    def one(leaf: Any) -> Any:
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        return jnp.copy(leaf) if any(device.platform == "cpu" for device in leaf.devices()) else leaf

    return {str(i): one(leaf) for i, leaf in enumerate(jax.tree.leaves(tree)) if np.size(leaf)}


def targets(tree: PyTree) -> dict[str, Any]:
    """What orbax is to read: for an array that is placed, one placed alike, and a NumPy array for any other."""

    def one(leaf: Any) -> Any:
        shape = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if isinstance(leaf, jax.Array) and leaf.committed:
            placed = jax.random.key_data(leaf) if _is_key(leaf) else leaf
            return jax.ShapeDtypeStruct(placed.shape, placed.dtype, sharding=placed.sharding)
        return np.broadcast_to(np.zeros((), jnp.result_type(shape)), np.shape(shape))

    return {str(i): one(leaf) for i, leaf in enumerate(jax.tree.leaves(tree)) if np.size(leaf)}


def decoded(leaves: dict[str, Any], like: PyTree) -> PyTree:
    """A tree like `like` of what was read for its `targets`."""

    def one(i: int, leaf: Any) -> Any:
        if not np.size(leaf):
            return jnp.zeros(np.shape(leaf), jnp.result_type(leaf))
        if not _is_key(leaf):
            return jnp.asarray(leaves[str(i)])
        impl = jax.random.key_impl(leaf) if isinstance(leaf, jax.Array) else None
        key = jax.random.wrap_key_data(jnp.asarray(leaves[str(i)]), impl=impl)
        if key.dtype != leaf.dtype:
            raise ValueError(
                f"of a {leaf.dtype} there must be one in `like`, such as svi.init(rng, x) holds, and not its shape."
            )
        return key

    flat, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [one(i, leaf) for i, leaf in enumerate(flat)])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
