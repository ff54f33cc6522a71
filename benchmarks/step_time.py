"""The cost of a step, as ratios to a loop written by hand: `python -m benchmarks.step_time`.

Every contender runs in a process of its own, and all are asked for one run after the other, in turn, so that whatever else the
machine does falls on all of them. Figures are medians over rounds of the ratio to the hand-written loop in the same round.

  cold      the first run, tracing and compilation included
  warm      a second run on the same data
  new data  a run on new data of the same shapes
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.contenders import BUILDERS, CASES, SLOW, build, data
from benchmarks.workers import ROOT, Worker, serve

MODULE = "benchmarks.step_time"
REFERENCE = "hand-written"
LIBRARIES = {"NumPyro": "numpyro", "BlackJAX": "blackjax", "PyMC": "pymc", "Pyro": "pyro"}
IMPORTS = {"jvi": "import jvi", "jax, optax, flax, distrax": "import jax, optax, flax, distrax"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="warm rounds (default 9)")
    parser.add_argument("--cold", type=int, default=3, help="fresh processes for the cold figure (default 3)")
    parser.add_argument("--only", action="append", choices=list(BUILDERS), help="these contenders only, beside the reference")
    parser.add_argument("--case", action="append", choices=list(CASES), help="these cases only")
    parser.add_argument("--out", type=Path, help="also write the tables to this file, as Markdown")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(*options.worker)
    names = [name for name in BUILDERS if name == REFERENCE or not options.only or name in options.only]
    names = [name for name in names if name not in LIBRARIES or importlib.util.find_spec(LIBRARIES[name])]
    console = Console(highlight=False)
    lines = [f"# Step time, {date.today()}", "", f"Device: {device_name()}. `{command_line('benchmarks.step_time')}`", ""]
    lines += ["Ratios to the hand-written loop, medians of rounds; in brackets the reference's own microseconds a step."]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for case in options.case or CASES:
            rows = measure(case, names, options.rounds, options.cold, progress)
            console.print(_table(case, rows))
            lines += ["", f"## {case}", "", *_markdown(rows)]
    rows = [
        ("peak resident memory over 100 refits", f"{_growth():.1f} MiB more"),
        ("import jvi", f"{_import_ratio():.3f} times"),
    ]
    for name, value in rows:
        console.print(f"{name}: {value}")
    lines += ["", f"- Memory: peak resident memory grows by {rows[0][1][:-5]} over 100 refits.",
              f"- `import jvi` takes {rows[1][1]} as long as importing jax, optax, flax and distrax."]  # fmt: skip
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def measure(case: str, names: list[str], rounds: int, cold: int, progress: Progress) -> dict[str, dict[str, float]]:
    """Microseconds a step for every contender: lists by kind of run, in rounds that all take part in."""
    task = progress.add_task(case, total=cold + rounds)
    times: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": [], "new data": []} for name in names}
    workers: dict[str, Worker] = {}
    for _ in range(cold):
        for worker in workers.values():
            worker.close()
        for name in list(times):
            try:
                workers[name] = Worker(MODULE, case, name)
                times[name]["cold"].append(workers[name].ask(0)["us"])
            except RuntimeError as error:
                progress.console.print(f"[dim]{name} left out of '{case}': {error}")
                del times[name]
                workers.pop(name, None)
        progress.advance(task)
    for i in range(rounds):
        for kind, seed in (("warm", 0), ("new data", i + 1)):
            for name, worker in workers.items():
                if i < max(2, rounds // (3 if name in SLOW else 1)):
                    times[name][kind].append(worker.ask(seed)["us"])
        progress.advance(task)
    for worker in workers.values():
        worker.close()
    progress.remove_task(task)
    out = {}
    for name, kinds in times.items():
        row = {"us": statistics.median(kinds["warm"])}
        for kind, values in kinds.items():
            reference = times[REFERENCE]["warm" if kind == "new data" else kind]
            row[kind] = statistics.median(value / other for value, other in zip(values, reference, strict=False))
        out[name] = row
    return out


def work(case_name: str, name: str) -> int:
    case = CASES[case_name]._replace(num_steps=CASES[case_name].num_steps // SLOW.get(name, 1))
    run = build(name, case)

    def answer(seed: str) -> dict[str, float]:
        x = data(case, int(seed))
        began = time.perf_counter()
        bounds = run(int(seed), x)
        seconds = time.perf_counter() - began
        if len(bounds) != case.num_steps or not np.isfinite(bounds[-1]):
            raise RuntimeError(f"{name} ran {len(bounds)} of {case.num_steps} steps, to a bound of {bounds[-1]}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"us": 1e6 * seconds / case.num_steps, "bound": float(np.mean(bounds[-50:])), "peak": peak}

    return serve(answer)


def device_name() -> str:
    import jax

    kinds = {device.device_kind for device in jax.devices()}
    return f"{', '.join(kinds)} ({os.cpu_count()} CPU cores), jax {jax.__version__}, Python {sys.version.split()[0]}"


def _growth() -> float:
    """MiB by which 100 refits on new data raise a process's peak memory, after 10 of them."""
    worker = Worker(MODULE, next(iter(CASES)), "jvi")
    peaks = [worker.ask(seed)["peak"] for seed in range(110)]
    worker.close()
    return (peaks[-1] - peaks[9]) / 1024


def _import_ratio(rounds: int = 7) -> float:
    ratios = []
    for i in range(rounds + 1):
        seconds = {}
        for name, code in IMPORTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
            seconds[name] = time.perf_counter() - began
        if i:  # the first reads from disk
            ratios.append(seconds["jvi"] / seconds["jax, optax, flax, distrax"])
    return statistics.median(ratios)


def _cells(name: str, row: dict[str, float]) -> list[str]:
    us = f"{row['us']:,.0f}" if row["us"] >= 100 else f"{row['us']:.1f}"
    return [name, *(f"{row[kind]:.2f}" for kind in ("cold", "warm", "new data")), us]


def _table(case: str, rows: dict[str, dict[str, float]]) -> Table:
    table = Table("", "cold", "warm", "new data", "warm, us a step", title=case, title_justify="left")
    for name, row in rows.items():
        table.add_row(*_cells(name, row))
    return table


def _markdown(rows: dict[str, dict[str, float]]) -> list[str]:
    head = ["| | cold | warm | new data | warm, us a step |", "| --- | ---: | ---: | ---: | ---: |"]
    return head + [f"| {' | '.join(_cells(name, row))} |" for name, row in rows.items()]


if __name__ == "__main__":
    sys.exit(main())
