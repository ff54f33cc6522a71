"""Linear recurrences over chains and trees: d_0 = b_0 and d_i = A_i d_parent(i) + b_i.

That is a linear system with a unit triangular matrix, and `lax.custom_linear_solve` differentiates it as one: the gradient is a sweep
from the leaves to the root, whose memory is linear in the number of nodes, however the forward sweep is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jvi._typing import Array

Action = Callable[[Array, Array], Array]
# What a step of a loop costs besides its nodes, in nodes.
_STEP = 256


def on_vectors(link: Array, d: Array) -> Array:
    """A d, for any leading axes."""
    return jnp.sum(link * d[..., None, :], -1)


def on_covariances(link: Array, cov: Array) -> Array:
    """A C A', for any leading axes."""
    return times(times(link, cov), transposed(link))


def times(a: Array, b: Array) -> Array:
    """A product of small matrices, in full precision on devices whose matrix units round to fewer bits."""
    if a.shape[-1] <= 4:
        return jnp.sum(a[..., :, :, None] * b[..., None, :, :], -2)
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def transposed(link: Array) -> Array:
    """A', for any leading axes."""
    return jnp.swapaxes(link, -1, -2)


def sweep(structure: Any, act: Action, link: Array, noise: Array) -> Array:
    """The recurrence's solution [n, ...].

    Args:
      structure: a `Chain` or `Branches`.
      act: what A does to a d, `on_vectors` or `on_covariances`. With A' for A it must be its own transpose.
      link: A, of all nodes but the first [n - 1, D, D].
      noise: b [n, ...].
    """

    def residual(d: Array) -> Array:
        return d - jnp.concatenate([jnp.zeros_like(d[:1]), act(link, structure.of_parents(d))])

    def forward(_: Any, b: Array) -> Array:
        return structure.forward(act, link, b)

    def backward(_: Any, b: Array) -> Array:
        return structure.backward(act, transposed(link), b)

    return lax.custom_linear_solve(residual, noise, forward, backward)


