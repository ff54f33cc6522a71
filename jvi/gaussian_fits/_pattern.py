"""Which coordinates may depend on which: those of a parent in a tree, and some that all depend on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jvi.spaces import Space


class Pattern(NamedTuple):
    """Which coordinates may depend on which. Made by `pattern`.

    Indices are places in `order`: first the free coordinates, which may all depend on one another, then those of each node of a tree,
    which depend on the free ones, on those of their own node and on those of its parent.

    Attributes:
      order: coordinates [D].
      num_free: how many are free.
      parents: of the nodes; -1 for the root.
      rows, columns: of a lower triangular matrix the entries below its diagonal that need not vanish [E].
      colour: which coordinates may be moved together to hear how gradients answer [D]: free ones alone, and a node's with those of
        depth more or less by three. A coordinate then hears two of them from its children only, and those tell of it themselves.
    """

    order: np.ndarray
    num_free: int
    parents: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    colour: np.ndarray

    @property
    def width(self) -> int:
        """Coordinates of a node."""
        return (len(self.order) - self.num_free) // len(self.parents)


def pattern(node: np.ndarray, parents: np.ndarray) -> Pattern:
    """The pattern of coordinates of a tree's nodes.

    Args:
      node: each coordinate's node, or -1 for the free ones [D]; every node has as many.
      parents: each node's parent, which comes before it; -1 for the root.

    Example:
      >>> import numpy as np
      >>> from jvi.gaussian_fits._pattern import pattern
      >>> found = pattern(np.array([-1, 0, 1, 2, 3, 4]), np.array([-1, 0, 1, 2, 3]))
      >>> found.colour.tolist()
      [0, 1, 2, 3, 1, 2]
    """
    order = np.argsort(node, kind="stable")
    num_free = int(np.sum(node < 0))
    width = (len(node) - num_free) // len(parents)
    depth = np.zeros(len(parents), int)
    for i in range(1, len(parents)):
        depth[i] = depth[parents[i]] + 1
    members = num_free + np.arange(len(parents) * width).reshape(-1, width)
    child = np.flatnonzero(parents >= 0)
    free, tied = np.arange(num_free), members.ravel()
    own, above = np.tril_indices(num_free, -1), np.tril_indices(width, -1)
    pairs = [
        own,
        _pairs(tied[:, None], free[None]),
        (members[:, above[0]], members[:, above[1]]),
        _pairs(members[child][:, :, None], members[parents[child]][:, None, :]),
    ]
    rows, columns = (np.concatenate([np.ravel(pair[side]) for pair in pairs]) for side in (0, 1))
    _, of_tied = np.unique(width * (depth % 3)[:, None] + np.arange(width), return_inverse=True)
    return Pattern(order, num_free, parents, rows, columns, np.concatenate([free, num_free + of_tied.ravel()]))


def declared(space: Space) -> Pattern | None:
    """The pattern that a space declares by `jvi.sequence` and `jvi.tree`; None where it declares none.

    Of several trees those count that have the parents of the largest: their coordinates may depend on one another node by node.
    """
    sizes = {support.parents: support.size for support in space.supports if support.parents}
    if not sizes:
        return None
    parents = max(sizes, key=lambda one: sizes[one])
    parts = [
        np.repeat(np.arange(len(parents)), support.size // len(parents))
        if support.parents == parents
        else -np.ones(support.size, int)
        for support in space.supports
    ]
    return pattern(np.concatenate(parts), np.asarray(parents))


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.broadcast_arrays(first, second)
    return rows, columns
