"""Where minibatches come from: loaders with a state, threads that read ahead, memory maps, positions to go on from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import jvi
from jvi._feeds import Stacks
from jvi._shuffle import shuffled, shuffled_on_host
from jvi._spec import spec
from jvi.objectives import Aux

KEY = jax.random.key(0)
GUIDE = jvi.guides.MeanField(jvi.space({"mean": jvi.real()}))
MODEL = jvi.model(lambda x, z: norm.logpdf(z["mean"], 0.0, 10.0) + norm.logpdf(x, z["mean"], 1.0))
SVI = jvi.SVI(jvi.per_example(jvi.elbo(MODEL, GUIDE)), jvi.optimizer(optax.adam, 1e-2))
DATA = np.random.default_rng(0).normal(size=42).astype(np.float32)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "jvi-input"]


def same(state, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state.params, other.params))


def drawn(stacks, count):
    """Minibatches, three at a time."""
    found = []
    while len(found) < count:
        stack, got = stacks.take(min(3, count - len(found)), 2)
        if not got:
            break
        found += [row.copy() for row in stack[:got]]
    return np.array(found)


def data_loader():
    sampler = grain.samplers.IndexSampler(42, shuffle=True, seed=1, num_epochs=2)
    batch = grain.transforms.Batch(4, drop_remainder=True)
    return grain.DataLoader(data_source=DATA, sampler=sampler, operations=[batch])


def map_dataset():
    return grain.MapDataset.source(DATA).seed(3).shuffle().repeat(2).batch(4, drop_remainder=True)


def iter_dataset():
    return grain.MapDataset.source(DATA).seed(3).shuffle().to_iter_dataset().batch(4, drop_remainder=True)


class Epochs:
    """Started anew, it goes on in another order."""

    def __init__(self):
        self.rng = np.random.default_rng(7)

    def __iter__(self):
        order = self.rng.permutation(42)
        return (DATA[order[i : i + 4]] for i in range(0, 40, 4))


class Indexed:
    """A list that remembers what was looked at; its last minibatch is smaller."""

    def __init__(self):
        self.seen = []

    def __len__(self):
        return 11

    def __getitem__(self, i):
        self.seen.append(i)
        if i >= len(self):
            raise IndexError(i)
        return DATA[4 * i : 4 * i + 4]

    def __iter__(self):
        return (self[i] for i in range(len(self)))


SOURCES = {
    "DataLoader": data_loader,
    "its iterator": lambda: iter(data_loader()),
    "MapDataset": map_dataset,
    "IterDataset": iter_dataset,
    "iterable": Epochs,
    "list": lambda: [DATA[i : i + 4] for i in range(0, 40, 4)],
    "indexed": Indexed,
    "iterator": lambda: (DATA[i : i + 4] for i in [*range(0, 40, 4)] * 3),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.filterwarnings("ignore:the last minibatch of an epoch")
def test_what_comes_after_a_position_comes_again(name):
    with Stacks(SOURCES[name]()) as whole:
        everything = drawn(whole, 26)
    assert len(everything) == (21 if name == "its iterator" else 26)
    for count in (0, 1, 7, 10, 13):
        with Stacks(SOURCES[name]()) as first:
            np.testing.assert_array_equal(drawn(first, count).reshape(count, 4), everything[:count])
            position = json.loads(json.dumps(first.position))
        assert position["count"] == count  # of what was handed out, whatever was read ahead
        assert (position["source"] is not None) == (name in list(SOURCES)[:4])
        with Stacks(SOURCES[name]()) as second:
            second.seek(position)
            assert second.position == position
            np.testing.assert_array_equal(drawn(second, 8), everything[count : count + 8])
    assert not threads()


@pytest.mark.quick
def test_going_to_a_position_in_a_list_reads_nothing_in_between():
    batches = Indexed()
    stacks = Stacks(batches)
    batches.seen.clear()
    stacks.seek({"count": 16, "source": None})
    stack, _ = stacks.take(1)
    np.testing.assert_array_equal(stack[0], DATA[24:28])
    assert batches.seen == [10, 6]  # the last, which may be smaller, and what is wanted


@pytest.mark.quick
def test_positions_that_cannot_be_gone_to_are_refused():
    stacks = Stacks(iter([np.zeros(3)] * 5))
    with pytest.raises(ValueError, match="ended after 5 minibatches, and the position is after 9"):
        stacks.seek({"count": 9, "source": None})
    with pytest.raises(ValueError, match="cannot go back to minibatch 2"):
        stacks.seek({"count": 2, "source": None})
    with pytest.raises(ValueError, match="without a state of its source is not one of a DataLoader"):
        Stacks(data_loader()).seek({"count": 2, "source": None})
    with pytest.raises(ValueError, match="with a state of its source is not one of a list"):
        Stacks([np.zeros(3)]).seek({"count": 2, "source": {"next_index": 2}})


@pytest.mark.quick
def test_a_run_on_a_loader_is_a_run_on_its_minibatches():
    loaded, _ = jvi.fit_batches(SVI, KEY, data_loader(), num_steps=30)
    listed = list(data_loader())
    plain, _ = jvi.fit_batches(SVI, KEY, listed, num_steps=30)
    assert same(loaded, plain)
    halves, _ = jvi.fit_batches(SVI, KEY, iter(listed * 2), num_steps=17)
    rest = iter(listed * 2)
    halves, _ = jvi.fit_batches(SVI, KEY, [next(rest) for _ in range(30)][17:], num_steps=13, state=halves)
    assert same(halves, plain)


@pytest.mark.quick
def test_an_error_comes_at_its_minibatch_with_its_own_traceback():
    def batches(kind):
        for i in range(100):
            if i == 77:
                raise kind("no more of this")
            yield np.ones(4, np.float32)

    seen = []
    for kind in (OSError, ValueError, KeyboardInterrupt):
        seen.clear()
        with pytest.raises(kind, match="no more of this") as caught:
            jvi.fit_batches(
                SVI, KEY, batches(kind), num_steps=100, callback=lambda s, _: seen.append(int(s.step)), callback_every=11
            )
        assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "batches"
        assert not threads()
        if kind is not KeyboardInterrupt:
            assert seen == [11, 22, 33, 44, 55, 66, 77]
            assert "minibatch number 77" in caught.value.__notes__[0]


@pytest.mark.quick
def test_no_thread_outlives_a_run_and_no_more_is_read_than_is_needed():
    count = 0

    def batches():
        nonlocal count
        while True:
            count += 1
            yield np.ones(4, np.float32)

    jvi.fit_batches(SVI, KEY, batches(), num_steps=200)
    assert (count, threads()) == (200, [])
    jvi.fit_batches(SVI, KEY, batches(), num_steps=150, callback=lambda s, _: int(s.step) >= 128, callback_every=64)
    assert count <= 200 + 150
    assert not threads()

    def interrupted(state, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jvi.fit_batches(SVI, KEY, batches(), num_steps=200, callback=interrupted, callback_every=20)
    assert not threads()


@spec
class Slow:
    """An objective that takes its time: a hundredth of a second."""

    def init(self, rng, x):
        return jnp.zeros(())

    def __call__(self, params, rng, x, *, beta=1.0):
        def wait(x):
            time.sleep(0.01)
            return x

        seen = jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return params + jnp.mean(seen), Aux(jnp.zeros(1))


@pytest.mark.quick
def test_reading_overlaps_the_steps():
    def batches():
        while True:
            time.sleep(0.01)
            yield np.ones(4, np.float32)

    svi = jvi.SVI(Slow(), jvi.optimizer(optax.sgd, 0.1))
    options = {"num_steps": 64, "callback": lambda *_: False, "callback_every": 8}
    jvi.fit_batches(svi, KEY, [np.ones(4, np.float32)], num_steps=1)  # compiles
    stream, times = batches(), [time.perf_counter()]
    jvi.fit_batches(svi, KEY, [np.ones(4, np.float32)], **options)
    times.append(time.perf_counter())
    for _ in range(64):
        next(stream)
    times.append(time.perf_counter())
    jvi.fit_batches(svi, KEY, stream, **options)
    alone, reading, both = np.diff([*times, time.perf_counter()])
    assert both < 0.5 * max(alone, reading) + 0.5 * (alone + reading), (alone, reading, both)


@pytest.mark.quick
def test_a_smaller_last_minibatch_sits_out_and_any_other_is_an_error():
    batches = [DATA[i : i + 4] for i in range(0, 42, 4)]  # the last has 2
    with pytest.warns(UserWarning, match=r"float32\[2\], is smaller than the others, float32\[4\], and sits out") as caught:
        short, _ = jvi.fit_batches(SVI, KEY, batches, num_steps=25)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    full, _ = jvi.fit_batches(SVI, KEY, batches[:-1], num_steps=25)
    assert same(short, full)
    with pytest.warns(UserWarning, match="ended after 10 of 25|smaller than") as caught:
        ended, _ = jvi.fit_batches(SVI, KEY, iter(batches), num_steps=25)
    assert [str(one.message).split(",")[0] for one in caught] == [
        "the last minibatch of an epoch", "the iterator ended after 10 of 25 batches; the run ends there.",
    ]  # fmt: skip
    assert int(ended.step) == 10
    for odd in (DATA[:2], DATA[:5], DATA[:4].astype(np.int32), DATA[:4, None]):
        with pytest.raises(jvi.FitError, match="every minibatch must have the first one's shapes") as error:
            jvi.fit_batches(SVI, KEY, iter([*batches[:10], odd, batches[0]]), num_steps=12)
        assert int(error.value.state.step) == 10


@pytest.fixture
def mapped(tmp_path):
    def write(data):
        np.save(tmp_path / "data.npy", data)
        return np.load(tmp_path / "data.npy", mmap_mode="r")

    return write


@pytest.mark.quick
@pytest.mark.parametrize("size", [1, 5, 65_537])
def test_the_order_on_the_host_is_that_on_the_device(size):
    key = jax.random.bits(jax.random.key(3), (2,))
    i = np.random.default_rng(0).integers(0, size, (3, 20))
    found = shuffled_on_host(np.asarray(key), np.array([[0], [1], [7]]), i, size)
    for row, epoch in enumerate((0, 1, 7)):
        np.testing.assert_array_equal(found[row], shuffled(key, jnp.asarray(epoch), jnp.asarray(i[row]), size))


@pytest.mark.quick
def test_a_memory_map_trains_as_the_array_in_memory(mapped):
    """Bit for bit, over several epochs and stacks, in one run or two; beside an array in memory too."""
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(1_003, 5)).astype(np.float32), "b": rng.normal(size=1_003)}
    model = jvi.model(lambda x, z: norm.logpdf(z["mean"]) + norm.logpdf(x["a"], z["mean"] + x["b"]).sum())
    svi = jvi.SVI(jvi.per_example(jvi.elbo(model, GUIDE)), jvi.optimizer(optax.adam, 1e-2))
    plain, info = jvi.fit_batches(svi, KEY, x, num_steps=300, batch_size=100)
    on_disk = {**x, "a": mapped(x["a"])}
    found, found_info = jvi.fit_batches(svi, KEY, on_disk, num_steps=300, batch_size=100)
    assert same(found, plain)
    np.testing.assert_array_equal(found_info.bound, info.bound)
    half, _ = jvi.fit_batches(svi, KEY, {**x, "a": np.asarray(on_disk["a"])[:]}, num_steps=123, batch_size=100)
    both, _ = jvi.fit_batches(svi, jax.random.key(9), on_disk, num_steps=177, batch_size=100, state=half)
    assert same(both, plain)
    with pytest.raises(ValueError, match="batch_size must be no more than the 1003 examples in batches, got 2000"):
        jvi.fit_batches(svi, KEY, on_disk, num_steps=3, batch_size=2_000)


@pytest.mark.quick
def test_what_the_device_has_no_room_for_stays_on_the_host(monkeypatch):
    plain, _ = jvi.fit_batches(SVI, KEY, DATA, num_steps=30, batch_size=4)
    monkeypatch.setattr("jvi._maps._device_bytes", lambda: 300)
    monkeypatch.setattr(sys.modules["jvi.fit"], "held", None)  # is not called
    found, _ = jvi.fit_batches(SVI, KEY, DATA, num_steps=30, batch_size=4)
    assert same(found, plain)


@pytest.mark.quick
def test_a_nan_in_a_map_is_an_error_when_it_comes_up(mapped):
    x = DATA.copy()
    x[17] = np.nan
    with pytest.raises(ValueError, match="must not hold NaN, got 1 of 4 values") as error:
        jvi.fit_batches(SVI, KEY, mapped(x), num_steps=30, batch_size=4)
    step = int(error.value.state.step) if isinstance(error.value, jvi.FitError) else 0
    key = jax.random.bits(jax.random.fold_in(KEY, 0xFFFFFFFE), (2,))
    assert 17 in shuffled(key, jnp.asarray(0), 4 * step + jnp.arange(4), 42)


@pytest.mark.quick
def test_a_run_on_a_map_takes_the_memory_of_a_few_stacks(mapped):
    x = mapped(np.zeros((40_000, 1_000), np.uint8))  # 40 MB
    model = jvi.model(lambda x, z: norm.logpdf(z["mean"]) + norm.logpdf(x.mean(), z["mean"]))
    objective = jvi.objectives.augmented(jvi.per_example(jvi.elbo(model, GUIDE)), jvi.augment.binarized)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2))
    jvi.fit_batches(svi, KEY, x, num_steps=3, batch_size=20)
    tracemalloc.start()
    jvi.fit_batches(svi, KEY, x, num_steps=200, batch_size=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 64 * 20 * 1_000  # one stack in use, one in the making, and what gathering takes


def test_a_run_that_drives_itself_reads_maps_too(mapped):
    x = mapped(np.random.default_rng(0).normal(1.0, 1.0, 2_000).astype(np.float32))
    found = jvi.adapt(SVI, KEY, x, batch_size=100, max_steps=6_000)
    assert abs(float(found.state.params.guide.loc[0]) - float(np.mean(x))) < 0.1
    assert not threads()


BEFORE = """
import os, zlib
import grain, jax, jax.numpy as jnp, numpy as np, optax
import jvi

