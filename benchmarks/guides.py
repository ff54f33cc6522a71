"""Guides on three targets whose KL is known: `python -m benchmarks.guides`.

All targets are normalized, so that minus the ELBO is KL(q || p) itself, estimated here from fresh draws; figures are means over seeds,
with their standard errors. Within a class (affine coupling, spline coupling, IAF, MAF, ...) contenders have equal layers, widths,
knots, particles, steps and Adam's rate, in float32; each runs in a compiled loop. jvi's gradient is its default, which for couplings
evaluates the density once more than the peers' does; or, where it says so, theirs. Chunks of steps are timed in turn, so that whatever
else the machine does falls on all. "At equal time" is the KL when the fastest of the class has finished, read off the run between
checkpoints; compilation is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.guide_contenders import CONTENDERS, DRAWS, FEWER, LIBRARIES, TARGETS, Target, build
from benchmarks.step_time import device_name

# KL, nats, that the better flows must reach on each target.
REACH = {"banana": 0.02, "funnel": 0.1, "four modes": 0.05}
CHECKPOINTS = 10


class Row(NamedTuple):
    """One contender on one target: microseconds a step, steps at the checkpoints [C], and the KL of every seed there [seeds, C]."""

    us: float
    steps: np.ndarray
    kl: np.ndarray


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guides", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="these contenders only")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="these targets only")
    parser.add_argument("--steps", type=int, help="steps (default: each target's own)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--out", type=Path, help="also write the tables as Markdown to this file, and a picture beside it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(highlight=False)
    names = [name for name in CONTENDERS if not options.only or name in options.only]
    names = [name for name in names if importlib.util.find_spec(LIBRARIES[CONTENDERS[name].library])]
    found: dict[str, dict[str, Row]] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for target in options.target or TARGETS:
            found[target] = measure(TARGETS[target], names, options.steps, options.seeds, console, progress)
            console.print(_table(target, found[target]))
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(_markdown(found, options.out.stem))
                picture(options.out.with_suffix(".png"), found)
    return 0


def measure(
    target: Target, names: list[str], steps: int | None, seeds: int, console: Console, progress: Progress
) -> dict[str, Row]:
    """Fit all contenders to a target, a chunk of steps each in turn."""
    size = target.size._replace(num_steps=steps or target.size.num_steps)
    size = size._replace(chunk=max(1, size.num_steps // CHECKPOINTS))
    task = progress.add_task(target.name, total=seeds * CHECKPOINTS + 1)
    runs, kl, seconds = {}, {}, {}
    for name in names:
        try:
            runs[name] = build(name, target, size)
            runs[name].chunk()  # compiles
            kl[name], seconds[name] = np.zeros((seeds, CHECKPOINTS)), []
        except (NotImplementedError, ImportError) as error:
            console.print(
                f"{name} left out of '{target.name}': {type(error).__name__}: {str(error).splitlines()[0]}", style="dim"
            )
    progress.advance(task)
    for seed in range(seeds):
        for name in kl:
            runs[name].restart(seed)
        for i in range(CHECKPOINTS):
            for name in kl:
                seconds[name].append(_timed(runs[name].chunk))
                kl[name][seed, i] = np.asarray(runs[name].log_ratio(i), np.float64).mean()
            progress.advance(task)
    progress.remove_task(task)
    rows = {}
    for name in kl:
        each = size.chunk // FEWER.get(CONTENDERS[name].kind, 1)
        rows[name] = Row(1e6 * statistics.median(seconds[name]) / each, each * np.arange(1, CHECKPOINTS + 1), kl[name])
    return rows


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def at_equal_time(rows: dict[str, Row], name: str) -> np.ndarray:
    """A contender's KL when the fastest of its class has taken all its steps, for each seed."""
    row = rows[name]
    budget = min(rows[other].us for other in classmates(rows, name)) * row.steps[-1]
    return np.array([np.interp(budget, row.us * row.steps, kl) for kl in row.kl])


