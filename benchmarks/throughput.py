"""Images a second of a variational autoencoder in training, beside a loop written by hand: `python -m benchmarks.throughput`.

Binary images of 784 pixels, 20,000 of them; 20 latents; Adam; the importance-weighted bound of K draws. By hand it is `lax.scan` over
steps on arrays that lie on the device, with donated parameters and nothing checked or told but the bound. Every contender runs in a
process of its own and all take turns, in rounds: images a second are medians of rounds, ratios medians of the ratios within a round,
with the lowest and the highest. Inside of a loop XLA's CPU takes ten times as long for convolutions: there the hand-written loop of the
convolutional networks calls a compiled, donated step from Python; NumPyro's `fori_loop`, which its documentation shows, stays as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.image_contenders import BUILDERS, EVALUATORS, Case, images
from benchmarks.workers import Worker, serve

MODULE, HAND = "benchmarks.throughput", "hand-written"
LIBRARIES = {"NumPyro, fori_loop": "numpyro", "NumPyro, Python loop": "numpyro", "Pyro": "pyro"}
REACH = {HAND: 0.97, "NumPyro, fori_loop": 1.0, "NumPyro, Python loop": 1.0}
CASES = {
    "MLP, K = 1": Case(False, 1, 128, 156, calls=2),
    "MLP, K = 50": Case(False, 50, 128, 12),
    "convolutional, K = 1": Case(True, 1, 128, 40),
    "convolutional, K = 50": Case(True, 50, 128, 2),
}
SPLIT = Case(False, 1, 512, 39)  # over fake devices
MANY, CHUNK, HELD_OUT = 5_000, 50, 64
Rates = dict[str, list[float]]


class Measured(NamedTuple):
    """Images a second of every contender by round, and where an accelerator was watched the share of the time that it does nothing."""

    rates: Rates
    idle: dict[str, float]


def main() -> int:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--case", action="append", choices=list(CASES), help="these cases only, and nothing else")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two rounds of a few steps")
    parser.add_argument(
        "--check", type=int, metavar="KEYS", help="time nothing: compare the bounds on average over so many keys"
    )
    parser.add_argument("--out", type=Path, help="also write the tables to this file, as Markdown")
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "CASE", "DEVICES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(*options.worker)
    console = Console(highlight=False)
    if options.check:
        return check(console, options.check, options.case or list(CASES))
    from benchmarks.step_time import device_name

    lines = [f"# Throughput, {date.today()}", "", f"Device: {device_name()}. `{command_line(MODULE)}`", ""]
    lines += [*__doc__.split("\n\n")[1].strip().splitlines(), f"The images: {images(1)[1]}.", ""]
    rounds = 2 if options.quick else options.rounds
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        show = partial(_show, console, lines)
        reached = []
        watched = {}
        for name, case in _cases(options).items():
            watched[name] = measure(_jobs(case), rounds, progress, name, watched=_accelerated())
            found = watched[name].rates
            show(name, ("", "images a second", "of the hand-written", "jvi is times as fast"), _rows(found))
            reached += _reached(name, found)
        if not options.case:
            devices(show, SPLIT, rounds, progress, options.quick)
            many(show, rounds, progress, options.quick)
        accelerator(show, _cases(options), watched)
    show("Reach", ("", "jvi to", "ratio", "to reach", ""), reached)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def measure(jobs: dict[str, tuple[str, ...]], rounds: int, progress: Progress, title: str, watched: bool = False) -> Measured:
    """What every job reaches; a job is a worker's arguments."""
    task = progress.add_task(title, total=rounds + 1)
    workers, found, size, idle = {}, {}, {}, {}
    for name, (kind, case, count) in jobs.items():
        try:
            workers[name] = Worker(MODULE, kind, case, count, num_devices=max(int(count), 1))
            workers[name].ask(0)  # compiles
            found[name] = []
        except RuntimeError as error:
            progress.console.print(f"[dim]{name} left out of '{title}': {error}")
    progress.advance(task)
    for i in range(1, rounds + 1):
        for name in list(found)[:: 1 if i % 2 else -1]:
            answer = workers[name].ask(i)
            found[name].append(answer["images"] / answer["seconds"])
            size[name] = answer["images"]
        progress.advance(task)
    for name, worker in workers.items():
        if watched and name in (HAND, "jvi"):
            busy = worker.ask("busy")["seconds"]
            idle[name] = max(0.0, 1.0 - busy * statistics.median(found[name]) / size[name])
        worker.close()
    progress.remove_task(task)
    return Measured(found, idle)


