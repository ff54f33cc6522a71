"""Ascents that drive themselves: when they stop, what they find, and what they say of it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from scipy.signal import lfilter

import jvi
from jvi._spec import spec
from jvi._stationarity import Watch

KEY = jax.random.key(0)
NOISES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy-tailed": lambda rng, size: rng.standard_t(2, size=size),
    "heteroscedastic": lambda rng, size: rng.normal(size=size) * (1.0 + 5.0 * np.exp(-np.arange(size) / 2_000)),
}
# What is left to gain after t steps, in standard deviations of the noise.
DESCENTS = {
    "none": lambda t: 0.0 * t,
    "linear": lambda t: 50.0 * np.maximum(0.0, 1.0 - t / 5_000),
    "power law": lambda t: 50.0 / (1.0 + t / 50.0),
}


def stop(descent, noise, seed, length=120_000):
    """When a synthetic ascent is taken to have settled, and what is then left to gain. Its parameters mix in ten steps."""
    rng, t = np.random.default_rng(seed), np.arange(length)
    left = DESCENTS[descent](t)
    bounds = NOISES[noise](rng, length) - left
    mixing = lfilter([np.sqrt(1.0 - 0.9**2)], [1.0, -0.9], rng.normal(size=(length, 4)), axis=0)
    params, watch = mixing + 3.0 * np.sqrt(left)[:, None], Watch(tolerance=0.01)
    while watch.next < length:
        now = watch.next
        watch.look(bounds[:now], params[: now : max(1, now // 1_024)])
        if watch.settled:
            return now, left[now - 1]
    return length, left[-1]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("descent", DESCENTS)
def test_stops_late_enough_and_soon_enough(descent, noise):
    """Of 60 ascents each, at most one in twenty may stop with more left to gain than one estimate's noise."""
    steps, left = np.transpose([stop(descent, noise, seed) for seed in range(60)])
    assert np.mean(left > 1.0) <= 0.05
    if descent == "none":
        assert np.median(steps) <= 2_000
    if descent == "linear":  # of 5,000 steps; half of what is looked at, twice, must lie beyond them
        assert np.median(steps) <= 4 * 5_000
    if descent == "power law":
        assert np.median(left) <= 0.25


def conjugate(num_data, gradient):
    x = np.random.default_rng(1).normal(1.3, 1.0, num_data)
    variance = 1.0 / (num_data + 0.01)
    model = jvi.model(lambda x, z: norm.logpdf(z, 0.0, 10.0) + jnp.sum(norm.logpdf(x, z, 1.0)))
    svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real())), gradient=gradient))
    return svi, x, variance * np.sum(x), np.sqrt(variance)


@pytest.mark.parametrize("num_data", [10, 10_000])
@pytest.mark.parametrize("gradient", [None, jvi.gradients.pathwise])
def test_recovers_the_exact_mean_and_sd(num_data, gradient):
    """Six runs: the mean error, in posterior sds, is within five of its standard errors; each loses no more than the tolerance."""
    svi, x, mean, sd = conjugate(num_data, gradient)
    errors, lost = [], []
    for seed in range(6):
        found = jvi.adapt(svi, jax.random.key(seed), x, progress=False)
        assert found.status == "converged"
        loc, log_scale = found.state.params.guide
        error, ratio = (float(loc[0]) - mean) / sd, float(np.exp(log_scale[0])) / sd
        errors.append([error, ratio - 1.0])
        lost.append(0.5 * (error**2 + ratio**2 - 1.0) - np.log(ratio))  # KL(q || p), nats
    assert np.max(lost) < 0.01
    last_place = 1e-3  # single precision: of log-densities of some ten thousand nats, 1e-3 of a nat is seen
    assert np.all(np.abs(np.mean(errors, 0)) <= 5.0 * np.std(errors, 0, ddof=1) / np.sqrt(6) + last_place)


def test_compiles_once_and_goes_on_as_any_run():
    traces = []

    def log_joint(x, z):
        traces.append(1)
        return norm.logpdf(z) + norm.logpdf(x, z)

    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), jvi.guides.MeanField(jvi.space(jvi.real()))))
    found = jvi.adapt(svi, KEY, 1.0, progress=False)
    once = len(traces)
    jvi.adapt(svi, jax.random.key(1), 2.0, progress=False)
    assert len(traces) == once
    assert len(found.info.bound) <= found.num_steps
    assert found.rates == tuple(sorted(found.rates, reverse=True))
    before = jax.tree.map(np.asarray, found.state.params)
    state, _ = jvi.fit(svi, KEY, 1.0, num_steps=3, state=found.state)
    assert int(state.step) > 3
    again = jvi.adapt(svi, KEY, 1.0, state=state._replace(params=before), progress=False)
    np.testing.assert_allclose(again.state.params.guide.loc, 0.5, atol=0.05)


