"""Meshes: the same numbers on any of them, one sum over devices a step, and parameters where they should be."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_meshes import BATCH, OBJECTIVES, REAL, X, key, run, svi
from jax.scipy.stats import norm

import jvi
from jvi import _feeds as feeds
from jvi import _loops, sharding
from jvi._sources import begin

COLLECTIVE = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def close(found, expected):
    """Equal but for rounding: a hundred steps carry on what differs in the last places of sums."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        error = 64 * np.finfo(np.asarray(other).dtype).eps
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=error, atol=error)


@pytest.mark.long
def test_runs_give_the_same_numbers_on_any_number_of_devices():
    state, info = run(REAL)
    for count in (2, 8):
        other, there = run(REAL, sharding.data_mesh(count))
        close((other.params, there.bound), (state.params, info.bound))
        assert len(other.step.devices()) == count
        assert bool(other.rng == state.rng)
    more, _ = run(REAL, state=other)  # without a mesh, on one device
    assert int(more.step) == 200
    assert len(jax.tree.leaves(more.params)[0].devices()) == 1


@pytest.mark.long
def test_discrete_draws_are_the_same_on_any_number_of_devices(float64):
    """In float64, to the rounding of float32: the run itself amplifies rounding errors, some 1e5 times by its end."""
    state, info = run(OBJECTIVES["vimco"])
    eps = np.finfo(np.float32).eps
    for count in (2, 8):
        other, there = run(OBJECTIVES["vimco"], sharding.data_mesh(count))
        found, expected = (other.params, there.bound), (state.params, info.bound)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=eps, atol=eps), found, expected)


@pytest.mark.long
def test_a_gradient_of_discrete_draws_is_right_to_the_last_places():
    """In float32, to 64 units in the last place of each leaf's largest entry: signals of tenths are differences of bounds of ten."""
    objective = OBJECTIVES["vimco"]
    params = objective.init(key(), X[:BATCH])
    value, _, grads = _loops.call(_Ascent(objective), params, key(), X[:BATCH])
    for count in (2, 8):
        with sharding.entered(sharding.data_mesh(count)):
            there, _, others = _loops.call(_Ascent(objective), params, key(), X[:BATCH])
        for one, other in zip(jax.tree.leaves((value, grads)), jax.tree.leaves((there, others)), strict=True):
            assert np.max(np.abs(np.asarray(one) - np.asarray(other))) <= 64 * np.spacing(np.max(np.abs(one)))


@pytest.mark.long
@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_runs_with_split_particles_and_parameters_give_the_same_numbers(name):
    state, info = run(OBJECTIVES[name])
    for mesh in (sharding.mesh(data=2, particle=4), sharding.mesh(particle=2, fsdp=4), sharding.mesh(data=2, fsdp=4)):
        other, there = run(OBJECTIVES[name], mesh)
        close((other.params, there.bound), (state.params, info.bound))
        assert other.params.guide["second"].is_fully_replicated == (mesh.shape["fsdp"] == 1)


@pytest.mark.long
def test_all_ways_to_train_give_the_same_numbers_on_a_mesh(tmp_path):
    """All of the data, an iterator, a memory map, and a run that drives itself."""
    one, mesh = svi(OBJECTIVES["elbo"]), sharding.data_mesh()
    batches = [X[i : i + BATCH] for i in range(0, len(X), BATCH)]
    np.save(tmp_path / "x.npy", X)
    ways = {
        "fit": lambda mesh: jvi.fit(one, key(), X[:BATCH], num_steps=50, mesh=mesh),
        "iterator": lambda mesh: jvi.fit_batches(one, key(), iter(20 * batches), num_steps=50, mesh=mesh),
        "map": lambda mesh: jvi.fit_batches(
            one, key(), np.load(tmp_path / "x.npy", mmap_mode="r"), num_steps=50, batch_size=BATCH, mesh=mesh
        ),
    }
    found = {name: [way(mesh) for mesh in (None, mesh)] for name, way in ways.items()}
    for (state, info), (other, there) in found.values():
        assert len(other.step.devices()) == 8
        close((other.params, there.bound), (state.params, info.bound))
    (state, _), (expected, _) = found["map"][1], run(OBJECTIVES["elbo"], num_steps=50)
    close(state.params, expected.params)


@pytest.mark.long
def test_a_run_that_drives_itself_does_so_on_a_mesh():
    objective = jvi.objectives.subsampled(
        jvi.elbo(
            jvi.split(lambda z: norm.logpdf(z["mean"], 0.0, 10.0), lambda x, z: norm.logpdf(x, z["mean"], 1.0)),
            jvi.guides.MeanField(jvi.space({"mean": jvi.real()})),
        ),
        num_data=len(X),
    )
    one, other = (
        jvi.adapt(jvi.SVI(objective), key(), X[:, 0], batch_size=32, max_steps=3_000, progress=False, mesh=mesh)
        for mesh in (None, sharding.data_mesh())
    )
    assert (one.rates, one.status, one.num_steps) == (other.rates, other.status, other.num_steps)
    close(other.state.params, one.state.params)


def compiled(objective, mesh):
    """The text of the loop's program."""
    one = svi(objective)
    state = begin(one, key(), sharding.put(mesh, X), BATCH, mesh)
    with sharding.entered(mesh):
        arguments = one, feeds.Shuffled(BATCH), 100, False, None, state, sharding.put(mesh, X), None, 100
        return _loops.loop.lower(*arguments).compile().as_text()


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        pytest.param(name, 2 if name == "free bits" else 1, marks=() if name == "elbo" else pytest.mark.long)
        for name in OBJECTIVES
    ],
)
def test_a_step_sums_over_devices_once(name, sums):
    """The bound and the gradients of all parameters in one all-reduce, with a floor in two; nothing else goes from device to device."""
    found = re.findall(COLLECTIVE, compiled(OBJECTIVES[name], sharding.data_mesh()))
    assert [kind for _, kind in found] == ["all-reduce"] * sums
    if name == "elbo":
        assert len(re.findall(r"f32\[", found[0][0])) == 6  # five leaves and the bound


