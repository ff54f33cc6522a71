"""Schedules of beta: their values, that every step uses its own, and that other numbers compile nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import jvi
from jvi.schedules import cyclical, linear, warm_up

KEY = jax.random.key(0)
GUIDE = jvi.guides.MeanField(jvi.space(jvi.real()))


def values(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.asarray(steps)))


@pytest.mark.quick
def test_values():
    np.testing.assert_allclose(values(linear(2.0, 1.0, 10), [0, 1, 5, 10, 10_000]), [2.0, 1.9, 1.5, 1.0, 1.0])
    np.testing.assert_allclose(values(warm_up(10, wait=5, end=0.8), [0, 5, 6, 15, 99]), [0.0, 0.0, 0.08, 0.8, 0.8])
    cycles = values(cyclical(10, 3, ramp=0.8, start=0.2), np.arange(40))
    one = 0.2 + 0.8 * np.minimum(np.arange(10) / 8, 1.0)
    np.testing.assert_allclose(cycles, np.concatenate([one, one, one, np.ones(10)]), rtol=1e-6)
    rises = values(warm_up(1_000, wait=7), np.arange(1_200))
    assert (np.diff(rises) >= 0).all()


def made(traces):
    """A model that is free of z, so that the bound is log_likelihood - beta KL, with the KL the same at every step of rate 0."""

    def log_likelihood(x, z):
        traces.append(1)
        return x + 0.0 * z

    model = jvi.split(lambda z: norm.logpdf(z, 1.0), log_likelihood)
    start = jvi.guides.from_functions(
        lambda rng, x: jnp.zeros(()), lambda loc, rng, x: (loc, jnp.zeros(())), lambda loc, x, z: 0.0 * (z - loc)
    )
    return jvi.SVI(jvi.elbo(model, start), jvi.optimizer(optax.sgd, 0.0)), float(norm.logpdf(0.0, 1.0))


@pytest.mark.quick
def test_every_step_has_its_own_beta_and_other_numbers_compile_nothing():
    traces = []
    svi, log_prior = made(traces)
    counts = []
    for schedule in (
        linear(0.0, 1.0, 20),
        linear(1.0, 0.3, 7),
        warm_up(9, wait=4),
        cyclical(8, 2),
        cyclical(4, 3, ramp=0.9, end=0.7),
    ):
        state, first = jvi.fit(svi, KEY, 0.0, num_steps=13, beta=schedule)
        _, second = jvi.fit(svi, KEY, 0.0, num_steps=12, beta=schedule, state=state)  # goes on where it was
        bounds = np.concatenate([first.bound, second.bound])
        np.testing.assert_allclose(bounds, log_prior * values(schedule, np.arange(25)), rtol=1e-5)
        counts.append(len(traces))
    assert counts == [1, 1, 1, 2, 2]  # linear and warm_up are lines; cycles are another program
    _, info = jvi.fit(svi, KEY, 0.0, num_steps=5, beta=lambda step: 0.1 * step)
    np.testing.assert_allclose(info.bound, log_prior * 0.1 * np.arange(5), rtol=1e-5)
    assert len(traces) == 3


@pytest.mark.quick
def test_minibatches_are_annealed_too():
    traces = []
    svi, log_prior = made(traces)
    batched = jvi.SVI(jvi.per_example(svi.objective), svi.optimizer)
    for schedule in (warm_up(10), warm_up(3, wait=2)):
        _, info = jvi.fit_batches(batched, KEY, np.zeros(20), num_steps=12, batch_size=5, beta=schedule)
        np.testing.assert_allclose(info.bound, log_prior * values(schedule, np.arange(12)), rtol=1e-5)
        _, info = jvi.fit_batches(batched, KEY, [np.zeros(5)], num_steps=12, beta=schedule)
        np.testing.assert_allclose(info.bound, log_prior * values(schedule, np.arange(12)), rtol=1e-5)
    assert len(traces) == 2


def test_a_run_that_drives_itself_is_annealed_first_and_ends_at_the_posterior():
    """x ~ N(z, 1), z ~ N(0, 1): the sd at beta = 1 is 0.5^0.5, and at beta = 0.3 it is (0.3 / 1.3)^0.5."""
    model = jvi.split(lambda z: norm.logpdf(z), lambda x, z: norm.logpdf(x, z))
    svi = jvi.SVI(jvi.elbo(model, GUIDE))
    traces = {}
    for schedule, beta in ((warm_up(3_000), 1.0), (cyclical(500, 4, end=0.3), 0.3)):
        found = jvi.adapt(svi, KEY, 2.0, beta=schedule, progress=False)
        assert found.status == "converged"
        assert int(found.state.step) > schedule.num_steps
        np.testing.assert_allclose(found.state.params.guide.loc, 2.0 / (1.0 + beta), atol=0.05)
        np.testing.assert_allclose(jnp.exp(found.state.params.guide.log_scale), (beta / (1.0 + beta)) ** 0.5, atol=0.05)
        traces[beta] = found.num_steps
    assert traces[1.0] > 3_000
    with pytest.raises(ValueError, match=r"one of jvi\.schedules"):
        jvi.adapt(svi, KEY, 2.0, beta=lambda step: 1.0, progress=False)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: linear(-0.1, 1.0, 10), ValueError, "start must be a finite weight"),
        (lambda: linear(0.0, float("nan"), 10), ValueError, "end must be a finite weight"),
        (lambda: linear(0.0, 1.0, 0), ValueError, "num_steps must be 1 or more"),
        (lambda: linear(0.0, "1", 10), TypeError, "end must be a number"),
        (lambda: warm_up(10, start=1.0, end=0.5), ValueError, "Use jvi.schedules.linear to go down"),
        (lambda: warm_up(10, wait=-1), ValueError, "wait must be 0 or more"),
        (lambda: warm_up(10.5), TypeError, "num_steps must be a whole number"),
        (lambda: cyclical(1), ValueError, "period must be 2 or more"),
        (lambda: cyclical(10, 0), ValueError, "num_cycles must be 1 or more"),
        (lambda: cyclical(10, ramp=0.0), ValueError, "ramp must be more than 0"),
        (lambda: cyclical(10, start=2.0), ValueError, "goes up, from start to end"),
    ],
)
def test_numbers_out_of_range_are_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()
