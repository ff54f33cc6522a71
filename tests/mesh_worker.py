"""One of several processes: `python tests/mesh_worker.py TASK[:OPTION...] ID COUNT PORT OUT`."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import grain
import jax
import numpy as np
from cases_meshes import BATCH, OBJECTIVES, REAL, X, key, run, svi

import jvi


def main(task, options, me, count, port, out):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, me, heartbeat_timeout_seconds=10)
    task(me, count, jvi.sharding.data_mesh(), out, *options)


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
    ragged = [*slices(me, count, 10), *([X[:1]] if last else [])]  # of the last process alone the last minibatch is smaller
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, epochs = jvi.fit_batches(one, key(), ragged, num_steps=25, mesh=mesh)
        _, uneven = jvi.fit_batches(one, key(), iter(ragged if last else [*ragged, *ragged]), num_steps=25, mesh=mesh)
    found |= {
        "epochs": epochs.bound,
        "uneven": uneven.bound,
        "sits out": sum("smaller than the others" in str(one.message) for one in told),
        "bound": info.bound,
        "streamed": streamed.bound,
        "ended": np.array([str(one.message) for one in caught if "ended after 10" in str(one.message)]),
        "spoiled": refused(one, key(), slices(me, count, 100, 70 if last else None), num_steps=90, mesh=mesh),
        "other key": refused(one, jax.random.key(me), slices(me, count, 9), num_steps=9, mesh=mesh) if count > 1 else "",
    }
    np.savez(out / f"{count}-{me}.npz", **found)


def loader(me, count):
    """Whose state is another one on every process."""
    return grain.DataLoader(
        data_source=X,
        sampler=grain.samplers.IndexSampler(len(X), shuffle=True, seed=0),
        shard_options=grain.sharding.ShardOptions(me, count, drop_remainder=True),
        operations=[grain.transforms.Batch(BATCH // count, drop_remainder=True)],
    )


def kept(mesh, batches, folder, stop=None, num_steps=100, batch_size=None):
    """A run that is kept in a folder, and broken off behind a step."""

    def callback(state, info):
        if int(state.step) == stop:
            raise InterruptedError

    try:
        return jvi.fit_batches(
            svi(OBJECTIVES["elbo"]), key(), batches, num_steps=num_steps, batch_size=batch_size, mesh=mesh, checkpoint=folder,
            checkpoint_every=30, callback=callback, callback_every=10,
        )  # fmt: skip
    except InterruptedError:
        return None


def numbers_of(state, info):
    """By name, to be compared."""
    leaves = jax.tree.leaves((state.params, state.opt_state))
    return {f"leaf {i}": np.asarray(leaf) for i, leaf in enumerate(leaves)} | {"bound": info.bound}


def broken(me, count, mesh, out):
    """Runs of several processes that are broken off; one of them is resumed here, and must end where it would have."""
    kept(mesh, loader(me, count), out / "loader", stop=70)
    found, expected = (numbers_of(*kept(mesh, loader(me, count), folder)) for folder in (out / "loader", None))
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    kept(mesh, slices(me, count, 100), out / "stream", stop=70)
    kept(mesh, np.load(out / "x.npy", mmap_mode="r"), out / "map", stop=70, batch_size=BATCH)
    # The first process's minibatches end before the others', which must not lose those that were read by then.
    kept(mesh, slices(me, count, 45 + 3 * me), out / "ended")
    found, expected = (numbers_of(*kept(mesh, slices(me, count, 100), folder)) for folder in (out / "ended", None))
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def resumed(me, count, mesh, out):
    """On one process, what several have begun."""
    ways = {
        "stream": lambda folder: kept(mesh, slices(me, count, 100), folder),
        "map": lambda folder: kept(mesh, np.load(out / "x.npy", mmap_mode="r"), folder, batch_size=BATCH),
    }
    for way, go_on in ways.items():
        found, expected = numbers_of(*go_on(out / way)), numbers_of(*go_on(None))
        for name in found:
            error = 64 * np.finfo(np.float32).eps
            np.testing.assert_allclose(found[name], expected[name], rtol=error, atol=error, err_msg=f"{way}, {name}")
    try:
        kept(mesh, loader(me, count), out / "loader", num_steps=110)
    except ValueError as error:
        print(error)


def death(me, count, mesh, out, who, how):
    """A process ends, or stops for good, in the middle of a run."""

    def until():
        for i, batch in enumerate(slices(me, count, 10**9)):
            if me == int(who) and i == 300:
                (out / "died").write_text(str(time.time()))
                os.kill(os.getpid(), getattr(signal, how))
            yield batch

    jvi.fit_batches(svi(OBJECTIVES["elbo"]), key(), until(), num_steps=10**9, mesh=mesh)


if __name__ == "__main__":
    name, *whole, out = sys.argv[1:]
    name, *options = name.split(":")
    main({task.__name__: task for task in (numbers, broken, resumed, death)}[name], options, *map(int, whole), Path(out))