def work(kind: str, case_fields: str, num_devices: str) -> int:
    case = Case(*json.loads(case_fields))
    if kind.startswith("many "):
        return _work_many(EVALUATORS[kind.removeprefix("many ")], case)
    contender = BUILDERS[kind](case, int(num_devices) or None)

    def answer(request: str) -> dict[str, float]:
        if request == "busy":
            from benchmarks.accelerator import busy_seconds

            return {"seconds": busy_seconds(lambda: contender.run(0))}
        began, clock = time.perf_counter(), time.process_time()
        bounds = contender.run(int(request))
        seconds, worked = time.perf_counter() - began, time.process_time() - clock
        if len(bounds) != case.num_steps * case.calls or not np.all(np.isfinite(bounds)):
            raise RuntimeError(f"{kind} took {len(bounds)} steps, to a bound of {bounds[-1]}")
        found = {"images": len(bounds) * case.batch_size, "bound": float(np.mean(bounds))}
        return {"seconds": seconds, "processor": worked, **found}

    return serve(answer)


def _work_many(build, case: Case) -> int:
    import jax

    params, _ = _problem(case)
    evaluate, x = build(case, case.num_samples, CHUNK), jax.device_put(images(case.batch_size)[0])

    def answer(request: str) -> dict[str, float]:
        began, clock = time.perf_counter(), time.process_time()
        bound = float(evaluate(params, jax.random.key(int(request)), x))
        seconds, worked = time.perf_counter() - began, time.process_time() - clock
        return {"seconds": seconds, "processor": worked, "images": len(x), "bound": bound}

    return serve(answer)


def _problem(case: Case):
    """Initial parameters and images [32, 784]."""
    import jax

    import jvi
    from benchmarks.image_contenders import jvi_parts

    x = jax.device_put(images(32)[0])
    return jvi.per_example(jvi.elbo(*jvi_parts(case))).init(jax.random.key(0), x), x


def check(console: Console, num_keys: int, names: list[str]) -> int:
    """Compare values and gradients with those of the loop by hand."""
    import jax

    from benchmarks.estimator_time import apart

    table, worst = Table("case", "contender", "largest z"), 0.0
    for name in names:
        case = CASES[name]
        params, x = _problem(case)
        case = case._replace(num_samples=min(case.num_samples, 8))
        bounds = {one: BUILDERS[one](case, None).bound for one in BUILDERS if _installed(one)}
        compiled = {one: jax.jit(jax.value_and_grad(bound)) for one, bound in bounds.items() if bound is not None}
        for one in [one for one in compiled if one != HAND and one != "NumPyro, Python loop"]:
            z = apart(compiled[one], compiled[HAND], params, x, num_keys)
            table.add_row(name, one, f"{z:.1f}")
            worst = max(worst, z)
    console.print(table)
    console.print(f"Largest z: {worst:.1f}, of the values and of 30 projections of the gradients.")
    return int(worst > 5.0)


def devices(show, case: Case, rounds: int, progress: Progress, quick: bool) -> None:
    """One minibatch over fake devices of one CPU: what the split itself costs."""
    if _accelerated():
        return
    title = f"MLP, K = 1, minibatches of {case.batch_size} over fake devices of one CPU"
    jobs = {
        f"{name}, {count}": (name, json.dumps(_quick(case) if quick else case), str(count))
        for count in (1, 2, 4, 8)
        for name in (HAND, "jvi")
    }
    found = measure(jobs, rounds, progress, title).rates
    rows = []
    for count in (1, 2, 4, 8):
        hand, ours = (found.get(f"{name}, {count}", []) for name in (HAND, "jvi"))
        one = found.get("jvi, 1", [])
        cells = (_median(hand), _median(ours), _spread(ours, hand), _spread(ours, one))
        rows.append((str(count), *cells))
    show(title, ("devices", "hand-written, images a second", "jvi", "of the hand-written", "of jvi on one"), rows)


