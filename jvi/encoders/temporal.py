"""Encoders that convolve a sequence over time."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jvi._typing import Array
from jvi.encoders._layers import dense, elements, last, norm


class TemporalConvolution(nn.Module):
    """Convolutions over a sequence [T, F] -> [T, num_outputs], each layer's steps twice as far apart as those of the layer before.

    Each layer adds to a step what it makes of `kernel_size` steps around it, or with `causal` until it, that are 2^layer apart: four
    layers of three see 15 steps to either side, or 30 back. Time is linear in T, and no step waits for another. Given
    `(values [T, F], mask [T])`, steps whose mask is false count as zero to the others, as do those beyond the ends: so padding at the
    end changes no number. Their own numbers are zero.

    Attributes:
      num_outputs: numbers for each step.
      width: numbers that stand for a step inside.
      num_layers: convolutions, dilated by 1, 2, 4, ...
      kernel_size: steps that each of them takes in; odd, unless `causal`.
      causal: whether a step sees none after it.

    Raises:
      TypeError, ValueError: if the input is neither [T, F] or [T], nor that with a mask [T]; if `kernel_size` is even but not `causal`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> encoder, x = jvi.encoders.TemporalConvolution(2, width=8, num_layers=2), jnp.linspace(-1.0, 1.0, 5)
      >>> params = encoder.init(jax.random.key(0), x)
      >>> padded = jnp.append(x, 9.0), jnp.arange(6) < 5
      >>> whole, same = encoder.apply(params, padded), encoder.apply(params, x)
      >>> whole.shape, bool(jnp.allclose(whole[:5], same, rtol=1e-4))
      ((6, 2), True)

    References:
      Bai, Kolter and Koltun (2018), An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling.
      Unlike there, steps are standardized (LayerNorm) ahead of each convolution, of which a layer has one.
    """

    num_outputs: int
    width: int = 64
    num_layers: int = 4
    kernel_size: int = 3
    causal: bool = False

    @nn.compact
    def __call__(self, inputs: Any, mask: Any = None) -> Array:
        """[T, num_outputs], of one sequence; its mask is the second argument, or of a pair."""
        values, mask = elements(self, inputs, mask)
        if not self.causal and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, or causal=True, got kernel_size={self.kernel_size}.")
        found = dense(self.width)(values)
        for layer in range(self.num_layers):
            seen = _around(norm()(found) * mask[:, None], self.kernel_size, 2**layer, self.causal)
            found = found + dense(self.width)(nn.gelu(dense(self.width)(seen)))
        return jnp.where(mask[:, None], last(self.num_outputs)(norm()(found)), 0.0)


def _around(steps: Array, kernel_size: int, dilation: int, causal: bool) -> Array:
    """The steps around every one in a row, zero beyond the ends: [T, C] -> [T, kernel_size C].

    A linear layer of these is a convolution; XLA's own takes many times as long inside of a loop on CPUs.
    """
    count, reach = steps.shape[0], (kernel_size - 1) * dilation
    before = reach if causal else reach // 2
    padded = jnp.pad(steps, ((before, reach - before), (0, 0)))
    return jnp.concatenate([padded[k * dilation : k * dilation + count] for k in range(kernel_size)], -1)
