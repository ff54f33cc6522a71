"""What a gradient costs by each estimator, as a ratio to one written by hand: `python -m benchmarks.estimator_time`.

Value and gradient, compiled, K = 16. Continuous latents: a logistic regression (1,000 data, 25 coefficients) and a VAE (64 data of 196
pixels, 100 hidden units, 16 latents), whose guide is a Gaussian written out or distrax's. Discrete ones: the VAE with 16 bits, and with
one of ten classes. A sequence: 50 steps of a linear-Gaussian state of four. Guides of parts, a mixture, minibatches. By hand it is the
same mathematics on whole arrays, with nothing checked. The two take turns within every round; figures are medians of rounds. A new
estimator is one row of a suite.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import discrete_by_hand, estimators_by_hand, structured_by_hand
from benchmarks.command import command_line
from benchmarks.estimators_by_hand import Case, K
from benchmarks.step_time import device_name

REACH = 1.05
SUITES = (*estimators_by_hand.SUITES, *discrete_by_hand.SUITES, *structured_by_hand.SUITES)


class Timing(NamedTuple):
    """Median microseconds by jvi, and by hand; the median of the rounds' ratios."""

    jvi: float
    hand: float
    ratio: float


def measure(case: Case, build: Callable[[Any, Any], Any], by_hand: Callable[..., Any], rounds: int) -> Timing:
    params, ours, hand = both(case, build, by_hand)
    times: dict[Any, list[float]] = {ours: [], hand: []}
    for i in range(-2, rounds):
        for function in (ours, hand) if i % 2 else (hand, ours):
            began = time.perf_counter()
            for _ in range(case.calls):
                out = function(params, jax.random.key(i + 2), case.x)
            jax.block_until_ready(out)
            if i >= 0:
                times[function].append(1e6 * (time.perf_counter() - began) / case.calls)
    ratio = statistics.median(a / b for a, b in zip(times[ours], times[hand], strict=True))
    return Timing(statistics.median(times[ours]), statistics.median(times[hand]), ratio)


def both(case: Case, build: Callable[[Any, Any], Any], by_hand: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """Parameters, and value and gradient by jvi and by hand."""
    objective = case.wrap(build(case.model, case.guide))
    ours = jax.jit(jax.value_and_grad(lambda params, key, x: objective(params, key, x)[0]))
    hand = jax.jit(jax.value_and_grad(lambda params, key, x: by_hand(case, params, key, x)))
    return objective.init(jax.random.key(0), case.x), ours, hand


def largest_z(case: Case, build: Callable[[Any, Any], Any], by_hand: Callable[..., Any], num_keys: int) -> float:
    """How far apart the two are on average."""
    params, ours, hand = both(case, build, by_hand)
    return apart(ours, hand, params, case.x, num_keys)


def apart(ours: Callable[..., Any], hand: Callable[..., Any], params: Any, x: Any, num_keys: int) -> float:
    """How far two values and gradients are apart on average, in standard errors: the gradients along 30 random directions."""
    seen, directions = [], _directions(ravel_pytree(params)[0].size)
    for function, seed in ((ours, 1), (hand, 2)):
        rows = []
        for key in jax.random.split(jax.random.key(seed), num_keys):
            value, grads = function(params, key, x)
            flat, _ = ravel_pytree(grads)
            rows.append(np.concatenate([[float(value)], directions @ np.asarray(flat)]))
        seen.append(np.stack(rows))
    gap = seen[0].mean(0) - seen[1].mean(0)
    error = np.sqrt(sum(each.var(0, ddof=1) / num_keys for each in seen))
    # What has no noise is compared as it is, and counts as far apart where it differs in the fifth digit.
    return float(np.max(np.abs(gap) / np.maximum(error, 1e-5 * np.abs(seen[0].mean(0)) + 1e-12)))


def _directions(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, size)) / np.sqrt(size)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimator_time", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101, help="rounds, an odd number")
    parser.add_argument("--row", action="append", choices=[row for _, rows in SUITES for row in rows], help="these rows only")
    parser.add_argument("--check", type=int, metavar="KEYS", help="time nothing: compare the two on average over so many keys")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    console = Console(highlight=False)
    head = ["estimator", "problem", *(["largest z"] if options.check else ["ratio", "us", "by hand, us"])]
    lines = [
        f"# What a gradient costs, {date.today()}",
        "",
        f"Device: {device_name()}. `{command_line('benchmarks.estimator_time')}`",
        "",
    ]
    lines += [f"Value and gradient, K = {K}; ratios to the same mathematics by hand, medians of {options.rounds} rounds.", ""]
    lines += [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    table, worst = Table(*head), 0.0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        chosen = [
            (name, problem, case, row)
            for cases, rows in SUITES
            for problem, case in cases.items()
            for name, row in rows.items()
            if not options.row or name in options.row
        ]
        for name, problem, make, row in progress.track(chosen):
            if options.check:
                found = largest_z(make(), *row, options.check)
                cells, worst = [f"{found:.1f}"], max(worst, found)
            else:
                timing = measure(make(), *row, options.rounds)
                cells = [f"{timing.ratio:.3f}", f"{timing.jvi:,.0f}", f"{timing.hand:,.0f}"]
                worst = max(worst, timing.ratio)
            table.add_row(name, problem, *cells)
            lines.append(f"| {' | '.join([name, problem, *cells])} |")
    console.print(table)
    verdict = f"Largest z: {worst:.1f}." if options.check else f"Largest ratio: {worst:.3f}, with {REACH} the one to reach."
    console.print(verdict)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*lines, "", verdict, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
