"""SVI and the loops: exact answers, traces counted, non-finite steps skipped, minibatches as they should be."""

from __future__ import annotations

import gc
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import jvi
from jvi._loops import by_steps

KEY = jax.random.key(0)
GUIDE = jvi.guides.MeanField(jvi.space({"mean": jvi.real()}))


def log_prior(z):
    return norm.logpdf(z["mean"], 0.0, 10.0)


def log_likelihood(x, z):
    return jnp.sum(norm.logpdf(x, z["mean"], 1.0))


def log_joint(x, z):
    return log_prior(z) + log_likelihood(x, z)


def exact_posterior(x):
    variance = 1.0 / (len(x) + 0.01)
    return variance * np.sum(x), np.sqrt(variance)


@pytest.mark.quick
@pytest.mark.parametrize("num_data", [10, 10_000])
@pytest.mark.parametrize("gradient", [None, jvi.gradients.pathwise])
def test_the_default_optimizer_recovers_the_exact_mean_and_sd(num_data, gradient):
    """Eight runs: errors in posterior sds within five standard errors of their mean, plus the parameters' last place."""
    x = np.random.default_rng(1).normal(1.3, 1.0, num_data)
    mean, sd = exact_posterior(x)
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE, gradient=gradient))
    errors = []
    for seed in range(8):
        state, info = jvi.fit(svi, jax.random.key(seed), x, num_steps=5_000)
        loc, log_scale = state.params.guide
        errors.append([(float(loc[0]) - mean) / sd, float(np.exp(log_scale[0])) / sd - 1.0])
        assert info.finite.all()
    errors = np.array(errors)
    standard_error = errors.std(0, ddof=1) / np.sqrt(len(errors))
    last_place = np.array([np.spacing(np.float32(mean)) / sd, np.spacing(np.float32(-np.log(sd)))])
    assert (np.abs(errors.mean(0)) < 5.0 * standard_error + last_place).all(), errors
    if gradient is None:  # sticking the landing: no Monte Carlo error is left at the exact posterior
        assert (np.abs(errors) < 5.0 * last_place).all()


