"""Feeds: which data a step of a compiled loop sees. Specs with `start`, `places` and `take`, and the host's side of an iterator."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree, sharding
from jvi._checks import leading_axis
from jvi._prefetch import Ahead
from jvi._reader import Reader, UnfitError
from jvi._shuffle import shuffled
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey
from jvi.svi import ORDER

_STACK_BYTES = 2**26  # of minibatches sent to the device at once
STACK = 64  # how many of them, at most
CHUNK = 8_192  # steps in one entry into a compiled loop, at most


@spec
class Whole:
    """Every step sees all data."""

    def start(self, rng: PRNGKey) -> Any:
        """What all steps of a run share."""
        return ()

    def places(self, held: Any, step: Array, data: Data) -> Any:
        """Where the data of a step lie, which can be found for many steps at once."""
        return ()

    def take(self, places: Any, data: Data, i: Array) -> Data:
        """The data of a step, the i-th in this entry into the loop."""
        return data


@spec
class Shuffled:
    """Every step sees the next `batch_size` examples of an order that changes each epoch."""

    batch_size: int

    def start(self, rng: PRNGKey) -> Array:
        """The key of the orders."""
        return jax.random.bits(jax.random.fold_in(rng, ORDER), (2,), jnp.uint32)

    def places(self, held: Array, step: Array, data: Data) -> Array:
        """The next examples [batch_size] of the epoch's order."""
        examples = leading_axis(data)
        per_epoch = examples // self.batch_size
        places = step % per_epoch * self.batch_size + jnp.arange(self.batch_size)
        # Every device finds all places: the search for them asks after every round whether all are found.
        return sharding.everywhere(shuffled(held, step // per_epoch, places, examples))

    def take(self, places: Array, data: Data, i: Array) -> Data:
        """The next minibatch."""
        return sharding.by_example(jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0, mode="clip"), data))


@spec
class Stacked:
    """Step i of a chunk sees the i-th of a stack of minibatches."""

    def start(self, rng: PRNGKey) -> Any:
        """Nothing is shared."""
        return ()

    def places(self, held: Any, step: Array, data: Data) -> Any:
        """Nothing is to be found."""
        return ()

    def take(self, places: Any, data: Data, i: Array) -> Data:
        """The i-th minibatch."""
        return sharding.by_example(jax.tree.map(lambda leaf: leaf[i], data))


class _Rows(NamedTuple):
    """Minibatches that were read: a stack of them, the source's state after each, and the error that came instead of the next."""

    stack: Data = None
    states: Sequence[Any] = ()
    error: Exception | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is there to be taken or raised."""
        return not self.states and self.error is None


class Stacks:
    """Minibatches of an iterator or an iterable, gathered into stacks of one size, one of them ahead of the run.

    While the caller works on a stack, a thread reads and gathers the next one, of as many minibatches as the caller says it will want.
    Minibatches of JAX arrays are read when they are asked for: what makes them computes on the device, which is the run's.

    A context, whose end waits for the thread and closes an iterator that was made here.

    Attributes:
      first: the first minibatch.
      size: how many minibatches a stack has room for.
    """

    def __init__(self, batches: Iterable[Data]) -> None:
        self._reader = Reader(batches)
        self.first = self._reader.first
        leaves = jax.tree.leaves(self.first)
        self.size = int(np.clip(_STACK_BYTES // max(sum(leaf.nbytes for leaf in leaves), 1), 1, STACK))
        self._threaded = not any(isinstance(leaf, jax.Array) for leaf in leaves)
        self._taken, self._state = 0, self._reader.state
        self._ahead, self._waiting, self._told = Ahead(), _Rows(), False

    def __enter__(self) -> Stacks:
        return self

    def __exit__(self, *_: Any) -> None:
        self._ahead.stop()
        self._reader.close()

    def take(self, most: int, then: int = 0) -> tuple[Data, int]:
        """A stack [size, ...] of up to `most` minibatches, and how many there are, 0 at the end; the rest is padding.

        Args:
          most: how many are wanted.
          then: how many will be wanted next, to be read while the caller goes on; 0 where that is not known.

        Raises:
          UnfitError: if the next minibatch holds a NaN or does not have the first one's shapes.
        """
        count = self.ready(most)
        rows = self._waiting
        self._tell()
        if not count:
            if rows.error is not None and not rows.states:
                self._waiting = _Rows()
                raise rows.error
            return None, 0
        self._taken, self._state = self._taken + count, rows.states[count - 1]
        left = jax.tree.map(lambda leaf: np.roll(leaf, -count, 0), rows.stack) if count < len(rows.states) else None
        self._waiting = _Rows(left, rows.states[count:], rows.error)
        if then and self._threaded and self._waiting.empty:
            self._ahead.begin(self._gather, min(then, self.size))
        return rows.stack, count

    def ready(self, most: int) -> int:
        """How many of the next `most` minibatches there are; they are read, and stay."""
        if self._ahead.busy:
            self._waiting = self._ahead.result()
        if self._waiting.empty:
            self._waiting = self._gather(min(most, self.size))
        return min(most, len(self._waiting.states))

    @property
    def position(self) -> dict[str, Any]:
        """Where the run is, as JSON holds it: the `count` of minibatches it was handed, and the `source`'s own state after the last.

        The source's state is None where it has none. What was read ahead does not count.
        """
        state = self._state.decode("latin-1") if isinstance(self._state, bytes) else self._state
        return json.loads(json.dumps({"count": self._taken, "source": state}, default=lambda value: value.tolist()))

    def seek(self, position: dict[str, Any]) -> None:
        """Go to a position of the same source, passed in anew: what comes next is what came next there.

        A source with a state is put into it. Of what has a length and can be indexed, as a list, nothing that lies between is read; all
        else is read up to there.

        Raises:
          ValueError: if the position is not one of such a source, lies behind, or after its end.
        """
        self._ahead.stop()
        self._waiting = _Rows()
        self._reader.seek(position["count"], position["source"])
        self._taken, self._state = position["count"], position["source"]

    def _gather(self, most: int) -> _Rows:
        """Read up to `most` minibatches. An error is kept until those before it have been taken."""
        stack: Data = None
        states: list[Any] = []
        try:
            while len(states) < most and not self._ahead.stopping and (batch := self._reader.next()) is not None:
                if stack is None:  # of zeros, because what pads it is cast like the rest, and garbage may overflow
                    stack = jax.tree.map(lambda leaf: np.zeros((self.size, *leaf.shape), leaf.dtype), batch)
                for rows, leaf in zip(jax.tree.leaves(stack), jax.tree.leaves(batch), strict=True):
                    rows[len(states)] = leaf
                states.append(self._reader.state)
        except Exception as error:
            if not isinstance(error, UnfitError):
                error.add_note(f"Raised by batches, where jvi read minibatch number {self._reader.count}.")
            return _Rows(stack, states, error)
        return _Rows(stack, states)

    def _tell(self) -> None:
        if self._reader.left_out and not self._told:
            self._told = True
            warnings.warn(
                f"the last minibatch of an epoch, {self._reader.left_out}, is smaller than the others, {_tree.shapes(self.first)}, and "
                "sits out. Shuffle every epoch anew, so that all examples come, and drop what is left over, or pad it.",
                stacklevel=4,
            )
