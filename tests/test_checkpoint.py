"""Runs on disk: broken off and resumed they end where unbroken ones do; whatever is wrong with a folder is said, and nothing lost."""

from __future__ import annotations

import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cases_meshes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jvi
from jvi import __main__ as command
from jvi import _drive
from jvi._store import Store

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(1.0, 1.0, 64).astype(np.float32)


def log_joint(x, z):
    return -0.5 * jnp.sum((x - z["mean"]) ** 2) - 0.5 * jnp.sum(z["mean"] ** 2)


def build(size=1, num_samples=2, optimizer=None):
    guide = jvi.guides.MeanField(jvi.space({"mean": jvi.real(size)}))
    objective = jvi.per_example(jvi.elbo(jvi.model(log_joint), guide, num_samples=num_samples))
    return jvi.SVI(objective, optimizer or jvi.optimizer(optax.adam, 1e-2))


def stream(length=200):
    return (DATA[i % 8 * 8 :][:8] + np.float32(i % 3) for i in range(length))


def fit(folder, num_steps=200, batches=None, svi=None, rng=KEY, batch_size=8, **options):
    batches, batch_size = (DATA, batch_size) if batches is None else (batches, None)
    return jvi.fit_batches(
        svi or build(), rng, batches, num_steps=num_steps, batch_size=batch_size, checkpoint=folder, checkpoint_every=30,
        progress=False, **options,
    )  # fmt: skip


def same(one, other):
    """Bit for bit, keys included."""
    leaves = [
        [np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf) for leaf in found]
        for found in (jax.tree.leaves(one), jax.tree.leaves(other))
    ]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(*leaves, strict=True))


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def attempt(call):
    """What comes of it, or the error."""
    try:
        return call()
    except ValueError as error:
        return error


class BrokenError(Exception):
    pass


