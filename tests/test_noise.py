"""Base noise: one particle's law is untouched, estimates are unbiased, and their variance is what it should be."""

from __future__ import annotations

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import FAILURE_RATE, assert_z_test, flat
from jax.scipy.stats import norm
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import kstest
from tensorflow_probability.substrates import jax as tfp
from test_gradients import LOC, LOG_SCALE, SPACE, X, exact_elbo, log_joint

import jvi
from jvi import controls, gradients, noise
from jvi.guides import gaussian

JOINT = [noise.antithetic, noise.sobol]
KEYS = jax.random.split(jax.random.key(7), 20_000)
MODEL = jvi.learned(lambda rng, x: 0.0, log_joint)
GUIDE = jvi.guides.MeanField(SPACE)
PARAMS = jvi.objectives.Params(jnp.asarray(-0.3), gaussian.Diagonal(LOC, LOG_SCALE))
ONE = jvi.guides.MeanField(jvi.space(jvi.real()))


@pytest.mark.quick
@pytest.mark.parametrize("make", JOINT)
@pytest.mark.parametrize("num_samples", [5, 8])
def test_each_particle_draws_uniform_and_independent_numbers(make, num_samples):
    """Three numbers of two keys, of the first and the last particle: by Kolmogorov and Smirnov, and uncorrelated."""

    def numbers(key):
        first, second = jax.random.split(key)
        return jnp.append(jax.random.uniform(first, (2,)), jax.random.uniform(jax.random.fold_in(second, 3)))

    draws = jax.jit(jax.vmap(lambda key: jax.vmap(numbers)(make(key, num_samples))))(KEYS[:4_000])
    for particle in (0, num_samples - 1):
        u = np.asarray(draws[:, particle])
        for column in u.T:
            assert kstest(column, "uniform").pvalue > FAILURE_RATE / 6
        assert_z_test(12 * (u - 0.5)[:, [0, 0, 1]] * (u - 0.5)[:, [1, 2, 2]], np.zeros(3))


@pytest.mark.quick
def test_antithetic_pairs_mirror_one_another_and_the_odd_one_stands_alone():
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key)[1], (100,)))(noise.antithetic(jax.random.key(0), 5))
    np.testing.assert_allclose(u[0] + u[1], 1.0, atol=2.0**-22)  # numbers have 23 bits
    np.testing.assert_allclose(u[2] + u[3], 1.0, atol=2.0**-22)
    assert np.abs(np.corrcoef(u[jnp.array([0, 2, 4])]) - np.eye(3)).max() < 0.5


