"""Estimators by latent group, and minibatches of global and local latents, against closed forms."""

from __future__ import annotations

import dataclasses
import math

import distrax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm

import jvi
from jvi.gradients import by_group, enumerated, pathwise, score
from jvi.guides import gaussian
from jvi.objectives import Params

KEY = jax.random.key(0)


def of(dist, start):
    return jvi.guides.from_distribution(lambda rng, x: start, dist)


def bernoulli(params, x):
    return distrax.Bernoulli(params)


def after_a(params, x):
    return distrax.Bernoulli(params[0] + params[1] * x[1]["a"])


def around(params, x):
    return distrax.Normal(params[0] + params[1] * x[1]["a"] - x[1]["b"], jnp.exp(params[2]))


def log_joint(params, x, z):
    """Two bits, and a number whose mean and theirs are tied to the datum; the slope is learned."""
    bits = jnp.log(0.3 + 0.4 * z["a"]) + 1.5 * params * z["a"] * z["b"] - jax.nn.softplus(params) * z["b"]
    return bits + norm.logpdf(z["c"], 0.5 * z["a"], 1.0) + norm.logpdf(x, params * z["c"], 0.7)


X = jnp.array(0.8)
MODEL = jvi.learned(lambda rng, x: jnp.array(0.6), log_joint)
A, B, C = of(bernoulli, jnp.array(0.2)), of(after_a, jnp.array([-0.4, 0.5])), of(around, jnp.array([0.3, -0.2, -0.5]))
GUIDE = jvi.guides.sequence(a=A, b=B, c=C)


def exact(params, x=X):
    """The ELBO: bits summed out, and the Gaussian's squares in closed form."""
    total, theta, guide = 0.0, params.model, params.guide
    for a in (0.0, 1.0):
        for b in (0.0, 1.0):
            log_q = distrax.Bernoulli(guide["a"]).log_prob(a) + distrax.Bernoulli(guide["b"][0] + guide["b"][1] * a).log_prob(b)
            loc, scale = guide["c"][0] + guide["c"][1] * a - b, jnp.exp(guide["c"][2])
            bits = jnp.log(0.3 + 0.4 * a) + 1.5 * theta * a * b - jax.nn.softplus(theta) * b
            prior = norm.logpdf(loc, 0.5 * a, 1.0) - 0.5 * scale**2
            fit = norm.logpdf(x, theta * loc, 0.7) - 0.5 * (theta * scale / 0.7) ** 2
            entropy = jnp.log(scale) + 0.5 * (1.0 + math.log(2 * math.pi))
            total += jnp.exp(log_q) * (bits + prior + fit + entropy - log_q)
    return total


PARAMS = Params(jnp.array(0.6), GUIDE.init(KEY, X))
ESTIMATORS = {
    "enumerated and stl": jvi.elbo(MODEL, GUIDE, gradient=by_group(a=enumerated, b=enumerated)),
    "enumerated and pathwise": jvi.elbo(MODEL, GUIDE, gradient=by_group(a=enumerated, b=enumerated, c=pathwise)),
    "all three": jvi.elbo(MODEL, GUIDE, gradient=by_group(a=enumerated, b=score), num_samples=2),
    "scored first": jvi.elbo(MODEL, GUIDE, gradient=by_group(a=score, b=enumerated), num_samples=2),
    "scored bits": jvi.elbo(MODEL, GUIDE, gradient=by_group(a=score, b=score), num_samples=3),
    "all scored": jvi.objectives.score(MODEL, GUIDE, num_samples=2),
    "enumerate_elbo": jvi.objectives.enumerate_elbo(MODEL, GUIDE, num_samples=2),
    "rao_blackwell": jvi.objectives.rao_blackwell(MODEL, GUIDE, num_samples=2),
    "rao_blackwell, in chunks": jvi.objectives.rao_blackwell(MODEL, GUIDE, num_samples=3, chunk_size=2),
}


def sampled(objective, params, x, num=20_000, seed=3):
    """Values and gradients [num, 1 + P], the control variate's own parameters left out."""

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.concatenate([value[None], flat((grads.model, grads.guide))])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num)))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_by_group_are_unbiased(name):
    objective = ESTIMATORS[name]
    control = objective.init(KEY, X).control
    value, grads = jax.value_and_grad(exact)(PARAMS)
    samples = sampled(objective, PARAMS._replace(control=control), X)
    assert_z_test(samples, jnp.concatenate([value[None], flat((grads.model, grads.guide))]))


