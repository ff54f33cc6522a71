"""What a step costs with guides of chains and trees, by their size: `python -m benchmarks.sequences`.

A step is the ELBO of one draw and its gradient, sticking the landing, of a random walk along the chain or tree whose nodes are all
measured with noise. Time is the processor's, so that other work on the machine counts little (an accelerator's by the clock on the
wall): the least of several rounds, per node.
Memory is what the compiled program needs besides its arguments, per node.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi
from benchmarks.command import command_line
from benchmarks.step_time import device_name
from jvi.guides import Markov, Tree

SIZES = (1_000, 10_000, 100_000)
HEAD = ("guide", "nodes", "depth", "compile, s", "draw, ns a node", "step, ns a node", "memory, bytes a node")


def chain(n: int) -> np.ndarray:
    return np.arange(-1, n - 1)


def star(n: int) -> np.ndarray:
    return np.concatenate([[-1], np.zeros(n - 1, int)])


def binary(n: int) -> np.ndarray:
    return np.concatenate([[-1], np.arange(n - 1) // 2])


def random(n: int) -> np.ndarray:
    return np.concatenate([[-1], (np.random.default_rng(0).uniform(size=n - 1) * np.arange(1, n)).astype(int)])


def broom(n: int) -> np.ndarray:
    """Half of the nodes a chain, the others its first node's children, in between."""
    parents = np.zeros(n, int)
    parents[0], parents[2::2] = -1, np.arange(0, n - 2, 2)
    return parents


SHAPES = (chain, star, binary, random, broom)


def walk(parents: np.ndarray) -> Callable[[Any, Any], Any]:
    """The log-joint of a random walk from parents to children."""
    above = slice(0, len(parents) - 1) if np.array_equal(parents, chain(len(parents))) else parents[1:]

    def log_joint(x: Any, z: Any) -> Any:
        steps = jnp.concatenate([z[:1], z[1:] - z[above]])
        return -0.5 * jnp.sum(steps**2) - 0.5 * jnp.sum((x - z) ** 2)

    return log_joint


def measure(guide: Any, parents: np.ndarray, rounds: int) -> tuple[float, float, float, float]:
    """Seconds of compilation, of a draw and of a step, and bytes of the step's program."""
    key, x = jax.random.key(0), jnp.zeros(guide.shape)
    objective = jvi.elbo(jvi.model(walk(parents)), guide, gradient=jvi.gradients.stl)
    params = objective.init(key, x)
    params = params._replace(guide=params.guide._replace(link=params.guide.link + 0.5 * jnp.eye(2)))
    start = now()
    draw = jax.jit(lambda params, key: guide.sample_and_log_prob(params.guide, key, x)).lower(params, key).compile()
    step = jax.jit(jax.value_and_grad(lambda params, key: objective(params, key, x)[0])).lower(params, key).compile()
    compiled = now() - start
    return (
        compiled,
        least(draw, params, key, rounds),
        least(step, params, key, rounds),
        step.memory_analysis().temp_size_in_bytes,
    )


def least(function: Any, params: Any, key: Any, rounds: int) -> float:
    """Seconds of a call."""
    found = []
    for _ in range(rounds):
        start = now()
        jax.block_until_ready(function(params, key))
        found.append(now() - start)
    return min(found[1:])


def now() -> float:
    """Seconds: of the processor where it computes, otherwise on the wall."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def specs(n: int, rounds: int) -> tuple[float, float]:
    """Seconds that a tree of n nodes takes to build, and to be looked up among compiled programs, once built."""
    parents = tuple(random(n).tolist())
    start = now()
    guide = Tree(parents, dim=2)
    built = now() - start
    called = jax.jit(lambda guide, u: u + 1.0)
    return built, least(called, guide, jnp.zeros(()), 10 * rounds)


def depth(parents: np.ndarray) -> int:
    found = np.zeros(len(parents), int)
    for node in range(1, len(parents)):
        found[node] = found[parents[node]] + 1
    return int(found.max())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="rounds, 2 or more")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    rows = []
    for n in SIZES:
        for parallel in (False, True):
            scan = "associative scan" if parallel else "scan"
            rows.append((f"Markov, {scan}", n, chain(n), Markov(n, dim=2, parallel=parallel)))
        for shape in SHAPES:
            rows.append((f"Tree, {shape.__name__}", n, shape(n), Tree(shape(n), dim=2)))
        for shape in (chain, binary):
            rows.append((f"Tree, {shape.__name__}, doubling", n, shape(n), Tree(shape(n), dim=2, parallel=True)))
    table, lines = (
        Table(*HEAD),
        [f"# Chains and trees, {date.today()}", "", f"Device: {device_name()}. D = 2."],
    )
    lines += [f"`{command_line('benchmarks.sequences')}`", "", *(__doc__.split("\n\n")[1].strip().splitlines()), ""]
    lines += [f"| {' | '.join(HEAD)} |", "| --- |" + " ---: |" * (len(HEAD) - 1)]
    for name, n, parents, guide in rows:
        compiled, draw, step, size = measure(guide, parents, options.rounds)
        cells = (
            name,
            f"{n:,}",
            f"{depth(parents):,}",
            f"{compiled:.1f}",
            f"{1e9 * draw / n:.0f}",
            f"{1e9 * step / n:.0f}",
            f"{size / n:.0f}",
        )
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    built, called = specs(SIZES[-1], options.rounds)
    note = (
        f"A tree of {SIZES[-1]:,} nodes is checked in {1e3 * built:.0f} ms; a call of a compiled function that takes it as an "
    )
    note += f"argument takes {1e6 * called:.0f} us."
    Console(highlight=False).print(table, note)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*lines, "", note]) + "\n")


if __name__ == "__main__":
    main()
