"""Doubly reparameterized and reweighted estimators against quadrature and enumeration: z-tests, all of one row at a rate of 1e-4."""

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
from scipy.stats import norm as scipy_norm

import jvi
from jvi.gradients import pathwise, score, stl
from jvi.objectives import Params, dreg, forward_kl, per_example, wake_sleep
from jvi.objectives._posterior_draws import tempered

# z ~ N(theta[0], 1), x ~ N(z, exp(theta[1])^2); q(z | x) = N(phi[0] x + phi[1], exp(phi[2])^2), three data.
GAUSSIAN = Params(jnp.array([0.4, -0.2]), jnp.array([0.3, 0.2, -0.4]))
BATCH = jnp.array([0.3, -1.0, 2.5])
NODES, MASSES = (jnp.asarray(each) for each in hermegauss(40))
PAIRS = jnp.stack(jnp.meshgrid(NODES, NODES), -1).reshape(-1, 2)
PAIR_MASSES = jnp.outer(MASSES, MASSES).ravel() / MASSES.sum() ** 2

# z of three values, x of two; q(z | x) by a table.
DISCRETE = Params(
    {"prior": jnp.array([0.2, -0.4, 0.5]), "rate": jnp.array([-1.0, 0.3, 1.5])}, jnp.array([[0.1, 0.6, -0.3], [-0.5, 0.0, 0.8]])
)
DISCRETE_BATCH = jnp.array([0, 1, 1])


def gaussian_model():
    prior, likelihood = (lambda theta: distrax.Normal(theta[0], 1.0)), (lambda theta, z: distrax.Normal(z, jnp.exp(theta[1])))
    return jvi.models.generative(prior, likelihood, init=lambda rng, x: GAUSSIAN.model)


def gaussian_guide():
    def dist(phi, x):
        return distrax.Normal(phi[0] * x + phi[1], jnp.exp(phi[2]))

    return jvi.guides.from_distribution(lambda rng, x: GAUSSIAN.guide, dist)


def discrete_parts():
    model = jvi.models.generative(
        lambda theta: distrax.Categorical(theta["prior"]),
        lambda theta, z: distrax.Bernoulli(theta["rate"][z]),
        init=lambda rng, x: DISCRETE.model,
    )
    return model, jvi.guides.from_distribution(lambda rng, x: DISCRETE.guide, lambda phi, x: distrax.Categorical(phi[x]))


def log_q(phi, x, z):
    return norm.logpdf(z, phi[0] * x + phi[1], jnp.exp(phi[2]))


def log_weight(params, x, z, beta=1.0):
    theta, phi = params.model, params.guide
    return norm.logpdf(x, z, jnp.exp(theta[1])) + beta * (norm.logpdf(z, theta[0], 1.0) - log_q(phi, x, z))


def paired(params, x):
    """Both draws of every pair of nodes [P, 2]."""
    phi = params.guide
    return phi[0] * x + phi[1] + jnp.exp(phi[2]) * PAIRS


def mean_over(one, params, batch):
    """The mean over data of one datum's expectation over pairs of nodes."""
    return jnp.mean(jax.vmap(lambda x: jnp.sum(PAIR_MASSES * one(params, x)))(batch))


def samples_of(objective, params, x, count, *, by_x=False, beta=1.0, seed=3):
    """Values and gradients [count, ...] of independent keys."""

    def one(key):
        argnums = (0, 2) if by_x else (0,)
        (value, _), grads = jax.value_and_grad(objective, argnums=argnums, has_aux=True)(params, key, x, beta=beta)
        return jnp.concatenate([value[None], flat(grads)])

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count))


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.5, 1.0), (2.0, 1.0), (0.0, 0.6)])
def test_dreg_of_two_draws_matches_quadrature(alpha, beta):
    """Value, model, guide and data: whoever differentiates by x, such as an outer objective, gets the right gradient too."""

    def exact(params, batch):
        def one(params, x):
            log_w = log_weight(params, x, paired(params, x), beta)
            return jax.vmap(lambda w: jvi.bounds.renyi(w, alpha))(log_w)

        return mean_over(one, params, batch)

    objective = per_example(dreg(gaussian_model(), gaussian_guide(), num_samples=2, alpha=alpha))
    samples = samples_of(objective, GAUSSIAN, BATCH, 40_000, by_x=True, beta=beta)
    value, grads = jax.jit(jax.value_and_grad(exact, argnums=(0, 1)))(GAUSSIAN, BATCH)
    assert_z_test(samples, jnp.concatenate([value[None], flat(grads)]))


