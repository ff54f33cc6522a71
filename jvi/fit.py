"""The loops that run on the device. This is the only file that jits.

A run is a compiled loop of many steps, entered again and again: between two entries, once a chunk, the host reads what the
steps reported, shows it and asks the callback. How many steps a chunk has is an argument and not a shape, so that any number
of steps, on any data of the same shapes, runs the same program.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _feeds as feeds
from jvi._checks import check_count, check_data, check_key, leading_axis
from jvi._progress import Progress
from jvi._typing import Array, Data, PRNGKey, PyTree
from jvi.svi import SVI, FitError, Info, State, non_finite_error

__all__ = ["fit", "fit_batches", "monte_carlo"]

Callback = Callable[[State, Info], bool | None]
Beta = float | Callable[[Array], Array] | None

_GLANCE = 0.2  # seconds between two looks at a run that somebody watches


def fit(
    svi: SVI,
    rng: PRNGKey,
    x: Data = None,
    *,
    num_steps: int,
    state: State | None = None,
    beta: Beta = None,
    callback: Callback | None = None,
    callback_every: int = 1_000,
    progress: bool = True,
) -> tuple[State, Info]:
    """Take `num_steps` steps on all of `x`, in a loop on the device.

    Args:
      svi: what to maximize and how.
      rng: key of the run; not used with `state`, which holds its own.
      x: data, a pytree of arrays. Never captured: new data of the same shapes compile nothing.
      num_steps: how many steps to take.
      state: where to go on from. It is donated: use the returned one from then on. Two runs of n steps equal one of 2n.
      beta: weight of the KL term: a number, or a function of the step (traced) for a schedule.
      callback: called as `callback(state, info)` every `callback_every` steps, with that chunk's `info`; the run ends when it
        returns True. It must copy what it keeps of `state`.
      callback_every: steps between two calls of `callback`.
      progress: show a bar on a terminal. Elsewhere nothing is shown.

    Returns:
      The last state, and `Info` stacked over steps: NumPy arrays [num_steps].

    Raises:
      TypeError: if `svi` is no SVI, `rng` no typed key or a count no whole number.
      ValueError: if a count is less than 1, or `x` holds a NaN.
      NonFiniteError: after `svi.max_skipped` non-finite steps in a row.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> svi = jvi.SVI(jvi.elbo(model, guide), jvi.optimizer(jvi.svi.cosine_adam, 0.1, num_steps=2_000))
      >>> state, info = jvi.fit(svi, jax.random.key(0), 3.0, num_steps=2_000)
      >>> info.bound.shape, round(float(state.params.guide.loc[0]), 2)
      ((2000,), 3.0)
    """
    num_steps = _check_run(svi, num_steps, callback_every)
    rng, x = check_key(rng), jax.device_put(check_data(x))
    state = _begin(svi, rng, x, state)
    run = _Run(svi, num_steps, state, beta, callback, callback_every, progress)
    return run.all(feeds.Whole(), state, x)


def fit_batches(
    svi: SVI,
    rng: PRNGKey,
    batches: Iterable[Data] | Data,
    *,
    num_steps: int,
    batch_size: int | None = None,
    state: State | None = None,
    beta: Beta = None,
    callback: Callback | None = None,
    callback_every: int = 1_000,
    progress: bool = True,
) -> tuple[State, Info]:
    """Take `num_steps` steps, each on a minibatch.

    Args:
      svi: what to maximize and how; its objective takes a leading batch axis, as those made by `jvi.per_example` do.
      rng: key of the run; not used with `state`, which holds its own.
      batches: with `batch_size`, the whole data set, a pytree of arrays [N, ...]: it is moved to the device once and
        reshuffled there every epoch, whose last N mod `batch_size` examples sit that epoch out. Without, minibatches of one
        shape: an iterator, which may end before the run does, or an iterable, which is started anew whenever it ends.
      num_steps: how many steps to take.
      batch_size: examples in a minibatch.
      state, beta, callback, callback_every, progress: as in `fit`.

    Returns:
      The last state, and `Info` stacked over steps: NumPy arrays [num_steps], fewer if an iterator ended.

    Raises:
      TypeError: if `svi` is no SVI, `rng` no typed key, a count no whole number, or `batches` neither data nor iterable.
      ValueError: if there is no batch, a batch holds a NaN or has another shape than the first (a `FitError`, which carries
        the state, once steps have been taken).
      NonFiniteError: after `svi.max_skipped` non-finite steps in a row.

    Example:
      >>> import jax, jax.numpy as jnp, jvi, optax
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> objective = jvi.per_example(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))))
      >>> svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2))
      >>> state, info = jvi.fit_batches(svi, jax.random.key(0), jnp.arange(100.0), num_steps=50, batch_size=10)
      >>> int(state.step), info.bound.shape
      (50, (50,))
    """
    num_steps = _check_run(svi, num_steps, callback_every)
    rng = check_key(rng)
    if batch_size is not None:
        data = jax.device_put(check_data(batches, "batches"))
        examples = leading_axis(data, "batches")
        if check_count(batch_size, "batch_size") > examples:
            raise ValueError(f"batch_size must be no more than the {examples} examples in batches, got {batch_size}.")
        state = _begin(svi, rng, jax.tree.map(lambda leaf: leaf[:batch_size], data), state)
        run = _Run(svi, num_steps, state, beta, callback, callback_every, progress)
        return run.all(feeds.Shuffled(int(batch_size)), state, data)

    stacks = feeds.Stacks(batches)
    state = _begin(svi, rng, stacks.first, state)
    run = _Run(svi, num_steps, state, beta, callback, callback_every, progress)
    with run.progress:
        while run.remaining:
            try:
                stack, count = stacks.take(run.length(stacks.size))
            except ValueError as error:
                raise BatchError(str(error), state, run.info()) if run.done else error from None
            if not count:
                warnings.warn(f"the iterator ended after {run.done} of {num_steps} batches; the run ends there.", stacklevel=2)
                break
            state = run.chunk(feeds.Stacked(), stacks.size, state, stack, count)
    return state, run.info()


def monte_carlo(
    function: Callable[..., PyTree], rng: PRNGKey, *args: Any, num_samples: int, chunk_size: int | None = None
) -> PyTree:
    """Evaluate `function(rng, *args)` for `num_samples` keys, compiled, and stack the results.

    Args:
      function: a spec or a function, compared by value or identity; its compiled form is kept.
      rng: key; `num_samples` keys are split from it, the same ones whatever `chunk_size` is.
      args: pytrees of arrays and specs.
      num_samples: S.
      chunk_size: how many are evaluated at once, to bound memory; all by default.

    Returns:
      The results, each leaf [S, ...].

    Raises:
      TypeError: if `rng` is no typed key.
      ValueError: if a count is less than 1.

    Example:
      >>> import jax, jvi
      >>> from jvi.fit import monte_carlo
      >>> monte_carlo(jax.random.normal, jax.random.key(0), num_samples=10, chunk_size=4).shape
      (10,)
    """
    rng, num_samples = check_key(rng), check_count(num_samples, "num_samples")
    chunk_size = num_samples if chunk_size is None else check_count(chunk_size, "chunk_size")
    return _monte_carlo(function, num_samples, min(chunk_size, num_samples), rng, args)


class BatchError(FitError, ValueError):
    """A minibatch that does not fit, after steps have been taken; carries the state."""


class _Run:
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
    ) -> None:
        self.svi, self.remaining, self.done = svi, num_steps, 0
        self.step = int(state.step)
        self.schedule = beta if callable(beta) else None
        self.beta = None if beta is None or callable(beta) else jnp.asarray(beta, float)
        self.callback, self.callback_every = callback, callback_every
        self.progress = Progress(num_steps, progress)
        self.logs: list[Info] = []
        self.asked = 0  # how many of the logs the callback has seen
        self.glance = 32  # steps until the next look at a run that somebody watches

    def all(self, feed: Any, state: State, data: Data) -> tuple[State, Info]:
        """Run to the end."""
        with self.progress:
            while self.remaining:
                size, most = feed.room(self.step, data)
                state = self.chunk(feed, size, state, data, self.length(most))
        return state, self.info()

    def chunk(self, feed: Any, size: int, state: State, data: Data, length: int) -> State:
        """Enter the loop once, for at most `length` steps."""
        began = perf_counter()
        new, rows = _loop(self.svi, feed, (size, _block()), self.schedule, state, data, self.beta, length)
        rows, step, skipped = jax.device_get((rows, new.step, new.skipped_in_a_row))  # the one sync
        self._adapt(length, perf_counter() - began)
        taken, self.step = int(step) - self.step, int(step)
        bound, grad_norm, ess, finite = rows[:taken].T.copy()  # of a view, the whole buffer would be kept
        log = Info(bound, grad_norm, ess, finite.astype(bool))
        self.logs.append(log)
        self.done, self.remaining = self.done + taken, self.remaining - taken
        self.progress.update(self.done, log)
        if skipped >= self.svi.max_skipped:
            last = new.step - 1
            _, x = feed.next(feed.start(new.rng, last, data), new.rng, last, data, taken - 1)
            raise non_finite_error(self.svi, new, x, self.info(), _beta(self.schedule, self.beta, last))
        if self.callback is not None and self._ask(new):
            self.remaining = 0
        return new

    def info(self) -> Info:
        """What all steps reported, stacked."""
        return _stack(self.logs)

    def length(self, most: int) -> int:
        """How many steps the next entry should take, at most `most`."""
        if self.callback is not None:  # never by the clock: a run that stops early must do so at the same step again
            return min(self.remaining, self.callback_every - self.done % self.callback_every, most)
        return min(self.remaining, self.glance if self.progress.shown else most, most)

    def _ask(self, state: State) -> bool:
        if self.remaining and self.done % self.callback_every:
            return False
        news, self.asked = self.logs[self.asked :], len(self.logs)
        return bool(self.callback and self.callback(state, _stack(news)))

    def _adapt(self, length: int, seconds: float) -> None:
        if self.done:  # the first entry may have compiled
            self.glance = int(np.clip(length * _GLANCE / max(seconds, 1e-6), 1, min(4 * length, feeds.CHUNK)))


def _beta(schedule: Callable[[Array], Any] | None, beta: Any, step: Array) -> Any:
    if schedule is not None:
        return schedule(step)
    return 1.0 if beta is None else beta


def _begin(svi: SVI, rng: PRNGKey, x: Data, state: State | None) -> State:
    if state is None:
        return _init(svi, rng, x)
    return state._replace(skipped_in_a_row=jnp.zeros((), jnp.int32))  # a new run, a new chance


def _stack(logs: list[Info]) -> Info:
    return Info(*(np.concatenate(rows) for rows in zip(*logs, strict=True)))


def _check_run(svi: Any, num_steps: Any, callback_every: Any) -> int:
    if not isinstance(svi, SVI):
        raise TypeError(f"svi must be made by jvi.SVI(objective, optimizer), got {svi!r}.")
    check_count(callback_every, "callback_every")
    return check_count(num_steps, "num_steps")


@jax.jit
def _init(svi: SVI, rng: PRNGKey, x: Data) -> State:
    return svi.init(rng, x)


def _block() -> int:
    """Steps between two looks at whether to go on: an accelerator's loop waits for the host at each."""
    return 1 if jax.default_backend() == "cpu" else 32