@pytest.mark.long
def test_particles_split_over_devices_give_the_same_bound_and_gradient():
    objective = OBJECTIVES["iwae"]
    x = X[:8]
    params = objective.init(key(), x)
    ascent = _Ascent(objective)
    expected = _loops.call(ascent, params, key(), x)
    mesh = sharding.mesh(data=2, particle=4)
    with sharding.entered(mesh):
        found = _loops.call(ascent, params, key(), x)
    close(found, expected)
    few = jvi.per_example(jvi.iwae(objective.objective.model, objective.objective.guide, num_samples=6))
    with sharding.entered(mesh), pytest.raises(ValueError, match=r"4 parts.*got 6 particles"):
        _loops.call(_Ascent(few), params, key(), x)


@jvi._spec.spec
class _Ascent:
    objective: object

    def __call__(self, params, rng, x):
        (value, aux), grads = jax.value_and_grad(self.objective, has_aux=True)(params, rng, x)
        return value, aux.log_w, grads


@pytest.fixture
def compiled_loops():
    """A list that grows by each loop that is compiled; nothing is there before."""
    found = []
    jax.clear_caches()

    def listen(event, seconds, **kwargs):
        if "backend_compile" in event and "loop" in str(kwargs.get("fun_name")):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.long
def test_large_parameters_and_their_moments_are_split_and_nothing_is_compiled_twice(compiled_loops):
    def short(mesh, **kwargs):
        return run(OBJECTIVES["elbo"], mesh, callback=lambda state, info: False, callback_every=30, **kwargs)

    expected, info = run(OBJECTIVES["elbo"])
    state, there = short(sharding.mesh(fsdp=4))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (64, 32)]
    assert [leaf.addressable_shards[0].data.shape for leaf in moments] == [(16, 32)] * 2
    assert state.params.guide["second"].addressable_shards[0].data.shape == (16, 32)
    assert state.params.guide["first"].is_fully_replicated
    close((state.params, there.bound), (expected.params, info.bound))
    state, _ = short(sharding.mesh(fsdp=4), state=state)  # a rebuilt mesh, and a state that is there
    assert len(compiled_loops) == 2
    state, _ = run(OBJECTIVES["elbo"], state=state)  # gathered on one device
    assert len(compiled_loops) == 2
    assert int(state.step) == 300


def log_joint(x, z):
    return norm.logpdf(z["mean"], 0.0, 10.0) + jnp.sum(norm.logpdf(x, z["mean"], 1.0))


@pytest.mark.long
def test_inference_and_its_verdict_are_the_same_on_a_mesh():
    """Points are split over all devices, in the precision that a single one works in."""
    space, x = jvi.space({"mean": jvi.real()}), X[:10, 0]
    mesh = sharding.mesh(data=2, particle=2, fsdp=2)
    one, other = (jvi.infer(key(), log_joint, space, x, mesh=mesh) for mesh in (None, mesh))
    assert abs(one.report.log_evidence - other.report.log_evidence) < 1e-9
    np.testing.assert_allclose(one.summary()["mean"].mean, other.summary()["mean"].mean, rtol=1e-6)
    model, guide = jvi.model(log_joint), jvi.guides.MeanField(space)
    params = jvi.objectives.Params((), guide.init(key(), x)._replace(loc=jnp.array([0.1])))
    one, other = (jvi.diagnose(key(), model, guide, params, x, num_samples=401, mesh=mesh) for mesh in (None, mesh))
    assert abs(one.elbo - other.elbo) < 1e-4 * abs(one.elbo)
    log_w = [
        jvi.posterior.log_weights(jvi.Posterior(model, guide, params, x), key(), num_samples=20, chunk_size=8, mesh=mesh)
        for mesh in (None, mesh)
    ]
    close(*log_w)


@pytest.mark.quick
def test_meshes_that_do_not_fit_are_refused():
    assert dict(sharding.data_mesh().shape) == {"data": 8, "particle": 1, "fsdp": 1}
    assert dict(sharding.mesh(particle=2).shape) == {"data": 4, "particle": 2, "fsdp": 1}
    assert sharding.mesh(data=3).size == 3
    with pytest.raises(ValueError, match=r"must divide the number of devices, 8; got 3 \* 1 = 3"):
        sharding.mesh(particle=3)
    with pytest.raises(ValueError, match="takes 16 devices, and there are 8"):
        sharding.mesh(data=8, fsdp=2)
    with pytest.raises(ValueError, match="data must be 1 or more, got 0"):
        sharding.mesh(data=0)
    with pytest.raises(TypeError, match="particle must be a whole number"):
        sharding.mesh(particle=1.5)
    with pytest.raises(TypeError, match=r"made by jvi.sharding.data_mesh .* got 8"):
        run(OBJECTIVES["elbo"], mesh=8)
    one = svi(OBJECTIVES["elbo"])
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of the 8 parts .* got 20: take 16"):
        jvi.fit_batches(one, key(), X, num_steps=1, batch_size=20, mesh=sharding.data_mesh())
    with pytest.raises(ValueError, match=r"size of a minibatch.* multiple of the 8 parts .* got 4: take 8"):
        jvi.fit_batches(one, key(), iter([X[:4]]), num_steps=1, mesh=sharding.data_mesh())