@pytest.mark.long
def test_dreg_of_five_draws_has_the_mean_of_the_pathwise_gradient():
    parts = gaussian_model(), gaussian_guide()
    one = samples_of(per_example(dreg(*parts, num_samples=5)), GAUSSIAN, BATCH, 40_000)
    other = samples_of(per_example(jvi.iwae(*parts, num_samples=5, gradient=pathwise)), GAUSSIAN, BATCH, 40_000, seed=4)
    error = np.sqrt((np.var(one, 0) + np.var(other, 0)) / len(one))
    z = np.abs(np.mean(one, 0) - np.mean(other, 0)) / error
    assert z.max() < scipy_norm.isf(FAILURE_RATE / 2 / z.size), z
    assert np.all(np.var(one, 0)[-3:] < np.var(other, 0)[-3:])  # the guide's


@pytest.mark.quick
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_dreg_has_no_guide_gradient_at_the_exact_posterior(alpha):
    noise_var = math.exp(-0.4)
    gain = 1.0 / (1.0 + noise_var)
    exact = Params(GAUSSIAN.model, jnp.array([gain, 0.4 * (1.0 - gain), 0.5 * math.log(noise_var * gain)]))
    objective = per_example(dreg(gaussian_model(), gaussian_guide(), num_samples=5, alpha=alpha))
    samples = samples_of(objective, exact, BATCH, 50)
    np.testing.assert_allclose(samples[:, -3:], 0.0, atol=2e-5)
    assert np.std(samples[:, 1:3], 0).min() > 0.01  # the model's has variance left


@pytest.mark.quick
def test_dreg_of_order_one_is_the_elbo_with_stl():
    parts = gaussian_model(), gaussian_guide()
    one = samples_of(dreg(*parts, num_samples=3, alpha=1.0), GAUSSIAN, 0.7, 5)
    other = samples_of(jvi.elbo(*parts, num_samples=3, gradient=stl), GAUSSIAN, 0.7, 5)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_chunks_change_nothing():
    parts = gaussian_model(), gaussian_guide()
    for build in (dreg, wake_sleep):
        whole, chunked = (
            samples_of(build(*parts, num_samples=3, chunk_size=size), GAUSSIAN, BATCH[0], 3) for size in (None, 2)
        )
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_dreg_differentiates_the_model_once_and_for_all_data_together():
    """As many products of matrices as the pathwise gradient takes, and no gradient of the model's for each datum."""

    def log_joint(theta, x, z):
        return norm.logpdf(z).sum() + norm.logpdf(x, jnp.tanh(z @ theta["a"]) @ theta["b"]).sum()

    theta = {"a": jnp.ones((3, 17)), "b": jnp.ones((17, 2))}
    model = jvi.learned(lambda rng, x: theta, log_joint)
    guide = jvi.guides.MeanField(jvi.space(jvi.real(3)))
    programs = {}
    for build in (dreg, jvi.iwae):
        objective, x = per_example(build(model, guide, num_samples=4)), jnp.ones((5, 2))
        params = objective.init(jax.random.key(0), x)
        grad = jax.grad(lambda p, o=objective, x=x: o(p, jax.random.key(1), x)[0])
        programs[build] = str(jax.make_jaxpr(grad)(params))
    assert "5,3,17]" not in programs[dreg]
    assert "5,17,2]" not in programs[dreg]
    assert programs[dreg].count("dot_general") == programs[jvi.iwae].count("dot_general") > 0


