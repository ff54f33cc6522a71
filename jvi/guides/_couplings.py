"""Coupling flows: every layer moves one half of the coordinates, by a map that depends on the other half.

Between layers the halves change places, and after every second one the coordinates are dealt like cards onto two piles, which parts
neighbours. Slices do that without a gather, whose gradient is slow. In which order the coordinates come out is put right at the
noise: it has no gradient, and its density does not depend on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvi._typing import Array, Scalar
from jvi.guides._conditioners import Network

Move = Callable[[Array, Array], tuple[Array, Scalar]]  # (the network's output, coordinates) -> (coordinates, log-determinant)


def coupled(nets: Sequence[Network], move: Move, eps: Array) -> tuple[Array, Scalar]:
    """f(eps) and log|det df/deps|."""
    size, total = eps.shape[0], jnp.zeros((), eps.dtype)
    u = eps[np.argsort(_order(size, len(nets)))]
    for i, net in enumerate(nets):
        u = _shuffled(u, i)
        seen, moved = u[: size // 2], u[size // 2 :]
        moved, log_det = move(net(seen), moved)
        u, total = jnp.concatenate([seen, moved]), total + log_det
    return u, total


def uncoupled(nets: Sequence[Network], move: Move, u: Array) -> tuple[Array, Scalar]:
    """The inverse of `coupled`, up to the order of the noise, and its log-determinant; `move` is the inverse move."""
    size, total = u.shape[0], jnp.zeros((), u.dtype)
    for i, net in reversed(list(enumerate(nets))):
        seen, moved = u[: size // 2], u[size // 2 :]
        moved, log_det = move(net(seen), moved)
        u, total = _unshuffled(jnp.concatenate([seen, moved]), i), total + log_det
    return u, total


def _order(size: int, num_layers: int) -> np.ndarray:
    """Where the coordinates come from that leave the last layer."""
    order = np.arange(size)
    for i in range(num_layers):
        order = _shuffled(order, i)
    return np.asarray(order)


def _shuffled(u: Any, layer: int) -> Any:
    xp, half = (np if isinstance(u, np.ndarray) else jnp), u.shape[0] // 2
    if layer == 0 or u.shape[0] == 1:
        return u
    return xp.concatenate([u[half:], u[:half]] if layer % 2 else [u[1::2], u[::2]])


def _unshuffled(u: Array, layer: int) -> Array:
    size = u.shape[0]
    if layer == 0 or size == 1:
        return u
    if layer % 2:
        return jnp.concatenate([u[size - size // 2 :], u[: size - size // 2]])
    odd, even = u[: size // 2], u[size // 2 :]
    return jnp.stack([even, jnp.pad(odd, (0, size % 2))], 1).reshape(-1)[:size]
