"""Where an ascent that drives itself takes its data from."""

from __future__ import annotations

from typing import Any

from jvi import _feeds as feeds
from jvi import _hosts as hosts
from jvi import _loops, sharding
from jvi._run import Run
from jvi._typing import Data, PRNGKey
from jvi.svi import SVI, State


class Held:
    """All data, or minibatches of it, from the device.

    Attributes:
      data: the data.
      mesh: what it is split over, or None.
    """

    def __init__(self, data: Data, batch_size: int | None = None, mesh: Any = None) -> None:
        self.data, self._batch_size, self.mesh = data, batch_size, mesh
        self._feed: Any = feeds.Shuffled(batch_size) if batch_size else feeds.Whole()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def init(self, svi: SVI, rng: PRNGKey) -> State:
        """The state before the first step."""
        return begin(svi, rng, self.data, self._batch_size, self.mesh)

    def advance(self, run: Run, state: State, most: int) -> State | None:
        """At most `most` steps; None where there are no more data."""
        return self.evaluate(run, state, most)

    def evaluate(self, run: Run, state: State, most: int) -> State:
        """At most `most` steps, on the same data whenever the state says the same step."""
        return run.chunk(self._feed, feeds.CHUNK, state, self.data, run.length(min(most, feeds.CHUNK)))


class Streamed:
    """Minibatches of an iterator; those of the first stack are what parameters are compared on."""

    def __init__(self, stacks: feeds.Stacks | hosts.Joined, mesh: Any = None) -> None:
        self._stacks, self._first, self.mesh = stacks, stacks.first, mesh
        self._kept = stacks.take(stacks.size)

    def __enter__(self) -> Streamed:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stacks.__exit__()

    def init(self, svi: SVI, rng: PRNGKey) -> State:
        """As of `Held`."""
        return begin(svi, rng, self._first, mesh=self.mesh)

    def advance(self, run: Run, state: State, most: int) -> State | None:
        """As of `Held`."""
        stack, count = self._stacks.take(run.length(min(most, self._stacks.size)), self._stacks.size)
        return run.chunk(feeds.Stacked(), self._stacks.size, state, stack, count) if count else None

    def evaluate(self, run: Run, state: State, most: int) -> State:
        """As of `Held`: on the first stack, again and again."""
        stack, count = self._kept
        return run.chunk(feeds.Stacked(), self._stacks.size, state, stack, min(most, count))


def begin(svi: SVI, rng: PRNGKey, x: Data, batch_size: int | None = None, mesh: Any = None) -> State:
    """The state before the first step, where a run on this mesh keeps it."""
    with sharding.entered(mesh):
        return sharding.stored(mesh, _loops.init(svi, sharding.put(mesh, rng), x, batch_size))


Source = Held | Streamed