def many(show, rounds: int, progress: Progress, quick: bool) -> None:
    """The bound of 5,000 draws, evaluated."""
    draws = MANY // 10 if quick else MANY
    case = Case(False, draws, 8 if quick else HELD_OUT, 1)
    jobs = {name: (f"many {name}", json.dumps(case), "0") for name in EVALUATORS}
    found = measure(jobs, min(rounds, 3), progress, f"MLP, evaluation at K = {draws:,}").rates
    head = ("", "images a second", "of the hand-written", "jvi is times as fast")
    show(f"MLP, evaluation at K = {draws:,}, {CHUNK} draws at a time", head, _rows(found))


def accelerator(show, cases: dict[str, Case], watched: dict[str, Measured]) -> None:
    """FLOP/s against the matrix rate, and the part of a run's time that its kernels, by a profiled run, leave unused."""
    if not _accelerated():
        show("FLOP/s against the matrix rate; device time against host gaps", ("",), [("not measured: no accelerator",)])
        return
    import jax
    import jax.numpy as jnp

    from benchmarks.accelerator import flops, matrix_rate

    rates, rows = {}, []
    for name, case in cases.items():
        params, x = _problem(case)
        bound = BUILDERS[HAND](case, None).bound
        of_image = flops(jax.value_and_grad(bound), params, jax.random.key(0), x) / len(x)
        if case.narrow not in rates:
            rates[case.narrow] = matrix_rate(jnp.bfloat16 if case.narrow else jnp.float32)
        rates_now, idle = watched[name]
        achieved = of_image * statistics.median(rates_now["jvi"])
        cells = (f"{achieved / 1e12:.2f}", f"{rates[case.narrow] / 1e12:.0f}", f"{achieved / rates[case.narrow]:.1%}")
        rows.append((name, *cells, f"{idle['jvi']:.1%}", f"{idle[HAND]:.1%}"))
    show("What the device does under jvi", ("", "TFLOP/s", "matrix rate", "share", "idle", "idle, by hand"), rows)


def _accelerated() -> bool:
    import jax

    return jax.default_backend() != "cpu"


def _cases(options: argparse.Namespace) -> dict[str, Case]:
    cases = {name: case for name, case in CASES.items() if not options.case or name in options.case}
    if _accelerated():  # a step takes a hundredth of the time there
        cases = {name: case._replace(num_steps=156, calls=10 if case.num_samples == 1 else 2) for name, case in cases.items()}
        cases |= {f"{name}, bfloat16": case._replace(narrow=True) for name, case in cases.items()}
    return {name: _quick(case) for name, case in cases.items()} if options.quick else cases


def _quick(case: Case) -> Case:
    return case._replace(num_steps=min(case.num_steps, 2 if case.num_samples > 1 else 10), calls=1)


def _jobs(case: Case) -> dict[str, tuple[str, ...]]:
    # Pyro takes a few batches, and knows no bfloat16 here.
    few = case._replace(num_steps=max(2, case.num_steps // 4), calls=1)
    names = [name for name in BUILDERS if _installed(name) and not (name == "Pyro" and case.narrow)]
    return {name: (name, json.dumps(few if name == "Pyro" else case), "0") for name in names}


def _installed(name: str) -> bool:
    return name not in LIBRARIES or importlib.util.find_spec(LIBRARIES[name]) is not None


def _rows(found: Rates) -> list[tuple[str, ...]]:
    ours, hand = found["jvi"], found[HAND]
    return [(name, _median(rates), _spread(rates, hand), _spread(ours, rates)) for name, rates in found.items()]


def _reached(case: str, found: Rates) -> list[tuple[str, ...]]:
    rows = []
    for name, reach in REACH.items():
        if name in found:
            ratio = statistics.median(a / b for a, b in zip(found["jvi"], found[name], strict=True))
            rows.append((case, name, f"{ratio:.3f}", f"{reach:.2f}", "reached" if ratio >= reach else "NOT REACHED"))
    return rows


def _median(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f}" if rates else "not measured"


def _spread(rates: list[float], others: list[float]) -> str:
    """The median ratio, the lowest and the highest."""
    if not rates or not others:
        return "not measured"
    if rates is others:
        return "1"
    ratios = [a / b for a, b in zip(rates, others, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _show(console: Console, lines: list[str], title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    marks = ["---", *["---:"] * (len(head) - 1)]
    lines += [f"## {title}", "", *(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)), ""]


if __name__ == "__main__":
    sys.exit(main())
