"""Arrays that stay on the host: memory maps, and what no device has room for."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jvi import _hosts as hosts
from jvi._checks import check_batch_size, leading_axis
from jvi._feeds import STACK, Shuffled
from jvi._shuffle import shuffled_on_host
from jvi._typing import Data, PRNGKey
from jvi.svi import State

_SHARE = 0.5  # of the device's memory, that data may take: parameters, moments and a step's own need the rest


def stay_on_host(data: Data) -> bool:
    """Whether a leaf is a memory map, or all of them together would take more than half of the device's memory."""
    leaves = jax.tree.leaves(data)
    if any(_is_mapped(leaf) for leaf in leaves):
        return True
    room = _device_bytes()
    return room is not None and sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray)) > _SHARE * room


class Mapped:
    """The minibatches that `Shuffled` makes on the device, gathered on the host; an iterator that goes to any of them.

    The order is that of the same cipher, so that nothing of the data is read but the minibatches, and step t sees the same examples
    wherever the data are.
    """

    def __init__(self, data: Data, batch_size: int, rng: PRNGKey, step: int, part: slice = slice(None)) -> None:
        self._part = part
        self._data = jax.tree.map(np.asarray, data)
        self._batch_size, self._examples = batch_size, leading_axis(data)
        self._key = np.asarray(Shuffled(batch_size).start(rng))
        self._begun = step
        self.go_to_minibatch(0)

    @classmethod
    def begun(cls, data: Data, batch_size: Any, rng: PRNGKey, state: State | None, name: str, mesh: Any = None) -> Mapped:
        """The minibatches of a run that begins, or goes on from a state; with several processes this one's part of each.

        Raises:
          TypeError, ValueError: if `batch_size` is no number of examples in `data`.
        """
        rng, step = (rng, 0) if state is None else (state.rng, int(state.step))
        batch_size = check_batch_size(batch_size, data, name)
        return cls(data, batch_size, rng, step, hosts.part(mesh, batch_size))

    @property
    def head(self) -> Data:
        """As many examples as a minibatch has, unshuffled: what `Shuffled` data start parameters from."""
        return jax.tree.map(lambda leaf: leaf[: self._batch_size], self._data)

    def __iter__(self) -> Mapped:
        return self

    def __next__(self) -> Data:
        if not self._chosen:
            self._chosen = self._places()
        chosen = self._chosen.pop()[self._part]
        self._step += 1
        return jax.tree.map(lambda leaf: leaf[chosen], self._data)

    def go_to_minibatch(self, count: int) -> None:
        """Go to where so many minibatches were taken; nothing that lies between is read."""
        self._step, self._chosen = self._begun + count, []

    def _places(self) -> list[np.ndarray]:
        """The examples of the next steps, the last step's first: many at once, because NumPy's calls take longer than their work."""
        per_epoch = self._examples // self._batch_size
        steps = self._step + np.arange(STACK)[:, None]
        places = steps % per_epoch * self._batch_size + np.arange(self._batch_size)
        return list(shuffled_on_host(self._key, steps // per_epoch, places, self._examples)[::-1])


def _is_mapped(leaf: Any) -> bool:
    while isinstance(leaf, np.ndarray):
        if isinstance(leaf, np.memmap):
            return True
        leaf = leaf.base
    return False


def _device_bytes() -> int | None:
    """What the default device holds; None where it does not say, as a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None
