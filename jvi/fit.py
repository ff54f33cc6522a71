"""Whole runs: `fit` on all of the data, `fit_batches` on minibatches."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _feeds as feeds
from jvi import _hosts as hosts
from jvi import _tree, sharding
from jvi._checks import check_count, check_key
from jvi._keeper import Keeper
from jvi._maps import Mapped, stay_on_host
from jvi._reader import UnfitError
from jvi._run import Beta, Callback, Run
from jvi._sources import Source, Streamed, begin
from jvi._typing import Data, PRNGKey
from jvi.adapt import ADVICE, driven, held
from jvi.schedules import of_run
from jvi.svi import SVI, FitError, Info, State

__all__ = ["fit", "fit_batches"]

Folder = str | os.PathLike[str] | None


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
    checkpoint: Folder = None,
    checkpoint_every: int = 1_000,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
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
      checkpoint: a folder to keep the run in: new, empty, or of the same run. Started again with it, a run that was broken off,
        at whatever moment, goes on and ends bit for bit where it would have; `num_steps` is the total, and `info` that of all
        steps. Kept are the last three checkpoints and the best by a bound of its own. See `jvi.checkpoint`.
      checkpoint_every: steps between two checkpoints. A run that drives itself is saved where its learning rate changes.
      progress: show a bar on a terminal. Elsewhere nothing is shown.
      mesh: devices to share the work, made by `jvi.sharding`. Every device gets all of `x`, unless it is split over the mesh already,
        and evaluates its part of the examples (of `per_example`, `subsampled`, `global_local`) and particles. The numbers are those of
        one device but for rounding. With several processes all call `fit`, with the same arguments.

    Returns:
      The last state, and `Info` stacked over steps: NumPy arrays [N].

    Raises:
      TypeError: if `svi` is no SVI, `rng` no typed key or a count no whole number.
      ValueError: if a count is less than 1, `x` holds a NaN, or the checkpoints are not of this run or none is whole.
      NonFiniteError: after `svi.max_skipped` non-finite steps in a row.
      OSError: if a checkpoint cannot be written (a `FitError`, which carries the state).
      RuntimeError: if another process runs in the folder.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> svi = jvi.SVI(jvi.elbo(model, guide), jvi.optimizer(jvi.svi.cosine_adam, 0.1, num_steps=2_000))
      >>> state, info = jvi.fit(svi, jax.random.key(0), 3.0, num_steps=2_000)
      >>> info.bound.shape, round(float(state.params.guide.loc[0]), 2)
      ((2000,), 3.0)
    """
    num_steps, (rng, mesh), beta = _check_run(svi, num_steps, callback_every), _check_key(rng, mesh), of_run(beta)
    source = held(x, None, mesh=mesh)
    keeper = _keeper(checkpoint, checkpoint_every, svi, rng, state, _tree.shapes(source.data), beta, num_steps)
    if num_steps is None:
        return _driven(svi, rng, source, state, beta, callback, progress, keeper)
    state, x = _begin(svi, rng, source.data, state, mesh=mesh), source.data
    run = Run(svi, num_steps, state, beta, callback, callback_every, progress, mesh, keeper)
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
    checkpoint: Folder = None,
    checkpoint_every: int = 1_000,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
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
      state, beta, callback, callback_every, checkpoint, checkpoint_every, progress: as in `fit`. An iterator must begin anew with
        the run: it is taken to where the run stood.
      mesh: as in `fit`. With several processes and an iterator, every process yields its own slice of each minibatch, and the run
        ends with the first iterator that does; a data set with `batch_size` is the same on all.

    Returns:
      The last state, and `Info` stacked over steps: NumPy arrays [N].

    Raises:
      TypeError: if `svi` is no SVI, `rng` no typed key, a count no whole number, or `batches` neither data nor iterable.
      ValueError: if there is no batch, a batch holds a NaN or has another shape than the first (a `FitError`, which carries
        the state, once steps have been taken), on whichever process it is; if the mesh does not split the minibatch evenly.
        What an iterator raises, when its minibatch would have been next.
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
    num_steps, (rng, mesh), beta = _check_run(svi, num_steps, callback_every), _check_key(rng, mesh), of_run(beta)
    if batch_size is not None and not stay_on_host(batches):
        source = held(batches, batch_size, "batches", mesh)
        shapes = f"{_tree.shapes(source.data)} in minibatches of {batch_size}"
        keeper = _keeper(checkpoint, checkpoint_every, svi, rng, state, shapes, beta, num_steps)
        if num_steps is None:
            return _driven(svi, rng, source, state, beta, callback, progress, keeper)
        state = _begin(svi, rng, source.data, state, int(batch_size), mesh)
        run = Run(svi, num_steps, state, beta, callback, callback_every, progress, mesh, keeper)
        return run.all(feeds.Shuffled(int(batch_size)), state, source.data)

    if batch_size is not None:
        batches = Mapped.begun(batches, batch_size, rng, state, "batches", mesh)
    stacks = hosts.stacks(batches, mesh)
    shapes = f"minibatches of {_tree.shapes(stacks.first)}"
    keeper = _keeper(checkpoint, checkpoint_every, svi, rng, state, shapes, beta, num_steps, stacks)
    if num_steps is None:
        return _driven(svi, rng, Streamed(stacks, mesh), state, beta, callback, progress, keeper)
    first = sharding.put(mesh, batches.head) if isinstance(batches, Mapped) else stacks.first
    state = _begin(svi, rng, first, state, mesh=mesh)
    run = Run(svi, num_steps, state, beta, callback, callback_every, progress, mesh, keeper)
    with run.progress, run.keeper, stacks:
        now: State = run.keeper.resume(run, state)
        while run.remaining:
            length = run.length(stacks.size)
            try:
                stack, count = stacks.take(length, run.length(stacks.size, length))
            except (UnfitError, hosts.PeerError) as error:
                raise BatchError(str(error), now, run.info()) if run.done else error from None
            if not count:
                warnings.warn(f"the iterator ended after {run.done} of {num_steps} batches; the run ends there.", stacklevel=2)
                run.keeper.look(run, now, feeds.Stacked(), stack, count, last=True)
                break
            now = run.chunk(feeds.Stacked(), stacks.size, now, stack, count)
    return now, run.info()


