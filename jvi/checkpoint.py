"""States on disk: saved, found again and restored.

`jvi.fit(..., checkpoint=folder)` and `jvi.fit_batches` keep whole runs in such folders, `python -m jvi resume FOLDER` shows one,
and `restore` reads a state out of either. Arrays are written by orbax and read back as arrays: nothing is ever unpickled. A
checkpoint appears whole or not at all, whenever the process is killed. Those of a run may be read on another number of devices.
"""

from __future__ import annotations

import os

from jvi._store import DamagedError, Store
from jvi.svi import State

__all__ = ["latest", "restore", "save"]

Folder = str | os.PathLike[str]


def save(folder: Folder, state: State) -> int:
    """Write a state to a folder that `jvi.checkpoint.save` alone writes to, beside those that are there.

    Args:
      folder: new, empty, or one that holds other states.
      state: of any run.

    Returns:
      Its number in the folder: the steps it has taken.

    Raises:
      TypeError: if `state` is no State.
      ValueError: if the folder holds something else, a run, or a state with this number.
      OSError: if it cannot be written.

    Example:
      >>> import jax, jvi, tempfile
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))))
      >>> state, _ = jvi.fit(svi, jax.random.key(0), 3.0, num_steps=100)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jvi.checkpoint.save(folder, state)
      ...     again = jvi.checkpoint.restore(folder, svi.init(jax.random.key(0), 3.0))
      100
      >>> bool(again.params.guide.loc == state.params.guide.loc)
      True
    """
    if not isinstance(state, State):
        raise TypeError(f"state must be a jvi.State, got {type(state).__name__}.")
    store, step = Store(folder), int(state.step)
    about = store.about()
    if about is not None and "run" in about:
        raise ValueError(f"{store.folder} holds a run, which keeps its own checkpoints; take another folder.")
    if step in store.steps():
        raise ValueError(f"{store.folder} holds a state after {step} steps already. Nothing was written; take another folder.")
    store.begin({}, keep_all=True)
    try:
        store.save(step, {"state": state}, {})
    finally:
        store.close()
    return step


def restore(folder: Folder, like: State, *, step: int | None = None, best: bool = False) -> State:
    """Read a state: the newest one, that of a step, or the best one of a run.

    The best is that with the best bound, which a run evaluates whenever it saves: 32 times, with keys that no step uses.

    Args:
      folder: what `save` was told, or `checkpoint=` of a run.
      like: a state of the same structure, such as `svi.init(rng, x)`, or its shapes, from `jax.eval_shape`. Arrays are placed as
        its own are.
      step: a checkpoint by its number.
      best: the best one of a run. Not with `step`.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if a leaf differs from that of `like`, which it names; if the checkpoint is not whole, with the newest that is;
        if the folder is not jvi's, or both `step` and `best` are said.

    Example:
      >>> import jax, jvi, tempfile
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))))
      >>> rng, x = jax.random.key(0), 3.0
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = jvi.fit(svi, rng, x, num_steps=500, checkpoint=folder, checkpoint_every=100)
      ...     best = jvi.checkpoint.restore(folder, svi.init(rng, x), best=True)
      ...     older = jvi.checkpoint.restore(folder, svi.init(rng, x), step=400)
      >>> int(older.step)
      400
    """
    store = Store(folder)
    if not isinstance(like, State):
        raise TypeError(f"like must be a jvi.State, as svi.init(rng, x) makes them, got {type(like).__name__}.")
    if step is not None and best:
        raise ValueError("say step= or best=True, and not both.")
    steps = store.steps() if store.about() is not None else []
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {store.folder}.")
    if best:
        scored = [(record["score"], number) for number in steps if "score" in (record := _record(store, number))]
        if not scored:
            raise ValueError(f"{store.folder} holds no bounds: only the checkpoints of a run have them.")
        step = max(scored)[1]
    step = steps[-1] if step is None else step
    if step not in steps:
        raise FileNotFoundError(f"there is no checkpoint {step} in {store.folder}, only {', '.join(map(str, steps))}.")
    try:
        record = store.record(step)
        store.compare(step, record, {"state": like})
        return store.restore(step, {"state": like})["state"]
    except DamagedError as error:
        whole = next((other for other in reversed(steps) if other != step and _is_whole(store, other, like)), None)
        advice = "no other one is whole" if whole is None else f"the newest whole one is {whole}: say step={whole}"
        raise ValueError(f"{error}; {advice}.") from error


def latest(folder: Folder) -> int | None:
    """The number of the newest checkpoint that can be read, or None where there is none.

    Raises:
      ValueError: if the folder is not jvi's.

    Example:
      >>> import jvi
      >>> print(jvi.checkpoint.latest("no such folder"))
      None
    """
    store = Store(folder)
    whole = [step for step in store.steps() if _record(store, step)] if store.about() is not None else []
    return whole[-1] if whole else None


def _record(store: Store, step: int) -> dict:
    """What a checkpoint says of itself; nothing where it cannot be read."""
    try:
        return store.record(step)
    except DamagedError:
        return {}


def _is_whole(store: Store, step: int, like: State) -> bool:
    try:
        return bool(store.restore(step, {"state": like}))
    except DamagedError:
        return False