class Chain:
    """Every node's parent is the node before: a scan, or an associative one, of logarithmic depth."""

    def __init__(self, parallel: bool) -> None:
        self.parallel = parallel

    def of_parents(self, d: Array) -> Array:
        """What the parents of all nodes but the first hold [n - 1, ...]."""
        return d[:-1]

    def forward(self, act: Action, link: Array, b: Array) -> Array:
        """From the first node to the last."""
        if not self.parallel:
            return self._scan(act, link, b[0], b[1:], reverse=False)
        return self._associative(
            act, jnp.concatenate([jnp.zeros_like(link, shape=(1, *link.shape[1:])), link]), b, reverse=False
        )

    def backward(self, act: Action, link: Array, b: Array) -> Array:
        """From the last node to the first; `link` is transposed already."""
        if not self.parallel:
            return self._scan(act, link, b[-1], b[:-1], reverse=True)
        return self._associative(
            act, jnp.concatenate([link, jnp.zeros_like(link, shape=(1, *link.shape[1:]))]), b, reverse=True
        )

    def _scan(self, act: Action, link: Array, first: Array, rest: Array, *, reverse: bool) -> Array:
        def step(d: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            d = act(at[0], d) + at[1]
            return d, d

        _, out = lax.scan(step, first, (link, rest), reverse=reverse)
        return jnp.concatenate([out, first[None]] if reverse else [first[None], out])

    def _associative(self, act: Action, link: Array, b: Array, *, reverse: bool) -> Array:
        def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
            return times(right[0], left[0]), act(right[0], left[1]) + right[1]

        return lax.associative_scan(combine, (link, b), reverse=reverse)[1]


class Branches:
    """A tree. Its sweep goes through chunks of nodes in order of depth; or, in parallel, doubles the ancestors that each node knows.

    No chunk holds nodes of two depths, except that it may reach into the next depth: what is written there is overwritten later.
    Both are loops of the program, so that deep trees compile like shallow ones.
    """

    def __init__(self, parents: tuple[int, ...], parallel: bool) -> None:
        self.parallel, self.size = parallel, len(parents)
        self.parents = np.asarray(parents[1:], np.int32)
        depth = _depths(np.asarray(parents))
        self.rounds = math.ceil(math.log2(depth.max() + 1))
        order = np.argsort(depth, kind="stable").astype(np.int32)
        place = np.empty_like(order)
        place[order] = np.arange(self.size)
        self.order = None if np.array_equal(order, np.arange(self.size)) else order
        self.place = place
        self.parent_places = place[np.asarray(parents)[order[1:]]]
        widths = np.bincount(depth)[1:]
        even = math.ceil(math.sqrt(_STEP * self.size / max(len(widths), 1)))
        self.width = int(min(widths.max(initial=1), even))
        ends = np.cumsum(widths)
        starts = [np.arange(end - width, end, self.width) for width, end in zip(widths, ends, strict=True)]
        lasts = [np.minimum(start + self.width, end) for start, end in zip(starts, ends, strict=True)]
        self.starts = np.concatenate([*starts, []]).astype(np.int32)  # among the nodes below the root
        self.lasts = np.concatenate([*lasts, []]).astype(np.int32)

    def of_parents(self, d: Array) -> Array:
        """What the parents of all nodes but the first hold [n - 1, ...]."""
        return d[self.parents]

    def forward(self, act: Action, link: Array, b: Array) -> Array:
        """From the root to the leaves."""
        if self.size == 1:
            return b
        if self.parallel:
            return self._doubled(act, link, b, down=True)
        link, parents, chunks = self._chunks(link)
        b = self._padded(self._ordered(b))
        starts = jnp.asarray(self.starts)

        def step(k: Any, d: Array) -> Array:
            at = starts[k]
            a, above = chunks(link, at), d[chunks(parents, at)]
            return lax.dynamic_update_slice_in_dim(d, act(a, above) + chunks(b, at + 1), at + 1, 0)

        return self._restored(lax.fori_loop(0, len(self.starts), step, b))

    def backward(self, act: Action, link: Array, b: Array) -> Array:
        """From the leaves to the root; `link` is transposed already."""
        if self.size == 1:
            return b
        if self.parallel:
            return self._doubled(act, link, b, down=False)
        link, parents, chunks = self._chunks(link)
        starts, lasts = jnp.asarray(self.starts), jnp.asarray(self.lasts)

        def step(k: Any, d: Array) -> Array:
            at = starts[-1 - k]
            told = act(chunks(link, at), chunks(d, at + 1))
            inside = (at + jnp.arange(self.width) < lasts[-1 - k]).reshape(-1, *[1] * (told.ndim - 1))
            return d.at[chunks(parents, at)].add(jnp.where(inside, told, 0.0))

        return self._restored(lax.fori_loop(0, len(self.starts), step, self._padded(self._ordered(b))))

    def _doubled(self, act: Action, link: Array, b: Array, *, down: bool) -> Array:
        """(1 - N)^-1 = (1 + N^(2^r)) ... (1 + N^2) (1 + N), where N takes from the parent."""

        def step(_: Any, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            above, power, d = carried
            told = act(power, d[above] if down else d)
            d = d + told if down else d.at[above].add(told)
            upper = power[above]
            return above[above], times(power, upper) if down else times(upper, power), d

        above = jnp.asarray(np.concatenate([[0], self.parents]), jnp.int32)
        power = jnp.concatenate([jnp.zeros_like(link, shape=(1, *link.shape[1:])), link])  # the root takes from nobody
        return lax.fori_loop(0, self.rounds, step, (above, power, b))[2]

    def _chunks(self, link: Array) -> tuple[Array, Array, Callable[[Array, Any], Array]]:
        ordered = link if self.order is None else link[self.order[1:] - 1]
        parents = jnp.asarray(np.pad(self.parent_places, (0, self.width)))
        return self._padded(ordered), parents, lambda rows, at: lax.dynamic_slice_in_dim(rows, at, self.width, 0)

    def _padded(self, rows: Array) -> Array:
        return jnp.concatenate([rows, jnp.zeros_like(rows, shape=(self.width, *rows.shape[1:]))])

    def _ordered(self, b: Array) -> Array:
        return b if self.order is None else b[self.order]

    def _restored(self, d: Array) -> Array:
        return d[: self.size] if self.order is None else d[self.place]


def _depths(parents: np.ndarray) -> np.ndarray:
    """How far each node is from the root [n], by doubling: a chain of 100,000 is no loop in Python."""
    above = np.maximum(parents, 0)
    depth = (parents >= 0).astype(np.int64)
    while np.any(above):
        depth, above = depth + depth[above], above[above]
    return depth
