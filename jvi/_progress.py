"""A progress bar for a run: on a terminal only."""

from __future__ import annotations

from typing import Any

import numpy as np


class Progress:
    """Shows how far a run is, how fast, and where its bound stands. Silent unless standard error is a terminal."""

    def __init__(self, num_steps: int, wanted: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._num_steps = num_steps
        self.shown = wanted and self._console.is_terminal
        self._bar: Any = None
        self.note = ""  # shown before the bound

    def __enter__(self) -> Progress:
        if self.shown:
            from rich import progress

            self._bar = progress.Progress(
                progress.BarColumn(bar_width=30),
                progress.MofNCompleteColumn(),
                progress.TextColumn("[progress.description]{task.description}"),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("compiling", total=self._num_steps)
        return self

    def update(self, done: int, log: Any) -> None:
        """Show the last chunk's mean bound and how many steps it skipped."""
        if self._bar is None:
            return
        finite = log.bound[np.asarray(log.finite)]
        text = self.note + (f"bound {np.mean(finite):.4g}" if finite.size else "bound not finite")
        skipped = int(np.sum(~log.finite))
        self._bar.update(self._task, completed=done, description=text + (f", {skipped} steps skipped" if skipped else ""))

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()


class Stages:
    """Shows which stage of a fit is at work. Silent unless standard error is a terminal."""

    def __init__(self, wanted: bool) -> None:
        from rich.console import Console

        console = Console(stderr=True)
        self._status: Any = console.status("checking") if wanted and console.is_terminal else None

    def __enter__(self) -> Stages:
        if self._status is not None:
            self._status.start()
        return self

    def show(self, name: str) -> None:
        """Name the stage that begins."""
        if self._status is not None:
            self._status.update(name)

    def __exit__(self, *_: Any) -> None:
        if self._status is not None:
            self._status.stop()
