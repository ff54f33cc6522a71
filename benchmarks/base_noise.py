"""What the particles' joint noise does to the variance of a bound and of its gradient: `python -m benchmarks.base_noise`.

The ELBO of a logistic regression (500 data, 10 coefficients) and a mean-field guide, at its optimum, by the pathwise gradient: the
variance of the location's gradient, of the scales', and of the bound itself, with independent particles divided by that with others.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi
from benchmarks.command import command_line
from benchmarks.step_time import device_name

COUNTS = (16, 64, 256)
HEAD = ("noise", "K", "location's gradient", "scales' gradient", "bound")


def problem():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(500, 10)), jnp.float32)
    label = jnp.asarray(rng.uniform(size=500) < 0.5, jnp.float32)

    def log_joint(x, z):
        logits = features @ z
        return -0.5 * (z @ z) + jnp.sum(label * logits - jax.nn.softplus(logits))

    return jvi.model(log_joint), jvi.guides.MeanField(jvi.space(jvi.real(10)))


def variances(model, guide, params, num_samples: int, noise, num: int) -> np.ndarray:
    """Of the location's gradient, the scales' and the bound."""
    objective = jvi.elbo(model, guide, num_samples=num_samples, gradient=jvi.gradients.pathwise, noise=noise)
    rows = jvi.gradient_report(objective, params, jax.random.key(1), num_samples=num).rows
    by_leaf = {row.leaf: row.variance for row in rows}
    bounds = jax.jit(lambda keys: jax.lax.map(lambda key: objective(params, key, None)[0], keys, batch_size=100))
    values = np.asarray(bounds(jax.random.split(jax.random.key(2), num)), np.float64)
    return np.array([by_leaf["guide.loc"], by_leaf["guide.log_scale"], values.var(ddof=1)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.base_noise", description=__doc__.splitlines()[0])
    parser.add_argument("--gradients", type=int, default=2_000, help="gradients a row (default 2,000)")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    model, guide = problem()
    svi = jvi.SVI(jvi.elbo(model, guide, num_samples=64), jvi.optimizer(jvi.svi.cosine_adam, 0.05, num_steps=2_000))
    params = jvi.fit(svi, jax.random.key(0), num_steps=2_000)[0].params
    table, rows = Table(*HEAD, title="variance of independent particles / with this noise", title_justify="left"), []
    for count in COUNTS:
        plain = variances(model, guide, params, count, jvi.noise.independent, options.gradients)
        for name in ("antithetic", "sobol"):
            found = variances(model, guide, params, count, getattr(jvi.noise, name), options.gradients)
            rows.append((name, f"{count}", *(f"{ratio:,.0f}" if ratio > 10.0 else f"{ratio:.2f}" for ratio in plain / found)))
            table.add_row(*rows[-1])
    Console(highlight=False).print(table)
    if options.out:
        lines = [
            f"# Noise of particles, {date.today()}",
            "",
            f"Device: {device_name()}. `{command_line('benchmarks.base_noise')}`",
            "",
        ]
        lines += [*__doc__.split("\n\n")[1].strip().splitlines(), ""]
        marks = ["---", *["---:"] * (len(HEAD) - 1)]
        lines += [f"| {' | '.join(cells)} |" for cells in (HEAD, marks, *rows)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
