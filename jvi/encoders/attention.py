"""Encoders by attention, of sets and of sequences."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jvi._typing import Array
from jvi.encoders._layers import dense, elements, last, norm, precision


class SetTransformer(nn.Module):
    """Attention over a set [N, F] -> `num_outputs` numbers that no permutation of its elements changes. Linear in N.

    Each layer has `num_inducing` learned points attend to the set, and the set to what they found (ISAB); at last one learned vector
    attends to it all (PMA). Attention averages, and so cannot tell a set from two copies of it, but a posterior must: log(1 + n) of
    the n elements stands beside each of them, and a learned element, which every set holds, is what an empty one is made of.

    Given `(values [N, F], mask [N])`, the elements whose mask is false are not in the set: its numbers are those of the set without
    them. So that sets of any size up to N make one array, and N may grow later.

    Attributes:
      num_outputs: numbers that come out, [num_outputs].
      width: numbers that stand for an element inside.
      num_heads: attentions side by side; a divisor of `width`.
      num_layers: times that elements look at each other.
      num_inducing: m, points through which they do; time and memory are as N m.

    Raises:
      TypeError, ValueError: if the input is neither [N, F] or [N], nor that with a mask [N].

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> encoder, x = jvi.encoders.SetTransformer(3, width=16, num_layers=1), jnp.linspace(-1.0, 1.0, 5)
      >>> params, apply = jax.jit(encoder.init)(jax.random.key(0), x), jax.jit(encoder.apply)
      >>> padded = jnp.append(x[::-1], 9.0), jnp.arange(6) < 5
      >>> bool(jnp.allclose(apply(params, x), apply(params, padded), atol=1e-5))
      True

    References:
      Lee et al. (2019), Set Transformer. Unlike there, queries and keys are standardized and values are not, so that what is pooled
      is linear in the size of what came in, and the set's own size is told.
    """

    num_outputs: int
    width: int = 64
    num_heads: int = 4
    num_layers: int = 2
    num_inducing: int = 16

    @nn.compact
    def __call__(self, inputs: Any) -> Array:
        """[num_outputs], of one set."""
        values, mask = elements(self, inputs)
        count = jnp.log1p(jnp.sum(mask, dtype=values.dtype))
        values = jnp.concatenate([values, jnp.broadcast_to(count, (values.shape[0], 1))], -1)
        embedded = dense(self.width)(nn.gelu(dense(self.width)(values)))
        found = jnp.concatenate([self._learned("element", 1), embedded])
        mask = jnp.concatenate([jnp.ones(1, bool), mask])
        for layer in range(self.num_layers):
            points = self._learned(f"inducing_{layer}", self.num_inducing)
            seen = _Attend(self.num_heads)(points, found, jnp.broadcast_to(mask, (self.num_inducing, mask.shape[0])))
            found = _Attend(self.num_heads)(found, seen)
        pooled = _Attend(self.num_heads)(self._learned("pooling", 1), found, mask[None])[0]
        return last(self.num_outputs)(nn.gelu(dense(self.width)(pooled)))

    def _learned(self, name: str, count: int) -> Array:
        return self.param(name, nn.initializers.normal(1.0), (count, self.width), precision())


class SequenceTransformer(nn.Module):
    """Attention over a sequence [T, F] -> [T, num_outputs]: each step's numbers are of all steps, or with `causal` of those until it.

    A step knows its place by sines and cosines of it, so that T may change; how well a longer sequence than any in training is
    read, training does not say. Time and memory are as T^2. Given `(values [T, F], mask [T])`, steps whose mask is false are seen by
    none, and their own numbers are zero.

    Attributes:
      num_outputs: numbers for each step.
      width: numbers that stand for a step inside; even.
      num_heads: attentions side by side; a divisor of `width`.
      num_layers: times that steps look at each other.
      causal: whether a step sees none after it.

    Raises:
      TypeError, ValueError: if the input is neither [T, F] or [T], nor that with a mask [T].

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> encoder, x = jvi.encoders.SequenceTransformer(2, width=16, num_layers=1, causal=True), jnp.linspace(-1.0, 1.0, 5)
      >>> params, apply = jax.jit(encoder.init)(jax.random.key(0), x), jax.jit(encoder.apply)
      >>> bool(jnp.allclose(apply(params, x)[:3], apply(params, x[:3]), atol=1e-5))
      True

    References:
      Vaswani et al. (2017), Attention Is All You Need; Xiong et al. (2020), On Layer Normalization in the Transformer Architecture.
    """

    num_outputs: int
    width: int = 64
    num_heads: int = 4
    num_layers: int = 2
    causal: bool = False

    @nn.compact
    def __call__(self, inputs: Any, mask: Any = None) -> Array:
        """[T, num_outputs], of one sequence; its mask is the second argument, or of a pair."""
        values, mask = elements(self, inputs, mask)
        steps = values.shape[0]
        seen = jnp.broadcast_to(mask, (steps, steps))
        seen = jnp.tril(seen) if self.causal else seen
        found = dense(self.width)(nn.gelu(dense(self.width)(values))) + _places(steps, self.width).astype(values.dtype)
        for _ in range(self.num_layers):
            found = _Attend(self.num_heads)(found, found, seen)
        return jnp.where(mask[:, None], last(self.num_outputs)(found), 0.0)


class _Attend(nn.Module):
    """Queries [Q, D] after a look at others [N, D], each at those that its mask [Q, N] lets it see."""

    num_heads: int

    @nn.compact
    def __call__(self, queries: Array, others: Array, mask: Array | None = None) -> Array:
        width, keys = queries.shape[-1], norm()(others)
        heads = [self._split(dense(width)(of)) for of in (norm()(queries), keys, others)]
        seen = nn.dot_product_attention(*heads, mask=None if mask is None else mask[None])
        found = queries + dense(width)(seen.reshape(queries.shape))
        return found + dense(width)(nn.gelu(dense(2 * width)(norm()(found))))

    def _split(self, values: Array) -> Array:
        """[N, D] -> [N, heads, D / heads]."""
        count, width = values.shape
        if width % self.num_heads:
            raise ValueError(f"num_heads must divide width, got num_heads={self.num_heads} and width={width}.")
        return values.reshape(count, self.num_heads, width // self.num_heads)


def _places(steps: int, width: int) -> Array:
    """Sines and cosines [T, D] of the steps' numbers, of periods from 2 pi to 10,000 times that."""
    rates = jnp.exp(-math.log(1e4) * jnp.arange(0, width, 2) / width)
    angles = jnp.arange(steps)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)[:, :width]