def test_enumeration_and_fewer_terms_lower_the_variance():
    """Of independent bits with a term each: a bit judged by all terms carries the noise of all."""
    bit = of(bernoulli, jnp.array(0.2))
    guide = jvi.guides.product(a=bit, b=bit, c=bit)
    model = jvi.learned(
        lambda rng, x: 2.0, lambda params, x, z: params * z["a"] - 3.0 * z["b"] + 4.0 * z["c"] + z["a"] * z["b"]
    )
    spread = {}
    for build in (jvi.objectives.enumerate_elbo, jvi.objectives.rao_blackwell, jvi.objectives.score):
        objective = build(model, guide, num_samples=2)
        spread[build.__name__] = sampled(objective, objective.init(KEY, X), X, num=4_000)[:, 2:].astype(float).var(0)
    assert (spread["enumerate_elbo"] < 1e-9).all()
    assert (spread["rao_blackwell"] < 0.8 * spread["score"]).all()


def test_a_finite_latent_alone_is_exact():
    table = jnp.log(jnp.array([[0.1, 0.3], [0.2, 0.4]]))
    guide = of(lambda params, x: distrax.Independent(distrax.Bernoulli(params), 1), jnp.array([0.3, -0.5]))
    objective = jvi.objectives.enumerate_elbo(jvi.model(lambda x, z: table[z[0], z[1]]), guide)
    params = objective.init(KEY, None)
    value, _ = objective(params, KEY, None)
    q = [jax.nn.sigmoid(params.guide * sign) for sign in (-1.0, 1.0)]
    expected = sum(
        q[a][0] * q[b][1] * (table[a, b] - jnp.log(q[a][0] * q[b][1])) for a in (0, 1) for b in (0, 1)
    )  # fmt: skip
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert objective(params, jax.random.key(9), None)[0] == value


def test_controls_learn_alongside_and_leave_the_gradient_unbiased():
    """A moving average and a network, through steps of SVI: both come close to the mean signal, which is the ELBO."""
    guide = of(bernoulli, jnp.array(0.2))
    model = jvi.model(lambda x, z: jnp.log(0.3 + 0.4 * z) - 5.0 + x)
    for control in (jvi.controls.moving_average(0.9), jvi.controls.learned(flax.linen.Dense(1), inputs=jnp.atleast_1d)):
        objective = jvi.per_example(jvi.objectives.score(model, guide, num_samples=1, control=control))
        svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.1, num_steps=500))
        x = jnp.array([1.0, 1.0, 1.0, 1.0])
        state, info = jvi.fit(svi, KEY, x, num_steps=500, progress=False)
        expected = float(np.logaddexp(math.log(0.3), math.log(0.7))) - 4.0
        np.testing.assert_allclose(info.bound[-100:].mean(), expected, atol=0.05)
        baseline = control(state.params.control, x[0], jvi.bounds.elbo, jnp.zeros(1)).value[0]
        np.testing.assert_allclose(baseline, expected, atol=0.1)
        np.testing.assert_allclose(jax.nn.sigmoid(state.params.guide), 0.7, atol=0.05)


def test_leave_one_out_is_the_gradient_of_the_log_variance():
    """VarGrad: minus half the variance of the log-weights, draws held fixed, has the very same gradient."""
    objective = jvi.objectives.score(jvi.model(lambda x, z: 2.0 * z), of(bernoulli, jnp.array(0.2)), num_samples=5)
    keys = jax.random.split(jax.random.key(8), 5)

    def loss(params):
        z = jax.lax.stop_gradient(jax.vmap(lambda key: objective.guide.sample_and_log_prob(params, key, X)[0])(keys))
        return -0.5 * jnp.var(2.0 * z - jax.vmap(lambda one: objective.guide.log_prob(params, X, one))(z), ddof=1)

    at = jnp.array(0.2)
    grads = jax.grad(objective, has_aux=True)(Params((), at), jax.random.key(8), X)[0]
    assert abs(jax.grad(loss)(at)) > 0.1
    np.testing.assert_allclose(grads.guide, jax.grad(loss)(at), rtol=1e-5)