@pytest.mark.quick
@pytest.mark.parametrize("block", [21_201, 2])
@pytest.mark.parametrize("num_samples", [8, 64])
def test_sobol_draws_one_number_in_every_interval(monkeypatch, block, num_samples):
    """Draws of more dimensions than are known are several nets side by side."""
    monkeypatch.setattr(noise, "_MOST", block)
    u = jax.vmap(lambda key: jax.random.uniform(key, (5,)))(noise.sobol(jax.random.key(block), num_samples))
    np.testing.assert_array_equal(np.sort(np.floor(u * num_samples), 0), np.arange(num_samples)[:, None] * np.ones(5))
    if block == 21_201:  # and one in every cell of the first two dimensions
        side = math.isqrt(num_samples)
        cells = np.floor(u[:, 0] * (num_samples // side)) * side + np.floor(u[:, 1] * side)
        assert len(set(cells.tolist())) == num_samples


@pytest.mark.quick
def test_sobol_draws_numbers_of_any_width(float64):
    def draws(key):
        wide, half, bits = (
            jax.random.uniform(key),
            jax.random.uniform(key, dtype=jnp.bfloat16),
            jax.random.bits(key, (), "uint8"),
        )
        return wide, half.astype(float), bits / 256

    u = np.stack(jax.vmap(draws)(noise.sobol(jax.random.key(0), 8)), 1)
    np.testing.assert_array_equal(np.sort(np.floor(u * 8), 0), np.arange(8)[:, None] * np.ones(3))
    assert len({float(value) * 2**32 % 1 for value in u[:, 0]}) == 8  # no particle lacks the low bits
    assert jax.random.normal(noise.sobol(jax.random.key(0), 8)[0], (0,)).shape == (0,)


@pytest.mark.quick
@pytest.mark.parametrize(("make", "num_samples"), [(noise.antithetic, 3), (noise.antithetic, 4), (noise.sobol, 4)])
def test_elbo_and_its_gradients_are_unbiased(make, num_samples):
    def stacked(gradient, control=None):
        objective = jvi.elbo(MODEL, GUIDE, num_samples=num_samples, gradient=gradient, noise=make, control=control)

        def one(key):
            (value, _), grads = jax.value_and_grad(objective, has_aux=True)(PARAMS, key, jnp.asarray(X))
            return jnp.concatenate([value[None], flat(grads)])

        return one

    estimators = [stacked(gradients.pathwise), stacked(gradients.stl), stacked(gradients.score, controls.given(lambda x: -9.0))]
    samples = jax.jit(jax.vmap(lambda key: jnp.concatenate([one(key) for one in estimators])))(KEYS)
    value, grads = jax.value_and_grad(exact_elbo)(PARAMS, jnp.asarray(X))
    assert_z_test(samples, jnp.tile(jnp.concatenate([value[None], flat(grads)]), 3))


def two_numbers(log_noise, x, z):
    """z ~ N(0, 1), x ~ N(z, s^2) with s = exp(log_noise)."""
    return norm.logpdf(z) + norm.logpdf(x, z, jnp.exp(log_noise))


@pytest.mark.quick
def test_iwae_of_an_antithetic_pair_matches_quadrature():
    nodes, weights = hermegauss(60)

    def exact(params):
        log_noise, (loc, log_scale) = params

        def log_weight(eps):
            z = loc[0] + jnp.exp(log_scale[0]) * eps
            return two_numbers(log_noise, 1.2, z) - norm.logpdf(eps) + log_scale[0]

        pairs = jax.vmap(lambda eps: jnp.stack([log_weight(eps), log_weight(-eps)]))(jnp.asarray(nodes))
        return jnp.dot(jnp.asarray(weights / weights.sum()), jax.vmap(jvi.bounds.iwae)(pairs))

    objective = jvi.iwae(jvi.learned(lambda rng, x: 0.0, two_numbers), ONE, num_samples=2, noise=noise.antithetic)
    params = jvi.objectives.Params(jnp.asarray(0.1), gaussian.Diagonal(jnp.array([0.3]), jnp.array([-0.2])))

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, 1.2)
        return jnp.concatenate([value[None], flat(grads)])

    value, grads = jax.value_and_grad(exact)((params.model, tuple(params.guide)))
    assert_z_test(jax.jit(jax.vmap(one))(KEYS), jnp.concatenate([value[None], flat(grads)]))


@pytest.mark.quick
@pytest.mark.parametrize("make", JOINT)
def test_the_mean_weight_is_unbiased_so_that_iwae_stays_a_bound(make):
    """E[exp(iwae)] = p(x): its gradient by the model is that of p(x), and that by the guide is zero."""
    objective = jvi.iwae(jvi.learned(lambda rng, x: 0.0, two_numbers), ONE, num_samples=3, noise=make)
    params = jvi.objectives.Params(jnp.asarray(0.1), gaussian.Diagonal(jnp.array([0.5]), jnp.array([-0.1])))

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, 1.2)
        return jnp.concatenate([jnp.exp(value) * jnp.append(flat(grads), 1.0), value[None]])

    def evidence(log_noise):
        return norm.pdf(1.2, 0.0, jnp.sqrt(1.0 + jnp.exp(2 * log_noise)))

    samples = jax.jit(jax.vmap(one))(KEYS)
    value, slope = jax.value_and_grad(evidence)(params.model)
    assert_z_test(samples[:, :-1], jnp.array([slope, 0.0, 0.0, value]))
    assert samples[:, -1].mean() < jnp.log(value)


@pytest.mark.quick
def test_antithetic_noise_cancels_what_is_linear():
    """Of q = p the log-weight is the linear term alone, and the estimate has no variance."""
    slope = jnp.array([1.0, -2.0, 0.5])
    model = jvi.model(lambda x, z: norm.logpdf(z, LOC, jnp.exp(LOG_SCALE)).sum() + jnp.dot(slope, z))
    spread = {}
    for make in (noise.independent, noise.antithetic):
        objective = jvi.elbo(model, GUIDE, num_samples=2, gradient=gradients.pathwise, noise=make)
        params = jvi.objectives.Params((), PARAMS.guide)
        values = jax.jit(jax.vmap(lambda key, o=objective, params=params: o(params, key, None)[0]))(KEYS[:100])
        spread[make] = float(values.std())
    assert spread[noise.antithetic] < 1e-5 < 0.1 < spread[noise.independent]
    np.testing.assert_allclose(values, jnp.dot(slope, LOC), atol=1e-5)


@pytest.mark.long
def test_variances_on_a_linear_gaussian_model():
    """K times the variance. The log-weight is b'eps + eps'A eps / 2: it is |b|^2 + |A|^2 / 2 of independent noise, and |A|^2 of
    antithetic noise, without the linear part, which is all there is of the location's gradient. Of Sobol points it falls, faster
    than as 1 / sqrt(K)."""

    def log_weight(eps):
        z = LOC + jnp.exp(LOG_SCALE) * eps
        return log_joint(PARAMS.model, jnp.asarray(X), z) - norm.logpdf(eps).sum()

    linear, quadratic = jax.grad(log_weight)(jnp.zeros(3)), jax.hessian(log_weight)(jnp.zeros(3))
    odd, even = float(jnp.sum(linear**2)), 0.5 * float(jnp.sum(quadratic**2))

    def scaled(make, num_samples):
        objective = jvi.elbo(MODEL, GUIDE, num_samples=num_samples, gradient=gradients.pathwise, noise=make)

        def one(key):
            (value, _), grads = jax.value_and_grad(objective, has_aux=True)(PARAMS, key, jnp.asarray(X))
            return jnp.append(grads.guide.loc, value)

        return num_samples * np.var(np.asarray(jax.jit(jax.vmap(one))(KEYS[:2_000]), float), axis=0)

    plain, pairs = scaled(noise.independent, 16), scaled(noise.antithetic, 16)
    coarse, fine = scaled(noise.sobol, 16), scaled(noise.sobol, 128)
    np.testing.assert_allclose([plain[3], pairs[3]], [odd + even, 2 * even], rtol=0.2)  # five standard errors
    assert (pairs[:3] < 1e-8 * plain[:3]).all()
    assert (coarse < 0.3 * plain).all()
    assert (fine < coarse / 8**0.5).all()
    assert (fine < 0.03 * plain).all()


