"""Whether runs that drive themselves end where they should: `python -m benchmarks.self_driving --root ../shared/posteriordb`.

A full-rank Gaussian is fitted to every posterior by `jvi.adapt`, with nothing chosen, and its ELBO is compared with that of a
deterministic fit, `gaussian_fits.moment_matched`. What says "converged" must not fall short.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi
from benchmarks.command import command_line
from benchmarks.posteriordb_models import load, names
from benchmarks.step_time import ROOT, device_name

SHORT = 0.05  # nats
HEAD = ("posterior", "d", "status", "steps", "seconds", "ELBO", "short by, nats")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.self_driving", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "posteriordb", help="the posteriors' folder")
    parser.add_argument("--entry", action="append", help="these posteriors only")
    parser.add_argument("--max-steps", type=int, default=100_000, help="budget of each run (default 100,000)")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    console, rows = Console(highlight=False), []
    for name in options.entry or names(options.root):
        rows.append(measure(options.root, name, options.max_steps))
        console.print("  ".join(rows[-1]))
    table = Table(*HEAD)
    for row in rows:
        table.add_row(*row)
    ended = [float(row[-1]) for row in rows if row[2] == "converged"]
    line = f"{len(ended)} of {len(rows)} converged, {sum(gap > SHORT for gap in ended)} of them more than {SHORT} nats short."
    console.print(table, line)
    if options.out:
        head = [f"| {' | '.join(HEAD)} |", "| --- | ---: | --- | ---: | ---: | ---: | ---: |"]
        lines = [
            f"# Runs that drive themselves, {date.today()}",
            "",
            f"Device: {device_name()}. `{command_line('benchmarks.self_driving')}`",
        ]
        lines += ["", line, "", *head, *(f"| {' | '.join(row)} |" for row in rows)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def measure(root: Path, name: str, max_steps: int) -> list[str]:
    """One row: a run that drives itself against the deterministic fit."""
    entry = load(root, name)
    best = jvi.gaussian_fits.moment_matched(jax.random.key(0), entry.log_joint, entry.space, entry.x).report.elbo
    objective = jvi.elbo(jvi.model(entry.log_joint), jvi.guides.FullRank(entry.space), num_samples=8)
    svi, began = jvi.SVI(objective), time.perf_counter()
    found = jvi.adapt(svi, jax.random.key(1), entry.x, max_steps=max_steps, seconds=60.0)
    seconds = time.perf_counter() - began
    posterior = jvi.Posterior.of(svi, found.state, entry.x)
    elbo = jvi.diagnostics.elbo_estimate(posterior, jax.random.key(2), num_samples=10_000)
    gap = f"{best - float(np.asarray(elbo.value)):.3f}"
    return [name, str(entry.space.size), found.status, f"{found.num_steps:,}", f"{seconds:.1f}", str(elbo), gap]


if __name__ == "__main__":
    sys.exit(main())