class BatchError(FitError, ValueError):
    """A minibatch that does not fit, after steps have been taken; carries the state."""


def _begin(svi: SVI, rng: PRNGKey, x: Data, state: State | None, batch_size: int | None = None, mesh: Any = None) -> State:
    if state is None:
        return begin(svi, rng, x, batch_size, mesh)
    # A new run, a new chance. A zero that JAX makes would be compiled, and one that is kept could be donated twice.
    state = state._replace(skipped_in_a_row=jax.device_put(np.zeros((), np.int32)))
    if state.rng.is_fully_addressable:  # of `svi.init` it is the caller's own
        state = state._replace(rng=jax.device_put(state.rng, may_alias=False))
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        """The leaf, or a copy where it is another leaf as well: no buffer can be donated twice."""
        shared = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if shared else leaf

    return sharding.stored(mesh, jax.tree.map(own, state))


def _driven(
    svi: SVI, rng: PRNGKey, source: Source, state: State | None, beta: Any, callback: Any, progress: bool, keeper: Keeper | None
) -> tuple[State, Info]:
    if callback is not None:
        raise ValueError("callback needs num_steps: a run that finds its own end is not the caller's to stop.")
    found = driven(svi, rng, source, state, beta, progress, keeper=keeper)
    if found.status != "converged":
        warnings.warn(f"{found.status} after {found.num_steps:,} steps: {ADVICE[found.status]}", stacklevel=3)
    return found.state, found.info


def _check_key(rng: Any, mesh: Any) -> tuple[PRNGKey, Any]:
    rng, mesh = check_key(rng), sharding.check_mesh(mesh)
    hosts.check_same(mesh, rng, "rng")
    return rng, mesh


def _keeper(
    folder: Folder, every: Any, svi: SVI, rng: PRNGKey, state: State | None, data: str, beta: Any, num_steps: int | None,
    stacks: feeds.Stacks | hosts.Joined | None = None,
) -> Keeper | None:  # fmt: skip
    every = check_count(every, "checkpoint_every")
    if folder is None:
        return None
    rng, first = (rng, 0) if state is None else (state.rng, int(state.step))
    end = "found by the run itself" if num_steps is None else "num_steps"
    return Keeper(folder, every, svi, rng, first, data, beta, end, stacks)


def _check_run(svi: Any, num_steps: Any, callback_every: Any) -> int | None:
    if not isinstance(svi, SVI):
        raise TypeError(f"svi must be made by jvi.SVI(objective, optimizer), got {svi!r}.")
    check_count(callback_every, "callback_every")
    return None if num_steps is None else check_count(num_steps, "num_steps")
