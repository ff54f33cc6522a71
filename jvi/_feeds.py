"""Feeds: which data a step of a compiled loop sees. Specs with `start` and `next`, and the host's side of an iterator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree, sharding
from jvi._checks import check_data, leading_axis
from jvi._shuffle import shuffled
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey
from jvi.svi import ORDER

_STACK_BYTES = 2**26  # of minibatches sent to the device at once
_STACK = 64  # how many of them, at most


CHUNK = 8_192  # steps in one entry into a compiled loop, at most


@spec
class Whole:
    """Every step sees all data."""

    def start(self, rng: PRNGKey, step: Array, data: Data) -> Any:
        """What the loop holds between steps."""
        return ()

    def next(self, held: Any, rng: PRNGKey, step: Array, data: Data, i: Array) -> tuple[Any, Data]:
        """The data of this step of the run, the i-th since `start`."""
        return held, data


@spec
class Shuffled:
    """Every step sees the next `batch_size` examples of an order that changes each epoch."""

    batch_size: int

    def start(self, rng: PRNGKey, step: Array, data: Data) -> Array:
        """The key of the orders."""
        return jax.random.bits(jax.random.fold_in(rng, ORDER), (2,), jnp.uint32)

    def next(self, held: Array, rng: PRNGKey, step: Array, data: Data, i: Array) -> tuple[Any, Data]:
        """The next minibatch."""
        examples = leading_axis(data)
        per_epoch = examples // self.batch_size
        places = step % per_epoch * self.batch_size + jnp.arange(self.batch_size)
        # Every device finds all places: the search for them asks after every round whether all are found.
        chosen = sharding.everywhere(shuffled(held, step // per_epoch, places, examples))
        return held, sharding.by_example(jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=0, mode="clip"), data))


@spec
class Stacked:
    """Step i of a chunk sees the i-th of a stack of minibatches."""

    def start(self, rng: PRNGKey, step: Array, data: Data) -> Any:
        """Nothing is held."""
        return ()

    def next(self, held: Any, rng: PRNGKey, step: Array, data: Data, i: Array) -> tuple[Any, Data]:
        """The i-th minibatch."""
        return held, sharding.by_example(jax.tree.map(lambda leaf: leaf[i], data))


class Stacks:
    """Minibatches of an iterator or an iterable, gathered into stacks of one size.

    Attributes:
      first: the first minibatch.
      size: how many minibatches a stack has room for.
    """

    def __init__(self, batches: Iterable[Data]) -> None:
        if isinstance(batches, (dict, tuple, np.ndarray, jax.Array)):
            raise TypeError(
                f"batches is one data set, {_tree.shapes(batches)}: say batch_size=..., or pass an iterator or a list of minibatches."
            )
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches must be an iterator of minibatches, or arrays with batch_size; got {type(batches).__name__}."
            )
        self._batches, self._iterator, self._count = batches, iter(batches), 0
        first = self._next()
        if first is None:
            raise ValueError("batches must yield at least one minibatch; got an empty iterator.")
        self.first = first
        self.size = int(np.clip(_STACK_BYTES // max(sum(leaf.nbytes for leaf in jax.tree.leaves(first)), 1), 1, _STACK))
        self._waiting = [first]

    def take(self, most: int) -> tuple[Data, int]:
        """A stack [size, ...] of up to `most` minibatches, and how many there are; the rest is padding.

        Raises:
          ValueError: if a minibatch holds a NaN or does not have the first one's shapes.
        """
        found, self._waiting = self._waiting, []
        while len(found) < min(most, self.size) and (batch := self._next()) is not None:
            if _tree.shapes(batch) != _tree.shapes(self.first):
                raise ValueError(
                    f"every minibatch must have the first one's shapes, {_tree.shapes(self.first)}; number {self._count - 1} has "
                    f"{_tree.shapes(batch)}. Drop or pad the last, smaller one."
                )
            found.append(batch)
        padded = found + found[-1:] * (self.size - len(found))
        return (jax.tree.map(lambda *leaves: np.stack(leaves), *padded) if found else None), len(found)

    def _next(self) -> Data | None:
        batch = next(self._iterator, None)
        if batch is None and not isinstance(self._batches, Iterator) and self._count:
            self._iterator = iter(self._batches)  # the next epoch
            batch = next(self._iterator, None)
        if batch is None:
            return None
        self._count += 1
        return check_data(batch, f"batch {self._count - 1}")
