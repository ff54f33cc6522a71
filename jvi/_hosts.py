"""What the processes of one run must agree on. With a single process all of it is local."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jvi import _feeds as feeds
from jvi import _tree, sharding
from jvi._checks import leading_axis
from jvi._typing import Data, PyTree

T = TypeVar("T")


def several(mesh: Any) -> bool:
    """Whether other processes take part in what runs on this mesh."""
    return mesh is not None and jax.process_count() > 1


def speaks(mesh: Any) -> bool:
    """Whether this process is the one of them that shows how a run goes."""
    return not several(mesh) or jax.process_index() == 0


def of_all(mesh: Any, *numbers: float) -> np.ndarray:
    """These numbers of every process, [P, n]; a process that is gone raises an error here, or ends this one."""
    mine = np.asarray(numbers, np.float64)
    if not several(mesh):
        return mine[None]
    # As bits: what jax gathers is float32 by default.
    with reaching(mesh):
        return np.asarray(process_allgather(mine.view(np.uint32))).view(np.float64)


@contextmanager
def reaching(mesh: Any) -> Iterator[None]:
    """Where this process waits for the others.

    Raises:
      ConnectionError: if one of them has ended.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A closed connection comes as either, with the name of a status in front.
        if not several(mesh) or not re.match("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED): ", str(error)):
            raise
        raise ConnectionError(
            f"process {jax.process_index()} of {jax.process_count()} waited for another one that has ended: look at what that one said "
            "last, and start all of them again."
        ) from error


def together(mesh: Any, function: Callable[[], T], what: str) -> T:
    """`function()`, or an error on all processes if it is one on any of them: else the others would wait for it forever.

    Raises:
      ValueError: if another process failed; this one's own error comes as it is.
    """
    if not several(mesh):
        return function()
    error: BaseException | None = None
    found: Any = None
    try:
        found = function()
    except Exception as caught:
        error = caught
    failed = np.flatnonzero(of_all(mesh, error is not None)[:, 0])
    if error is not None:
        raise error
    if len(failed):
        raise ValueError(
            f"process {', '.join(map(str, failed))} of {jax.process_count()} failed to {what}; its own error says why."
        )
    return found


def check_same(mesh: Any, tree: PyTree, name: str) -> None:
    """Refuse what is not the same on all processes. What is on devices of several of them is taken to be.

    Raises:
      ValueError: if it differs.
    """
    if not several(mesh):
        return
    mine = [leaf for leaf in jax.tree.leaves(tree) if not (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable)]
    code = zlib.crc32(_tree.shapes(mine).encode())
    for leaf in mine:
        is_key = jax.dtypes.issubdtype(jax.numpy.result_type(leaf), jax.dtypes.prng_key)
        code = zlib.crc32(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes(), code)
    codes = of_all(mesh, code)[:, 0]
    if other := [i for i, one in enumerate(codes) if one != codes[0]]:
        raise ValueError(f"{name} must be the same on every process; that of process {other} differs from that of process 0.")


class Joined:
    """Stacks of minibatches of which every process yields its own slice.

    Attributes:
      first: the first minibatch, all of it.
      size: how many minibatches a stack has room for.
    """

    def __init__(self, batches: Iterable[Data], mesh: Any) -> None:
        self._mesh = mesh
        self._own = together(mesh, lambda: feeds.Stacks(batches), "yield a first minibatch")
        first, count = self._own.first, jax.process_count()
        codes = of_all(mesh, zlib.crc32(_tree.shapes(first).encode()))[:, 0]
        if (codes != codes[0]).any():
            raise ValueError(
                f"all processes must yield minibatches of the same shapes; this one's first has {_tree.shapes(first)}."
            )
        sharding.check_batch_size(mesh, count * leading_axis(first, "batches"), "the size of a minibatch, of all processes,")
        sharding.check_slices(mesh)
        self.first, self.size = sharding.joined(mesh, first, 0), self._own.size

    def take(self, most: int) -> tuple[Data, int]:
        """As of `Stacks`, of all processes; as many as the one with the fewest has.

        Raises:
          ValueError: as of `Stacks`, whichever process it is.
        """
        stack, count = together(self._mesh, lambda: self._own.take(most), "yield a minibatch")
        count = int(np.min(of_all(self._mesh, count)))
        return (sharding.joined(self._mesh, stack, 1) if count else None), count


def stacks(batches: Iterable[Data], mesh: Any) -> feeds.Stacks | Joined:
    """Stacks of minibatches, of this process alone or of all on a mesh."""
    return feeds.Stacks(batches) if mesh is None else Joined(batches, mesh)
