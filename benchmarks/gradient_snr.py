"""Signal-to-noise ratio of gradients against the number of particles: `python -m benchmarks.gradient_snr`.

The linear-Gaussian VAE of Rainforth et al. (2018): z ~ N(mu, I), x ~ N(z, I) in 20 dimensions, q(z | x) = N(A x + b, 2/3 I), 1,024
data, all parameters off the optimum by N(0, 0.01^2). One estimate of a gradient is that of the mean bound of all data, each with K
draws of its own. The ratio is

    SNR = |E g| / sqrt(E |g - E g|^2)

over the coordinates of the guide (A and b) or of the model (mu). Data are independent, so the noise is the sum of each datum's own;
the squared signal is free of the noise's share in it. IWAE's guide gradient and DReG's have one expectation, too small beside
IWAE's noise to be seen in it at large K: both signals are taken from DReG. The model's gradient is the same for both.
Standard errors are by the jackknife over groups of repetitions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jvi
from benchmarks.command import command_line
from benchmarks.step_time import ROOT, device_name

DIM, NUM_DATA, GROUPS = 20, 1_024, 8
PARTICLES = (1, 3, 10, 30, 100, 300, 1_000)
GROUP = 10  # draws of each of PIWAE's groups, from K = 10 on
ASYMPTOTIC = 30  # particles from which exponents are fitted
UNIT = np.ones(DIM, np.float32)


def prior(mu):
    return distrax.MultivariateNormalDiag(mu, UNIT)


def likelihood(mu, z):
    return distrax.MultivariateNormalDiag(z, UNIT)


def encoder(params, x):
    matrix, offset = params
    return distrax.MultivariateNormalDiag(matrix @ x + offset, math.sqrt(2 / 3) * UNIT)


def parts() -> tuple[Any, Any]:
    model = jvi.models.generative(prior, likelihood, init=lambda rng, x: jnp.zeros(DIM))
    return model, jvi.guides.from_distribution(lambda rng, x: (jnp.eye(DIM), jnp.zeros(DIM)), encoder)


def estimators() -> dict[str, Callable[[int], Any]]:
    """Objectives by name, of a number of particles."""
    model, guide = parts()
    return {
        "IWAE": lambda k: jvi.iwae(model, guide, num_samples=k, gradient=jvi.gradients.pathwise),
        "DReG": lambda k: jvi.objectives.dreg(model, guide, num_samples=k),
        "ELBO, STL": lambda k: jvi.elbo(model, guide, num_samples=k, gradient=jvi.gradients.stl),
        "PIWAE": lambda k: jvi.objectives.piwae(model, guide, num_groups=max(1, k // GROUP), num_samples=min(k, GROUP)),
    }


class Curve(NamedTuple):
    """One line of the picture: whose gradient, by which estimator; whose signal it is measured with."""

    name: str
    of: str
    noise: str
    signal: str


CURVES = (
    Curve("IWAE, guide", "guide", "IWAE", "DReG"),
    Curve("DReG, guide", "guide", "DReG", "DReG"),
    Curve("ELBO, STL, guide", "guide", "ELBO, STL", "ELBO, STL"),
    Curve("PIWAE, guide", "guide", "PIWAE", "PIWAE"),
    Curve("IWAE, model", "model", "IWAE", "IWAE"),
    Curve("ELBO, STL, model", "model", "ELBO, STL", "ELBO, STL"),
)


class Moments(NamedTuple):
    """Of the whole data's gradient, by group: its mean [G, P] and its noise, the sum of variances [G]; repetitions a group."""

    mean: np.ndarray
    noise: np.ndarray
    count: int