@pytest.mark.quick
def test_sobol_draws_of_different_keys_are_as_good_as_independent_together():
    """The mean of a product of two keys' draws: what Latin supercube sampling promises is a variance of K / (K - 1) at most."""

    def product(key):
        first, second = jax.random.split(key)
        return jax.random.normal(first) * jax.random.normal(second)

    means = jax.jit(jax.vmap(lambda key: jnp.mean(jax.vmap(product)(noise.sobol(key, 16)))))(KEYS)
    assert_z_test(means[:, None], np.zeros(1))
    assert 0.9 < 16 * means.var() < 16 / 15 * 1.05


@pytest.mark.parametrize("make", JOINT)
def test_gammas_of_distrax_and_tfp_are_unbiased(make):
    def moments(key):
        def one(key):
            keys = jax.random.split(key)
            z = [distrax.Gamma(2.0, 3.0).sample(seed=keys[0]), tfp.distributions.Gamma(0.7, 1.0).sample(seed=keys[1])]
            return jnp.array([*z, *jnp.square(jnp.array(z))])

        return jnp.mean(jax.vmap(one)(make(key, 4)), 0)

    assert_z_test(jax.jit(jax.vmap(moments))(KEYS[:5_000]), np.array([2 / 3, 0.7, 2 / 9 + 4 / 9, 0.7 + 0.49]))


@pytest.mark.long
@pytest.mark.parametrize("make", JOINT)
def test_chunks_shards_and_keys_of_any_kind_change_no_number(make):
    """Particles in chunks and all at once; a batch on eight devices and on one."""
    batch = jax.random.normal(jax.random.key(1), (8, 4))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    found = []
    for chunk_size, x in ((None, batch), (3, batch), (None, sharded)):
        objective = jvi.per_example(jvi.elbo(MODEL, GUIDE, num_samples=5, noise=make, chunk_size=chunk_size))
        (value, _), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(PARAMS, jax.random.key(2), x)
        found.append(jnp.append(flat(grads), value))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=2e-5, atol=1e-5)
    assert make(jax.random.key(0, impl="rbg"), 5).shape == (5,)


@pytest.mark.quick
@pytest.mark.parametrize("make", JOINT)
def test_fits_run_on_any_noise_and_are_traced_once(make):
    """x_i ~ N(z, 1), z ~ N(0, 1): the fit ends at the exact mean and sd."""
    traces = []

    def joint(x, z):
        traces.append(1)
        return norm.logpdf(z) + norm.logpdf(x, z).sum()

    x = jnp.array([0.3, 1.0, 2.0])
    svi = jvi.SVI(
        jvi.elbo(jvi.model(joint), ONE, num_samples=4, noise=make), jvi.optimizer(jvi.svi.cosine_adam, num_steps=1_500)
    )
    state, info = jvi.fit(svi, jax.random.key(0), x, num_steps=1_500)
    assert len(traces) == 1
    assert info.finite.all()
    np.testing.assert_allclose(state.params.guide.loc, 3.3 / 4, atol=1e-3)
    np.testing.assert_allclose(jnp.exp(state.params.guide.log_scale), 0.5, atol=1e-3)


@pytest.mark.quick
@pytest.mark.parametrize("make", JOINT)
def test_what_would_be_biased_is_refused(make):
    parts = jvi.guides.product(a=ONE, b=ONE)
    both = jvi.model(lambda x, z: norm.logpdf(z["a"]) + norm.logpdf(z["b"]))
    mixed = gradients.by_group(a=gradients.score)
    with pytest.raises(ValueError, match="leave_one_out is biased"):
        jvi.objectives.score(MODEL, GUIDE, num_samples=4, noise=make)
    with pytest.raises(ValueError, match="leave_one_out is biased"):
        jvi.elbo(both, parts, num_samples=4, gradient=mixed, noise=make)
    with pytest.raises(ValueError, match="several log-weights"):
        jvi.objectives.vimco(MODEL, GUIDE, num_samples=4, noise=make)
    with pytest.raises(ValueError, match="several log-weights"):
        jvi.iwae(MODEL, GUIDE, num_samples=4, gradient=gradients.score, control=controls.none, noise=make)
    for control in (controls.none, controls.moving_average()):
        jvi.elbo(both, parts, num_samples=4, gradient=mixed, control=control, noise=make)
    jvi.objectives.score(MODEL, GUIDE, num_samples=1, noise=make)
