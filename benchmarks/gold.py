"""Log evidence and full-rank ELBO against known values: `python -m benchmarks.gold --root ../shared/gold`.

The truths are quadrature's, or annealed importance sampling's of a long run. A full-rank fit must reach the best full-rank ELBO to
0.05 nats; the log evidence must be within three standard errors and within 0.1 nats.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from rich.console import Console
from rich.table import Table

import jvi
from benchmarks.command import command_line
from benchmarks.step_time import ROOT, device_name


class Truth(NamedTuple):
    """A target with its log evidence and the largest ELBOs of full-rank and mean-field Gaussians, nats (NaN where not known)."""

    log_joint: Any
    space: Any
    x: Any
    log_evidence: float
    full_rank: float
    mean_field: float


def logistic(x, z):
    features, label, scale = x
    logits = features @ z
    # A flat prior has no density: its term is left out.
    log_prior = jnp.where(jnp.isfinite(scale), jnp.sum(norm.logpdf(z, 0.0, jnp.where(jnp.isfinite(scale), scale, 1.0))), 0.0)
    return log_prior + jnp.sum(label * logits - jax.nn.softplus(logits))


def _table(root: Path, name: str, scale: float, *, centre: bool) -> tuple[Any, Any, Any]:
    table = np.loadtxt(root / f"{name}.csv", delimiter=",")
    features, label = table[:, :-1], table[:, -1]
    spread = features.std(0)
    features = (features - (features.mean(0) if centre else 0.0)) / np.where(spread > 0, spread, 1.0)
    features = np.concatenate([np.ones((len(features), 1)), features], 1)
    return logistic, jvi.space(jvi.real(features.shape[1])), (features, label, np.asarray(scale))


def seeds(x, z):
    x1, x2, total, germinated = x
    tau = z["tau"]
    log_prior = 0.01 * jnp.log(0.01) - gammaln(0.01) + (0.01 - 1.0) * jnp.log(tau) - 0.01 * tau
    log_prior += jnp.sum(norm.logpdf(z["a"], 0.0, 10.0)) + jnp.sum(norm.logpdf(z["b"], 0.0, 1.0 / jnp.sqrt(tau)))
    logits = z["a"][0] + z["a"][1] * x1 + z["a"][2] * x2 + z["a"][3] * x1 * x2 + z["b"]
    choose = gammaln(total + 1.0) - gammaln(germinated + 1.0) - gammaln(total - germinated + 1.0)
    return log_prior + jnp.sum(choose + germinated * logits - total * jax.nn.softplus(logits))


def funnel(z):
    return norm.logpdf(z[0], 0.0, 3.0) + jnp.sum(norm.logpdf(z[1:], 0.0, jnp.exp(0.5 * z[0])))


def schools(x, z, *, centred: bool):
    y, sigma = x
    log_prior = norm.logpdf(z["mu"], 0.0, 5.0) + math.log(2.0 / (5.0 * math.pi)) - jnp.log1p((z["tau"] / 5.0) ** 2)
    if centred:
        theta, log_prior = z["t"], log_prior + jnp.sum(norm.logpdf(z["t"], z["mu"], z["tau"]))
    else:
        theta, log_prior = z["mu"] + z["tau"] * z["t"], log_prior + jnp.sum(norm.logpdf(z["t"]))
    return log_prior + jnp.sum(norm.logpdf(y, theta, sigma))


def schools_centred(x, z):
    return schools(x, z, centred=True)


def schools_noncentred(x, z):
    return schools(x, z, centred=False)


def cox_process(x, z):
    counts, mean, root = x
    white = jax.scipy.linalg.solve_triangular(root, z - mean, lower=True)
    log_prior = -0.5 * white @ white - jnp.sum(jnp.log(jnp.diag(root))) - 0.5 * z.shape[0] * math.log(2 * math.pi)
    return log_prior + jnp.sum(counts * z - jnp.exp(z) / z.shape[0])


def _cox_process(root: Path) -> tuple[Any, Any, Any]:
    points = np.loadtxt(root / "pines.csv", delimiter=",")[:, -2:]
    side = 40
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=side, range=[[0, 1], [0, 1]])
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    chol = np.linalg.cholesky(1.91 * np.exp(-33.0 * apart / side))
    return cox_process, jvi.space(jvi.real(side**2)), (counts.ravel(), np.asarray(math.log(126) - 1.91 / 2), chol)


def truths(root: Path) -> dict[str, Truth]:
    data = json.loads((root / "seeds.json").read_text())
    plates = tuple(np.asarray(data[key], float) for key in _seed_keys(data))
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    eight = jvi.space({"mu": jvi.real(), "t": jvi.real(8), "tau": jvi.positive()})
    seeds_space = jvi.space({"a": jvi.real(4), "b": jvi.real(len(plates[0])), "tau": jvi.positive()})
    credit = (math.inf, 10.0)
    return {
        "funnel": Truth(funnel, jvi.space(jvi.real(10)), None, 0.0, -1.863, -1.8628),
        "eight schools, non-centred": Truth(schools_noncentred, eight, (y, sigma), -31.3113, -31.535, -31.600),
        "eight schools, centred": Truth(schools_centred, eight, (y, sigma), -31.3113, -32.59, -33.40),
        "credit, flat prior": Truth(*_table(root, "german_credit", credit[0], centre=False), -504.486, -504.513, -525.063),
        "credit, N(0, 10^2)": Truth(*_table(root, "german_credit", credit[1], centre=False), -585.098, -585.125, -605.666),
        "seeds": Truth(seeds, seeds_space, plates, -73.405, -74.170, -76.776),
        "ionosphere": Truth(*_table(root, "ionosphere", 1.0, centre=True), -111.610, -112.117, -123.581),
        "sonar": Truth(*_table(root, "sonar", 1.0, centre=True), -108.386, -108.932, -137.906),
        "Cox process": Truth(*_cox_process(root), 501.77, 498.803, 382.904),
    }


def _seed_keys(data: dict[str, Any]) -> tuple[str, ...]:
    wanted = (("x1",), ("x2",), ("N", "n", "total"), ("r", "R"))
    return tuple(next(key for key in names if key in data and isinstance(data[key], list)) for names in wanted)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gold", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "gold", help="the folder with the data")
    parser.add_argument("--target", action="append", help="these targets only")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    console = Console(highlight=False)
    head = ["target", "d", "log Z", "error", "s.e.", "trusted", "full-rank ELBO", "gap", "mean-field ELBO", "gap ", "seconds"]
    table, lines = Table(*head), []
    for name, truth in truths(options.root).items():
        if options.target and name not in options.target:
            continue
        row = measure(name, truth)
        table.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
        console.print("  ".join(row))
    console.print(table)
    if options.out:
        top = [f"# Known log evidence, {date.today()}", "", f"Device: {device_name()}. `{command_line('benchmarks.gold')}`", ""]
        top += [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*top, *lines]) + "\n")
    return 0


def measure(name: str, truth: Truth) -> list[str]:
    began = time.perf_counter()
    posterior = jvi.infer(jax.random.key(0), truth.log_joint, truth.space, truth.x)
    seconds = time.perf_counter() - began
    report, key = posterior.report, jax.random.key(1)
    assert report is not None
    cells = [name, str(truth.space.size), f"{report.log_evidence:.3f}", f"{report.log_evidence - truth.log_evidence:+.3f}"]
    cells += [f"{report.log_evidence_se:.3f}", "yes" if report.trusted else "no"]
    if truth.space.size > 100:
        return [*cells, "-", "-", "-", "-", f"{seconds:.1f}"]
    families = jvi.gaussian_fits.families
    for family, best in ((families.FullRank(), truth.full_rank), (families.Diagonal(), truth.mean_field)):
        fit = jvi.gaussian_fits.moment_matched(key, truth.log_joint, truth.space, truth.x, family=family)
        elbo = fit.report.elbo if fit.report else math.nan
        cells += [f"{elbo:.3f}", f"{elbo - best:+.3f}"]
    return [*cells, f"{seconds:.1f}"]


if __name__ == "__main__":
    sys.exit(main())
