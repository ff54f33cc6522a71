"""What a run keeps on disk, and how it goes on from there."""

from __future__ import annotations

import re
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _feeds as feeds
from jvi import _hosts as hosts
from jvi import _loops, sharding
from jvi._run import Run
from jvi._store import DAMAGED, LOG, STEPS, DamagedError, Found, Store
from jvi._typing import Data, PRNGKey, PyTree
from jvi.svi import SVI, FitError, Info, State

EVALUATIONS = 32  # of the bound at a checkpoint
_COLUMNS = len(Info._fields)


class SaveError(FitError, OSError):
    """A checkpoint that could not be written; carries the state."""


class Keeper:
    """Keeps a run on disk.

    What the steps reported is one file, to which a checkpoint's rows are added before the checkpoint itself is written. Rows
    that no checkpoint knows of are written again, the same ones.

    Attributes:
      stacks: the minibatches of an iterator, whose position is kept.
      last: the newest checkpoint's number, or -1.
    """

    def __init__(
        self, folder: Any, every: int, svi: SVI, rng: PRNGKey, first: int, data: str, beta: Any, end: str,
        stacks: feeds.Stacks | hosts.Joined | None,
    ) -> None:  # fmt: skip
        self._store, self._every, self._svi, self.stacks = Store(folder), every, svi, stacks
        self._about = {
            "objective": _text(svi.objective),
            "optimizer": _text(svi.optimizer),
            "max_skipped": str(svi.max_skipped),
            "data": data,
            "beta": _text(beta),
            "key": f"{jax.random.key_impl(rng)} {np.asarray(jax.random.key_data(rng)).tolist()}",
            "first step": str(first),
            "end": end,
            "precision": str(jnp.result_type(float)),
        }
        self._rows = self._logs = 0  # on disk
        self.last = -1
        self._kept: tuple[Data, int] | None = None  # of an iterator: the minibatches that the bound is evaluated on

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self._store.close()
        except OSError:
            if kind is None:
                raise
        finally:
            self._store.unlock()

    def open(self, like: dict[str, PyTree]) -> Found | None:
        """The newest whole checkpoint, with the trees of `like` that it has. From then on the folder is this run's.

        Raises:
          ValueError: if the folder is another run's, or none of its checkpoints is whole.
          RuntimeError: if another process runs there.
        """
        about = self._store.about()

        def check(step: int, record: dict[str, Any]) -> dict[str, PyTree]:
            trees = {item: like[item] for item in record["leaves"] if item in like}
            self._store.compare(step, record, trees)
            self._compare(about)
            path, least = self._store.folder / LOG, record.get("done", 0) * _COLUMNS * self._dtype.itemsize
            if not path.is_file() or path.stat().st_size < least:
                raise DamagedError(f"checkpoint {step} needs {least} bytes of {path}, which are not there")
            return trees

        if about is not None and not self._store.steps():
            self._compare(about)
        self._store.lock()
        found, wrong = self._store.newest(check)
        if found is not None:
            self.last, self._rows = found.step, found.record["done"]
        self._set_aside(wrong)
        self._store.begin({"run": self._about})
        return found

    def resume(self, run: Run, state: State) -> State:
        """Take `run` to the newest checkpoint, if there is one; the state there."""
        found = self.open({"state": state})
        if found is None:
            return state
        record, state = found.record, found.trees["state"]
        if record["done"] > run.num_steps:
            raise ValueError(
                f"the run in {self._store.folder} has taken {record['done']:,} steps already. num_steps is the total, "
                f"{run.num_steps:,} here: say more, or take another folder."
            )
        over = record["ended"] and record["num_steps"] == run.num_steps
        self.go_on(run, state, record, 0 if over else run.num_steps - record["done"])
        if self.stacks is not None and run.remaining:
            self._kept = self.stacks.take(record["kept"])
            self.stacks.seek(hosts.own_position(run.mesh, record["positions"]))
        return state

    def go_on(self, run: Run, state: State, record: dict[str, Any], remaining: int) -> None:
        """Give `run` what the steps until a checkpoint reported."""
        rows = np.fromfile(self._store.folder / LOG, self._dtype, record["done"] * _COLUMNS).reshape(-1, _COLUMNS)
        bound, grad_norm, ess, finite = rows.T.copy()
        run.go_on(state, Info(bound, grad_norm, ess, finite.astype(bool)), remaining)
        self._logs = len(run.logs)

    def until(self, done: int) -> int:
        """Steps from `done` to the next checkpoint."""
        return self._every - done % self._every

    def look(self, run: Run, state: State, feed: Any, data: Data, count: int, last: bool = False) -> None:
        """Save where it is time to, or where it is the `last`; `data` are those of the last `count` steps."""
        if self.stacks is not None and self._kept is None:
            self._kept = data, count
        due = last or not run.remaining or run.done % self._every == 0
        if not due or run.step == self.last:
            return
        data, count = self._kept or (data, EVALUATIONS)
        params, rng = state.params, state.rng
        with sharding.entered(run.mesh):
            bounds = _loops.independent(self._svi, feed, EVALUATIONS, run.schedule, params, rng, data, run.beta, count)
        record = {"kept": count, "ended": not run.remaining, "num_steps": run.num_steps}
        self.save(run.step, run, {"state": state}, np.asarray(bounds, float), record, last or not run.remaining)

    def save(
        self, step: int, run: Run, trees: dict[str, PyTree], bounds: np.ndarray, record: dict[str, Any], last: bool
    ) -> None:
        """Write a checkpoint, numbered `step` or, where there is one, the next.

        Raises:
          SaveError: if it cannot be written.
        """
        upper = bool(getattr(self._svi.objective, "upper", False))
        bound, error = _estimate(bounds)
        score = -np.inf if np.isnan(bound) else -bound if upper else bound
        self.last = max(step, self.last + 1)
        record = {
            **record, "done": run.done, "skipped": int(trees["state"].skipped), "bound": bound, "standard_error": error,
            "score": score, "saved": time.time(), "jax": jax.__version__,
            "positions": hosts.positions(run.mesh, self.stacks.position) if self.stacks else None,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }  # fmt: skip
        try:
            self._append(run.logs[self._logs :])
            self._rows, self._logs = run.done, len(run.logs)
            self._store.save(self.last, trees, record, score)
            if last:
                self._store.wait()
        except OSError as failure:
            raise SaveError(str(failure), trees["state"], run.info()) from failure

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self._about["precision"])

    def _append(self, logs: list[Info]) -> None:
        if jax.process_index() == 0:
            path = self._store.folder / LOG
            with open(path, "r+b" if path.exists() else "wb") as file:
                file.truncate(file.seek(self._rows * _COLUMNS * self._dtype.itemsize))
                for log in logs:
                    file.write(np.stack([np.asarray(column, self._dtype) for column in log], 1).tobytes())

    def _compare(self, about: dict[str, Any] | None) -> None:
        if about is None or "run" not in about:
            raise ValueError(
                f"{self._store.folder} holds states that jvi.checkpoint.save wrote, and no run. Take another folder, and begin "
                "there from state=jvi.checkpoint.restore(...)."
            )
        for name, here in self._about.items():
            if (there := about["run"].get(name)) != here:
                raise ValueError(
                    f"{self._store.folder} holds a run with another {name}: {_around(there, here)} there, {_around(here, there)} "
                    "here. Nothing was written; take another folder. With state=jvi.checkpoint.restore(...) a new run begins "
                    "from the state of this one."
                )

    def _set_aside(self, wrong: list[tuple[int, str]]) -> None:
        for step, what in wrong:
            aside = self._store.folder / f"{DAMAGED}{step}"
            if jax.process_index() == 0:
                (self._store.folder / STEPS / str(step)).rename(aside)
            message = (
                f"{what}. It was moved to {aside.name}; the run goes on from checkpoint {self.last}, the newest whole one."
            )
            warnings.warn(message, stacklevel=6)


def _estimate(bounds: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(bounds).all():
        return float("nan"), float("nan")
    return float(np.mean(bounds)), float(np.std(bounds, ddof=1) / np.sqrt(len(bounds)))


def _text(value: Any) -> str:
    """What a spec says of itself, the same in every process and on every terminal."""
    return re.sub(r" at 0x[0-9a-f]+|\x1b\[[0-9;]*m", "", repr(value))


def _around(text: Any, other: Any) -> str:
    """The part of a text where it differs from the other."""
    text, other = str(text), str(other)
    first = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(first - 40, 0)
    return ("..." if start else "") + text[start : first + 40] + ("..." if first + 40 < len(text) else "")
