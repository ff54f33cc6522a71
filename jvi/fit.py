"""Whole runs: `fit` on all of the data, `fit_batches` on minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jvi import _feeds as feeds
from jvi import _loops
from jvi._checks import check_count, check_data, check_key
from jvi._maps import Mapped, stay_on_host
from jvi._reader import UnfitError
from jvi._run import Beta, Callback, Run
from jvi._sources import Source, Streamed
from jvi._typing import Data, PRNGKey
from jvi.adapt import ADVICE, driven, held, source_of
from jvi.svi import SVI, FitError, Info, State

__all__ = ["fit", "fit_batches"]


def fit(
    svi: SVI,
    rng: PRNGKey,
    x: Data = None,
    *,
    num_steps: int | None = None,
    state: State | None = None,
    beta: Beta = None,
    callback: Callback | None = None,
    callback_every: int = 1_000,
    progress: bool = True,
) -> tuple[State, Info]:
    """Maximize on all of `x`, in a loop on the device.

    Args:
      svi: what to maximize and how.
      rng: key of the run; not used with `state`, which holds its own.
      x: data, a pytree of arrays. Never captured: new data of the same shapes compile nothing.
      num_steps: how many steps to take. By default the run drives itself, as `jvi.adapt` does, which tells more of how it went: it
        finds its learning rate and its end, and warns where that is not convergence.
      state: where to go on from. It is donated: use the returned one from then on. Two runs of n steps equal one of 2n.
      beta: weight of the KL term: a number, one of `jvi.schedules`, or a function of the step (traced). Steps are the state's, so
        that a run that goes on goes on with its schedule. Other numbers of the same schedule compile nothing; another function does.
      callback: called as `callback(state, info)` every `callback_every` steps, with that chunk's `info`; the run ends when it
        returns True. It must copy what it keeps of `state`.
      callback_every: steps between two calls of `callback`.
      progress: show a bar on a terminal. Elsewhere nothing is shown.

    Returns:
      The last state, and `Info` stacked over steps: NumPy arrays [N].

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
    if num_steps is None:
        return _driven(svi, rng, held(x, None), state, beta, callback, progress)
    num_steps = _check_run(svi, num_steps, callback_every)
    rng, x = check_key(rng), jax.device_put(check_data(x))
    state = _begin(svi, rng, x, state)
    run = Run(svi, num_steps, state, beta, callback, callback_every, progress)
    return run.all(feeds.Whole(), state, x)


def fit_batches(
    svi: SVI,
    rng: PRNGKey,
    batches: Iterable[Data] | Data,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    state: State | None = None,
    beta: Beta = None,
    callback: Callback | None = None,
    callback_every: int = 1_000,
    progress: bool = True,
) -> tuple[State, Info]:
    """Maximize by steps on minibatches.

    Args:
      svi: what to maximize and how; its objective takes a leading batch axis, as those made by `jvi.per_example` do.
      rng: key of the run; not used with `state`, which holds its own.
      batches: with `batch_size`, the whole data set, a pytree of arrays [N, ...]: it is moved to the device once and
        reshuffled there every epoch, whose last N mod `batch_size` examples sit that epoch out. Memory maps stay on the disk, and
        arrays of NumPy that would take more than half of the device's memory on the host: their minibatches, the same ones, are
        gathered there. Without `batch_size`, minibatches of one shape: an iterator, which may end before the run does, or an
        iterable, such as a grain loader, which is started anew whenever it ends; a smaller last one of an epoch sits out. They are
        read by a thread, while the device is at work on those before, unless they are JAX arrays.
      num_steps: how many steps to take; by default the run drives itself, as in `fit`.
      batch_size: examples in a minibatch.
      state, beta, callback, callback_every, progress: as in `fit`.

    Returns:
      The last state, and `Info` stacked over steps: NumPy arrays [N].

    Raises:
      TypeError: if `svi` is no SVI, `rng` no typed key, a count no whole number, or `batches` neither data nor iterable.
      ValueError: if there is no batch, a batch holds a NaN or has another shape than the first (a `FitError`, which carries
        the state, once steps have been taken). What an iterator raises, when its minibatch would have been next.
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
    if num_steps is None:
        stacked = batch_size is None
        source = Streamed(feeds.Stacks(batches)) if stacked else source_of(batches, batch_size, rng, state, "batches")
        return _driven(svi, rng, source, state, beta, callback, progress)
    num_steps = _check_run(svi, num_steps, callback_every)
    rng = check_key(rng)
    if batch_size is not None and not stay_on_host(batches):
        data = held(batches, batch_size, "batches").data
        state = _begin(svi, rng, data, state, int(batch_size))
        run = Run(svi, num_steps, state, beta, callback, callback_every, progress)
        return run.all(feeds.Shuffled(int(batch_size)), state, data)

    if batch_size is not None:
        batches = Mapped.begun(batches, batch_size, rng, state, "batches")
    stacks = feeds.Stacks(batches)
    state = _begin(svi, rng, batches.head if isinstance(batches, Mapped) else stacks.first, state)
    run = Run(svi, num_steps, state, beta, callback, callback_every, progress)
    with run.progress, stacks:
        while run.remaining:
            length = run.length(stacks.size)
            try:
                stack, count = stacks.take(length, run.length(stacks.size, length))
            except UnfitError as error:
                raise BatchError(str(error), state, run.info()) if run.done else error from None
            if not count:
                warnings.warn(f"the iterator ended after {run.done} of {num_steps} batches; the run ends there.", stacklevel=2)
                break
            state = run.chunk(feeds.Stacked(), stacks.size, state, stack, count)
    return state, run.info()


class BatchError(FitError, ValueError):
    """A minibatch that does not fit, after steps have been taken; carries the state."""


def _begin(svi: SVI, rng: PRNGKey, x: Data, state: State | None, batch_size: int | None = None) -> State:
    if state is None:
        return _loops.init(svi, rng, x, batch_size)
    state = state._replace(skipped_in_a_row=jnp.zeros((), jnp.int32))  # a new run, a new chance
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        """The leaf, or a copy where it is another leaf as well: no buffer can be donated twice."""
        shared = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if shared else leaf

    return jax.tree.map(own, state)


def _driven(
    svi: SVI, rng: PRNGKey, source: Source, state: State | None, beta: Any, callback: Any, progress: bool
) -> tuple[State, Info]:
    if callback is not None:
        raise ValueError("callback needs num_steps: a run that finds its own end is not the caller's to stop.")
    found = driven(svi, rng, source, state, beta, progress)
    if found.status != "converged":
        warnings.warn(f"{found.status} after {found.num_steps:,} steps: {ADVICE[found.status]}", stacklevel=3)
    return found.state, found.info


def _check_run(svi: Any, num_steps: Any, callback_every: Any) -> int:
    if not isinstance(svi, SVI):
        raise TypeError(f"svi must be made by jvi.SVI(objective, optimizer), got {svi!r}.")
    check_count(callback_every, "callback_every")
    return check_count(num_steps, "num_steps")