@pytest.mark.quick
def test_sticking_the_landing_and_dreg_evaluate_the_density_once_more_than_pathwise():
    """In the gradient's program, for all particles and examples at once; a function that nothing else calls marks the density."""

    def log_normal(z, loc):
        return norm.logpdf(z, loc, 0.5) + 0.0 * jax.lax.bessel_i0e(z)

    def sampled(params, rng, x):
        z = params + x + 0.5 * jax.random.normal(rng)
        return z, log_normal(z, params + x)

    guide = jvi.guides.from_functions(lambda rng, x: jnp.zeros(()), sampled, lambda params, x, z: log_normal(z, params + x))
    model = jvi.learned(lambda rng, x: jnp.zeros(()), lambda theta, x, z: norm.logpdf(z, theta) + norm.logpdf(x, z))
    params, counts = Params(jnp.zeros(()), jnp.zeros(())), {}
    for name, objective in {
        "pathwise": jvi.elbo(model, guide, num_samples=3, gradient=pathwise),
        "stl": jvi.elbo(model, guide, num_samples=3, gradient=stl),
        "dreg": dreg(model, guide, num_samples=3),
    }.items():
        program = jax.make_jaxpr(jax.value_and_grad(per_example(objective), has_aux=True))(params, jax.random.key(0), BATCH)
        counts[name] = str(program).count("bessel_i0e")
    assert counts["pathwise"] > 0
    assert counts["stl"] - counts["pathwise"] <= 1
    assert counts["dreg"] - counts["pathwise"] <= 1


def weighted_score(params, x):
    """sum_k v[k] log q(z_k | x) of fixed draws and weights, for every pair: its gradient is wake-phi."""
    z = jax.lax.stop_gradient(paired(params, x))
    weights = jax.lax.stop_gradient(jax.nn.softmax(log_weight(params, x, z), -1))
    return jnp.sum(weights * log_q(params.guide, x, z), -1)


def divergence(log_w):
    return jvi.bounds.iwae(log_w) - jnp.sum(jax.nn.softmax(log_w) * log_w)


@pytest.mark.long
@pytest.mark.parametrize("gradient", [score, stl])
def test_reweighted_gradients_of_two_draws_match_quadrature(gradient):
    """forward_kl and wake_sleep with draws held fixed and doubly reparameterized: one expectation."""
    parts = gaussian_model(), gaussian_guide()

    def expected(params, bound):
        return mean_over(lambda p, x: jax.vmap(bound)(log_weight(p, x, paired(p, x))), params, BATCH)

    phi = jax.grad(lambda params: mean_over(weighted_score, params, BATCH))(GAUSSIAN).guide
    bound, theta = jax.value_and_grad(expected)(GAUSSIAN, jvi.bounds.iwae)
    awake = samples_of(per_example(wake_sleep(*parts, num_samples=2, gradient=gradient)), GAUSSIAN, BATCH, 40_000)
    assert_z_test(awake, jnp.concatenate([bound[None], theta.model, phi]))
    inclusive = samples_of(per_example(forward_kl(*parts, num_samples=2, gradient=gradient)), GAUSSIAN, BATCH, 40_000)
    assert_z_test(inclusive, jnp.concatenate([expected(GAUSSIAN, divergence)[None], jnp.zeros(2), phi]))


