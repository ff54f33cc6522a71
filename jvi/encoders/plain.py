"""Encoders of vectors and of images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvi._typing import Array
from jvi.encoders._layers import dense, last, norm, real


class MLP(nn.Module):
    """Layers of units between what is seen and `num_outputs` numbers; any pytree of arrays, put in a row, is what is seen.

    The numbers start near zero: in `jvi.guides.amortize`, the guide starts near where it would without a network. Nothing is
    standardized; inputs should be of the order of 1.

    Attributes:
      num_outputs: numbers that come out, [num_outputs].
      hidden: units of each layer in between; `()` for a linear map.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.FullRank(jvi.space(jvi.real(2)))
      >>> amortized = jvi.guides.amortize(guide, jvi.encoders.MLP(jvi.guides.num_params(guide), hidden=(32,)))
      >>> x = jnp.ones(5)
      >>> z, log_q = amortized.sample_and_log_prob(amortized.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> z.shape
      (2,)

    References:
      Hendrycks and Gimpel (2016), Gaussian Error Linear Units, the nonlinearity.
    """

    num_outputs: int
    hidden: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, inputs: Any) -> Array:
        """[num_outputs], of one datum."""
        out = jnp.concatenate([jnp.ravel(real(leaf)) for leaf in jax.tree.leaves(inputs)])
        for units in self.hidden:
            out = nn.gelu(dense(units)(out))
        return last(self.num_outputs)(out)


class Convolutional(nn.Module):
    """Convolutions of 3 x 3 pixels, each halving height and width, then one layer of units: an image -> `num_outputs` numbers.

    Channels are standardized pixel by pixel (LayerNorm): an image's numbers do not depend on the others of its batch.

    Attributes:
      num_outputs: numbers that come out, [num_outputs].
      channels: of each convolution; as many as height and width can be halved.
      hidden: units of the layer after them.

    Raises:
      ValueError: if the input is no image [H, W] or [H, W, C].

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> encoder, image = jvi.encoders.Convolutional(4, channels=(8, 16)), jnp.ones((8, 8))
      >>> out, params = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
      >>> out.shape
      (4,)

    References:
      LeCun et al. (1998), Gradient-Based Learning Applied to Document Recognition; Ba, Kiros and Hinton (2016), Layer Normalization.
    """

    num_outputs: int
    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128

    @nn.compact
    def __call__(self, image: Any) -> Array:
        """[num_outputs], of one image."""
        out = real(image)
        if out.ndim not in (2, 3):
            raise ValueError(
                f"Convolutional takes one image [H, W] or [H, W, C], without a batch axis; got shape {list(out.shape)}. "
                "jvi.per_example and jax.vmap add examples."
            )
        out = out[..., None] if out.ndim == 2 else out
        for channels in self.channels:
            out = nn.gelu(norm()(dense(channels)(_neighbourhoods(out))))
        return last(self.num_outputs)(nn.gelu(dense(self.hidden)(jnp.ravel(out))))


def _neighbourhoods(image: Array) -> Array:
    """The 3 x 3 pixels around every other one, in a row: [H, W, C] -> [ceil(H / 2), ceil(W / 2), 9 C].

    A linear layer of these is a convolution; XLA's own takes many times as long inside of a loop on CPUs.
    """
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)], -1)
