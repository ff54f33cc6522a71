"""Monotone rational-quadratic splines with bounded pieces.

distrax has these too, with widths that are differences of positions and no bound on how unequal pieces get: in float32 an inverse then
loses all digits (seen in a flow of four such layers). Here widths and slopes are bounded and used as they are, and the inverse is as
good as a draw that is rounded to float32 allows: what is left is that splines of wild knots are flat in places, down to slopes of 1e-5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvi._typing import Array

LEAST = 1e-2  # width and height of a piece, as a fraction of the whole
MAX_LOG_SLOPE = 3.0  # at the knots


class Piece(NamedTuple):
    """The piece of every coordinate's spline in which it lies [n]: left end, width, lower end, height, slopes at both ends."""

    left: Array
    width: Array
    low: Array
    height: Array
    before: Array
    after: Array


def bend(knots: Array, u: Array, bound: float) -> tuple[Array, Array]:
    """A spline on [-bound, bound], linear beyond; the identity at knots of zero.

    Args:
      knots: unconstrained widths, heights and slopes [n, 3 B + 1].
      u: coordinates [n].
      bound: where the spline ends.

    Returns:
      The bent coordinates and the logs of the slopes there, both [n].
    """
    inside = jnp.clip(u, -bound, bound)
    piece, slope = _piece(knots, inside, bound, 0)
    share = (inside - piece.left) / piece.width
    steep = piece.height / piece.width
    rest, denominator, log_slope = _shares(piece, steep, share)
    bent = piece.low + piece.height * (steep * share**2 + piece.before * rest) / denominator
    beyond = jnp.abs(u) > bound
    return jnp.where(beyond, inside + slope * (u - inside), bent), jnp.where(beyond, jnp.log(slope), log_slope)


def unbend(knots: Array, u: Array, bound: float) -> tuple[Array, Array]:
    """The inverse of `bend`, and the logs of its slopes."""
    inside = jnp.clip(u, -bound, bound)
    piece, slope = _piece(knots, inside, bound, 1)
    steep, above = piece.height / piece.width, inside - piece.low
    curved = above * (piece.after + piece.before - 2.0 * steep)
    b = piece.height * piece.before - curved
    a, c = piece.height * steep - b, -steep * above
    root = jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, jnp.finfo(u.dtype).tiny))
    # Of the two ways to write the root of the quadratic, that which subtracts nothing; a is positive where b is negative.
    plain = b >= 0.0
    share = jnp.where(plain, -2.0 * c / jnp.where(plain, b + root, 1.0), (root - b) / jnp.where(plain, 1.0, 2.0 * a))
    share = jnp.clip(share, 0.0, 1.0)
    log_slope = _shares(piece, steep, share)[2]
    beyond = jnp.abs(u) > bound
    straight = piece.left + piece.width * share
    return jnp.where(beyond, inside + (u - inside) / slope, straight), -jnp.where(beyond, jnp.log(slope), log_slope)


def _shares(piece: Piece, steep: Array, share: Array) -> tuple[Array, Array, Array]:
    rest = share * (1.0 - share)
    denominator = steep + (piece.after + piece.before - 2.0 * steep) * rest
    numerator = piece.after * share**2 + 2.0 * steep * rest + piece.before * (1.0 - share) ** 2
    return rest, denominator, 2.0 * jnp.log(steep / denominator) + jnp.log(numerator)


def _piece(knots: Array, inside: Array, bound: float, axis: int) -> tuple[Piece, Array]:
    """The piece in which each coordinate lies, along x (0) or y (1), and the slope of the tail on its side."""
    count = (knots.shape[1] - 1) // 3
    raw = jnp.stack([knots[:, :count], knots[:, count : 2 * count]])
    sizes = 2.0 * bound * (LEAST + (1.0 - count * LEAST) * jax.nn.softmax(raw, -1))
    ends = jnp.cumsum(sizes[axis, :, :-1], -1) - bound
    number = jnp.sum(inside[:, None] >= ends, 1)[:, None]
    places = jnp.arange(count)[None]
    width, height = jnp.sum(jnp.where(places == number, sizes, 0.0), -1)
    left, low = jnp.sum(jnp.where(places < number, sizes, 0.0), -1) - bound
    raw = knots[:, 2 * count :]
    before, after = (jnp.sum(jnp.where(places == number, part, 0.0), -1) for part in (raw[:, :-1], raw[:, 1:]))
    tail = jnp.where(inside < 0.0, raw[:, 0], raw[:, -1])
    return Piece(left, width, low, height, _slope(before), _slope(after)), _slope(tail)


def _slope(raw: Array) -> Array:
    return jnp.exp(MAX_LOG_SLOPE * jnp.tanh(raw / MAX_LOG_SLOPE))
