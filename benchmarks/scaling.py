"""How a step grows with K, the batch, the latent's dimension, a sequence's length and devices: `python -m benchmarks.scaling`.

Sizes double. A step is one of `jvi.fit`, with Adam; its time is wall time, the least of three runs. Memory is what the compiled step
needs: parameters, moments and data, and what lies between, by the compiler's plan. Exponents are slopes of straight lines through the
larger half of the sizes, in logarithms: what is the same at all sizes weighs on the smaller half. K and the batch: the VAE of
`benchmarks.throughput`, fully connected, with a batch of 32 and with K = 1. D: Gaussian guides of a Gaussian. T: the Markov guide of a
random walk of two dimensions, measured with noise. Devices: the same VAE's batch of 512 over fake devices of one CPU, which share its
cores: there is nothing to gain, and what the split costs shows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.image_contenders import Case, images, jvi_parts
from benchmarks.workers import Worker, serve

MODULE = "benchmarks.scaling"
DEVICES = (1, 2, 4, 8)
SECONDS = 0.4  # of a timed run, about


class Line(NamedTuple):
    """What grows, from one size to another, and what is measured: `build(size) -> (svi, data)`."""

    axis: str
    label: str
    first: int
    last: int
    build: Callable[[int], tuple[Any, Any]]

    def sizes(self, quick: bool) -> list[int]:
        count = int(np.log2(self.last // self.first)) + 1
        return [self.first * 2**i for i in range(min(count, 4) if quick else count)]


class Point(NamedTuple):
    """Seconds and bytes of a step."""

    seconds: float
    size: float


def by_particles(size: int) -> tuple[Any, Any]:
    return _vae(size, 32)


def by_batch(size: int) -> tuple[Any, Any]:
    return _vae(1, size)


def _vae(num_samples: int, batch_size: int) -> tuple[Any, Any]:
    import jvi

    model, guide = jvi_parts(Case(False, num_samples, batch_size, 1))
    return _svi(jvi.per_example(jvi.iwae(model, guide, num_samples=num_samples))), images(batch_size)[0]


def by_latents(name: str) -> Callable[[int], tuple[Any, Any]]:
    def build(size: int) -> tuple[Any, Any]:
        import jax.numpy as jnp

        import jvi

        guide = getattr(jvi.guides, name)(jvi.space(jvi.real(size)))
        model = jvi.model(lambda x, z: -0.5 * jnp.sum((z - x) ** 2))
        return _svi(jvi.elbo(model, guide)), np.zeros(size, np.float32)

    return build


def by_length(size: int) -> tuple[Any, Any]:
    import jvi
    from benchmarks.sequences import chain, walk

    guide = jvi.guides.Markov(size, dim=2)
    return _svi(jvi.elbo(jvi.model(walk(chain(size))), guide)), np.zeros(guide.shape, np.float32)


def _svi(objective: Any) -> Any:
    import optax

    import jvi

    return jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-3))


LINES = (
    Line("K", "VAE, batch of 32", 1, 128, by_particles),
    Line("batch", "VAE, K = 1", 16, 2_048, by_batch),
    Line("D", "mean-field", 1_024, 131_072, by_latents("MeanField")),
    Line("D", "full-rank", 64, 2_048, by_latents("FullRank")),
    Line("T", "Markov", 256, 32_768, by_length),
)


def measure(svi: Any, x: Any, **options: Any) -> Point:
    import jax

    import jvi

    def run(state: Any, num_steps: int) -> tuple[Any, float]:
        began = time.perf_counter()
        state, _ = jvi.fit(svi, jax.random.key(0), x, num_steps=num_steps, state=state, progress=False, **options)
        return state, time.perf_counter() - began

    x = jax.device_put(x)
    state, _ = run(None, 2)
    state, seconds = run(state, 2)
    count = int(np.clip(SECONDS * 2 / seconds, 2, 8_000))
    found = []
    for _ in range(3):
        state, seconds = run(state, count)
        found.append(seconds / count)
    memory: Any = jax.jit(svi.step, donate_argnums=0).lower(state, x).compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Point(min(found), held + memory.temp_size_in_bytes)


def work(num_devices: int) -> int:
    """The step over so many devices; its memory is one device's."""
    import jvi

    def answer(request: str) -> dict[str, float]:
        return measure(*by_batch(512), mesh=jvi.sharding.data_mesh(num_devices))._asdict()

    return serve(answer)