def test_a_part_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="names d; the guide's parts are a, b, c"):
        jvi.elbo(MODEL, GUIDE, gradient=by_group(d=score))
    with pytest.raises(ValueError, match="product or sequence"):
        jvi.elbo(MODEL, A, gradient=by_group(a=score))
    with pytest.raises(ValueError, match="sum the latent out"):
        jvi.iwae(MODEL, GUIDE, num_samples=2, gradient=by_group(a=enumerated, b=score))(PARAMS, KEY, X)
    wide = of(lambda params, x: distrax.Independent(distrax.Bernoulli(params), 1), jnp.zeros(20))
    with pytest.raises(ValueError, match="too many to enumerate"):
        jvi.objectives.enumerate_elbo(MODEL, wide)(Params(jnp.array(0.6), jnp.zeros(20)), KEY, X)
    with pytest.raises(ValueError, match="can be enumerated"):
        jvi.objectives.enumerate_elbo(MODEL, jvi.guides.MeanField(jvi.space(jvi.real())))
    with pytest.raises(ValueError, match="2 or more"):
        jvi.objectives.vimco(MODEL, GUIDE, num_samples=1)
    with pytest.raises(ValueError, match="moving_average"):
        jvi.objectives.score(MODEL, GUIDE, num_samples=1, control=jvi.controls.leave_one_out)


# -- minibatches -----------------------------------------------------------------------------------------------------------

DATA = jnp.array([0.3, -1.0, 2.5, 0.1, 1.7, -0.6])
GLOBAL = jvi.guides.MeanField(jvi.space(jvi.real()))
SPLIT = jvi.split(
    lambda params, z: norm.logpdf(z),
    lambda params, x, z: norm.logpdf(x, z, jnp.exp(params)),
    init=lambda rng, x: jnp.array(0.1),
)
LEARNED = Params(jnp.array(0.1), gaussian.Diagonal(jnp.array([0.5]), jnp.array([-0.4])))


def test_minibatches_of_global_latents_average_to_all_data():
    """With the same draws, exactly: values and gradients; and the value is that of the unbatched model."""
    objective = jvi.objectives.subsampled(jvi.elbo(SPLIT, GLOBAL, num_samples=3), num_data=6)
    step = jax.jit(lambda x: jax.value_and_grad(objective, has_aux=True)(LEARNED, KEY, x))
    parts = [step(DATA[i : i + 2]) for i in (0, 2, 4)]
    (whole, _), grads = jax.value_and_grad(objective, has_aux=True)(LEARNED, KEY, DATA)
    np.testing.assert_allclose(np.mean([value for (value, _), _ in parts]), whole, rtol=1e-5)
    np.testing.assert_allclose(np.mean([flat(g) for _, g in parts], 0), flat(grads), rtol=1e-4, atol=1e-5)
    plain = jvi.split(SPLIT.prior, lambda params, x, z: norm.logpdf(x, z, jnp.exp(params)).sum(), init=SPLIT.initialize)
    np.testing.assert_allclose(jvi.elbo(plain, GLOBAL, num_samples=3)(LEARNED, KEY, DATA)[0], whole, rtol=1e-5)
    half, _ = objective(LEARNED, KEY, DATA, beta=jnp.array(0.5))
    none, _ = objective(LEARNED, KEY, DATA, beta=jnp.array(0.0))
    np.testing.assert_allclose(half, 0.5 * (whole + none), rtol=1e-5)


@pytest.mark.parametrize("objective", [jvi.elbo(SPLIT, GLOBAL), jvi.objectives.score(SPLIT, GLOBAL, num_samples=2)])
def test_subsampled_gradients_match_the_closed_form(objective):
    """z ~ N(0, 1), x_i ~ N(z, s^2), s learned: a minibatch of two stands for six data."""
    batch = DATA[:2]

    def closed(params):
        loc, var, noise = params.guide.loc[0], jnp.exp(2 * params.guide.log_scale[0]), jnp.exp(params.model)
        fit = norm.logpdf(batch, loc, noise).sum() - len(batch) * 0.5 * var / noise**2
        return 3.0 * fit + norm.logpdf(loc) - 0.5 * var + 0.5 * (jnp.log(2 * math.pi * var) + 1.0)

    value, grads = jax.value_and_grad(closed)(LEARNED)
    samples = sampled(jvi.objectives.subsampled(objective, num_data=6), LEARNED, batch)
    assert_z_test(samples, jnp.concatenate([value[None], flat((grads.model, grads.guide))]))


def local_dist(params, x):
    return distrax.Normal(params[0] * x[0] + params[1] * x[1], jnp.exp(params[2]))


def local_joint(params, x, z):
    """z_i ~ N(global, 1), x_i ~ N(z_i, s^2)."""
    return norm.logpdf(z, x[1], 1.0) + norm.logpdf(x[0], z, jnp.exp(params))


