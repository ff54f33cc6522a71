"""An order of the data that is computed where it is needed and stored nowhere."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array

_ROUNDS = 8  # six leave traces in the order of five numbers, which 100,000 of their orders show; eight do not


def shuffled(key: Array, epoch: Array, i: Array, size: int) -> Array:
    """Entries `i` of this epoch's pseudo-random permutation of `size` numbers, without the others.

    A generalized Feistel cipher on pairs (a, b): each half in turn is shifted by a keyed hash of the other, which can be undone
    whatever the hash is. There are a few pairs more than numbers; what lands outside is enciphered again. Sorting random numbers
    instead would take as long as ten steps of a small network, at every epoch.

    Args:
      key: random bits, uint32 [2].
      epoch: a whole number.
      i: whole numbers below `size`, of any shape.
      size: how many numbers are permuted.

    References:
      Black and Rogaway (2002), Ciphers with Arbitrary Finite Domains.
    """
    low, high = _sides(size)
    keys = _keys(jnp.arange(2 * _ROUNDS, dtype=jnp.uint32), key, epoch)

    def encipher(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, outside = state

        def round(r: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            return _round(keys[2 * r], keys[2 * r + 1], pair, low, high)

        a, b = jax.lax.fori_loop(0, _ROUNDS, round, (i // low, i % low))
        i = jnp.where(outside, a * low + b, i)
        return i, i >= size

    state = i.astype(jnp.uint32), jnp.full(i.shape, True)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), encipher, state)[0].astype(jnp.int32)


def shuffled_on_host(key: np.ndarray, epoch: np.ndarray, i: np.ndarray, size: int) -> np.ndarray:
    """`shuffled` in NumPy, for data that no device holds; `epoch` an array that broadcasts against `i`.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jvi._shuffle import shuffled, shuffled_on_host
      >>> key, i = np.array([3, 4], np.uint32), np.arange(100)
      >>> on_device = shuffled(jnp.asarray(key), jnp.asarray(7), jnp.asarray(i), 100)
      >>> bool((shuffled_on_host(key, np.full(100, 7), i, 100) == on_device).all())
      True
    """
    low, high = _sides(size)
    rounds = np.arange(2 * _ROUNDS, dtype=np.uint32).reshape(-1, *[1] * epoch.ndim)
    keys = _keys(rounds, key, epoch)
    i, outside = i.astype(np.uint32), np.full(i.shape, True)
    while outside.any():
        a, b = i // low, i % low
        for r in range(_ROUNDS):
            a, b = _round(keys[2 * r], keys[2 * r + 1], (a, b), low, high)
        i = np.where(outside, a * low + b, i)
        outside = i >= size
    return i.astype(np.int64)


def _sides(size: int) -> tuple[int, int]:
    low = math.isqrt(max(size - 1, 1)) + 1
    return low, -(-size // low)


def _keys(rounds: Any, key: Any, epoch: Any) -> Any:
    return _mixed(_mixed(rounds + _mixed(key[0] ^ _mixed(epoch.astype(np.uint32)))) ^ key[1])


def _round(first: Any, second: Any, pair: tuple[Any, Any], low: int, high: int) -> tuple[Any, Any]:
    a, b = pair
    a = (a + _mixed(b ^ first) % high) % high
    return a, (b + _mixed(a ^ second) % low) % low


def _mixed(value: Any) -> Any:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons' hash of 32 bits
        value = (value ^ (value >> shift)) * np.uint32(factor)
    return value ^ (value >> 16)