@pytest.mark.long
def test_reweighted_estimators_match_enumeration_on_a_discrete_model():
    """Two draws of three values: all nine pairs; and all six (x, z) that the model simulates."""
    sleep = 0.3
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(3)), -1).reshape(-1, 2)

    def log_p(theta, x, z):
        rate = theta["rate"][z]
        return jax.nn.log_softmax(theta["prior"])[z] + jnp.where(x == 1, jax.nn.log_sigmoid(rate), jax.nn.log_sigmoid(-rate))

    def of_pairs(params, x):
        log_q = jax.nn.log_softmax(params.guide[x])[pairs]
        return log_q, log_p(params.model, x, pairs) - jax.lax.stop_gradient(log_q)

    def mean(function, params):
        def one(x):
            log_q, log_w = of_pairs(params, x)
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_q.sum(1))) * function(log_q, log_w))

        return jnp.mean(jax.vmap(one)(DISCRETE_BATCH))

    def awake(log_q, log_w):
        return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w, 1)) * log_q, 1)

    def asleep(params):
        x, z = (each.ravel() for each in jnp.meshgrid(jnp.arange(2), jnp.arange(3)))
        mass = jnp.exp(jax.lax.stop_gradient(log_p(params.model, x, z)))
        return jnp.sum(mass * jax.nn.log_softmax(params.guide)[x, z])

    bound, theta = jax.value_and_grad(lambda p: mean(lambda _, w: jax.vmap(jvi.bounds.iwae)(w), p))(DISCRETE)
    wake_phi = jax.grad(lambda p: mean(awake, p))(DISCRETE).guide
    sleep_phi = jax.grad(asleep)(DISCRETE).guide
    objective = per_example(wake_sleep(*discrete_parts(), num_samples=2, sleep=sleep, num_simulated=2))
    expected = Params(theta.model, (1.0 - sleep) * wake_phi + sleep * sleep_phi)
    assert_z_test(samples_of(objective, DISCRETE, DISCRETE_BATCH, 40_000), jnp.concatenate([bound[None], flat(expected)]))

    value = mean(lambda _, w: jax.vmap(divergence)(w), DISCRETE)
    objective = per_example(forward_kl(*discrete_parts(), num_samples=2))
    expected = Params(jax.tree.map(jnp.zeros_like, DISCRETE.model), wake_phi)
    assert_z_test(samples_of(objective, DISCRETE, DISCRETE_BATCH, 40_000), jnp.concatenate([value[None], flat(expected)]))


def test_forward_kl_of_many_draws_is_the_inclusive_divergence_of_a_gaussian():
    """K = 4,000: the bias, O(1 / K), is a twentieth of the standard errors."""
    theta, x = GAUSSIAN.model, BATCH[2]
    gain = 1.0 / (1.0 + jnp.exp(2 * theta[1]))
    loc, var = theta[0] + gain * (x - theta[0]), 1.0 - gain

    def exact(phi):
        square = (var + (loc - phi[0] * x - phi[1]) ** 2) * jnp.exp(-2 * phi[2])
        return -(phi[2] - 0.5 * jnp.log(var) + 0.5 * square - 0.5)

    value, grads = jax.value_and_grad(exact)(GAUSSIAN.guide)
    objective = forward_kl(gaussian_model(), gaussian_guide(), num_samples=4_000)
    samples = samples_of(objective, GAUSSIAN, x, 50)
    assert_z_test(samples, jnp.concatenate([value[None], jnp.zeros(2), grads]))


@pytest.mark.long
def test_sleep_fits_the_guide_to_what_the_model_simulates():
    """E log q(z | x) under the model, in closed form."""

    def exact(phi):
        loc, noise = GAUSSIAN.model[0], jnp.exp(GAUSSIAN.model[1])
        square = (loc - phi[0] * loc - phi[1]) ** 2 + (1.0 - phi[0]) ** 2 + (phi[0] * noise) ** 2
        return -phi[2] - 0.5 * square * jnp.exp(-2 * phi[2])

    objective = per_example(wake_sleep(gaussian_model(), gaussian_guide(), num_samples=2, sleep=1.0, num_simulated=3))
    samples = samples_of(objective, GAUSSIAN, BATCH, 20_000)
    assert_z_test(samples[:, 3:], jax.grad(exact)(GAUSSIAN.guide))


@pytest.mark.long
def test_tempering_reaches_the_effective_sample_size_asked_for():
    log_w = 4.0 * jax.random.normal(jax.random.key(0), (100,))
    for target in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(jvi.bounds.ess(tempered(log_w, target)), 100 * target, rtol=1e-4)
    np.testing.assert_allclose(tempered(0.1 * log_w, 0.5), 0.1 * (log_w - log_w.max()), rtol=1e-6)
    holed = tempered(jnp.concatenate([log_w, jnp.full(100, -jnp.inf)]), 0.25)
    np.testing.assert_allclose(jvi.bounds.ess(holed), 50.0, rtol=1e-4)
    assert np.all(np.isneginf(holed[100:]))
    np.testing.assert_allclose(jvi.bounds.ess(tempered(jnp.array([0.0, -jnp.inf]), 1.0)), 1.0)  # more cannot be had


