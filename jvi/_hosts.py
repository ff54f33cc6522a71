"""What the processes of one run must agree on. With a single process all of it is local."""

from __future__ import annotations

import json
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
    return _gathered(mesh, np.asarray(numbers, np.float64))


def texts_of_all(mesh: Any, text: str) -> list[str]:
    """The texts of every process, [P]; as `of_all`."""
    mine = text.encode()
    sizes = of_all(mesh, len(mine))[:, 0].astype(int)
    room = max(4, 1 << int(max(sizes) - 1).bit_length())  # a power of two, so that few lengths are compiled
    rows = _gathered(mesh, np.frombuffer(mine.ljust(room, b"\0"), np.uint8))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


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
      PeerError: if another process failed; this one's own error comes as it is.
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
        raise PeerError(
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


def part(mesh: Any, size: int) -> slice:
    """Which of the examples of a minibatch are this process's."""
    if not several(mesh):
        return slice(None)
    own = size // jax.process_count()
    return slice(own * jax.process_index(), own * (jax.process_index() + 1))


def positions(mesh: Any, position: Any) -> list[Any]:
    """Where each process stands in its own minibatches, [P], as JSON holds it."""
    return [json.loads(text) for text in texts_of_all(mesh, json.dumps(position))]


def own_position(mesh: Any, positions: list[Any]) -> Any:
    """The one of `positions` that this process goes on from.

    Raises:
      ValueError: if another number of processes wrote them, and what they read has a state of its own.
    """
    count = jax.process_count() if several(mesh) else 1
    if len(positions) == count:
        return positions[jax.process_index() if count > 1 else 0]
    if any(position["source"] is not None for position in positions):
        raise ValueError(
            f"the checkpoint holds the states of the loaders of {len(positions)} processes, each of its own examples, and there are "
            f"{count} now: start as many again. Or, in another folder, begin a new run from state=jvi.checkpoint.restore(...), "
            "with loaders that begin anew; arrays and memory maps with batch_size go on with any number of processes."
        )
    return positions[0]  # a count, and the same for all


class PeerError(ValueError):
    """Another process of the run failed."""


def _gathered(mesh: Any, mine: np.ndarray) -> np.ndarray:
    if not several(mesh):
        return mine[None]
    # As bits: what jax gathers is float32 by default.
    with reaching(mesh):
        return np.asarray(process_allgather(mine.view(np.uint32))).view(mine.dtype)


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

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_: Any) -> None:
        self._own.__exit__()

    def take(self, most: int, then: int = 0) -> tuple[Data, int]:
        """As of `Stacks`, of all processes; as many as the one with the fewest has.

        Raises:
          ValueError: as of `Stacks`, whichever process it is.
        """
        least = int(np.min(of_all(self._mesh, self._own.ready(most))))  # what the others lack is not taken, and comes next
        stack, count = together(self._mesh, lambda: self._own.take(least, then), "yield a minibatch")
        return (sharding.joined(self._mesh, stack, 1) if count else None), count

    @property
    def position(self) -> Any:
        """As of `Stacks`, of this process's own."""
        return self._own.position

    def seek(self, position: Any) -> None:
        """As of `Stacks`."""
        together(self._mesh, lambda: self._own.seek(position), "go on where it stood")


def stacks(batches: Iterable[Data], mesh: Any) -> feeds.Stacks | Joined:
    """Stacks of minibatches, of this process alone or of all on a mesh."""
    return feeds.Stacks(batches) if mesh is None else Joined(batches, mesh)
