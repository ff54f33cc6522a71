"""Transforms of data that are drawn anew at every step, for `jvi.objectives.augmented`: bytes in, numbers out.

A transform is a function `(rng, x) -> x` of one datum. One after which a density is that of another quantity has a
`log_volume(x)`, nats: what is added to a bound to make it one of the data as they came.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jvi import _tree
from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, PRNGKey, Scalar

__all__ = ["Dequantized", "binarized"]

_FRACTION = 15  # bits of noise: with the half step and the eight bits of a byte they fill float32's 24


def binarized(rng: PRNGKey, x: Array) -> Array:
    """Dynamic binarization: pixels on or off, each on with its intensity as the probability.

    The mean of many draws is the intensity, x / 255. A bound of binarized data is one of log p(b), the mean over draws of b.

    Args:
      rng: key, consumed.
      x: intensities, uint8 of any shape.

    Returns:
      Zeros and ones, float32 of the same shape.

    Raises:
      TypeError: if `x` is no array of bytes.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> jvi.augment.binarized(jax.random.key(0), jnp.array([0, 255, 0], jnp.uint8)).tolist()
      [0.0, 1.0, 0.0]

    References:
      Salakhutdinov and Murray (2008), On the Quantitative Analysis of Deep Belief Networks.
    """
    return jax.random.bernoulli(rng, _bytes("binarized", x) / 255.0).astype(jnp.float32)


@spec
class Dequantized:
    """Uniform dequantization: the levels 0, ..., 2^bits - 1 spread over their bins of (0, 1).

    With x' = (x + u) / 2^bits and u uniform in (0, 1), the probability of x is 2^(-bits D) times the mean density of x' over its bin,
    so that log P(x) >= E_u[log p(x')] - bits D log 2, of D entries. The second term is `log_volume`: with it a lower bound of
    log p(x') is one of log P(x), and its negative over D log 2 is in bits per dimension.

    u has 15 bits and half a step more, so that x' in float32 is exactly within its bin and never 0 or 1.

    Attributes:
      bits: of a level; 8 for bytes as they come.

    Raises:
      ValueError: if `bits` is not from 1 to 8.
      TypeError: when called, if `x` is no array of bytes.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> x = jnp.array([0, 7, 255], jnp.uint8)
      >>> found = jvi.augment.Dequantized()(jax.random.key(0), x)
      >>> jnp.floor(256 * found).tolist(), found.dtype.name
      ([0.0, 7.0, 255.0], 'float32')
      >>> round(float(jvi.augment.Dequantized().log_volume(x)), 2)  # -3 log 256
      -16.64

    References:
      Theis, van den Oord and Bethge (2016), A Note on the Evaluation of Generative Models.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if check_count(self.bits, "bits") > 8:
            raise ValueError(f"bits must be from 1 to 8, got {self.bits}.")

    def __call__(self, rng: PRNGKey, x: Array) -> Array:
        """(x + u) / 2^bits, float32."""
        level = _bytes("Dequantized", x)
        u = jax.random.bits(rng, jnp.shape(x), jnp.uint16) >> (16 - _FRACTION)
        return (level + (u.astype(jnp.float32) + 0.5) / 2**_FRACTION) / 2**self.bits

    def log_volume(self, x: Array) -> Scalar:
        """The logarithm of a bin's volume, -bits D log 2, nats."""
        return jnp.asarray(-self.bits * math.log(2.0) * jnp.size(x), jnp.float32)


def _bytes(name: str, x: Array) -> Array:
    """The levels, float32."""
    if not hasattr(x, "dtype") or x.dtype != jnp.uint8:
        raise TypeError(
            f"{name} takes one array of bytes, uint8, as images are stored; got {_tree.shapes(x)}. Where a datum has other parts, "
            "write a transform that calls it on this one: lambda rng, x: {**x, 'image': jvi.augment.binarized(rng, x['image'])}."
        )
    return jnp.asarray(x).astype(jnp.float32)
