"""Gradient estimators of 200 Bernoulli latents at equal compute: `python -m benchmarks.discrete_estimators`.

The variational autoencoder of `examples/discrete_vae.py` is trained by each estimator from the same start, on the same minibatches,
with four evaluations of the decoder for every image at every step: four draws, or two of REBAR and RELAX, whose draws take two.
Whatever an estimator trains on, it is judged by the same bounds of the discrete model, of exact draws.

  held-out bound   IWAE with 500 draws, nats per image, 360 images
  training bound   ELBO of the training images, nats per image
  variance         of the gradient by the encoder's weights, all summed, at the parameters where leave-one-out ended, on one minibatch
  CPU ms a step    of the one core that it ran on, compilation left out
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi
from benchmarks.command import command_line
from benchmarks.step_time import device_name
from examples.discrete_vae import decoder, guide, init, load, model
from jvi import controls, gradients, objectives

TEMPERATURE, BATCH, CHECKPOINTS = 0.5, 64, 8
SURROGATE = nn.Sequential((nn.Dense(64), nn.tanh, nn.Dense(1)))
HEAD = ("estimator", "draws", "held-out bound", "training bound", "variance", "CPU ms a step")


def relaxed_joint(params: Any, x: Any, z: Any) -> Any:
    """The model whose bits are relaxed: its prior is the Concrete density, for which the discrete one's terms make way."""
    logit = jnp.log(z) - jnp.log1p(-z)
    noise = TEMPERATURE * logit - params["prior"]
    log_prior = jnp.sum(
        jnp.log(TEMPERATURE) + jax.nn.log_sigmoid(noise) + jax.nn.log_sigmoid(-noise) - jnp.log(z) - jnp.log1p(-z)
    )
    pixels = decoder.apply(params["decoder"], 2.0 * z - 1.0)
    return log_prior + jnp.sum(x * pixels - jax.nn.softplus(pixels))


relaxed = jvi.learned(init, relaxed_joint)
ESTIMATORS = {
    "REINFORCE": objectives.score(model, guide, num_samples=4, control=controls.none),
    "REINFORCE, moving average": objectives.score(model, guide, num_samples=4, control=controls.moving_average()),
    "leave-one-out": objectives.score(model, guide, num_samples=4),
    "VIMCO": objectives.vimco(model, guide, num_samples=4),
    "DisARM": objectives.disarm(model, guide, num_samples=4),
    "REBAR": objectives.rebar(model, guide, num_samples=2, temperature=TEMPERATURE),
    "RELAX": objectives.relax(model, guide, network=SURROGATE, num_samples=2, temperature=TEMPERATURE),
    "Concrete": jvi.elbo(relaxed, guide, num_samples=4, gradient=gradients.concrete(TEMPERATURE)),
    "straight-through": jvi.elbo(model, guide, num_samples=4, gradient=gradients.straight_through.at(TEMPERATURE)),
}
REFERENCE = "leave-one-out"


class Trained(NamedTuple):
    params: Any
    steps: list[int]
    seconds: list[float]  # of CPU, at these steps
    bounds: list[Any]  # held-out, by 50 draws
    held_out: Any
    training: Any


def log_weights(params: Any, rng: Any, x: Any, num_samples: int) -> np.ndarray:
    """Log-weights [B, K] of exact draws, a few images at a time."""
    objective = jvi.per_example(objectives.vimco(model, guide, num_samples=num_samples))
    shared = objectives.Params(params.model, params.guide)
    parts = [x[i : i + 60] for i in range(0, len(x) - len(x) % 60, 60)]
    return np.concatenate([_evaluate(objective, shared, jax.random.fold_in(rng, i), part) for i, part in enumerate(parts)])


@jax.jit
def _evaluate(objective: Any, params: Any, rng: Any, x: Any) -> Any:
    return objective(params, rng, x)[1].log_w


def iwae(log_w: np.ndarray) -> Any:
    return jvi.diagnostics.mean_of(np.logaddexp.reduce(log_w.astype(float), axis=1) - np.log(log_w.shape[1]))


