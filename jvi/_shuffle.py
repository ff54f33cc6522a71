"""An order of the data that is computed where it is needed and stored nowhere."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

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
    rounds = jnp.arange(2 * _ROUNDS, dtype=jnp.uint32) + _mixed(key[0] ^ _mixed(epoch.astype(jnp.uint32)))
    keys = _mixed(_mixed(rounds) ^ key[1])
    low = math.isqrt(max(size - 1, 1)) + 1
    high = -(-size // low)

    def encipher(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, outside = state

        def round(r: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            a, b = pair
            a = (a + _mixed(b ^ keys[2 * r]) % high) % high
            return a, (b + _mixed(a ^ keys[2 * r + 1]) % low) % low

        a, b = jax.lax.fori_loop(0, _ROUNDS, round, (i // low, i % low))
        i = jnp.where(outside, a * low + b, i)
        return i, i >= size

    state = i.astype(jnp.uint32), jnp.full(i.shape, True)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), encipher, state)[0].astype(jnp.int32)


def _mixed(value: Array) -> Array:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons' hash of 32 bits
        value = (value ^ (value >> shift)) * jnp.uint32(factor)
    return value ^ (value >> 16)
