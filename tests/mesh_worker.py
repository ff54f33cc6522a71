"""One of several processes: `python tests/mesh_worker.py TASK ID COUNT PORT OUT`."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from cases_meshes import BATCH, OBJECTIVES, REAL, X, key, run, svi

import jvi


def main(task, me, count, port, out):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, me, heartbeat_timeout_seconds=10)
    task(me, count, jvi.sharding.data_mesh(), out)


def slices(me, count, num_batches, spoiled=None):
    """This process's rows of each minibatch."""
    mine = BATCH // count
    for i in range(num_batches):
        start = i % 4 * BATCH + me * mine
        batch = X[start : start + mine].copy()
        if i == spoiled:
            batch[0] = np.nan
        yield batch


def refused(*args, **kwargs):
    try:
        jvi.fit_batches(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def numbers(me, count, mesh, out):
    state, info = run(REAL, mesh)
    with jax.enable_x64(True):
        discrete, _ = run(OBJECTIVES["vimco"], mesh)
        found = {f"leaf {i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves((state.params, discrete.params)))}
    one = svi(OBJECTIVES["elbo"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, streamed = jvi.fit_batches(one, key(), slices(me, count, 10 + me), num_steps=50, mesh=mesh)
    last = me == count - 1
    found |= {
        "bound": info.bound,
        "streamed": streamed.bound,
        "ended": np.array([str(one.message) for one in caught if "ended after 10" in str(one.message)]),
        "spoiled": refused(one, key(), slices(me, count, 100, 70 if last else None), num_steps=90, mesh=mesh),
        "other key": refused(one, jax.random.key(me), slices(me, count, 9), num_steps=9, mesh=mesh) if count > 1 else "",
    }
    np.savez(out / f"{count}-{me}.npz", **found)


def death(me, count, mesh, out):
    """The last process kills itself in the middle of a run."""

    def until():
        for i, batch in enumerate(slices(me, count, 10**9)):
            if me == count - 1 and i == 300:
                (out / "died").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    jvi.fit_batches(svi(OBJECTIVES["elbo"]), key(), until(), num_steps=10**9, mesh=mesh)


if __name__ == "__main__":
    name, *whole, out = sys.argv[1:]
    main({"numbers": numbers, "death": death}[name], *map(int, whole), Path(out))
