"""Memory and time of bounds of many particles, in chunks and all at once: `python -m benchmarks.many_particles`.

The value and gradient of the importance-weighted bound of a VAE on digits (`examples/digits_vae.py`), of a batch of images with K
draws each. Every row runs in a process of its own, whose peak resident memory is reported, beside what it was before.
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

from rich.console import Console
from rich.table import Table

from benchmarks.step_time import ROOT, device_name

HEAD = ("K", "images", "at a time", "peak MiB", "before", "seconds", "bound", "norm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_particles", description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=5_000, help="K (default 5,000)")
    parser.add_argument("--images", type=int, default=128, help="images in the batch (default 128)")
    parser.add_argument("--chunk", type=int, action="append", help="particles at a time, 0 for all (default 0, 500, 50)")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return work(options.particles, options.images, options.worker)
    console, rows = Console(highlight=False), []
    for chunk in options.chunk or (0, 500, 50):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.many_particles", f"--worker={chunk}"]
        command += [f"--particles={options.particles}", f"--images={options.images}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        head = [f"{options.particles:,}", str(options.images), f"{chunk:,}" if chunk else "all"]
        if done.returncode:
            console.print(f"[dim]{head[2]} at a time failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
            rows.append([*head, *["did not fit"] * 5])
            continue
        found = json.loads(done.stdout)
        numbers = (f"{found['peak']:,.0f}", f"{found['before']:,.0f}", f"{found['seconds']:.2f}")
        rows.append([*head, *numbers, f"{found['bound']:.4f}", f"{found['norm']:.5g}"])
    table = Table(*HEAD, title="iwae of a VAE, value and gradient")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if options.out:
        lines = [f"# Many particles, {date.today()}", "", f"Device: {device_name()}. `{_command(options)}`", ""]
        lines += [
            "The value and gradient of `iwae` of the digits VAE, in a process of its own for every row: peak resident memory and",
            "what it was before the first evaluation, the second evaluation's seconds, the bound (nats per image) and the",
            "gradient's norm, which are the same however many particles are taken at a time.",
            "",
        ]
        lines += [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---:"] * len(HEAD), *rows)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def work(particles: int, images: int, chunk: int) -> int:
    import jax
    import numpy as np
    import optax

    import jvi
    from examples.digits_vae import guide, load, model

    x = jax.device_put(load()[0][:images])
    objective = jvi.per_example(jvi.iwae(model, guide, num_samples=particles, chunk_size=chunk or None))
    params = objective.init(jax.random.key(0), x)
    before = _peak()
    compiled = jax.jit(jax.value_and_grad(objective, has_aux=True))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        (bound, _), grads = jax.block_until_ready(compiled(params, jax.random.key(1), x))
        seconds.append(time.perf_counter() - began)
    norm = float(np.asarray(optax.tree.norm(grads)))
    print(json.dumps({"peak": _peak(), "before": before, "seconds": seconds[-1], "bound": float(bound), "norm": norm}))
    return 0


def _peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _command(options: argparse.Namespace) -> str:
    return f"python -m benchmarks.many_particles --particles {options.particles} --images {options.images}"


if __name__ == "__main__":
    sys.exit(main())
