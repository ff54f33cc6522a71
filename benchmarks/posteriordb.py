"""`jvi.infer` and its peers on real posteriors with references: `python -m benchmarks.posteriordb --root ../shared/posteriordb`.

Accurate is: from 10,000 draws every mean within 0.1 reference sd and every sd within 10 % of the reference, each bound widened only
by the reference's own Monte Carlo error, from its split halves. Cold is the first fit of a process, compilation included; warm is
a fit of new data of the same shapes. Every contender runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.posteriordb_models import Entry, load, names
from benchmarks.step_time import ROOT, device_name

DRAWS = 10_000
LIBRARIES = {"NumPyro NUTS": "numpyro", "AutoNormal": "numpyro", "AutoMVN": "numpyro", "Pathfinder": "blackjax"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posteriordb", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "posteriordb", help="the folder with index.json")
    parser.add_argument("--entry", action="append", help="these entries only")
    parser.add_argument("--only", action="append", choices=list(FITS), help="these contenders only")
    parser.add_argument("--seeds", type=int, default=3, help="fits of jvi to each entry (default 3; peers get one)")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    parser.add_argument("--worker", nargs=3, metavar=("ENTRY", "CONTENDER", "SEEDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.root / "index.json").exists():
        parser.error(f"{options.root} holds no index.json: name the folder of the shared entries by --root")
    if options.worker:
        return work(options.root, *options.worker)
    contenders = [name for name in FITS if not options.only or name in options.only]
    contenders = [name for name in contenders if name not in LIBRARIES or importlib.util.find_spec(LIBRARIES[name])]
    entries = options.entry or names(options.root)
    console = Console(highlight=False)
    rows: dict[str, dict[str, Any]] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("fits", total=len(entries) * len(contenders))
        for entry in entries:
            rows[entry] = {}
            for name in contenders:
                rows[entry][name] = _ask(options.root, entry, name, options.seeds if name == "jvi" else 1)
                progress.advance(task)
            console.print(_line(entry, rows[entry]))
    summary = _summary(rows, contenders)
    console.print(summary)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(_markdown(rows, contenders))
    return 0


def _ask(root: Path, entry: str, name: str, seeds: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.posteriordb", "--root", str(root.resolve())]
    try:
        done = subprocess.run(
            [*command, "--worker", entry, name, str(seeds)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
        )
    except subprocess.TimeoutExpired:
        return {"error": "no answer in 900 s"}
    line = (done.stdout.strip().splitlines() or [""])[-1]
    return json.loads(line) if line.startswith("{") else {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1]}


def work(root: Path, entry_name: str, name: str, seeds: str) -> int:
    entry = load(root, entry_name)
    fit = FITS[name](entry)
    out: dict[str, Any] = {"accurate": [], "trusted": [], "error_mean": [], "error_sd": [], "seconds": [], "grads": []}
    for seed in range(int(seeds)):
        found = fit(seed, entry.x)
        for key, value in judge(entry, found.pop("draws")).items():
            out[key].append(value)
        for key, value in found.items():
            out[key].append(value)
    out["cold"] = out.pop("seconds")[0]
    out["warm"] = [fit(100 + i, resampled(entry.x, i))["seconds"] for i in range(3 if name == "jvi" else 1)]
    print(json.dumps(out))
    return 0


def judge(entry: Entry, columns: np.ndarray) -> dict[str, Any]:
    """Whether draws [S, P] are accurate, and by how much they are off: means in reference sds, sds as log ratios."""
    reference = entry.reference
    first, second = (reference.draws[i::2] for i in (0, 1))
    # The halves differ by sqrt(2) of a half's own error; the whole reference is of 10,000 draws where a half has 1,000.
    noise = 1.0 / np.sqrt(2.0) * np.sqrt(len(first) / 10_000)
    slack_mean = 2.0 * np.abs(first.mean(0) - second.mean(0)) / reference.sd * noise
    slack_sd = 2.0 * np.abs(np.log(first.std(0) / second.std(0))) * noise
    off = np.abs(columns.mean(0) - reference.mean) / reference.sd
    ratio = columns.std(0, ddof=1) / reference.sd
    fine = np.all(off <= 0.1 + slack_mean) and np.all(ratio <= 1.1 + slack_sd) and np.all(ratio >= 0.9 - slack_sd)
    return {"accurate": bool(fine), "error_mean": float(np.max(off)), "error_sd": float(np.max(np.abs(np.log(ratio))))}


def resampled(x: Any, seed: int) -> Any:
    """New data of the same shapes: rows drawn with replacement where all arrays share a leading axis, else values a little moved."""
    import jax

    rng = np.random.default_rng(seed)
    leaves = jax.tree.leaves(x)
    lengths = {len(leaf) for leaf in leaves if np.ndim(leaf)}
    if len(leaves) > 1 and len(lengths) == 1 and lengths.pop() > 30:
        chosen = rng.integers(len(leaves[0]), size=len(leaves[0]))
        return jax.tree.map(lambda leaf: leaf[chosen], x)
    return jax.tree.map(lambda leaf: leaf * (1.0 + 1e-3 * rng.normal(size=np.shape(leaf))), x)


# -- contenders -------------------------------------------------------------------------------------------------------------


def _jvi(entry: Entry) -> Any:
    import jax

    import jvi

    def fit(seed: int, x: Any) -> dict[str, Any]:
        began = time.perf_counter()
        posterior = jvi.infer(jax.random.key(seed), entry.log_joint, entry.space, x)
        draws = posterior.sample(jax.random.key(seed), DRAWS)
        seconds = time.perf_counter() - began
        with jax.enable_x64(True):
            columns = np.asarray(jax.vmap(entry.columns)(jax.tree.map(np.asarray, draws)))
        report = posterior.report
        return {
            "draws": columns,
            "seconds": seconds,
            "trusted": report.trusted,
            "grads": report.num_grads + report.num_densities,
        }

    return fit


def _potential(entry: Entry) -> Any:
    """The log-density of the unconstrained coordinates, for libraries that take one."""
    import jax

    jax.config.update("jax_enable_x64", True)

    def log_density(u: Any, x: Any) -> Any:
        z, log_det = entry.space.constrain(u)
        return entry.log_joint(x, z) + log_det

    return log_density


def _columns(entry: Entry, u: Any) -> np.ndarray:
    import jax

    return np.asarray(jax.vmap(lambda u: entry.columns(entry.space.constrain(u)[0]))(u))


def _model(entry: Entry) -> Any:
    import numpyro
    import numpyro.distributions as dist

    log_density = _potential(entry)

    def model(x):
        u = numpyro.sample("u", dist.ImproperUniform(dist.constraints.real_vector, (), (entry.space.size,)))
        numpyro.factor("log_joint", log_density(u, x))

    return model


def _nuts(entry: Entry) -> Any:
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS

    # Data are arguments of the compiled sampler, so that new ones of the same shapes compile nothing.
    mcmc = MCMC(
        NUTS(_model(entry)), num_warmup=1_000, num_samples=1_000, num_chains=2, chain_method="sequential", progress_bar=False,
        jit_model_args=True,
    )  # fmt: skip

    def fit(seed: int, x: Any) -> dict[str, Any]:
        began = time.perf_counter()
        mcmc.run(jax.random.PRNGKey(seed), jax.tree.map(jnp.asarray, x), extra_fields=("num_steps",))
        u = jax.block_until_ready(mcmc.get_samples()["u"])
        seconds = time.perf_counter() - began
        return {"draws": _columns(entry, u), "seconds": seconds, "grads": int(mcmc.get_extra_fields()["num_steps"].sum())}

    return fit


def _auto(entry: Entry, *, kind: str) -> Any:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    model = _model(entry)
    guide = getattr(autoguide, kind)(model)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())

    def fit(seed: int, x: Any) -> dict[str, Any]:
        began = time.perf_counter()
        x = jax.tree.map(jnp.asarray, x)
        params = svi.run(jax.random.PRNGKey(seed), DRAWS, x, progress_bar=False).params
        u = guide.sample_posterior(jax.random.PRNGKey(seed), params, sample_shape=(DRAWS,))["u"]
        seconds = time.perf_counter() - began
        return {"draws": _columns(entry, u), "seconds": seconds, "grads": DRAWS}

    return fit


def _pathfinder(entry: Entry) -> Any:
    import blackjax
    import jax
    import jax.numpy as jnp

    log_density = _potential(entry)

    @jax.jit
    def run(key, x):
        one, two, three = jax.random.split(key, 3)
        start = jax.random.uniform(one, (entry.space.size,), minval=-2.0, maxval=2.0)
        state, _ = blackjax.vi.pathfinder.approximate(two, lambda u: log_density(u, x), start)
        return blackjax.vi.pathfinder.sample(three, state, DRAWS)[0]

    def fit(seed: int, x: Any) -> dict[str, Any]:
        began = time.perf_counter()
        u = jax.block_until_ready(run(jax.random.key(seed), jax.tree.map(jnp.asarray, x)))
        return {"draws": _columns(entry, u), "seconds": time.perf_counter() - began, "grads": 0}

    return fit


FITS = {
    "jvi": _jvi,
    "NumPyro NUTS": _nuts,
    "AutoNormal": lambda entry: _auto(entry, kind="AutoNormal"),
    "AutoMVN": lambda entry: _auto(entry, kind="AutoMultivariateNormal"),
    "Pathfinder": _pathfinder,
}


# -- tables -----------------------------------------------------------------------------------------------------------------


def _line(entry: str, row: dict[str, Any]) -> str:
    return f"{entry:<45}" + "  ".join(f"{name}: {_cell(result)}" for name, result in row.items())


def _cell(result: dict[str, Any]) -> str:
    if "error" in result:
        return "failed"
    share = f"{sum(result['accurate'])}/{len(result['accurate'])}"
    trusted = f", {sum(result['trusted'])} trusted" if result["trusted"] else ""
    worst = f"{max(result['error_mean']):.2f} sd, {np.expm1(max(result['error_sd'])):.0%}"
    return f"{share}{trusted} ({worst}), {result['cold']:.1f} s, {statistics.median(result['warm']):.2f} s"


def _totals(rows: dict[str, Any], name: str) -> list[str]:
    found = [row[name] for row in rows.values() if "error" not in row[name]]
    if not found:
        return [name, *["failed"] * (len(HEAD) - 1)]
    accurate = sum(sum(result["accurate"]) for result in found)
    fits = sum(len(result["accurate"]) for result in found)
    wrong = sum(t and not a for result in found for a, t in zip(result["accurate"], result["trusted"], strict=False))
    shy = sum(a and not t for result in found for a, t in zip(result["accurate"], result["trusted"], strict=False))
    judged = any(result["trusted"] for result in found)
    warm = [statistics.median(result["warm"]) for result in found]
    cold = [result["cold"] for result in found]
    entries = sum(all(result["accurate"]) for result in found)
    return [
        name, f"{entries} of {len(rows)}", f"{accurate} of {fits}", str(wrong) if judged else "-", str(shy) if judged else "-",
        f"{statistics.median(cold):.2f}", f"{statistics.median(warm):.3f}", f"{max(cold):.1f}",
    ]  # fmt: skip


HEAD = ["", "entries accurate", "fits accurate", "wrong, trusted", "right, distrusted", "cold s, median", "warm s, median",
        "cold s, most"]  # fmt: skip


def _ratios(rows: dict[str, Any]) -> str:
    """Times of jvi as shares of those of NUTS: medians over the entries of the ratio."""
    both = [row for row in rows.values() if all("error" not in row.get(name, {"error": 1}) for name in ("jvi", "NumPyro NUTS"))]
    if not both:
        return ""
    cold = statistics.median(row["jvi"]["cold"] / row["NumPyro NUTS"]["cold"] for row in both)
    warm = statistics.median(
        statistics.median(row["jvi"]["warm"]) / statistics.median(row["NumPyro NUTS"]["warm"]) for row in both
    )
    return f"Median ratio of jvi's seconds to NUTS's: cold {cold:.2f}, warm {warm:.3f}."


def _summary(rows: dict[str, Any], contenders: list[str]) -> Table:
    table = Table(*HEAD, title=f"{len(rows)} posteriors", title_justify="left", caption=_ratios(rows) or None)
    for name in contenders:
        table.add_row(*_totals(rows, name))
    return table


def _markdown(rows: dict[str, Any], contenders: list[str]) -> str:
    lines = [f"# posteriordb, {date.today()}", "", f"Device: {device_name()}. `{command_line('benchmarks.posteriordb')}`", ""]
    lines += ["Accurate: every mean within 0.1 reference sd, every sd within 10 %, widened by the reference's own error.", ""]
    lines += [f"| {' | '.join(HEAD)} |", "| --- |" + " ---: |" * (len(HEAD) - 1)]
    lines += [f"| {' | '.join(_totals(rows, name))} |" for name in contenders]
    lines += ["", _ratios(rows), "", "Accurate fits (worst mean error, worst sd error), cold and median warm seconds:", ""]
    lines += [f"| entry | {' | '.join(contenders)} |", "| --- |" + " --- |" * len(contenders)]
    lines += [f"| {entry} | {' | '.join(_cell(row[name]) for name in contenders)} |" for entry, row in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