PRIOR = jvi.model(lambda x, z: norm.logpdf(z))
LOCAL = jvi.elbo(jvi.learned(lambda rng, x: jnp.array(0.1), local_joint), of(local_dist, jnp.array([0.4, 0.3, -0.2])))


@pytest.mark.parametrize("outer", [jvi.elbo(PRIOR, GLOBAL), jvi.objectives.score(PRIOR, GLOBAL, num_samples=2)])
def test_global_and_local_latents_match_the_closed_form(outer):
    """N / B weighs the local log p and the local log q alike."""
    objective = jvi.objectives.global_local(outer, LOCAL, num_data=6)
    params = objective.init(KEY, DATA)
    params = params._replace(outer=params.outer._replace(guide=LEARNED.guide))
    batch = DATA[:2]

    def closed(params):
        loc, var = params.outer.guide.loc[0], jnp.exp(2 * params.outer.guide.log_scale[0])
        (a, b, log_scale), noise = params.inner.guide, jnp.exp(params.inner.model)
        mean, spread = a * batch + b * loc, jnp.exp(2 * log_scale)
        prior = norm.logpdf(mean, loc, 1.0) - 0.5 * (spread + (b - 1.0) ** 2 * var)
        fit = norm.logpdf(batch, mean, noise) - 0.5 * (spread + b**2 * var) / noise**2
        local = prior + fit + 0.5 * (jnp.log(2 * math.pi * spread) + 1.0)
        return 3.0 * local.sum() + norm.logpdf(loc) - 0.5 * var + 0.5 * (jnp.log(2 * math.pi * var) + 1.0)

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, batch)
        return jnp.concatenate([value[None], flat(grads)])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 20_000))
    value, grads = jax.value_and_grad(closed)(params)
    assert_z_test(samples, jnp.concatenate([value[None], flat(grads)]))


def test_global_and_local_latents_learn_the_evidence():
    """Local latents by their exact posteriors given the global one: the bound is log p(x), for a minibatch of all data."""
    exact_local = of(lambda params, x: distrax.Normal(0.5 * (x[0] + x[1]), math.sqrt(0.5)), ())
    local = jvi.elbo(jvi.model(lambda x, z: local_joint(0.0, x, z)), exact_local)
    objective = jvi.objectives.global_local(jvi.elbo(PRIOR, GLOBAL), local, num_data=6)
    var = 1.0 / (1.0 + 6.0 / 2.0)
    at = gaussian.Diagonal(jnp.array([var * DATA.sum() / 2.0]), jnp.array([0.5 * math.log(var)]))
    params = objective.init(KEY, DATA)
    params = params._replace(outer=params.outer._replace(guide=at))
    cov = 2.0 * np.eye(6) + 1.0
    evidence = jax.scipy.stats.multivariate_normal.logpdf(DATA, jnp.zeros(6), jnp.asarray(cov))
    for seed in range(3):
        np.testing.assert_allclose(objective(params, jax.random.key(seed), DATA)[0], evidence, rtol=1e-5)
    tighter = dataclasses.replace(objective, inner=jvi.iwae(local.model, exact_local, num_samples=3))
    np.testing.assert_allclose(tighter(params, KEY, DATA)[0], evidence, rtol=1e-5)


# Draws that are not random, so that a datum has one bound in whatever minibatch it comes.
FIXED = jvi.guides.from_functions(
    lambda rng, x: jnp.array([0.4, 0.3]),
    lambda params, rng, x: (params[0] * x[0] + params[1] * x[1], -0.5 * params[0]),
    lambda params, x, z: -0.5 * params[0] + 0.0 * z,
)
BIT = jvi.learned(lambda rng, x: jnp.array(0.1), lambda params, x, z: norm.logpdf(x[0], x[1] + params * z) - 0.3 * z)
EPOCHS = {
    "elbo": jvi.elbo(LOCAL.model, FIXED),
    "iwae": jvi.iwae(LOCAL.model, FIXED, num_samples=2),
    "miwae": jvi.objectives.miwae(LOCAL.model, FIXED, num_groups=2, num_samples=2),
    "renyi": jvi.renyi(LOCAL.model, FIXED, num_samples=2, alpha=0.5),
    "dreg": jvi.objectives.dreg(LOCAL.model, FIXED, num_samples=2),
    "enumerate_elbo": jvi.objectives.enumerate_elbo(
        BIT, of(lambda params, x: distrax.Bernoulli(params + x[0] * x[1]), jnp.array(0.2))
    ),
}