def problem(std: float) -> tuple[jvi.objectives.Params, jax.Array]:
    """Parameters near the optimum, and data."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=DIM) + math.sqrt(2) * rng.normal(size=(NUM_DATA, DIM))).astype(np.float32)
    mu = x.mean(0)
    best = (mu, (0.5 * np.eye(DIM), 0.5 * mu))
    mu, guide = jax.tree.map(lambda leaf: jnp.asarray(leaf + std * rng.normal(size=leaf.shape), jnp.float32), best)
    return jvi.objectives.Params(mu, guide), jnp.asarray(x)


def moments(objective: Any, params: Any, x: jax.Array, num_samples: int, repetitions: int, seed: int) -> dict[str, Moments]:
    """Moments of the guide's and the model's gradients, over `repetitions` of every datum's."""
    per_group = max(2, repetitions // GROUPS)

    def one(key: jax.Array, datum: jax.Array) -> dict[str, jax.Array]:
        grads = jax.grad(objective, has_aux=True)(params, key, datum)[0]
        return {"guide": jnp.concatenate([leaf.ravel() for leaf in grads.guide]), "model": grads.model}

    def whole(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(x))
        return jax.lax.map(lambda pair: one(*pair), (keys, x), batch_size=min(len(x), max(8, 65_536 // num_samples)))

    @jax.jit
    def group(key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(whole, key))

        def add(so_far: Any, step: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            mean, square = so_far
            off = jax.tree.map(jnp.subtract, whole(step[0]), mean)
            moved = jax.tree.map(lambda m, o: m + o / step[1], mean, off)
            return (moved, jax.tree.map(lambda s, o: s + o**2 * (1 - 1 / step[1]), square, off)), None

        steps = jax.random.split(key, per_group), jnp.arange(1.0, per_group + 1.0)
        (mean, square), _ = jax.lax.scan(add, (start, start), steps)
        return {name: (mean[name].mean(0), square[name].sum() / (per_group - 1) / len(x) ** 2) for name in mean}

    runs = [group(jax.random.fold_in(jax.random.key(seed), i)) for i in range(GROUPS)]
    return {
        name: Moments(*(np.stack([np.asarray(run[name][i], np.float64) for run in runs]) for i in (0, 1)), per_group)
        for name in ("guide", "model")
    }


def ratio(noise: Moments, signal: Moments, kept: np.ndarray) -> float:
    """The signal-to-noise ratio of the groups kept; not a number where no signal is left."""
    count = signal.count * len(kept)
    square = np.sum(signal.mean[kept].mean(0) ** 2) - signal.noise[kept].mean() / count
    return math.sqrt(square / noise.noise[kept].mean()) if square > 0 else math.nan


def jackknife(noise: Moments, signal: Moments) -> tuple[float, float]:
    """log10 of the ratio and its standard error."""
    whole = math.log10(ratio(noise, signal, np.arange(GROUPS)))
    others = [math.log10(ratio(noise, signal, np.delete(np.arange(GROUPS), i))) for i in range(GROUPS)]
    return whole, math.sqrt((GROUPS - 1) * np.var(others))


def exponent(particles: np.ndarray, logs: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Slope of log ratio on log K by weighted least squares, and its standard error."""
    kept = (particles >= ASYMPTOTIC) & np.isfinite(logs) & np.isfinite(errors)
    weight = 1 / np.maximum(errors[kept], 1e-4) ** 2
    at = np.log10(particles[kept])
    at = at - np.sum(weight * at) / np.sum(weight)
    return float(np.sum(weight * at * logs[kept]) / np.sum(weight * at**2)), float(1 / math.sqrt(np.sum(weight * at**2)))


def picture(path: Path, rows: dict[str, tuple[np.ndarray, np.ndarray]], particles: np.ndarray, std: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = dict.fromkeys(curve.noise for curve in CURVES)
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True, layout="constrained")
    for panel, of in zip(panels, ("guide", "model"), strict=True):
        for curve in (curve for curve in CURVES if curve.of == of):
            logs, errors = rows[curve.name]
            snr = 10**logs
            label = "IWAE, DReG, PIWAE" if of == "model" and curve.noise == "IWAE" else curve.noise
            off = [snr - 10 ** (logs - errors), 10 ** (logs + errors) - snr]
            panel.errorbar(particles, snr, off, fmt="o-", ms=4, label=label, color=colours[curve.noise])
        for power, style in ((0.5, "--"), (-0.5, ":")) if of == "guide" else ((0.5, "--"),):
            anchor = 10 ** rows["DReG, guide" if of == "guide" and power > 0 else f"IWAE, {of}"][0][-1]
            panel.plot(
                particles, anchor * (particles / particles[-1]) ** power, style, color="grey", lw=1, label=f"K^{power:+.1f}"
            )
        panel.set(
            xscale="log", yscale="log", xlabel="particles K", ylabel="signal-to-noise ratio", title=f"gradient of the {of}"
        )
        panel.legend(fontsize=8, ncols=2)
    figure.suptitle(f"Linear-Gaussian VAE, D = {DIM}, {NUM_DATA:,} data, parameters off the optimum by {std:g}")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_snr", description=__doc__.splitlines()[0])
    parser.add_argument("--std", type=float, default=0.01, help="how far parameters are off the optimum")
    parser.add_argument("--budget", type=int, default=1_000, help="particles of every datum, in all, for each K")
    parser.add_argument("--particles", type=int, nargs="+", default=PARTICLES, help="K; at least four values")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the table and the picture"
    )
    options = parser.parse_args()
    console = Console(highlight=False)
    params, x = problem(options.std)
    particles, builders = np.array(options.particles), estimators()
    jobs = [(name, int(k)) for k in particles for name in builders]
    found = {}
    for i, (name, k) in enumerate(track(jobs, "estimating", console=console, transient=True, disable=not console.is_terminal)):
        repetitions = max(2 * GROUPS, min(1_000, options.budget // k))
        found[name, k] = moments(builders[name](k), params, x, k, repetitions, seed=i)
    rows = {}
    for curve in CURVES:
        pairs = [jackknife(found[curve.noise, k][curve.of], found[curve.signal, k][curve.of]) for k in particles]
        rows[curve.name] = tuple(np.array(each) for each in zip(*pairs, strict=True))
    head = ["gradient", *(f"K = {k:,}" for k in particles), f"exponent, K >= {ASYMPTOTIC}"]
    cells = []
    for name, (logs, errors) in rows.items():
        each = [_cell(10**log, 10**log * math.log(10) * error) for log, error in zip(logs, errors, strict=True)]
        slope, error = exponent(particles, logs, errors)
        cells.append([name, *each, f"{slope:+.3f} ± {error:.3f}"])
    table = Table(*head)
    for row in cells:
        table.add_row(*row)
    console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"gradient_snr-{date.today()}"
    picture(stem.with_suffix(".png"), rows, particles, options.std)
    stem.with_suffix(".md").write_text(_markdown(head, cells, options.std, stem.name))
    return 0


def _cell(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "-"
    decimals = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _markdown(head: list[str], cells: list[list[str]], std: float, stem: str) -> str:
    lines = [f"# Signal-to-noise ratio of gradients, {date.today()}", ""]
    lines += [f"Device: {device_name()}. `{command_line('benchmarks.gradient_snr')}`", ""]
    lines += [
        f"The linear-Gaussian VAE of Rainforth et al. (2018), D = {DIM}, {NUM_DATA:,} data, parameters off the optimum by {std:g}. A",
        "ratio is |E g| / sqrt(E |g - E g|^2) of the gradient of the mean bound of all data; ± one standard error. The signal of",
        "IWAE's guide gradient is taken from DReG, which has the same expectation. IWAE, DReG and PIWAE have one gradient of the",
        f"model; PIWAE's guide gets that of groups of {GROUP} draws.",
        "",
    ]
    lines += [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([*lines, "", f"![Signal-to-noise ratio against K]({stem}.png)", ""])


if __name__ == "__main__":
    sys.exit(main())