def train(name: str, train_set: Any, test_set: Any, num_steps: int) -> Trained:
    svi = jvi.SVI(jvi.per_example(ESTIMATORS[name]), jvi.optimizer(jvi.svi.cosine_adam, 1e-3, num_steps=num_steps))
    every = num_steps // CHECKPOINTS

    def fit(steps: int, state: Any = None) -> Any:
        options = {"num_steps": steps, "batch_size": BATCH, "progress": False, "state": state}
        return jvi.fit_batches(svi, jax.random.key(0), train_set, **options)[0]

    fit(every)  # compiles
    state, seconds, steps, bounds = None, [0.0], [0], []
    for i in range(CHECKPOINTS):
        began = time.process_time()
        state = jax.block_until_ready(fit(every, state))
        seconds.append(seconds[-1] + time.process_time() - began)
        steps.append((i + 1) * every)
        bounds.append(iwae(log_weights(state.params, jax.random.key(1), test_set, 50)))
    held_out = iwae(log_weights(state.params, jax.random.key(2), test_set, 500))
    training = jvi.diagnostics.mean_of(log_weights(state.params, jax.random.key(3), train_set, 50).astype(float).mean(1))
    return Trained(state.params, steps[1:], seconds[1:], bounds, held_out, training)


def variance(name: str, params: Any, control: Any, x: Any, num_samples: int) -> float:
    """Summed over the encoder's weights."""
    objective = jvi.per_example(ESTIMATORS[name])
    report = jvi.gradient_report(objective, params._replace(control=control), jax.random.key(4), x, num_samples=num_samples)
    return sum(row.total_variance for row in report.rows if row.leaf.startswith("guide"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.discrete_estimators", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4_000, help="steps of each estimator (default 4,000)")
    parser.add_argument("--gradients", type=int, default=200, help="gradients for the variance (default 200)")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown, and the picture beside it")
    options = parser.parse_args()
    console, (train_set, test_set) = Console(highlight=False), load()
    found: dict[str, Trained] = {}
    for name in ESTIMATORS:
        found[name] = train(name, train_set, test_set, options.steps)
        console.print(f"{name}: {found[name].held_out}, {found[name].seconds[-1]:.0f} s")
    at, rows = found[REFERENCE].params, []
    for name, one in found.items():
        spread = variance(name, at, one.params.control, train_set[:BATCH], options.gradients)
        ms = f"{1e3 * one.seconds[-1] / one.steps[-1]:.1f}"
        draws = str(ESTIMATORS[name].num_samples)
        rows.append((name, draws, str(one.held_out), str(one.training), f"{spread:.3g}", ms))
    table = Table(*HEAD, title=f"{options.steps:,} steps")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(_markdown(rows, options)) + "\n")
        _picture(found).savefig(options.out.with_suffix(".png"))
    return 0


def _markdown(rows: list[Any], options: Any) -> list[str]:
    picture = options.out.with_suffix(".png").name
    return [
        f"# Discrete estimators, {date.today()}",
        "",
        f"Device: {device_name()}. `{command_line('benchmarks.discrete_estimators')}`",
        "",
        f"A VAE with 200 Bernoulli latents on 8 x 8 digits, {options.steps:,} steps of {BATCH} images, Adam from 1e-3 to 0 along a",
        "cosine, four evaluations of the decoder for every image at every step. Bounds are of exact draws of the discrete model,",
        "nats per image: held out with 500 draws (IWAE), on the training images the ELBO. Their standard errors are over images, and",
        "images are the same for all. Variance: of the gradient by the encoder's weights, summed, at the parameters where",
        "leave-one-out ended; VIMCO's is of another bound, Concrete's of another model, and straight-through's is biased.",
        "",
        f"| {' | '.join(HEAD)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"![Held-out bound by 50 draws against steps and CPU time]({picture})",
    ]


def _picture(found: dict[str, Trained]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, one in found.items():
        values = [float(bound.value) for bound in one.bounds]
        left.plot(one.steps, values, marker="o", markersize=3, label=name)
        right.plot(one.seconds, values, marker="o", markersize=3, label=name)
    best = max(float(one.bounds[-1].value) for one in found.values())
    left.set(xlabel="step", ylabel="held-out bound by 50 draws, nats per image", ylim=(best - 4.5, best + 0.3))
    right.set(xlabel="CPU seconds")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


if __name__ == "__main__":
    sys.exit(main())