@pytest.mark.quick
def test_tempering_weighs_the_scores_and_leaves_the_value():
    parts, rng, x = (gaussian_model(), gaussian_guide()), jax.random.key(7), BATCH[1]
    soft = forward_kl(*parts, num_samples=8, ess_target=0.9)
    (value, aux), grads = jax.jit(jax.value_and_grad(soft, has_aux=True))(GAUSSIAN, rng, x)
    np.testing.assert_allclose(value, divergence(aux.log_w), rtol=1e-4)
    z = jax.vmap(lambda key: gaussian_guide().sample_and_log_prob(GAUSSIAN.guide, key, x)[0])(jax.random.split(rng, 8))
    weights = jax.nn.softmax(tempered(aux.log_w, 0.9))
    expected = jax.grad(lambda phi: jnp.sum(weights * log_q(phi, x, z)))(GAUSSIAN.guide)
    np.testing.assert_allclose(grads.guide, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_a_fit_by_wake_sleep_finds_a_discrete_posterior():
    objective = wake_sleep(jvi.model(lambda x, z: jnp.log(jnp.array([0.2, 0.3, 0.5]))[z]), _categorical(), num_samples=20)
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.02, num_steps=2_000))
    state, info = jvi.fit(svi, jax.random.key(0), None, num_steps=2_000, progress=False)
    np.testing.assert_allclose(jax.nn.softmax(state.params.guide), [0.2, 0.3, 0.5], atol=0.03)
    np.testing.assert_allclose(info.bound[-100:].mean(), 0.0, atol=0.01)  # the log evidence


def _categorical():
    return jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda phi, x: distrax.Categorical(phi))


def _at_zero():
    return jvi.guides.from_distribution(lambda rng, x: 0.1, lambda phi, x: distrax.Normal(phi, 1.0))


@pytest.mark.quick
def test_what_would_be_biased_or_undefined_is_refused():
    model, guide = gaussian_model(), gaussian_guide()
    without = jvi.guides.from_functions(lambda rng, x: (), lambda phi, rng, x: (jax.random.normal(rng), jnp.zeros(())))

    for build in (dreg, forward_kl, wake_sleep):
        with pytest.raises(ValueError, match="log_prob"):
            build(model, without, num_samples=2)
        with pytest.raises(ValueError, match="num_samples"):
            build(model, guide, num_samples=0)
    with pytest.raises(ValueError, match="independent"):
        dreg(model, guide, num_samples=2, noise=jvi.noise.antithetic)
    with pytest.raises(ValueError, match="independent"):
        wake_sleep(model, guide, num_samples=2, gradient=stl, noise=jvi.noise.antithetic)
    dreg(model, guide, num_samples=2, alpha=1.0, noise=jvi.noise.antithetic)
    with pytest.raises(ValueError, match="finite alpha"):
        dreg(model, guide, num_samples=2, alpha=-math.inf)
    with pytest.raises(ValueError, match=r"gradients\.score"):
        forward_kl(model, guide, num_samples=2, gradient=pathwise)
    with pytest.raises(ValueError, match="share"):
        forward_kl(model, guide, num_samples=2, ess_target=1.5)
    with pytest.raises(ValueError, match="ess_target"):
        forward_kl(model, guide, num_samples=2, ess_target=0.5, gradient=stl)
    with pytest.raises(ValueError, match="sampled"):
        wake_sleep(jvi.model(lambda x, z: -(z**2)), guide, num_samples=2, sleep=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        wake_sleep(model, guide, num_samples=2, sleep=2.0)
    with pytest.raises(ValueError, match="beta"):
        forward_kl(model, guide, num_samples=2)(GAUSSIAN, jax.random.key(0), 1.0, beta=0.5)
    pairs = jvi.models.generative(lambda: distrax.Normal(0.0, 1.0), lambda z: distrax.MultivariateNormalDiag(z * jnp.ones(2)))
    with pytest.raises(ValueError, match="draws x as"):
        wake_sleep(pairs, _at_zero(), num_samples=2, sleep=0.5)(Params((), 0.1), jax.random.key(0), jnp.ones(1))
    discrete = dreg(*discrete_parts(), num_samples=2)
    with pytest.raises(TypeError, match="vimco"):
        discrete(DISCRETE, jax.random.key(0), jnp.array(1))