@pytest.mark.parametrize("optimizer", [jvi.optimizer(optax.sgd, 1e-3), jvi.optimizer(optax.adam, 1e-6)])
def test_drives_other_optimizers_whatever_their_rate(optimizer):
    svi, x, mean, sd = conjugate(10, None)
    found = jvi.adapt(jvi.SVI(svi.objective, optimizer), KEY, x, progress=False)
    assert found.status == "converged"
    assert abs(float(found.state.params.guide.loc[0]) - mean) < 0.15 * sd  # 0.01 nats


def linear_gaussian():
    """z ~ N(0, 1), x ~ N(z, 1): the exact encoder is loc = x / 2, log_scale = log(1/2) / 2."""
    import distrax

    def dist(output):
        return distrax.Normal(output[0], jnp.exp(output[1]))

    model = jvi.model(lambda x, z: norm.logpdf(z) + norm.logpdf(x[0], z))
    return jvi.SVI(jvi.per_example(jvi.elbo(model, jvi.guides.conditional(nn.Dense(2), dist))))


def stream(x):
    rng = np.random.default_rng(2)
    while True:
        yield x[rng.integers(len(x), size=32)]


@pytest.mark.parametrize("streamed", [pytest.param(False, marks=pytest.mark.long), True])
def test_amortized_guides_on_minibatches(streamed):
    x = np.random.default_rng(3).normal(0.0, np.sqrt(2.0), size=(500, 1)).astype(np.float32)
    rest = {} if streamed else {"batch_size": 32}
    state, info = jvi.fit_batches(linear_gaussian(), KEY, stream(x) if streamed else x, progress=False, **rest)
    dense = state.params.guide
    np.testing.assert_allclose(dense["kernel"], [[0.5, 0.0]], atol=0.05)
    np.testing.assert_allclose(dense["bias"], [0.0, 0.5 * np.log(0.5)], atol=0.05)
    log_evidence = np.mean(norm.logpdf(x, 0.0, np.sqrt(2.0)))
    assert abs(np.mean(info.bound[-500:]) - log_evidence) < 0.05


@spec
class Misled:
    """A bound of -(a - 1)^2 - 0.1 b whose gradient by b has the wrong sign, and by a the one given."""

    sign: float

    def init(self, rng, x):
        return jnp.zeros(2)

    def __call__(self, params, rng, x, *, beta=1.0):
        a, b = params
        value = -((a - 1.0) ** 2) - 0.1 * b
        slope = -self.sign * (a - 1.0) ** 2 + 0.1 * b
        log_w = jax.lax.stop_gradient(value - slope) + slope
        return log_w, jvi.objectives.Aux(log_w[None])


def test_says_where_every_rate_leads_down():
    found = jvi.adapt(jvi.SVI(Misled(-1.0)), KEY, progress=False)
    assert found.status == "diverged"
    np.testing.assert_array_equal(found.state.params, 0.0)  # nothing better is known
    with pytest.warns(UserWarning, match="diverged"):
        jvi.fit(jvi.SVI(Misled(-1.0)), KEY, progress=False)


def test_says_where_a_smaller_rate_leads_down():
    found = jvi.adapt(jvi.SVI(Misled(1.0)), KEY, progress=False)
    assert found.status == "regressed"
    assert abs(float(found.state.params[0]) - 1.0) < 0.2
    assert found.gain.value < 0.0


def test_returns_the_best_when_the_budget_is_spent():
    svi, x, *_ = conjugate(10, None)
    for spend in ({"max_steps": 700}, {"seconds": 1e-6}):
        found = jvi.adapt(svi, KEY, x, progress=False, **spend)
        assert found.status == "budget spent"
        assert np.isfinite(found.state.params.guide.loc).all()


def test_non_finite_steps_lead_to_smaller_rates():
    """The log-joint ends at 0.9 on the way to its maximum at 1: whoever goes on ends in non-finite steps."""
    model = jvi.model(lambda x, z: jnp.where(z < 0.9, -50.0 * (z - 1.0) ** 2, jnp.nan))
    svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))), max_skipped=5)
    found = jvi.adapt(svi, KEY, progress=False)
    assert found.status == "budget spent"  # there is nothing to converge to
    assert found.rates[-1] < 0.1 * found.rates[0]
    assert 0.0 < float(found.state.params.guide.loc[0]) < 0.9
