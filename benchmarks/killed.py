"""Kill a run again and again, and see that it ends where an unbroken one does, bit for bit: `python -m benchmarks.killed --times 50`.

Runs of three kinds are started one after the other: on arrays, on an iterator, and one that drives itself. Each is killed by
SIGKILL at random moments, every other time just after a save has begun, and started again until it is done; then its parameters,
moments, key, counts and curves are compared with those of an unbroken run that kept nothing. The processes are forked from one that
has imported jvi and touched no device, so that a life is short.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

KINDS = ("arrays", "iterator", "driven")
EVERY = {"arrays": 2_000, "iterator": 400, "driven": 1}  # steps between two saves, some tenths of a second
STEPS = {"arrays": 16_000, "iterator": 3_200, "driven": None}


def life(kind: str, folder: Path | None, out: Path, cache: Path) -> None:
    """One process: the whole run, or as much of it as it is left to."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jvi

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    data = np.random.default_rng(0).normal(1.0, 1.0, (512, 16)).astype(np.float32)

    def log_joint(x, z):
        return -0.5 * jnp.sum((x - jnp.tanh(z["loc"])) ** 2) - 0.5 * jnp.sum(z["loc"] ** 2)

    guide = jvi.guides.FullRank(jvi.space({"loc": jvi.real(16)}))
    objective = jvi.per_example(jvi.elbo(jvi.model(log_joint), guide, num_samples=4))
    # One that drives itself ends its own way; the others need not converge.
    svi = jvi.SVI(objective) if kind == "driven" else jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-3))
    batches, batch_size = (
        (data, 32) if kind != "iterator" else ((data[i % 16 * 32 :][:32] * (1.0 + i / 3_200) for i in range(3_200)), None)
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, info = jvi.fit_batches(
            svi, jax.random.key(3), batches, num_steps=STEPS[kind], batch_size=batch_size, checkpoint=folder,
            checkpoint_every=EVERY[kind], progress=False,
        )  # fmt: skip
    state = state._replace(rng=jax.random.key_data(state.rng))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state, info))]
    draft = out.with_suffix(".draft")
    draft.write_bytes(b"".join(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes() for leaf in leaves))
    draft.replace(out)


def born(kind: str, folder: Path | None, out: Path, cache: Path) -> int:
    """The id of a new process that lives a `life`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        life(kind, folder, out, cache)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def alive(child: int) -> bool:
    """Whether a process still runs.

    Raises:
      RuntimeError: if it has failed.
    """
    done, status = os.waitpid(child, os.WNOHANG)
    if done and os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"a process failed with {os.waitstatus_to_exitcode(status)}")
    return not done


def saving(folder: Path) -> bool:
    """Whether a save is in progress."""
    return any("tmp" in path.name for path in folder.glob("steps/*"))


def killed(child: int, folder: Path, moment: float, aimed: bool, chance: random.Random) -> str | None:
    """Kill a process after `moment` seconds, or, when aimed, in the next save after that; where it struck. None if it was too late."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < moment or (aimed and not saving(folder)):
        if not alive(child):
            return None
        time.sleep(0.0005)
    if aimed:
        time.sleep(chance.uniform(0.0, 0.06))
    if not alive(child):
        return None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    steps = [path.name for path in folder.glob("steps/*") if path.name.isdecimal()]
    return "during a save" if saving(folder) else "between saves" if steps else "before the first checkpoint"


def rows(kinds: list[str], times: int, seed: int, home: Path) -> list[tuple[str, dict[str, int], int, bool]]:
    """By kind: where the kills struck, how many runs they were, and whether all of these ended as the unbroken one did."""
    chance, found = random.Random(seed), []
    for kind_number, kind in enumerate(kinds):
        whole, took = home / f"{kind}.whole", 0.0
        for _ in range(2):  # the second one finds what the first has compiled
            begun = time.perf_counter()
            if os.waitstatus_to_exitcode(os.waitpid(born(kind, None, whole, home / "cache"), 0)[1]):
                raise RuntimeError("the unbroken run failed")
            took = time.perf_counter() - begun
        kills = {"before the first checkpoint": 0, "between saves": 0, "during a save": 0}
        wanted, runs, equal = (times + len(kinds) - 1 - kind_number) // len(kinds), 0, True
        while sum(kills.values()) < wanted:
            folder, out = home / f"{kind}-{runs}", home / f"{kind}-{runs}.out"
            runs += 1
            while not out.exists():
                child, enough = born(kind, folder, out, home / "cache"), sum(kills.values()) >= wanted
                if enough:
                    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                        raise RuntimeError("a process failed")
                elif where := killed(child, folder, chance.uniform(0.0, 1.5 * took), sum(kills.values()) % 2 == 1, chance):
                    kills[where] += 1
                    print(f"{kind}: killed {where}", flush=True)
            equal = equal and out.read_bytes() == whole.read_bytes()
            shutil.rmtree(folder)
            print(f"{kind}, run {runs}: {'equal' if equal else 'DIFFERENT'}", flush=True)
        found.append((kind, kills, runs, equal))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.killed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=50, help="how many kills (default: 50)")
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind of run only; may be repeated")
    parser.add_argument("--short", action="store_true", help="runs of a quarter of the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()

    if options.short:
        EVERY.update({kind: max(1, every // 4) for kind, every in EVERY.items()})
        STEPS.update({kind: steps and steps // 4 for kind, steps in STEPS.items()})

    for module in ("orbax.checkpoint", "jvi"):  # so that the processes need not
        importlib.import_module(module)

    with tempfile.TemporaryDirectory() as home:
        found = rows(options.only or list(KINDS), options.times, options.seed, Path(home))
    lines = ["| run | killed | before the first checkpoint | between saves | during a save | runs | bit-equal |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for kind, kills, runs, equal in found:
        counts = " | ".join(str(count) for count in kills.values())
        lines.append(f"| {kind} | {sum(kills.values())} | {counts} | {runs} | {'all' if equal else 'NO'} |")
    print("\n".join(lines))
    if options.out:
        head = f"# {sum(sum(row[1].values()) for row in found)} kills, seed {options.seed}"
        about = " ".join((__doc__ or "").split("\n\n")[1].split())
        options.out.write_text("\n".join([head, "", about, "", *lines, ""]))
    return 0 if all(row[3] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