@partial(jax.jit, static_argnums=(2, 3), donate_argnums=(4,))
def _loop(
    svi: SVI,
    feed: Any,
    sizes: tuple[int, int],
    schedule: Callable[[Array], Any] | None,
    state: State,
    data: Data,
    beta: Any,
    length: int,
) -> tuple[State, Array]:
    """Up to `length` steps, fewer if too many in a row are not finite; and what they reported, [size + 1, 4]."""
    size, block = sizes
    start = state.step
    keys = jax.vmap(lambda i: jax.random.fold_in(state.rng, start + i))(jnp.arange(size))

    def go_on(carry: Any) -> Array:
        i, *_, in_a_row = carry
        return (i < length) & (in_a_row < svi.max_skipped)

    def step(carry: Any, _: Any = None) -> tuple[Any, None]:
        i, params, opt_state, held, log, in_a_row = carry
        running = True if block == 1 else go_on(carry)
        held, x = feed.next(held, state.rng, start + i, data, i)
        key = jax.lax.dynamic_index_in_dim(keys, i, keepdims=False, allow_negative_indices=False)
        beta_now = _beta(schedule, beta, start + i)
        params, opt_state, info = svi.advance(params, opt_state, key, x, beta=beta_now, allowed=running)
        row = jnp.stack([value.astype(log.dtype) for value in info])
        log = jax.lax.dynamic_update_index_in_dim(log, row, i, 0, allow_negative_indices=False)
        in_a_row = jnp.where(info.finite, 0, in_a_row + running)
        return (i + running, params, opt_state, held, log, in_a_row), None

    def body(carry: Any) -> Any:
        return step(carry)[0] if block == 1 else jax.lax.scan(step, carry, length=block)[0]

    held = feed.start(state.rng, start, data)
    carry = (jnp.zeros((), jnp.int32), state.params, state.opt_state, held, jnp.zeros((size + 1, 4)), state.skipped_in_a_row)
    i, params, opt_state, _, log, in_a_row = jax.lax.while_loop(go_on, body, carry)
    skipped = state.skipped + jnp.sum((jnp.arange(size + 1) < i) & (log[:, -1] == 0), dtype=jnp.int32)
    return State(params, opt_state, state.rng, start + i, skipped, in_a_row), log


@partial(jax.jit, static_argnums=(0, 1, 2))
def _monte_carlo(function: Callable[..., Any], num_samples: int, chunk_size: int, rng: PRNGKey, args: Any) -> Any:
    keys = jax.random.split(rng, num_samples)
    return jax.lax.map(lambda key: function(key, *args), keys, batch_size=chunk_size)