def over_seeds(kl: np.ndarray) -> str:
    """The mean over seeds and its standard error."""
    if not np.isfinite(kl).all():
        return "not finite"
    error = f" ± {kl.std(ddof=1) / math.sqrt(len(kl)):.4f}" if len(kl) > 1 else ""
    return f"{kl.mean():.4f}{error}"


def classmates(rows: dict[str, Row], name: str) -> list[str]:
    """Contenders of the same class, itself among them."""
    return [other for other in rows if CONTENDERS[other].kind == CONTENDERS[name].kind]


def _cells(target: str, rows: dict[str, Row], name: str) -> list[str]:
    row, kind = rows[name], CONTENDERS[name].kind
    own = [other for other in classmates(rows, name) if CONTENDERS[other].library == "jvi"]
    ratio = f"{row.us / rows[own[0]].us:.2f}" if own else ""
    last, equal = row.kl[:, -1], at_equal_time(rows, name)
    reached = "yes" if last.mean() < REACH[target] else "no"
    return [kind, name, over_seeds(last), reached, over_seeds(equal), f"{row.us:,.0f}", ratio]


HEAD = ["class", "guide", "KL, nats", "reached", "KL at equal time", "us a step", "time to jvi's"]


def _sorted(rows: dict[str, Row]) -> list[str]:
    kinds = list(dict.fromkeys(contender.kind for contender in CONTENDERS.values()))
    return sorted(rows, key=lambda name: kinds.index(CONTENDERS[name].kind))


def _table(target: str, rows: dict[str, Row]) -> Table:
    table = Table(*HEAD, title=f"{target}, KL below {REACH[target]} to be reached", title_justify="left")
    for name in _sorted(rows):
        table.add_row(*_cells(target, rows, name))
    return table


def _markdown(found: dict[str, dict[str, Row]], stem: str) -> str:
    lines = [f"# Guides, {date.today()}", "", f"Device: {device_name()}, one core of a machine shared with other work."]
    lines += [f"`{command_line('benchmarks.guides')}`", "", *__doc__.strip().splitlines()[2:], ""]
    for target, rows in found.items():
        of = TARGETS[target]
        size = of.size
        lines += [f"## {target}", "", f"{of.says} {rows[next(iter(rows))].steps[-1]:,} steps of Adam at {size.rate:g} with "]
        lines[-1] += f"{size.num_samples} particles; {size.num_layers} layers, hidden {size.hidden}, {size.num_bins} bins; "
        lines[-1] += (
            f"{DRAWS:,} fresh draws; MAF takes {1 / FEWER['MAF']:g} of the steps. To be reached: KL below {REACH[target]}."
        )
        lines += ["", f"| {' | '.join(HEAD)} |", "| --- | --- | ---: | --- | ---: | ---: | ---: |"]
        lines += [f"| {' | '.join(_cells(target, rows, name))} |" for name in _sorted(rows)] + [""]
    return "\n".join([*lines, f"![KL against time]({stem}.png)", ""])


def picture(path: Path, found: dict[str, dict[str, Row]]) -> None:
    """KL against seconds of steps, a panel for each target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(contender.kind for contender in CONTENDERS.values()))
    styles = {"jvi": "-", "jvi, pathwise": "-.", "NumPyro": "--", "FlowJAX": ":"}
    figure, panels = plt.subplots(1, len(found), figsize=(5.2 * len(found), 5.0), layout="constrained", squeeze=False)
    for panel, (target, rows) in zip(panels[0], found.items(), strict=True):
        for name in _sorted(rows):
            row, of = rows[name], CONTENDERS[name]
            seconds = 1e-6 * row.us * row.steps
            colour = f"C{kinds.index(of.kind)}"
            panel.plot(seconds, np.maximum(row.kl.mean(0), 1e-4), styles[of.library], color=colour, label=name, lw=1.6)
        panel.axhline(REACH[target], color="grey", lw=0.8)
        panel.set(xscale="log", yscale="log", xlabel="seconds of steps", title=target)
    panels[0][0].set_ylabel("KL(q || p), nats")
    named = {label: line for panel in panels[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=2 * len(found), fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