@pytest.mark.parametrize("name", EPOCHS)
def test_minibatches_of_an_epoch_average_to_all_data_for_every_bound_of_a_datum(name):
    """Under per_example, and under a global latent that has the same draws: values and gradients."""
    local = EPOCHS[name]
    for objective, x in (
        (jvi.per_example(local), jnp.stack([DATA, 0.5 - DATA], 1)),
        (jvi.objectives.global_local(jvi.elbo(PRIOR, GLOBAL, num_samples=2), local, num_data=6), DATA),
    ):
        params = objective.init(KEY, x)
        step = jax.jit(lambda x, o=objective, p=params: jax.value_and_grad(o, has_aux=True)(p, KEY, x))
        parts = [step(x[i : i + 2]) for i in (0, 2, 4)]
        (whole, _), grads = step(x)
        np.testing.assert_allclose(np.mean([value for (value, _), _ in parts]), whole, rtol=1e-5)
        np.testing.assert_allclose(np.mean([flat(g) for _, g in parts], 0), flat(grads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [jvi.objectives.score, jvi.objectives.rao_blackwell])
def test_minibatches_average_for_scored_global_latents_too(build):
    """Bits that all data share, each part judged by its own terms or by all: with the same draws, exactly."""
    bit = of(bernoulli, jnp.array(0.2))
    model = jvi.split(
        lambda params, z: -0.3 * z["a"],
        lambda params, x, z: norm.logpdf(x, params * z["a"] - z["b"]),
        init=lambda rng, x: jnp.array(0.6),
    )
    objective = jvi.objectives.subsampled(build(model, jvi.guides.product(a=bit, b=bit), num_samples=6), num_data=6)
    params = objective.init(KEY, DATA)
    step = jax.jit(lambda x: jax.value_and_grad(objective, has_aux=True)(params, KEY, x))
    parts = [step(DATA[i : i + 2]) for i in (0, 2, 4)]
    (whole, _), grads = step(DATA)
    np.testing.assert_allclose(np.mean([value for (value, _), _ in parts]), whole, rtol=1e-5)
    expected = flat((grads.model, grads.guide))
    assert (jnp.abs(expected) > 0.01).all()
    np.testing.assert_allclose(np.mean([flat((g.model, g.guide)) for _, g in parts], 0), expected, rtol=1e-4, atol=1e-5)


def test_what_minibatches_would_bias_is_refused():
    with pytest.raises(ValueError, match="not linear in the log-likelihood"):
        jvi.objectives.subsampled(jvi.iwae(SPLIT, GLOBAL, num_samples=2), num_data=6)
    with pytest.raises(ValueError, match="likelihood is known apart"):
        jvi.objectives.subsampled(jvi.elbo(PRIOR, GLOBAL), num_data=6)
    with pytest.raises(ValueError, match="not linear"):
        jvi.objectives.global_local(jvi.iwae(PRIOR, GLOBAL, num_samples=2), LOCAL, num_data=6)
    with pytest.raises(ValueError, match="ForwardKL is none"):
        jvi.objectives.global_local(
            jvi.elbo(PRIOR, GLOBAL), jvi.objectives.forward_kl(LOCAL.model, LOCAL.guide, num_samples=2), num_data=6
        )
    parts, joint = (LOCAL.model, LOCAL.guide), jvi.elbo(PRIOR, GLOBAL)
    averaged = jvi.objectives.score(*parts, control=jvi.controls.moving_average())
    for match, inner in (
        ("no moving average", averaged),
        ("no moving average", jvi.objectives.augmented(averaged, jvi.augment.binarized)),
        ("MonteCarlo is none", jvi.objectives.cubo(*parts, num_samples=2)),
        ("FBound is none", jvi.objectives.f_divergence(*parts, jnp.negative, num_samples=2)),
        ("WakeSleep stops the gradient", jvi.objectives.wake_sleep(*parts, num_samples=2)),
        ("Covariance leaves a bias", jvi.objectives.tvo(*parts, num_samples=3, gradient=score)),
    ):
        with pytest.raises(ValueError, match=match):
            jvi.objectives.global_local(joint, inner, num_data=6)
    with pytest.raises(ValueError, match="num_data=4"):
        jvi.objectives.subsampled(jvi.elbo(SPLIT, GLOBAL), num_data=4)(LEARNED, KEY, DATA)
    with pytest.raises(TypeError, match="whole number"):
        jvi.objectives.subsampled(jvi.elbo(SPLIT, GLOBAL), num_data=6.0)
