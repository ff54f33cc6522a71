"""Autoregressive layers: coordinate k is scaled and shifted by what a masked network makes of the coordinates before k.

From the side that the networks read, a layer is one pass; from the other side it is solved for one coordinate after the other. The
order of the coordinates is reversed from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array, PRNGKey, Scalar
from jvi.guides._conditioners import Conditioners, Masks, Network, conditioners, masks, networks
from jvi.guides._flows import Flow, affine


def layers_of(rng: PRNGKey, size: int, num_layers: int, hidden: Sequence[int], context: Array | None) -> Conditioners:
    """The masked networks' initial parameters."""
    return conditioners(rng, num_layers, (size, *hidden, 2 * size), context, _masks(size, hidden, num_layers, context))


def networks_of(
    params: Flow, hidden: Sequence[int], activation: Callable[[Array], Array], context: Array | None
) -> list[Network]:
    """The masked networks, as functions of their input."""
    size, num_layers = params.base.loc.shape[0], params.layers.biases[0].shape[0]
    return networks(params.layers, activation, context, _masks(size, hidden, num_layers, context))


def read(nets: Sequence[Network], u: Array, *, toward_noise: bool) -> tuple[Array, Scalar]:
    """All layers from the side that their networks read, one pass each, and the log-determinant.

    Args:
      nets: of the layers, in the order of a draw.
      u: coordinates [D].
      toward_noise: whether that side is the draw's, and layers are undone: x = (y - t(y)) exp(-s(y)).
    """
    total = jnp.zeros((), u.dtype)
    for net in reversed(nets) if toward_noise else nets:
        log_scale, shift = affine(net(u))
        u = (u - shift) * jnp.exp(-log_scale) if toward_noise else u * jnp.exp(log_scale) + shift
        total = total + jnp.sum(log_scale)
    return u, -total if toward_noise else total


def solve(nets: Sequence[Network], u: Array, *, toward_noise: bool) -> tuple[Array, Scalar]:
    """The inverse of `read`: D passes a layer."""
    total = jnp.zeros((), u.dtype)
    for n, net in reversed(list(enumerate(nets))) if toward_noise else enumerate(nets):
        u, log_scale = _solved(net, u, n, toward_noise)
        total = total + jnp.sum(log_scale)
    return u, -total if toward_noise else total


def _solved(net: Network, known: Array, n: int, toward_noise: bool) -> tuple[Array, Array]:
    size = known.shape[0]
    order = np.arange(size)[::-1] if n % 2 else np.arange(size)

    def write(found: Array) -> tuple[Array, Array]:
        log_scale, shift = affine(net(found))
        return (known - shift) * jnp.exp(-log_scale) if toward_noise else known * jnp.exp(log_scale) + shift, log_scale

    def one(found: Array, k: Array) -> tuple[Array, None]:
        # What is not yet known stays zero: anything else could overflow, and an infinity times a mask's zero is no number.
        return jnp.where(jnp.arange(size) == k, write(found)[0], found), None

    found, _ = jax.lax.scan(one, jnp.zeros_like(known), jnp.asarray(order[:-1]))
    return write(found)


def _masks(size: int, hidden: Sequence[int], num_layers: int, context: Array | None) -> Masks:
    return masks(size, hidden, num_layers, outputs=2, conditional=context is not None)
