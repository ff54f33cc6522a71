"""Many keys, a few at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jvi._typing import PRNGKey, PyTree


def chunked(some: Callable[[PRNGKey], PyTree], keys: PRNGKey, size: int) -> PyTree:
    """`some(keys)`, which maps keys [n] to leaves [n, ...] whatever n is, of `size` keys at a time.

    Unlike `jax.lax.map(..., batch_size=size)` it leaves it to `some` where the keys of a chunk go.

    Example:
      >>> import jax
      >>> from jvi._chunked import chunked
      >>> chunked(jax.vmap(jax.random.normal), jax.random.split(jax.random.key(0), 10), 4).shape
      (10,)
    """
    even = keys.shape[0] - keys.shape[0] % size
    if even == size == keys.shape[0]:
        return some(keys)
    found = jax.lax.map(some, keys[:even].reshape(-1, size))
    found = jax.tree.map(lambda leaf: leaf.reshape(even, *leaf.shape[2:]), found)
    if even == keys.shape[0]:
        return found
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, some(keys[even:]))
