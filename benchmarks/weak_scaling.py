"""What splitting a step over devices costs, measured and predicted: `python -m benchmarks.weak_scaling`.

Weak scaling: every device has the same number of images, of a variational autoencoder (784 pixels, two layers of 200 units each way, 50
latents, K = 8). Fake devices share the machine's cores, so that n of them have n times the work of one and no more hardware: perfect is
n times the time. So each is compared with one device that takes the same n times larger minibatch, in turn, in rounds; what is
above 1 is what splitting costs: n small programs in place of a large one, and the all-reduce through memory. Beside them stands
what the cost model of docs/scaling.md says: its arithmetic, at the rate that the smallest minibatch reached on one device.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from datetime import date
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jvi
from benchmarks.command import command_line

IMAGES, PARTICLES, LATENTS = 64, 8, 50  # images on each device
CHIP, LINK, HOP, USE = (
    275e12,
    100e9,
    1e-6,
    0.4,
)  # TPU v4: FLOP/s in bfloat16, bytes/s of one axis of its torus; assumed: seconds, share
MEASURED = {
    50: 0.052,
    1: 0.004,
}  # by K: the share of an H100's matrix rate in bfloat16 that such a network used, 128 images a step
TORUS = {256: (4, 8, 8), 4_096: (16, 16, 16)}

encoder, decoder = (jvi.networks.network(jvi.encoders.MLP(size, hidden=(200, 200))) for size in (2 * LATENTS, 784))
guide = jvi.guides.conditional(
    encoder, lambda out: distrax.MultivariateNormalDiag(out[:LATENTS], jax.nn.softplus(out[LATENTS:]) + 1e-4)
)


def log_joint(params, x, z):
    log_prior = jnp.sum(distrax.Normal(0.0, 1.0).log_prob(z))
    return log_prior + jnp.sum(distrax.Bernoulli(logits=decoder.apply(params, z)).log_prob(x))


model = jvi.learned(lambda rng, x: decoder.init(rng, jnp.zeros(LATENTS)), log_joint)
svi = jvi.SVI(jvi.per_example(jvi.iwae(model, guide, num_samples=PARTICLES)), jvi.optimizer(optax.adam, 1e-3))


def runner(num_devices: int, mesh: jax.sharding.Mesh | None):
    """A function that takes steps and says how many seconds one took."""
    x = np.random.default_rng(0).binomial(1, 0.3, (1_024, 784)).astype(np.float32)
    size = IMAGES * num_devices
    held = {"state": jvi.fit_batches(svi, jax.random.key(0), x, num_steps=2, batch_size=size, mesh=mesh)[0]}

    def seconds(num_steps: int) -> float:
        began = time.perf_counter()
        held["state"], _ = jvi.fit_batches(
            svi, jax.random.key(0), x, num_steps=num_steps, batch_size=size, mesh=mesh, state=held["state"]
        )
        return (time.perf_counter() - began) / num_steps

    return seconds


def measured(num_devices: int, rounds: int, num_steps: int) -> tuple[float, float, float]:
    """Milliseconds of a step on one device and on the mesh, and the median ratio of rounds."""
    one, split = runner(num_devices, None), runner(num_devices, jvi.sharding.data_mesh(num_devices))
    pairs = [(one(num_steps), split(num_steps)) for _ in range(rounds)]
    return (
        1e3 * statistics.median(a for a, _ in pairs),
        1e3 * statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def flops(images: int, particles: int, of_encoder: float, of_decoder: float) -> float:
    """Of a step on one device: two forwards and four backwards for each weight and example."""
    return 6.0 * images * (of_encoder + particles * of_decoder)


def predicted(chips: int, images: int, weights: float, particles: int, use: float) -> tuple[float, float, float]:
    """Microseconds of arithmetic and of the all-reduce, and efficiency, if nothing of the two overlaps."""
    arithmetic = flops(images, particles, weights / 2, weights / 2) / (CHIP * use)
    hops = 2 * sum(side - 1 for side in TORUS[chips])
    reduce = 2.0 * 4.0 * weights / LINK + hops * HOP
    return 1e6 * arithmetic, 1e6 * reduce, arithmetic / (arithmetic + reduce)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weak_scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a smoke run: two rounds of two steps")
    parser.add_argument("--out", type=Path, help="also write the tables to this file, as Markdown")
    options = parser.parse_args()
    rounds, steps = (2, 2) if options.quick else (options.rounds, options.steps)
    params = svi.init(jax.random.key(0), jnp.zeros((1, 784))).params
    of_decoder, of_encoder = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (params.model, params.guide))
    weights = of_decoder + of_encoder
    lines = [f"# Weak scaling, {date.today()}", "", f"Device: cpu ({os.cpu_count()} CPU cores), jax {jax.__version__}. "
             f"`{command_line('benchmarks.weak_scaling')}`", "", f"{weights:,} weights, {IMAGES} images a device, K = {PARTICLES}; "
             "milliseconds a step, medians of rounds; the ratio is the median of ratios within a round.", "",
             "| fake devices | images a step | one device | mesh | ratio | model |",
             "| ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    rate = 0.0
    for count in (1, 2, 4, 8):
        one, split, ratio = measured(count, rounds, steps)
        work = flops(IMAGES * count, PARTICLES, of_encoder, of_decoder)
        rate = rate or work / one  # FLOPs a millisecond
        lines.append(f"| {count} | {IMAGES * count} | {one:.1f} | {split:.1f} | {ratio:.2f} | {work / rate:.1f} |")
        Console().print(lines[-1])
    lines += ["", f"The model's rate, from the first row: {rate / 1e6:.0f} GFLOP/s.", "",
              "Predicted for TPU v4, not measured (docs/scaling.md has the model and its assumptions); the share of the chip's rate is "
              "assumed, or what an H100 showed:", "",
              "| weights | K | images a chip | share | chips | arithmetic (µs) | all-reduce (µs) | efficiency |",
              "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    cases = [(weights, 50, 128, USE), (weights, 50, 1_024, USE), (25_000_000, 8, 128, USE), (25_000_000, 8, 1_024, USE)]
    cases += [(weights, particles, 128, use) for particles, use in MEASURED.items()]
    for many, particles, images, use in cases:
        for chips in TORUS:
            arithmetic, reduce, share = predicted(chips, images, many, particles, use)
            lines.append(
                f"| {many:,} | {particles} | {images:,} | {use:.1%} | {chips:,} | {arithmetic:,.0f} | {reduce:,.0f} | {share:.0%} |"
            )
    text = "\n".join(lines) + "\n"
    Console().print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
