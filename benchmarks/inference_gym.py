"""`jvi.infer` on targets with known moments: `python -m benchmarks.inference_gym`.

Accurate is: from 10,000 draws every mean within 0.1 sd and every sd within 10 %, each bound widened by three standard errors of the
truth and of 10,000 independent draws. Every target must end accurate, or distrusted, or refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.gym_targets import TARGETS, Case
from benchmarks.step_time import device_name

DRAWS = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_gym", description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="these targets only")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each (default 1)")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    console = Console(highlight=False)
    rows = []
    for name in options.target or TARGETS:
        for seed in range(options.seeds):
            rows.append(measure(name, seed))
            console.print("  ".join(rows[-1].values()))
    counts = [sum(row["verdict"] == kind for row in rows) for kind in ("accurate", "distrusted", "refused", "WRONG, TRUSTED")]
    accurate = sum(row["within"] == "yes" for row in rows)
    judged = sum(row["within"] != "no posterior" for row in rows)
    last = (
        f"{accurate} of {judged} accurate; {counts[0]} accurate and trusted, {counts[1]} distrusted, {counts[2]} refused, "
        f"{counts[3]} wrong and trusted."
    )
    console.print(_table(rows))
    console.print(last)
    if options.out:
        head = list(rows[0])
        lines = [
            f"# Targets with known moments, {date.today()}",
            "",
            f"Device: {device_name()}. `{command_line('benchmarks.inference_gym')}`",
        ]
        lines += ["", last, "", f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        lines += [f"| {' | '.join(row.values())} |" for row in rows]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def measure(name: str, seed: int) -> dict[str, str]:
    import jax
    import jax.numpy as jnp

    import jvi

    try:
        case = TARGETS[name]()
    except ImportError as error:
        return _row(name, "left out", "-", f"{error}", "", "", "")
    began = time.perf_counter()
    try:
        posterior = jvi.infer(jax.random.key(seed), case.log_joint, case.space)
    except (ValueError, TimeoutError) as error:
        within = "no posterior" if case.refused else "no"
        return _row(name, "refused", within, str(error)[:60], "", "", f"{time.perf_counter() - began:.1f}")
    seconds = time.perf_counter() - began
    draws = jax.tree.map(jnp.asarray, posterior.sample(jax.random.key(seed), DRAWS))
    columns = np.asarray(jax.vmap(case.columns)(draws), float)
    off_mean, off_sd, fine = judge(case, columns)
    report = posterior.report
    trusted = report is not None and report.trusted
    verdict = "distrusted" if not trusted else "accurate" if fine and not case.refused else "WRONG, TRUSTED"
    within = "no posterior" if case.refused else "yes" if fine else "no"
    return _row(name, verdict, within, report.method if report else "", f"{off_mean:.2f}", f"{off_sd:.0%}", f"{seconds:.1f}")


def judge(case: Case, columns: np.ndarray) -> tuple[float, float, bool]:
    """The worst errors of means, in sds, and of sds, relative; and whether all are within their bounds."""
    sd = np.where(np.isfinite(case.sd), case.sd, columns.std(0))
    off = np.abs(columns.mean(0) - case.mean) / sd
    slack = 3.0 * np.asarray(case.error) / sd + 3.0 / np.sqrt(DRAWS)
    ratio = columns.std(0) / case.sd - 1.0
    kurtosis = np.mean((columns - columns.mean(0)) ** 4, 0) / columns.std(0) ** 4
    slack_sd = 3.0 * np.sqrt(np.maximum(np.maximum(kurtosis, case.kurtosis) - 1.0, 0.0) / (4.0 * DRAWS))
    fine = np.all(~(off > 0.1 + slack)) and np.all(~(np.abs(ratio) > 0.1 + slack_sd))
    return float(np.nanmax(off)), float(np.nanmax(np.abs(ratio), initial=0.0)), bool(fine)


def _row(name: str, verdict: str, within: str, method: str, off_mean: str, off_sd: str, seconds: str) -> dict[str, Any]:
    return {
        "target": name, "verdict": verdict, "within": within, "mean off, sd": off_mean, "sd off": off_sd, "seconds": seconds,
        "by": method,
    }  # fmt: skip


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    return table


if __name__ == "__main__":
    sys.exit(main())