class Counter:
    """A log-joint that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, x, z):
        self.traces += 1
        return log_joint(x, z)


@pytest.mark.quick
def test_the_log_joint_is_traced_once():
    counter = Counter()

    def build():
        guide = jvi.guides.MeanField(jvi.space({"mean": jvi.real()}))
        return jvi.SVI(jvi.elbo(jvi.model(counter), guide, num_samples=3), jvi.optimizer(optax.adam, 1e-2))

    jvi.fit(build(), KEY, np.ones(5), num_steps=50)
    assert counter.traces == 1
    jvi.fit(build(), jax.random.key(1), np.zeros(5), num_steps=37)  # rebuilt, new data, another number of steps
    assert counter.traces == 1
    state, _ = jvi.fit(build(), KEY, jnp.ones(5), num_steps=9_000)
    jvi.fit(build(), KEY, jnp.ones(5), num_steps=10, state=state, callback=lambda state, info: False)
    assert counter.traces == 1
    jvi.fit(build(), KEY, np.ones(6), num_steps=50)  # another shape
    assert counter.traces == 2


@pytest.mark.quick
def test_minibatches_are_traced_once():
    counter = Counter()
    svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(counter), GUIDE)), jvi.optimizer(optax.adam, 1e-2))
    data = np.arange(20.0)
    for seed in range(2):
        jvi.fit_batches(svi, jax.random.key(seed), data + seed, num_steps=30, batch_size=4)
    assert counter.traces == 1
    jvi.fit_batches(svi, KEY, [data[:4], data[4:8]], num_steps=130)
    assert counter.traces == 2  # another program: the data come as stacks


@pytest.mark.quick
def test_a_ready_optimizer_compares_by_identity():
    ready = optax.adam(1e-2)
    objective = jvi.elbo(jvi.model(log_joint), GUIDE)
    assert jvi.SVI(objective, ready) == jvi.SVI(objective, ready)
    assert jvi.SVI(objective, ready) != jvi.SVI(objective, optax.adam(1e-2))
    assert jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2)) == jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2))
    state, _ = jvi.fit(jvi.SVI(objective, ready), KEY, np.ones(3), num_steps=5)
    assert int(state.step) == 5


@pytest.mark.quick
def test_fit_is_step_by_step_and_resumes_bit_for_bit():
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE, num_samples=2), jvi.optimizer(optax.adam, 1e-2))
    x = jnp.ones(5)
    whole, info = jvi.fit(svi, KEY, x, num_steps=30)
    half, first = jvi.fit(svi, KEY, x, num_steps=15)
    resumed, second = jvi.fit(svi, jax.random.key(99), x, num_steps=15, state=half)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole.params, resumed.params))
    np.testing.assert_array_equal(np.concatenate([first.bound, second.bound]), info.bound)
    state = svi.init(KEY, x)
    step = jax.jit(svi.step)
    for t in range(30):
        expected = svi.objective(state.params, jax.random.fold_in(KEY, t), x)[0]
        state, one = step(state, x)
        if t % 10 == 0:
            np.testing.assert_allclose(one.bound, expected, rtol=1e-5)  # about the parameters that the step started from
            np.testing.assert_allclose(one.bound, info.bound[t], rtol=1e-5)
    np.testing.assert_allclose(state.params.guide.loc, whole.params.guide.loc, rtol=1e-5)


@pytest.mark.long
def test_the_masked_loop_of_accelerators_takes_the_same_steps(monkeypatch):
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE), jvi.optimizer(optax.adam, 1e-2), max_skipped=3)
    runs = []
    for masked in (False, True):
        monkeypatch.setattr("jvi._run._masked", lambda masked=masked: masked)
        if masked:
            monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
        state, info = jvi.fit(svi, KEY, jnp.ones(5), num_steps=40)  # 40 steps leave a block of 32 unfinished
        batched = jvi.fit_batches(svi, KEY, jnp.linspace(-1.0, 3.0, 50), num_steps=40, batch_size=5)
        with pytest.raises(jvi.NonFiniteError) as caught:
            jvi.fit(svi, KEY, jnp.full(5, jnp.inf), num_steps=40)
        runs.append((state.params, state.step, info, caught.value.state.step, caught.value.info.finite, batched[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *runs)
    assert (int(runs[1][1]), int(runs[1][3])) == (40, 3)


@pytest.mark.long
def test_a_step_of_convolutions_is_taken_outside_of_the_loop_and_is_the_same(monkeypatch):
    kernel = jnp.ones(5) / 5.0
    model = jvi.model(lambda x, z: log_prior(z) + 1e-4 * jnp.sum(norm.logpdf(jnp.convolve(x, kernel), z["mean"], 1.0)))
    svi = jvi.SVI(jvi.elbo(model, GUIDE), jvi.optimizer(optax.adam, 1e-2), max_skipped=3)
    x = np.random.default_rng(0).normal(size=200)
    runs, entered = [], []
    monkeypatch.setattr("jvi._run.by_steps", lambda *args: entered.append(args[-1]) or by_steps(*args))
    for products in (100, 10**12):
        monkeypatch.setattr("jvi._loops._CONVOLVED", products)
        monkeypatch.setattr("jvi._run._BY_STEPS", set())
        jax.clear_caches()
        state, info = jvi.fit_batches(svi, KEY, x, num_steps=40, batch_size=50)
        with pytest.raises(jvi.NonFiniteError) as caught:
            jvi.fit_batches(svi, KEY, np.full(200, np.inf), num_steps=40, batch_size=50)
        runs.append((state.params, state.step, info, caught.value.state.step, caught.value.info.finite))
    assert entered == [40, 40]  # of the first two runs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *runs)
    assert (int(runs[0][1]), int(runs[0][3])) == (40, 3)


@pytest.mark.quick
def test_callbacks_come_at_the_same_steps_and_can_stop_the_run():
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE), jvi.optimizer(optax.adam, 1e-2))
    seen = []

    def callback(state, info):
        seen.append((int(state.step), len(info.bound)))
        return len(seen) == 3

    state, info = jvi.fit(svi, KEY, jnp.ones(5), num_steps=100, callback=callback, callback_every=20)
    assert seen == [(20, 20), (40, 20), (60, 20)]
    assert int(state.step) == 60 == len(info.bound)
    seen.clear()
    batches = iter(np.ones((200, 5)))
    objective = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE), jvi.optimizer(optax.adam, 1e-2))
    jvi.fit_batches(objective, KEY, batches, num_steps=150, callback=lambda s, i: seen.append(int(s.step)), callback_every=70)
    assert seen == [70, 140, 150]


@pytest.mark.quick
def test_beta_as_a_number_and_as_a_schedule():
    svi = jvi.SVI(jvi.elbo(jvi.split(log_prior, log_likelihood), GUIDE), jvi.optimizer(optax.adam, 1e-2))
    x = jnp.ones(5)
    _, plain = jvi.fit(svi, KEY, x, num_steps=3)
    _, half = jvi.fit(svi, KEY, x, num_steps=3, beta=0.5)
    _, ramp = jvi.fit(svi, KEY, x, num_steps=3, beta=lambda step: jnp.minimum(1.0, 0.5 + step))
    assert half.bound[0] == ramp.bound[0] != plain.bound[0]
    assert half.bound[2] != ramp.bound[2]


def fragile(x, z):
    """Finite while the mean is below 1; the gradient leads there."""
    return jnp.where(z["mean"] < 1.0, 0.0, jnp.nan) + 3.0 * z["mean"]


@pytest.mark.quick
def test_a_non_finite_step_leaves_parameters_and_moments_alone_and_is_counted():
    svi = jvi.SVI(jvi.elbo(jvi.model(fragile), GUIDE), jvi.optimizer(optax.adam, 1e-2))
    state = svi.init(KEY, None)
    far = state._replace(params=state.params._replace(guide=state.params.guide._replace(loc=jnp.array([5.0]))))
    after, info = svi.step(far, None)
    assert not bool(info.finite)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), (after.params, after.opt_state), (far.params, far.opt_state))
    assert jax.tree.all(same)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (1, 1, 1)
    back = after._replace(params=state.params)
    again, info = svi.step(back, None)
    assert bool(info.finite)
    assert (int(again.step), int(again.skipped), int(again.skipped_in_a_row)) == (2, 1, 0)


@pytest.mark.quick
def test_an_update_that_is_not_finite_is_skipped_too():
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE), jvi.optimizer(optax.sgd, float("inf")))
    state, info = svi.step(svi.init(KEY, jnp.ones(3)), jnp.ones(3))
    assert not bool(info.finite)
    assert bool(jnp.isfinite(state.params.guide.loc).all())


@pytest.mark.quick
def test_a_run_of_non_finite_steps_stops_with_the_names_of_what_went_bad():
    model = jvi.split(log_prior, lambda x, z: jnp.sqrt(1.0 - z["mean"]) + 3.0 * z["mean"])
    svi = jvi.SVI(jvi.elbo(model, GUIDE), jvi.optimizer(optax.sgd, 1.0), max_skipped=7)
    with pytest.raises(jvi.NonFiniteError, match=r"7 steps in a row.*the log likelihood \(1 of 1 draws\)") as error:
        jvi.fit(svi, KEY, None, num_steps=1_000)
    assert "log prior" not in str(error.value)
    assert "params.guide.loc" in str(error.value)
    state, info = error.value.state, error.value.info
    assert int(state.skipped_in_a_row) == 7
    assert len(info.bound) == int(state.step) < 1_000
    assert not info.finite[-7:].any()
    assert bool(jnp.isfinite(state.params.guide.loc).all())
    gentle = jvi.SVI(jvi.elbo(jvi.split(log_prior, log_likelihood), GUIDE), jvi.optimizer(optax.sgd, 0.01))
    resumed, info = jvi.fit(gentle, KEY, np.ones(3), num_steps=5, state=state)  # nothing was lost: go on from there
    assert info.finite.all()
    assert int(resumed.skipped) == 7


@pytest.mark.quick
def test_an_epoch_sees_every_example_once_in_a_new_order():
    def spy(x, z):  # the gradient by loc is the datum, so that sgd adds up what it saw
        return x * z["mean"]

    svi = jvi.SVI(
        jvi.per_example(jvi.elbo(jvi.model(spy), GUIDE, gradient=jvi.gradients.pathwise)), jvi.optimizer(optax.sgd, 1.0)
    )
    data = 2.0 ** np.arange(12)
    orders = []
    for epochs in (1, 2):
        locs = []
        jvi.fit_batches(
            svi, KEY, data, num_steps=4 * epochs, batch_size=3, callback_every=1,
            callback=lambda state, info, locs=locs: locs.append(float(state.params.guide.loc[0])),
        )  # fmt: skip
        np.testing.assert_allclose(locs[-1] * 3, epochs * data.sum(), rtol=1e-6)
        orders.append(np.diff([0.0, *locs]))
    np.testing.assert_allclose(orders[0], orders[1][:4], rtol=1e-6)  # replayed
    assert (np.abs(orders[1][:4] - orders[1][4:]) > 1.0).any()  # reshuffled


@pytest.mark.quick
def test_resuming_minibatches_in_the_middle_of_an_epoch_changes_nothing():
    svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(log_joint), GUIDE)), jvi.optimizer(optax.adam, 1e-2))
    data = np.random.default_rng(0).normal(size=20)
    whole, _ = jvi.fit_batches(svi, KEY, data, num_steps=13, batch_size=4)
    half, _ = jvi.fit_batches(svi, KEY, data, num_steps=7, batch_size=4)
    resumed, _ = jvi.fit_batches(svi, KEY, data, num_steps=6, batch_size=4, state=half)
    assert float(whole.params.guide.loc[0]) == float(resumed.params.guide.loc[0])


@pytest.mark.quick
def test_iterators_lists_and_generators_of_batches():
    svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(log_joint), GUIDE)), jvi.optimizer(optax.adam, 1e-2))
    batches = [np.random.default_rng(i).normal(size=4) for i in range(5)]
    from_list, info = jvi.fit_batches(svi, KEY, batches, num_steps=12)
    from_iterator, _ = jvi.fit_batches(svi, KEY, iter((batches * 3)[:12]), num_steps=12)
    assert float(from_list.params.guide.loc[0]) == float(from_iterator.params.guide.loc[0])
    assert len(info.bound) == 12
    with pytest.warns(UserWarning, match="ended after 5 of 12"):
        state, info = jvi.fit_batches(svi, KEY, iter(batches), num_steps=12)
    assert int(state.step) == 5 == len(info.bound)


@pytest.mark.quick
def test_a_late_bad_batch_loses_nothing():
    svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(log_joint), GUIDE)), jvi.optimizer(optax.adam, 1e-2))
    batches = [np.ones(4)] * 100 + [np.ones(3), np.ones(4)]
    with pytest.raises(jvi.FitError, match=r"number 100 has float32\[3\]") as error:
        jvi.fit_batches(svi, KEY, iter(batches), num_steps=200)
    assert isinstance(error.value, ValueError)
    assert int(error.value.state.step) == 100


def test_memory_is_flat_over_refits():
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE), jvi.optimizer(optax.adam, 1e-2))

    def refit(count):
        for seed in range(count):
            jvi.fit(svi, jax.random.key(seed), np.full(1_000, seed, np.float32), num_steps=10)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(jax.live_arrays())

    peak, live = refit(10)
    later, live_later = refit(100)
    assert live_later == live
    assert later - peak < 4 * 1024  # KiB; 100 captured data sets and programs would be far more


def test_a_run_goes_on_from_a_state_made_by_init():
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), GUIDE), jvi.optimizer(optax.adam, 0.1))
    state, same = svi.init(KEY, np.arange(3.0)), jnp.zeros((), jnp.int32)
    whole, _ = jvi.fit(svi, KEY, np.arange(3.0), num_steps=3)
    found, _ = jvi.fit(svi, KEY, np.arange(3.0), num_steps=3, state=state._replace(step=same, skipped=same))
    np.testing.assert_array_equal(found.params.guide.loc, whole.params.guide.loc)
    jax.random.bits(KEY)  # was not donated with the state


@pytest.fixture
def compiled():
    """A list that grows by every program that is compiled, however small; nothing is there before."""
    found = []

    def listen(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(kwargs.get("fun_name"))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.quick
@pytest.mark.parametrize("num_devices", [None, 2])
def test_a_run_that_goes_on_compiles_nothing(compiled, num_devices):
    """Not even a zero: on a GPU that costs as much as many steps."""
    mesh = None if num_devices is None else jvi.sharding.data_mesh(num_devices)
    svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(log_joint), GUIDE)), jvi.optimizer(optax.adam, 1e-2))
    x, state = jax.device_put(np.ones((16, 1), np.float32)), None
    for call in range(3):
        before = len(compiled)
        state, _ = jvi.fit_batches(svi, KEY, x, num_steps=10, batch_size=4, mesh=mesh, state=state)
        assert (len(compiled) > before) == (call == 0), compiled[before:]
