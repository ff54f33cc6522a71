"""The host's side of a run.

A run is a compiled loop of many steps, entered again and again: between two entries, once a chunk, the host reads what the
steps reported, shows it and asks the callback.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _feeds as feeds
from jvi import _hosts as hosts
from jvi import sharding
from jvi._loops import SlowInsideError, beta_at, by_steps, loop
from jvi._progress import Progress
from jvi._typing import Array, Data
from jvi.schedules import traced
from jvi.svi import SVI, Info, State, non_finite_error

Callback = Callable[[State, Info], bool | None]
Beta = float | Callable[[Array], Array] | None


class Unkept:
    """Of a run that leaves nothing on disk."""

    def __enter__(self) -> Unkept:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def resume(self, run: Run, state: State) -> State:
        """From the beginning."""
        return state

    def until(self, done: int) -> int:
        """Steps from `done` to the next checkpoint."""
        return feeds.CHUNK

    def look(self, run: Run, state: State, feed: Any, data: Data, count: int, last: bool = False) -> None:
        """Save nothing."""


_BY_STEPS: set[Any] = set()  # programs that are slow inside of a loop
_GLANCE = 0.2  # seconds between two looks at a run that somebody watches


class Run:
    """The host's side of a run: chunk lengths, reports, progress, the callback's wish to stop."""

    def __init__(
        self,
        svi: SVI,
        num_steps: int,
        state: State,
        beta: Beta,
        callback: Callback | None,
        callback_every: int,
        progress: bool,
        mesh: Any = None,
        keeper: Any = None,
    ) -> None:
        self.svi, self.num_steps, self.remaining, self.done = svi, num_steps, num_steps, 0
        self.keeper: Any = keeper or Unkept()
        self.step, self.mesh = int(state.step), mesh
        self.schedule: Any = None if traced(beta) else beta
        self.beta = jax.tree.map(lambda number: jnp.asarray(number, float), beta) if traced(beta) else None
        self.callback, self.callback_every = callback, callback_every
        self.progress = Progress(num_steps, progress and hosts.speaks(mesh))
        self.logs: list[Info] = []
        self.asked = 0  # how many of the logs the callback has seen
        self.glance = 32  # steps until the next look at a run that somebody watches

    def all(self, feed: Any, state: State, data: Data) -> tuple[State, Info]:
        """Run to the end."""
        with self.progress, self.keeper:
            state = self.keeper.resume(self, state)
            while self.remaining:
                state = self.chunk(feed, feeds.CHUNK, state, data, self.length(feeds.CHUNK))
        return state, self.info()

    def chunk(self, feed: Any, size: int, state: State, data: Data, length: int) -> State:
        """Enter the loop once, for at most `length` steps."""
        began = perf_counter()
        with sharding.entered(self.mesh), hosts.reaching(self.mesh):
            new, rows = self._enter(feed, size, state, data, length)
            rows, step, in_a_row = jax.device_get((rows, new.step, new.skipped_in_a_row))  # the one sync
        self._adapt(length, perf_counter() - began)
        taken, self.step = int(step) - self.step, int(step)
        # A copy: of a view, the whole buffer would be kept.
        bound, grad_norm, ess, finite = np.reshape(rows[:taken], (-1, 4)).T.copy()
        log = Info(bound, grad_norm, ess, finite.astype(bool))
        self.logs.append(log)
        self.done, self.remaining = self.done + taken, self.remaining - taken
        self.progress.update(self.done, log)
        if in_a_row >= self.svi.max_skipped:
            last = new.step - 1
            x = feed.take(feed.places(feed.start(new.rng), last, data), data, taken - 1)
            raise non_finite_error(self.svi, new, x, self.info(), beta_at(self.schedule, self.beta, last))
        if self.callback is not None and self._ask(new):
            self.remaining = 0
        self.keeper.look(self, new, feed, data, taken)
        return new

    def _enter(self, feed: Any, size: int, state: State, data: Data, length: int) -> tuple[State, Any]:
        program = jax.tree.structure((self.svi, feed)), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(data))
        if program not in _BY_STEPS:
            try:
                return loop(self.svi, feed, size, _masked(), self.schedule, state, data, self.beta, length)
            except SlowInsideError:
                _BY_STEPS.add(program)
        return by_steps(self.svi, feed, self.schedule, state, data, self.beta, length)

    def go_on(self, state: State, log: Info, remaining: int) -> None:
        """Stand where the run stood after the steps that reported `log`, at `state`."""
        self.step = int(state.step)
        self.done, self.remaining = len(log.bound), remaining
        seen = self.done - self.done % self.callback_every
        self.logs = [Info(*(column[:seen] for column in log)), Info(*(column[seen:] for column in log))]
        self.asked = 1

    def info(self) -> Info:
        """What all steps reported, stacked."""
        return _stack(self.logs)

    def length(self, most: int, after: int = 0) -> int:
        """How many steps the next entry should take, at most `most`; or the one that comes `after` so many more."""
        remaining, done = self.remaining - after, self.done + after
        most = min(most, self.keeper.until(done))
        if self.callback is not None:  # never by the clock: a run that stops early must do so at the same step again
            return min(remaining, self.callback_every - done % self.callback_every, most)
        return min(remaining, self.glance if self.progress.shown and not hosts.several(self.mesh) else most, most)

    def _ask(self, state: State) -> bool:
        if self.remaining and self.done % self.callback_every:
            return False
        news, self.asked = self.logs[self.asked :], len(self.logs)
        stop = bool(self.callback and self.callback(state, _stack(news)))
        return bool(hosts.of_all(self.mesh, stop).any())

    def _adapt(self, length: int, seconds: float) -> None:
        if self.done:  # the first entry may have compiled
            self.glance = int(np.clip(length * _GLANCE / max(seconds, 1e-6), 1, min(4 * length, feeds.CHUNK)))


def _stack(logs: list[Info]) -> Info:
    if not logs:
        return Info(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, bool))
    return Info(*(np.concatenate(rows) for rows in zip(*logs, strict=True)))


def _masked() -> bool:
    return jax.default_backend() != "cpu"
