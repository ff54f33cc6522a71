"""Checks of what users pass in: cheap, before any tracing, naming the argument, what came and what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree
from jvi._typing import Array, Data, PRNGKey


def check_key(rng: Any, name: str = "rng") -> PRNGKey:
    """Return `rng` if it is one typed key.

    Raises:
      TypeError: for an old-style uint32 key, an integer seed, or a batch of keys.
    """
    if isinstance(rng, jax.Array) and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        if rng.shape == ():
            return rng
        raise TypeError(f"{name} must be one key, got {rng.shape} of them; pass one and let jvi split it.")
    came = f"{rng.dtype}{list(rng.shape)}" if hasattr(rng, "dtype") else repr(rng)
    raise TypeError(f"{name} must be a typed key, made by jax.random.key(seed) and not by jax.random.PRNGKey; got {came}.")


def check_count(value: Any, name: str, least: int = 1) -> int:
    """Return `value` as an int if it is a whole number, `least` or more.

    Raises:
      TypeError: if it is not a whole number.
      ValueError: if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__}).")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}.")
    return int(value)


def check_data(x: Data, name: str = "x") -> Data:
    """Return `x` with every leaf an array, NumPy's or JAX's.

    Raises:
      TypeError: if a leaf is not numeric.
      ValueError: if a leaf holds a NaN.
    """

    def one(path: Any, leaf: Any) -> Any:
        label = _tree.path_name(path, name)
        if not isinstance(leaf, jax.Array):
            leaf = np.asarray(leaf)
            if leaf.dtype.kind not in "biufc" and leaf.dtype != jnp.bfloat16:
                raise TypeError(f"{label} must be an array of numbers, got {type(leaf).__name__} of {leaf.dtype}.")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
            _check_no_nan(label, leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(one, x)


def leading_axis(x: Data, name: str = "x") -> int:
    """The length of the leading axis that all leaves of `x` share.

    Raises:
      ValueError: if there is none, or if they differ.
    """
    sizes = {label: np.shape(leaf)[:1] for label, leaf in _tree.named_leaves(x, name)}
    if not sizes or () in sizes.values() or len(set(sizes.values())) > 1:
        raise ValueError(
            f"every leaf of {name} must have one and the same leading axis, the examples; got {_tree.shapes(x)}. "
            "What all examples share belongs into the model or its parameters."
        )
    return next(iter(sizes.values()))[0]


def check_batch_size(batch_size: Any, x: Data, name: str = "x") -> int:
    """Return `batch_size` as an int if `x` has as many examples.

    Raises:
      TypeError: if it is not a whole number.
      ValueError: if it is less than 1 or more than there are.
    """
    if check_count(batch_size, "batch_size") > (count := leading_axis(x, name)):
        raise ValueError(f"batch_size must be no more than the {count} examples in {name}, got {batch_size}.")
    return int(batch_size)


def _check_no_nan(label: str, leaf: Array) -> None:
    # min() carries a NaN through without a temporary; only off the host is the array reduced where it lives.
    on_host = not isinstance(leaf, jax.Array) or all(d.platform == "cpu" for d in leaf.devices())
    smallest = np.min(np.asarray(leaf)) if on_host else jnp.min(leaf)
    if np.isnan(np.asarray(smallest)):
        bad = int(np.sum(np.isnan(np.asarray(leaf))))
        raise ValueError(
            f"{label} must not hold NaN, got {bad} of {leaf.size} values. Drop them, or fill them with a finite number "
            "and pass a mask beside it for the log-joint to use."
        )
