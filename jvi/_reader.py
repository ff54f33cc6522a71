"""Minibatches of whatever can be iterated, one after the other, epoch after epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jvi import _tree
from jvi._checks import check_data
from jvi._typing import Data


class UnfitError(ValueError):
    """A minibatch that does not fit."""


class Reader:
    """Minibatches of one shape, of an iterator, or of an iterable that is started anew whenever it ends.

    Attributes:
      first: the first minibatch.
      count: how many minibatches `next` returned.
      state: the source's own state after the last of them, by its `get_state` and `set_state`, as grain's iterators have; else None.
      left_out: the shapes of a smaller last minibatch of an epoch, which was left out; empty while there was none.

    Example:
      >>> import numpy as np
      >>> from jvi._reader import Reader
      >>> reader = Reader([np.zeros(2), np.ones(2), np.ones(1)])
      >>> [reader.next().tolist() for _ in range(3)], reader.left_out
      ([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], 'float32[1]')
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
        self._batches, self._iterator = batches, iter(batches)
        self.count, self.state, self.left_out = 0, self._own_state(), ""
        self.first: Data = None
        self.first = self._fetch()
        if self.first is None:
            raise ValueError("batches must yield at least one minibatch; got an empty iterator.")
        self._wanted = _layout(self.first)
        self._held: Any = self.first, self._own_state()  # fetched, and not returned yet

    def next(self) -> Data | None:
        """The next minibatch, its leaves arrays; None at the end.

        Raises:
          UnfitError: if it holds a NaN or does not have the first one's shapes.
        """
        if self._held is not None:
            (batch, state), self._held = self._held, None
        elif (batch := self._fetch()) is None:
            return None
        else:
            state = self._own_state()
        self.count, self.state = self.count + 1, state
        return batch

    def seek(self, count: int, state: Any) -> None:
        """Go to where a reader of the same source was when these were its `count` and `state`.

        Raises:
          ValueError: if no such reader was there, or if it cannot be reached any more.
        """
        own = self._own_state()
        if (state is None) != (own is None):
            without = "without" if state is None else "with"
            raise ValueError(f"a position {without} a state of its source is not one of a {type(self._batches).__name__}.")
        if state is not None:
            self._restart()
            source: Any = self._iterator
            source.set_state(state.encode("latin-1") if isinstance(own, bytes) else state)
        elif hasattr(self._batches, "go_to_minibatch"):
            self._batches.go_to_minibatch(count)  # pyright: ignore[reportAttributeAccessIssue]
        elif count and hasattr(self._batches, "__len__") and hasattr(self._batches, "__getitem__"):
            self._iterator = self._indexed(count)
        else:
            if count < self.count:
                raise ValueError(f"an iterator cannot go back to minibatch {count}, and {self.count} were read; pass it anew.")
            while self.count < count:
                if self.next() is None:
                    raise ValueError(f"batches ended after {self.count} minibatches, and the position is after {count}.")
            return
        self._held, self.count, self.state = None, count, state

    def close(self) -> None:
        """End an iterator that was made here: what reads ahead by itself, as grain does, has threads."""
        if self._iterator is not self._batches and hasattr(self._iterator, "close"):
            self._iterator.close()  # pyright: ignore[reportAttributeAccessIssue]

    def _fetch(self) -> Data | None:
        """The next minibatch, of this epoch or of the next one."""
        for _ in range(2):
            batch = next(self._iterator, None)
            if batch is not None and not self._is_short(batch := self._checked(batch)):
                return batch
            if not self._restart():
                break
        return None

    def _checked(self, batch: Data) -> Data:
        try:
            return check_data(batch, f"batch {self.count}")
        except ValueError as error:
            raise UnfitError(str(error)) from None

    def _is_short(self, batch: Data) -> bool:
        """Whether it is the last minibatch of an epoch and has fewer examples than the others."""
        if self.first is None or self._fits(batch):
            return False
        if _fewer(batch, self.first) and next(self._iterator, None) is None:
            self.left_out = _tree.shapes(batch)
            return True
        raise UnfitError(
            f"every minibatch must have the first one's shapes, {_tree.shapes(self.first)}; number {self.count} has "
            f"{_tree.shapes(batch)}. Drop or pad a smaller one; only the last of an epoch may be smaller, and sits out."
        )

    def _fits(self, batch: Data) -> bool:
        # Types that differ on the host may be one on the device; that is slow to say.
        return _layout(batch) == self._wanted or _tree.shapes(batch) == _tree.shapes(self.first)

    def _restart(self) -> bool:
        """Begin the next epoch, where there can be one."""
        if self._iterator is self._batches:
            return False
        self.close()
        self._iterator = iter(self._batches)
        return True

    def _indexed(self, count: int) -> Iterator[Data]:
        """What comes after `count` minibatches of a source that can be indexed."""
        source: Any = self._batches
        size = len(source)
        full = size - (not self._fits(check_data(source[size - 1])))
        return (source[i] for i in range(count % full, size))

    def _own_state(self) -> Any:
        """The source's state, which it may go on to change."""
        source: Any = self._iterator
        return copy.deepcopy(source.get_state()) if hasattr(source, "get_state") and hasattr(source, "set_state") else None


def _layout(batch: Data) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _fewer(batch: Data, first: Data) -> bool:
    leaves, others = jax.tree.leaves(batch), jax.tree.leaves(first)
    return jax.tree.structure(batch) == jax.tree.structure(first) and all(
        leaf.shape[1:] == other.shape[1:] and 0 < len(leaf) < len(other)
        for leaf, other in zip(leaves, others, strict=True)
        if leaf.ndim and other.ndim
    )
