"""Memory and time of bounds of many particles, in chunks and all at once: `python -m benchmarks.many_particles`.

Steps of the importance-weighted bound of a VAE, of digits (`examples/digits_vae.py`) or of Fashion-MNIST (`examples/image_vae.py`), on
a batch of images with K draws each. Every row runs in a process of its own, whose peak resident memory is reported, beside what it
was before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.step_time import ROOT, device_name

HEAD = ("K", "images", "particles at a time", "images at a time", "peak MiB", "before", "seconds a step", "bound", "norm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_particles", description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=5_000, help="K (default 5,000)")
    parser.add_argument("--images", type=int, default=128, help="images in the batch (default 128)")
    parser.add_argument("--vae", choices=("digits", "image"), default="digits", help="which one (default digits)")
    parser.add_argument(
        "--chunk", action="append", metavar="PARTICLES[,IMAGES]", help="how many at a time, 0 for all (default 0, 500, 50)"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return work(options.vae, options.particles, options.images, *sizes_of(options.worker))
    console, rows = Console(highlight=False), []
    for chunk in options.chunk or ("0", "500", "50"):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.many_particles", f"--worker={chunk}"]
        command += [f"--particles={options.particles}", f"--images={options.images}", f"--vae={options.vae}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        head = [f"{options.particles:,}", f"{options.images:,}", *(f"{size:,}" if size else "all" for size in sizes_of(chunk))]
        if done.returncode:
            console.print(f"[dim]{chunk} at a time failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
            rows.append([*head, *["did not fit"] * 5])
            continue
        found = json.loads(done.stdout)
        numbers = (f"{found['peak']:,.0f}", f"{found['before']:,.0f}", f"{found['seconds']:.2f}")
        rows.append([*head, *numbers, f"{found['bound']:.4f}", f"{found['norm']:.5g}"])
    table = Table(*HEAD, title="steps of iwae of a VAE")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if options.out:
        lines = [
            f"# Many particles, {date.today()}",
            "",
            f"Device: {device_name()}. `{command_line('benchmarks.many_particles')}`",
            "",
        ]
        lines += [
            "Two steps of Adam on `iwae` of a VAE, in a process of its own for every row: peak resident memory and what it was before",
            "the first step, the second step's seconds, and its bound (nats per image) and gradient's norm, which are the same however",
            "many particles and images are taken at a time.",
            "",
        ]
        lines += [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---:"] * len(HEAD), *rows)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def sizes_of(chunk: str) -> tuple[int, int]:
    """Particles and images at a time, 0 for all."""
    particles, _, images = chunk.partition(",")
    return int(particles), int(images or 0)


def work(vae: str, particles: int, images: int, particles_at_a_time: int, images_at_a_time: int) -> int:
    import jax
    import optax

    import jvi

    model, guide, x = _image_vae(images) if vae == "image" else _digits_vae(images)
    objective = jvi.iwae(model, guide, num_samples=particles, chunk_size=particles_at_a_time or None)
    objective = jvi.per_example(objective, chunk_size=images_at_a_time or None)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-3))
    state = jax.jit(svi.init)(jax.random.key(0), x)
    before = _peak()
    step = jax.jit(svi.step, donate_argnums=0)
    for _ in range(2):
        began = time.perf_counter()
        state, info = jax.block_until_ready(step(state, x))
        seconds = time.perf_counter() - began
    found = {"bound": float(info.bound), "norm": float(info.grad_norm)}
    print(json.dumps({"peak": _peak(), "before": before, "seconds": seconds, **found}))
    return 0


def _digits_vae(images: int) -> tuple[Any, Any, Any]:
    import jax

    from examples.digits_vae import guide, load, model

    return model, guide, jax.device_put(load()[0][:images])


def _image_vae(images: int) -> tuple[Any, Any, Any]:
    import jax

    import jvi
    from examples.image_vae import build, load

    grey = load(None, Console(stderr=True))[0][:images]
    model, guide, _ = build(grey.shape[1])
    return model, guide, jvi.augment.binarized(jax.random.key(1), grey)


def _peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