def stop_at(step):
    def callback(state, info):
        if int(state.step) == step:
            raise BrokenError

    return callback


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was broken off at step 140, with checkpoints behind steps 60, 90 and 120, and the best."""
    folder = tmp_path_factory.mktemp("run") / "new"
    with pytest.raises(BrokenError):
        fit(folder, callback=stop_at(140), callback_every=20)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_resumed_run_ends_where_an_unbroken_one_does(copy):
    unbroken = fit(None)
    seen = []
    steps = Store(copy).steps()
    assert steps[-3:] == [60, 90, 120]
    assert len(steps) <= 4
    resumed = fit(copy, callback=lambda state, info: seen.append((int(state.step), len(info.bound))), callback_every=50)
    assert same(resumed, unbroken)
    assert seen == [(150, 50), (200, 50)]  # the callback misses nothing of the steps it is told of
    assert same(fit(copy), unbroken)  # complete: nothing is done
    assert same(fit(copy, 230), fit(None, 230))  # and goes on when more is wanted
    with pytest.raises(ValueError, match=r"230 steps already.*200 here"):
        fit(copy, 200)


def test_a_callback_that_ends_a_run_ends_it_for_good(tmp_path):
    ended = fit(tmp_path, callback=lambda state, info: int(state.step) == 100, callback_every=50)
    assert int(ended[0].step) == 100
    assert same(fit(tmp_path), ended)
    assert same(fit(tmp_path, 130), fit(None, 130))  # another number of steps is another wish


def test_a_resumed_iterator_goes_on_where_it_stood(tmp_path):
    with pytest.raises(BrokenError):
        fit(tmp_path, batches=stream(), callback=stop_at(140), callback_every=20)
    assert same(fit(tmp_path, batches=stream()), fit(None, batches=stream()))
    batches = [DATA[:8], DATA[8:16], DATA[16:24]]
    with pytest.raises(BrokenError):
        fit(tmp_path / "list", batches=batches, callback=stop_at(140), callback_every=20)
    assert same(fit(tmp_path / "list", batches=batches), fit(None, batches=batches))


@pytest.mark.long
def test_a_resumed_run_on_a_memory_map_goes_on_where_it_stood(tmp_path):
    np.save(tmp_path / "data.npy", DATA)
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    options = {"batch_size": 8, "checkpoint_every": 30, "progress": False}
    for first in (None, 17):  # from the beginning, and from a state
        folder, begun = tmp_path / str(first), first and jvi.fit_batches(build(), KEY, mapped, num_steps=first, **options)[0]

        def run(folder, begun=begun, **more):
            state = begun and jax.tree.map(jnp.copy, begun)
            return jvi.fit_batches(build(), KEY, mapped, num_steps=100, state=state, checkpoint=folder, **options, **more)

        with pytest.raises(BrokenError):
            run(folder, callback=stop_at((first or 0) + 70), callback_every=10)
        assert same(run(folder), run(None))


def test_an_iterator_that_ends_early_leaves_a_run_to_go_on_with(tmp_path):
    with pytest.warns(UserWarning, match="ended after 70 of 200"):
        fit(tmp_path, batches=stream(70))
    with pytest.warns(UserWarning, match="ended after 70 of 200"):
        assert len(fit(tmp_path, batches=stream(70))[1].bound) == 70
    assert same(fit(tmp_path, batches=stream()), fit(None, batches=stream()))


@pytest.mark.long
@pytest.mark.parametrize("batches", [None, stream])
def test_a_resumed_run_that_drives_itself_ends_where_an_unbroken_one_does(tmp_path, monkeypatch, batches):
    def drive(folder):
        return fit(folder, None, batches and [DATA[i : i + 8] for i in range(0, 64, 8)], svi=build(optimizer=jvi.SVI.optimizer))

    unbroken = drive(None)
    settle, calls = _drive.Drive.settle, []

    def broken(self):
        calls.append(self)
        if len(calls) in (1, 3):
            raise BrokenError
        return settle(self)

    monkeypatch.setattr(_drive.Drive, "settle", broken)
    for _ in range(2):
        with pytest.raises(BrokenError):
            drive(tmp_path)
    assert same(drive(tmp_path), unbroken)
    calls = [None] * 3
    assert same(drive(tmp_path), unbroken)  # complete
    assert len(calls) == 3
    assert same(jvi.checkpoint.restore(tmp_path, unbroken[0]), unbroken[0])


def test_fit_on_all_data_is_kept_too(tmp_path):
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), jvi.guides.MeanField(jvi.space({"mean": jvi.real(1)}))))
    unbroken = jvi.fit(svi, KEY, DATA, num_steps=80)
    with pytest.raises(BrokenError):
        jvi.fit(svi, KEY, DATA, num_steps=80, checkpoint=tmp_path, checkpoint_every=25, callback=stop_at(60), callback_every=20)
    assert same(jvi.fit(svi, KEY, DATA, num_steps=80, checkpoint=tmp_path, checkpoint_every=25), unbroken)


@pytest.mark.long
def test_the_best_is_kept_by_its_own_bound(tmp_path):
    """A learning rate that jumps ruins the fit: the best checkpoint is an early one."""

    def ruinous():
        return optax.adam(optax.piecewise_constant_schedule(3e-2, {150: 30.0}))

    state, _ = fit(tmp_path, 300, svi=build(optimizer=jvi.optimizer(ruinous)))
    store = Store(tmp_path)
    records = {step: store.record(step) for step in store.steps()}
    best = max(records, key=lambda step: records[step]["bound"])
    assert list(records)[-3:] == [240, 270, 300]
    assert best < 240
    assert len(records) == 4
    found = jvi.checkpoint.restore(tmp_path, state, best=True)
    assert int(found.step) == best
    # The bound that is reported is that of these parameters: other keys give it to six standard errors of both.
    objective, x = build().objective, jnp.asarray(DATA)
    again = jax.jit(jax.vmap(lambda key: objective(found.params, key, x)[0]))(jax.random.split(jax.random.key(5), 256))
    error = np.hypot(records[best]["standard_error"], np.std(again) / 16.0)
    assert abs(records[best]["bound"] - np.mean(again)) < 6.0 * error


WRONG = {
    "leaf": ({"svi": build(3)}, r"first leaf that differs: params.guide.loc is float32\[1\] there and float32\[3\] here"),
    "optimizer": (
        {"svi": build(optimizer=jvi.optimizer(optax.sgd, 1e-2))},
        r"leaf that differs: opt_state.*only there|stands",
    ),
    "rate": ({"svi": build(optimizer=jvi.optimizer(optax.adam, 2e-2))}, r"another optimizer: .*0\.01.*there.*0\.02.*here"),
    "objective": ({"svi": build(num_samples=3)}, "another objective"),
    "batch size": ({"batch_size": 16}, r"another data: .*of 8 there, .*of 16 here"),
    "key": ({"rng": jax.random.key(1)}, "another key"),
    "beta": ({"beta": 0.5}, "another beta"),
    "iterator": ({"batches": stream()}, "another data"),
    "self-driven": ({"num_steps": None}, r"leaf that differs|another end"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_run_is_refused_and_nothing_is_written(run, name):
    options, message = WRONG[name]
    before = contents(run)
    with pytest.raises(ValueError, match=message):
        fit(run, **options)
    assert contents(run) == before


def test_folders_of_others_are_refused(copy, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for use in (fit, lambda folder: jvi.checkpoint.restore(folder, fit(None)[0]), jvi.checkpoint.latest):
        with pytest.raises(ValueError, match=r"holds thesis.tex and no run.json"):
            use(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        fit(foreign / "thesis.tex")
    with pytest.raises(TypeError, match="must be a path"):
        fit(3)
    (copy / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is damaged"):
        fit(copy)
    (copy / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds steps and no run\.json"):
        fit(copy)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        jvi.checkpoint.restore(tmp_path / "empty", fit(None)[0])
    assert jvi.checkpoint.latest(tmp_path / "empty") is None


def test_a_folder_belongs_to_one_process(copy):
    store = Store(copy)
    store.lock()
    with pytest.raises(RuntimeError, match="another process runs"):
        fit(copy)
    store.unlock()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that go on while one has failed
def test_a_truncated_checkpoint_is_told_and_the_one_before_taken(run, tmp_path):
    """Every file of the newest checkpoint in turn, cut to half: it is noticed, or it made no difference."""
    unbroken, like = fit(None), jax.eval_shape(lambda: build().init(KEY, jnp.asarray(DATA[:8])))
    whole, files, noticed = (
        jvi.checkpoint.restore(run, like),
        sorted(path for path in (run / "steps/120").rglob("*") if path.is_file()),
        0,
    )
    for number, path in enumerate(files):
        folder = shutil.copytree(run, tmp_path / str(number))
        (folder / path.relative_to(run)).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        found = attempt(lambda folder=folder: jvi.checkpoint.restore(folder, like))
        if not isinstance(found, ValueError):
            assert same(found, whole)
            continue
        noticed += 1
        assert "120" in str(found)
        assert "say step=90" in str(found)
        if noticed % 3 == 1:
            with pytest.warns(UserWarning, match=r"checkpoint 120 .*moved to damaged-120.*goes on from checkpoint 90"):
                assert same(fit(folder), unbroken)
            assert (folder / "damaged-120").is_dir()
    assert noticed >= 3


def test_where_no_checkpoint_is_whole_nothing_is_written(copy):
    for step in Store(copy).steps():
        shutil.rmtree(copy / "steps" / str(step) / "state")
    before = contents(copy)
    with pytest.raises(ValueError, match="no older one is whole"):
        fit(copy)
    assert contents(copy) == before


def test_rows_that_are_missing_make_a_checkpoint_useless(copy):
    with open(copy / "log.bin", "r+b") as file:
        file.truncate(100 * 16)
    with pytest.warns(UserWarning, match=r"checkpoint 120 needs 1920 bytes.*from checkpoint 90"):
        assert same(fit(copy), fit(None))


@pytest.mark.long
# The first file that fails ends orbax's event loop; those that fail after it find it closed, in their own threads.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_told_and_the_run_goes_on_later(tmp_path):
    """The limit on the size of a file stands for the end of the disk."""
    svi = build(10_000)
    fit(tmp_path, 30, svi=svi)
    before = contents(tmp_path / "steps")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(jvi.FitError, match=r"could not be written.*newest whole one is 30") as caught:
            fit(tmp_path, 90, svi=svi)
        assert isinstance(caught.value, OSError)
        assert int(caught.value.state.step) >= 60
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before.items() <= contents(tmp_path / "steps").items()
    assert same(fit(tmp_path, 90, svi=svi), fit(None, 90, svi=svi))


def test_states_are_saved_and_restored(tmp_path):
    svi = build()
    state, _ = fit(None, 40)
    assert jvi.checkpoint.save(tmp_path, state) == 40
    later, _ = fit(None, 50)
    assert jvi.checkpoint.save(tmp_path, later) == jvi.checkpoint.latest(tmp_path) == 50
    assert same(jvi.checkpoint.restore(tmp_path, svi.init(KEY, DATA[:8])), later)
    assert same(jvi.checkpoint.restore(tmp_path, later, step=40), state)
    with pytest.raises(ValueError, match="holds a state after 40 steps already"):
        jvi.checkpoint.save(tmp_path, state)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 45.*only 40, 50"):
        jvi.checkpoint.restore(tmp_path, later, step=45)
    with pytest.raises(ValueError, match="holds no bounds"):
        jvi.checkpoint.restore(tmp_path, later, best=True)
    with pytest.raises(ValueError, match=r"params.guide.loc is float32\[1\] there and float32\[2\] here"):
        jvi.checkpoint.restore(tmp_path, build(2).init(KEY, DATA[:8]))
    with pytest.raises(ValueError, match=r"jvi.checkpoint.save wrote, and no run"):
        fit(tmp_path)
    with pytest.raises(TypeError, match=r"must be a jvi\.State"):
        jvi.checkpoint.save(tmp_path, state.params)


def test_leaves_of_every_kind_are_restored_anywhere(tmp_path):
    """Halves, counts, flags, keys, nothing at all; saved from eight devices, restored to one, two and eight."""
    devices = np.array(jax.devices())

    def placed(number):
        mesh = Mesh(devices[:number], ("data",))
        split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        params = {
            "rows": jax.device_put(jnp.arange(16.0), split), "half": jax.device_put(jnp.ones(3, jnp.bfloat16) / 3, whole),
            "flag": jnp.asarray([True, False]), "empty": jnp.zeros((0, 4)),
        }  # fmt: skip
        key = jax.device_put(jax.random.key(7, impl="rbg"), whole)
        zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
        return jvi.State(params, (jax.random.key(3),), key, *zeros)

    jvi.checkpoint.save(tmp_path, placed(8))
    for number in (1, 2, 8):
        like = placed(number)
        found = jvi.checkpoint.restore(tmp_path, jax.tree.map(jnp.zeros_like, like)._replace(rng=like.rng))
        assert same(found, like)
        assert found.params["rows"].sharding == like.params["rows"].sharding
        assert len(found.params["rows"].devices()) == number
        assert not found.params["flag"].committed
    with pytest.raises(ValueError, match=r"rng is key<rbg>\[\] there and key<fry>\[\] here"):
        jvi.checkpoint.restore(tmp_path, like._replace(rng=jax.random.key(0)))


@pytest.mark.long
def test_a_run_broken_off_on_eight_devices_goes_on_on_others(tmp_path):
    """To the rounding of an unbroken run on one; parameters that were split, too."""
    state, info = cases_meshes.run(cases_meshes.OBJECTIVES["elbo"])
    for name, mesh in {"whole": jvi.sharding.data_mesh(), "split": jvi.sharding.mesh(fsdp=8)}.items():
        options = {"checkpoint_every": 30, "callback": stop_at(70), "callback_every": 10}
        with pytest.raises(BrokenError):
            cases_meshes.run(cases_meshes.OBJECTIVES["elbo"], mesh, checkpoint=tmp_path / name, **options)
        for there in (None, jvi.sharding.data_mesh(2)):
            folder = shutil.copytree(tmp_path / name, tmp_path / f"{name} {there is None}")
            found, told = cases_meshes.run(cases_meshes.OBJECTIVES["elbo"], there, checkpoint=folder)
            assert int(found.step) == len(told.bound) == 100
            assert len(jax.tree.leaves(found.params)[0].devices()) == (1 if there is None else 2)
            error = 64 * np.finfo(np.float32).eps
            jax.tree.map(
                lambda a, b, error=error: np.testing.assert_allclose(a, b, rtol=error, atol=error),
                (found.params, found.opt_state, told.bound), (state.params, state.opt_state, info.bound),
            )  # fmt: skip


def test_nothing_is_unpickled(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert int(jvi.checkpoint.restore(run, build().init(KEY, DATA[:8])).step) == 120


def test_the_command_shows_where_a_run_stands(run, tmp_path, capsys):
    assert command.main(["resume", str(run)]) == 0
    shown = capsys.readouterr().out
    for part in ("step 120 of 200 (60%)", "newest", "best", " ± ", "Start the same program again", "no process runs"):
        assert part in shown
    assert command.main(["resume", str(tmp_path)]) == 1
    assert "no run" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_process_ends_where_an_unbroken_one_does():
    """Three kills of a run on arrays; `python -m benchmarks.killed --times 50` kills runs on iterators and self-driven ones too."""
    command = [sys.executable, "-m", "benchmarks.killed", "--times", "3", "--only", "arrays", "--short"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
