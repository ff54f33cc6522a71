"""The networks of a flow's layers: multilayer perceptrons of one shape, stacked, so that an optimizer sees few and large arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array, PRNGKey

Masks = tuple[np.ndarray, ...]
Network = Callable[[Array], Array]


class Conditioners(NamedTuple):
    """One network for every one of N layers.

    Attributes:
      weights: a linear map for every step of the networks, [N, inputs, outputs] each.
      biases: [N, outputs] each.
      context: what maps the context into the first step, [N, C, outputs]; None without a context.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    context: Array | None


def conditioners(
    rng: PRNGKey, num_layers: int, widths: Sequence[int], context: Array | None, masks: Masks = ()
) -> Conditioners:
    """Networks whose output is zero: the last step starts at zero, so that flows start at the identity."""
    weights, biases = [], []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        weight_key, bias_key = jax.random.split(jax.random.fold_in(rng, i))
        if i == len(widths) - 2:
            weights.append(jnp.zeros((num_layers, fan_in, fan_out)))
            biases.append(jnp.zeros((num_layers, fan_out)))
            continue
        # Of a masked map only some inputs reach an output.
        seen = np.maximum(masks[i].sum(1, keepdims=True), 1) if masks else max(fan_in, 1)
        weights.append(jax.random.normal(weight_key, (num_layers, fan_in, fan_out)) / jnp.sqrt(jnp.asarray(seen, float)))
        # Spread, because the noise is: with biases at zero the bends of a network of one input would all lie at zero.
        biases.append(jax.random.uniform(bias_key, (num_layers, fan_out), minval=-1.0, maxval=1.0))
    if context is None:
        return Conditioners(tuple(weights), tuple(biases), None)
    scale = 1.0 / math.sqrt(max(context.shape[0], 1)) if len(widths) > 2 else 0.0
    shape = (num_layers, context.shape[0], widths[1])
    return Conditioners(tuple(weights), tuple(biases), scale * jax.random.normal(jax.random.fold_in(rng, len(widths)), shape))


def networks(
    layers: Conditioners, activation: Callable[[Array], Array], context: Array | None, masks: Masks = ()
) -> list[Network]:
    """The networks as functions of their input, in the order of the layers."""
    stacked = [weight * mask for weight, mask in zip(layers.weights, masks, strict=True)] if masks else layers.weights
    weights, biases = [_unstacked(leaf) for leaf in stacked], [_unstacked(leaf) for leaf in layers.biases]
    if layers.context is not None and context is not None:
        biases[0] = [bias + context @ weight for bias, weight in zip(biases[0], _unstacked(layers.context), strict=True)]

    def network(n: int) -> Network:
        def apply(seen: Array) -> Array:
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                seen = (activation(seen) if i else seen) @ weight[n] + bias[n]
            return seen

        return apply

    return [network(n) for n in range(layers.biases[0].shape[0])]


def masks(size: int, hidden: Sequence[int], num_layers: int, *, outputs: int, conditional: bool) -> Masks:
    """Masks [N, inputs, outputs] after which output k, of every one of `outputs` blocks, depends on the inputs before k.

    The order is that of the coordinates in even layers and the reverse in odd ones. A hidden unit of degree m sees the first m inputs;
    degree 0, of which there is use where there is a context, none.
    """
    least = 0 if conditional or size == 1 else 1
    degrees = [np.arange(1, size + 1)]
    for width in hidden:
        steps = (np.arange(width) + 1) * (size - least) / width  # the last is the highest, whatever the width
        degrees.append(np.ceil(steps).astype(int) - 1 + least)
    found = [before[:, None] <= after for before, after in pairwise(degrees)]
    found.append(np.tile(degrees[-1][:, None] < degrees[0], (1, outputs)))
    found = [np.repeat(mask[None], num_layers, 0) for mask in found]
    found[0][1::2] = found[0][1::2, ::-1]
    blocks = found[-1].reshape(num_layers, -1, outputs, size)
    blocks[1::2] = blocks[1::2, ..., ::-1].copy()
    return (*found[:-1], blocks.reshape(found[-1].shape))


def _unstacked(leaf: Array) -> list[Array]:
    # Split, and not indexed: the gradient is then one concatenation.
    return [jnp.squeeze(part, 0) for part in jax.lax.split(leaf, (1,) * leaf.shape[0])]