def slope(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """Of the straight line through the larger half, in logarithms: its slope, and its value at 1."""
    half = slice(len(sizes) // 2 if len(sizes) > 3 else 0, None)
    fitted = np.polyfit(np.log(sizes[half]), np.log(values[half]), 1)
    return float(fitted[0]), float(np.exp(fitted[1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run: four sizes a line")
    parser.add_argument("--axis", action="append", choices=[*dict.fromkeys(line.axis for line in LINES), "devices"])
    parser.add_argument("--out", type=Path, help="also write the tables to this file, as Markdown, and a picture beside it")
    parser.add_argument("--worker", nargs=1, type=int, metavar="DEVICES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(*options.worker)
    found: dict[tuple[str, str], dict[int, Point]] = {}
    console = Console(highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for line in progress.track([line for line in LINES if not options.axis or line.axis in options.axis]):
            found[line.axis, line.label] = {size: measure(*line.build(size)) for size in line.sizes(options.quick)}
        if not options.axis or "devices" in options.axis:
            over = _over_devices(progress)
            if over:
                found["devices", "VAE, batch of 512"] = over
    rows = [_row(*key, points) for key, points in found.items()]
    head = ("axis", "", "sizes", "ms a step", "exponent", "MiB a step", "exponent")
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        picture = options.out.with_suffix(".png")
        draw(found).savefig(picture)
        options.out.write_text("\n".join(_markdown(options, head, rows, found, picture.name)) + "\n")
    return 0


def _over_devices(progress: Progress) -> dict[int, Point]:
    import jax

    import jvi

    if jax.default_backend() != "cpu" or not hasattr(jvi, "sharding"):
        progress.console.print("[dim]devices left out: they are made of a CPU, and need jvi.sharding")
        return {}
    found = {}
    for count in progress.track(DEVICES):
        worker = Worker(MODULE, str(count), num_devices=count)
        found[count] = Point(**worker.ask(0))
        worker.close()
    return found


def _row(axis: str, label: str, points: dict[int, Point]) -> tuple[str, ...]:
    sizes, (seconds, memory) = list(points), (list(values) for values in zip(*points.values(), strict=True))
    return (
        axis, label, f"{sizes[0]:,} to {sizes[-1]:,}",
        f"{1e3 * seconds[0]:.3g} to {1e3 * seconds[-1]:.3g}", f"{slope(sizes, seconds)[0]:.2f}",
        f"{memory[0] / 2**20:.3g} to {memory[-1] / 2**20:.3g}", f"{slope(sizes, memory)[0]:.2f}",
    )  # fmt: skip


def draw(found: dict[tuple[str, str], dict[int, Point]]) -> Any:
    """A column of panels for each axis: time above, memory below; dashed, the lines whose slopes the titles tell."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(axis for axis, _ in found))
    figure = Figure(figsize=(3.6 * len(names), 6.4), dpi=130, layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    for (axis, label), points in found.items():
        for panel, field, unit in zip(grid[:, names.index(axis)], Point._fields, (1e3, 2**-20), strict=True):
            sizes, values = list(points), [unit * getattr(point, field) for point in points.values()]
            exponent, at_one = slope(sizes, values)
            (line,) = panel.loglog(sizes, values, "o", markersize=4, label=f"{label}: {exponent:.2f}")
            ends = np.array([sizes[0], sizes[-1]])
            panel.loglog(ends, at_one * ends**exponent, "--", color=line.get_color(), linewidth=1)
            panel.set_xscale("log", base=2)
            panel.set_xlabel(axis)
            shown = panel.get_title(loc="left")
            panel.set_title(f"{shown}, {exponent:.2f}" if shown else f"exponent {exponent:.2f}", loc="left", fontsize=10)
            panel.legend(fontsize=8)
    for panel in grid.flat:  # what does not grow is a level line, not a line across the panel
        low, high = panel.get_ylim()
        if high < 2.0 * low:
            panel.set_ylim(0.5 * low, 2.0 * high)
    grid[0, 0].set_ylabel("ms a step")
    grid[1, 0].set_ylabel("MiB a step")
    return figure


def _markdown(options: Any, head: Any, rows: Any, found: Any, picture: str) -> list[str]:
    from benchmarks.step_time import device_name

    lines = [f"# Scaling, {date.today()}", "", f"Device: {device_name()}. `{command_line(MODULE)}`", ""]
    lines += [*__doc__.split("\n\n")[1].strip().splitlines(), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * 3 + ["---:"] * 4, *rows)]
    lines += ["", f"![Time and memory of a step against size]({picture})", ""]
    lines += ["| axis | | size | ms a step | MiB a step |", "| --- | --- | ---: | ---: | ---: |"]
    for (axis, label), points in found.items():
        for size, point in points.items():
            lines.append(f"| {axis} | {label} | {size:,} | {1e3 * point.seconds:.4g} | {point.size / 2**20:.4g} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