def log_joint(x, z):
    return -0.5 * jnp.sum((x - z["mean"]) ** 2) - 0.5 * z["mean"] ** 2

def stop(state, info):
    if int(state.step) == int(os.environ["STOP"]):
        raise InterruptedError

images, rng = np.random.default_rng(0).normal(size=(1_000, 3)).astype(np.float32), jax.random.key(0)
guide = jvi.guides.MeanField(jvi.space({"mean": jvi.real()}))
svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(log_joint), guide)), jvi.optimizer(optax.adam, 1e-2))
"""
AFTER = """
    print(len(info.bound), zlib.crc32(info.bound.tobytes()), [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state.params)])
"""
CHANGES = {
    "worker_count=4": "worker_count=2",
    "100_000": "90, checkpoint_every=20, callback=stop, callback_every=10, progress=False",
}


@pytest.mark.long
def test_the_recipe_with_worker_processes_runs_and_resumes(tmp_path):
    """As docs/input.md has it: broken off and started again it ends, bit for bit, where it would have."""
    root = Path(jvi.__file__).parents[1]
    (recipe,) = re.findall(r"```python\n(from absl.*?)```", (root / "docs" / "input.md").read_text(), re.DOTALL)
    for old, new in CHANGES.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    (tmp_path / "program.py").write_text(BEFORE + recipe + AFTER)

    def run(folder, stop):
        (tmp_path / folder).mkdir(exist_ok=True)
        environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(root), "STOP": str(stop)}
        command = [sys.executable, "-W", "ignore", str(tmp_path / "program.py")]
        return subprocess.run(
            command, cwd=tmp_path / folder, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    broken, resumed, unbroken = run("one", 50), run("one", -1), run("other", -1)
    assert "InterruptedError" in broken.stderr
    assert resumed.stdout.startswith("90 "), resumed.stderr[-3_000:]
    assert resumed.stdout == unbroken.stdout
