"""Checkpoints on disk: the only file that knows orbax.

A folder holds `run.json`, which says whose checkpoints these are, and `steps/N`, one folder a checkpoint: a tree of arrays by
name of item, and `record`, numbers and words as JSON. A checkpoint appears under its name whole, by renaming, or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jvi import _leaves as leaves
from jvi._typing import PyTree

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

RUN, STEPS, LOG, LOCK, DAMAGED = "run.json", "steps", "log.bin", "lock", "damaged-"
_OURS = (RUN, STEPS, LOG, LOCK, DAMAGED)
_KEPT = 3  # the last ones; the best is kept as well
_RECORD = "record"
_DELETED = "deleted"  # where orbax puts what is to go: a checkpoint vanishes at once, as it appears


class DamagedError(ValueError):
    """A checkpoint that cannot be read whole."""


class Found(NamedTuple):
    """A checkpoint: its step, what it says of itself, and its trees by item."""

    step: int
    record: dict[str, Any]
    trees: dict[str, PyTree]


Check = Callable[[int, dict[str, Any]], dict[str, PyTree]]


class Store:
    """The checkpoints of a folder.

    Attributes:
      folder: where they are.
    """

    def __init__(self, folder: Any) -> None:
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"the folder of checkpoints must be a path, got {folder!r}.")
        self.folder = Path(folder).absolute()
        self._manager: Any = None
        self._lock: Any = None

    def about(self) -> dict[str, Any] | None:
        """What `run.json` says; None where there is nothing yet.

        Raises:
          ValueError: if the folder is a file, or holds what jvi has not written.
        """
        if not self.folder.exists():
            return None
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} must be a folder, and is a file.")
        names = sorted(path.name for path in self.folder.iterdir())
        if RUN not in names:
            foreign = [name for name in names if not name.startswith(_OURS)] + ([STEPS] if self.steps() else [])
            if foreign:
                raise ValueError(
                    f"{self.folder} holds {', '.join(foreign[:3])} and no {RUN}, so that its checkpoints, if it has any, are not "
                    "jvi's. Nothing was written; take an empty or a new folder."
                )
            return None
        try:
            about = json.loads((self.folder / RUN).read_text())
            if about["format"] == 1:
                return about
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder / RUN} is damaged or not jvi's ({error}); nothing was written.") from None
        raise ValueError(f"{self.folder} was written in format {about['format']} by a newer jvi; this one reads format 1.")

    def steps(self) -> list[int]:
        """The checkpoints there are, from the first on."""
        folder = self.folder / STEPS
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []

    def record(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself.

        Raises:
          DamagedError: if it cannot be read.
        """
        path = self.folder / STEPS / str(step)
        try:
            return json.loads((path / _RECORD / "metadata").read_text())
        except (OSError, ValueError) as error:
            raise DamagedError(f"checkpoint {step} in {self.folder} has no readable record ({_first_line(error)})") from None

    def size(self, step: int) -> int:
        """Bytes of a checkpoint."""
        return sum(path.stat().st_size for path in (self.folder / STEPS / str(step)).rglob("*") if path.is_file())

    def lock(self) -> None:
        """Be the only process that writes here; the system ends this with the process, however that ends.

        Raises:
          RuntimeError: if another one is.
        """
        if fcntl is None or jax.process_index():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            file = held.enter_context(open(self.folder / LOCK, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RuntimeError(
                    f"another process runs in {self.folder}; wait for it, end it, or take another folder."
                ) from None
            self._lock = held.pop_all()

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def busy(self) -> bool:
        """Whether a process has the lock."""
        if fcntl is None or not (self.folder / LOCK).exists():
            return False
        with open(self.folder / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def newest(self, check: Check) -> tuple[Found | None, list[tuple[int, str]]]:
        """The newest whole checkpoint, or None where there is none; and what is wrong with newer ones.

        Args:
          check: from a step and its record to what the trees should be like; raises where the checkpoint is of no use.

        Raises:
          ValueError: if there are checkpoints but none is whole; whatever `check` raises.
        """
        wrong: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            try:
                record = self.record(step)
                return Found(step, record, self.restore(step, check(step, record))), wrong
            except DamagedError as error:
                wrong.append((step, str(error)))
        if wrong:
            raise ValueError(
                f"{wrong[0][1]}, and no older one is whole. Nothing was written; move the folder away to begin anew."
            )
        return None, []

    def compare(self, step: int, record: dict[str, Any], like: dict[str, PyTree]) -> None:
        """Compare the leaves of a checkpoint with those of `like`, by item.

        Raises:
          ValueError: if one differs.
        """
        for item, tree in like.items():
            if difference := leaves.difference(record["leaves"].get(item, []), leaves.described(tree)):
                raise ValueError(
                    f"checkpoint {step} in {self.folder} is of another model or optimizer. The first leaf that differs: "
                    f"{difference}. Nothing was written; take another folder, or the program that wrote this one."
                )

    def restore(self, step: int, like: dict[str, PyTree]) -> dict[str, PyTree]:
        """The trees of a checkpoint, placed as those of `like`, by item.

        Raises:
          DamagedError: if they cannot be read.
        """
        ocp = _orbax()
        targets = {item: leaves.targets(tree) for item, tree in like.items()}
        args = {item: ocp.args.StandardRestore(target) for item, target in targets.items() if target}
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                read = checkpointer.restore(self.folder / STEPS / str(step), args=ocp.args.Composite(**args))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # whatever a damaged file leads to
            raise DamagedError(f"checkpoint {step} in {self.folder} cannot be read whole ({_first_line(error)})") from error
        return {item: leaves.decoded(read[item] if targets[item] else {}, tree) for item, tree in like.items()}

    def begin(self, about: dict[str, Any], keep_all: bool = False) -> None:
        """Get ready to write: clear away what a killed save has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0 and not (self.folder / RUN).exists():
            draft = self.folder / f"{RUN}.draft"
            draft.write_text(json.dumps({"format": 1, **about}, indent=1))
            draft.replace(self.folder / RUN)
        ocp = _orbax()
        policies = ocp.checkpoint_managers
        last = policies.LatestN(None if keep_all else _KEPT)
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([last, best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
            todelete_subdir=_DELETED,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.folder / STEPS, options=options)
        self._delete()

    def save(self, step: int, trees: dict[str, PyTree], record: dict[str, Any], score: float | None = None) -> None:
        """Begin to write a checkpoint; the arrays may be donated afterwards. Waits for the one before.

        Raises:
          OSError: if this or the one before could not be written.
        """
        ocp = _orbax()
        record = {**record, "leaves": {item: leaves.described(tree) for item, tree in trees.items()}}
        items = {item: numbered for item, tree in trees.items() if (numbered := leaves.encoded(tree))}
        args = {item: ocp.args.StandardSave(numbered) for item, numbered in items.items()}
        self._delete()
        metrics = None if score is None else {"score": score}
        with self._writing(step):
            self._manager.save(
                step, args=ocp.args.Composite(**args, **{_RECORD: ocp.args.JsonSave(record)}), metrics=metrics, force=True
            )

    def wait(self) -> None:
        """Until all is written.

        Raises:
          OSError: if it could not be.
        """
        if self._manager is not None:
            with self._writing(None):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Write no more."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with self._writing(None):
                manager.close()
            self._delete()

    def _delete(self) -> None:
        if jax.process_index() == 0:
            for path in (self.folder / STEPS / _DELETED).glob("*"):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the file system, in whatever wrapping
            whole = self.steps()
            newest = f"the newest whole one is {whole[-1]}" if whole else "there is none yet"
            what = "the last checkpoint" if step is None else f"checkpoint {step}, or the one before it,"
            raise OSError(
                f"{what} could not be written to {self.folder}: {_first_line(error)}. Those before are untouched; {newest}. "
                "Free some room and start the run again: it goes on from there."
            ) from error


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def _orbax() -> Any:
    """The library, without its log lines: what goes wrong is raised."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    if _is_not_orbax not in logger.filters:
        logger.addFilter(_is_not_orbax)
    return ocp


def _is_not_orbax(line: logging.LogRecord) -> bool:
    return "orbax" not in Path(line.pathname).parts
