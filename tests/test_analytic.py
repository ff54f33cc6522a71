"""ELBOs in closed form and free bits: closed-form laws, z-tests at a failure rate of 1e-4 a row."""

from __future__ import annotations

import itertools
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi import gradients
from jvi.guides import gaussian, low_rank
from jvi.objectives import elbo_entropy, elbo_kl, free_bits

DESIGN = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4]])
BATCH = jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.4, 1.2]])
LOC, LOG_SCALE = jnp.array([0.4, -0.2, 0.1]), jnp.array([-0.5, 0.2, -1.0])
LOWER = jnp.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [-0.2, 0.4, 0.0]])
ROOT = jnp.exp(LOG_SCALE)[:, None] * (jnp.eye(3) + LOWER / math.sqrt(3.0))
MODEL_PARAMS = {"loc": jnp.array([0.3, 0.0, -0.5]), "log_scale": jnp.array(0.2), "log_noise": jnp.array(-0.3)}


def start(rng, x):
    return MODEL_PARAMS


def likelihood(params, x, z):
    """x ~ N(A z, s^2 I) of a vector z, or of its pieces."""
    z = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(z)])
    return norm.logpdf(x, jnp.asarray(DESIGN) @ z, jnp.exp(params["log_noise"])).sum()


def vector_prior(params):
    return distrax.MultivariateNormalDiag(params["loc"], jnp.exp(params["log_scale"]) * jnp.ones(3))


def pieces_prior(params):
    scale = jnp.exp(params["log_scale"])
    return {
        "a": distrax.Normal(params["loc"][0], scale),
        "b": distrax.Independent(tfp.distributions.Normal(params["loc"][1:], scale), 1),
    }


def pieces(loc, scale):
    return {"a": distrax.Normal(loc[0], scale[0]), "b": distrax.MultivariateNormalDiag(loc[1:], scale[1:])}


def told(params, x):
    return distrax.Joint(pieces(params.loc + 0.1 * x[0], jnp.exp(params.log_scale)))


VECTOR = jvi.models.with_prior(vector_prior, likelihood, init=start)
PIECES = jvi.models.with_prior(pieces_prior, likelihood, init=start)
UNTOLD = jvi.split(lambda params, z: VECTOR.log_prior(params, z), likelihood, init=start)
SPACE, SPACES = jvi.space(jvi.real(3)), jvi.space({"a": jvi.real(), "b": jvi.real(2)})
DIAGONAL, DENSE = gaussian.Diagonal(LOC, LOG_SCALE), gaussian.Dense(LOC, LOG_SCALE, LOWER)
FACTOR = low_rank.Factored(LOC, LOG_SCALE, jnp.array([[0.5], [-0.3], [0.8]]))
AMORTIZED = jvi.guides.from_distribution(lambda rng, x: DIAGONAL, told)
PARTS = jvi.guides.product(a=jvi.guides.MeanField(jvi.space(jvi.real())), b=jvi.guides.FullRank(jvi.space(jvi.real(2))))
PARTS_PARAMS = {
    "a": gaussian.Diagonal(LOC[:1], LOG_SCALE[:1]),
    "b": gaussian.Dense(LOC[1:], LOG_SCALE[1:], jnp.zeros((2, 2))),
}
# model, guide, its parameters, whether it moves with x
CASES = {
    "mean_field": (VECTOR, jvi.guides.MeanField(SPACE), DIAGONAL),
    "mean_field_pieces": (PIECES, jvi.guides.MeanField(SPACES), DIAGONAL),
    "full_rank": (VECTOR, jvi.guides.FullRank(SPACE), DENSE),
    "full_rank_pieces": (PIECES, jvi.guides.FullRank(SPACES), DENSE),
    "low_rank": (VECTOR, jvi.guides.LowRank(SPACE, rank=1), FACTOR),
    "amortized": (PIECES, AMORTIZED, DIAGONAL),
    "product": (PIECES, PARTS, PARTS_PARAMS),
    "untold_prior": (UNTOLD, jvi.guides.FullRank(SPACE), DENSE),
}
FORMS = {"kl": elbo_kl, "entropy": elbo_entropy}


def moments(name, params, x):
    """Mean and covariance of the guide."""
    if name == "product":
        params = gaussian.Diagonal(
            *(jnp.concatenate([a, b]) for a, b in zip(params["a"], params["b"][:2], strict=True))
        )  # what lies below the diagonal is zero
    loc = params.loc + (0.1 * x[0] if name == "amortized" else 0.0)
    if isinstance(params, gaussian.Dense):
        root = jnp.exp(params.log_scale)[:, None] * (jnp.eye(3) + jnp.tril(params.lower, -1) / math.sqrt(3.0))
        return loc, root @ root.T
    cov = jnp.diag(jnp.exp(2 * params.log_scale))
    return loc, cov + params.factor @ params.factor.T if isinstance(params, low_rank.Factored) else cov


def exact_kl(loc, cov, model):
    """KL(N(loc, cov) || N(m, s^2 I))."""
    shift, log_scale = loc - model["loc"], model["log_scale"]
    inner = (jnp.trace(cov) + shift @ shift) * jnp.exp(-2 * log_scale) - 3.0
    return 0.5 * inner + 3.0 * log_scale - 0.5 * jnp.linalg.slogdet(cov)[1]


def exact_elbo(name, params, x):
    loc, cov = moments(name, params.guide, x)
    design, log_noise = jnp.asarray(DESIGN), params.model["log_noise"]
    residual = x - design @ loc
    square = residual @ residual + jnp.trace(design @ cov @ design.T)
    fit = -0.5 * square * jnp.exp(-2 * log_noise) - 2 * (log_noise + 0.5 * math.log(2 * math.pi))
    return fit - exact_kl(loc, cov, params.model)


def draws(objective, params, x, num, seed=3):
    def one(key):
        (value, aux), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.concatenate([value[None], aux.elbo[None], flat(grads)])

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_closed_form(name, form):
    model, guide, guide_params = CASES[name]
    gradient, num_samples = (gradients.pathwise, 2) if name in ("mean_field", "low_rank") else (None, 1)
    objective = jvi.per_example(FORMS[form](model, guide, num_samples=num_samples, gradient=gradient))
    params = jvi.objectives.Params(MODEL_PARAMS, guide_params)
    value, grads = jax.value_and_grad(lambda p: jnp.mean(jax.vmap(lambda x: exact_elbo(name, p, x))(BATCH)))(params)
    if name == "product":  # the closed form has no entries there
        grads = grads._replace(guide={**grads.guide, "b": grads.guide["b"]._replace(lower=jnp.zeros((2, 2)))})
        objective_of = objective

        def objective(params, key, x):
            held = jax.lax.stop_gradient(params.guide["b"].lower)
            guide = {**params.guide, "b": params.guide["b"]._replace(lower=held)}
            return objective_of(params._replace(guide=guide), key, x)

    samples = draws(objective, params, BATCH, 10_000)
    assert_z_test(samples, jnp.concatenate([value[None], value[None], flat(grads)]))


@pytest.mark.quick
@pytest.mark.parametrize("name", ["mean_field", "mean_field_pieces", "full_rank", "product", "amortized"])
def test_the_divergence_in_closed_form_has_no_variance(name):
    model, guide, guide_params = CASES[name]
    model = jvi.models.with_prior(model.distribution, lambda params, x, z: jnp.zeros(()), init=start)
    objective = jvi.per_example(elbo_kl(model, guide, num_samples=2))
    params = jvi.objectives.Params(MODEL_PARAMS, guide_params)
    samples = np.asarray(draws(objective, params, BATCH, 5))
    assert np.ptp(samples, axis=0).max() < 1e-5
    expected = np.mean([exact_kl(*moments(name, guide_params, x), MODEL_PARAMS) for x in BATCH])
    np.testing.assert_allclose(samples[0, 0], -expected, rtol=1e-5)


@pytest.mark.long
def test_log_weights_are_those_of_the_draws():
    model, guide, guide_params = CASES["mean_field_pieces"]
    params, key = jvi.objectives.Params(MODEL_PARAMS, guide_params), jax.random.key(2)
    plain = jvi.elbo(model, guide, num_samples=4)(params, key, BATCH[0])[1].log_w
    for objective in (elbo_kl(model, guide, num_samples=4), elbo_entropy(model, guide, num_samples=4, chunk_size=2)):
        np.testing.assert_allclose(objective(params, key, BATCH[0])[1].log_w, plain, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("per_dimension", [False, True])
def test_floors_are_what_they_are_by_hand(per_dimension):
    """Two latents, a of one and b of two entries: the value, and its gradient, with and without a beta."""
    model, guide, guide_params = CASES["amortized"]
    params, key = jvi.objectives.Params(MODEL_PARAMS, guide_params), jax.random.key(2)
    nats = 0.45 if not per_dimension else 0.3
    objective = jvi.per_example(jvi.elbo(model, guide, free_bits=free_bits(nats, per_dimension=per_dimension)))

    def entries(params):
        def kl(x):
            """[3], by entry."""
            shift = params.guide.loc + 0.1 * x[0] - params.model["loc"]
            log_ratio = params.model["log_scale"] - params.guide.log_scale
            scale = jnp.exp(-params.model["log_scale"])
            return 0.5 * ((shift * scale) ** 2 + jnp.exp(-2 * log_ratio) - 1.0) + log_ratio

        return jnp.mean(jax.vmap(kl)(BATCH), 0)

    def groups(params):
        each = entries(params)
        return each if per_dimension else jnp.stack([each[0], each[1:].sum()])

    def by_hand(params, beta):
        energy = jvi.per_example(elbo_kl(model, guide))(params, key, BATCH)[0] + jnp.sum(entries(params))
        return energy - beta * jnp.sum(jnp.maximum(groups(params), nats))

    assert (groups(params) > nats).tolist() not in ([True] * len(groups(params)), [False] * len(groups(params)))
    ours = jax.jit(lambda beta: jax.value_and_grad(objective, has_aux=True)(params, key, BATCH, beta=beta))
    theirs = jax.jit(jax.value_and_grad(by_hand))
    for beta in (0.3, 1.0):
        (value, aux), grads = ours(beta)
        expected, slopes = theirs(params, beta)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(flat(grads), flat(slopes), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(aux.elbo, jvi.per_example(elbo_kl(model, guide))(params, key, BATCH)[0], rtol=1e-5)
    assert value < aux.elbo
    assert jax.tree.map(jnp.shape, aux.kl) == {"a": (), "b": (2,)}


@pytest.mark.quick
def test_the_floor_is_under_the_minibatch_mean():
    """One example of KL 2, one of KL 0, a floor of 0.7: the mean of 1 is above it; of floors by example it would be 1.35."""
    guide = jvi.guides.from_distribution(lambda rng, x: jnp.ones(()), lambda a, x: distrax.Normal(a * x, 1.0))
    model = jvi.models.with_prior(lambda: distrax.Normal(0.0, 1.0), lambda x, z: jnp.zeros(()))
    x, key = jnp.array([2.0, 0.0]), jax.random.key(0)
    params = jvi.objectives.Params((), jnp.ones(()))
    for nats, value, slope in ((0.7, -1.0, -2.0), (1.2, -1.2, 0.0)):
        objective = jvi.per_example(jvi.elbo(model, guide, free_bits=nats))
        (found, aux), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        np.testing.assert_allclose([found, grads.guide, aux.elbo, aux.kl], [value, slope, -1.0, 1.0], atol=1e-6)
        each = np.mean([jvi.elbo(model, guide, free_bits=nats)(params, key, one)[0] for one in x])
        np.testing.assert_allclose(each, -0.5 * (2.0 + nats), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("gradient", [gradients.pathwise, gradients.stl])
def test_a_pair_without_closed_form_is_estimated(gradient):
    """q = N(m, s^2) and a Laplace(0, b) prior: E|z| is the mean of a folded normal. Beside it, a latent of closed form."""

    def exact(params):
        loc, scale, log_b = params.guide["loc"], jnp.exp(params.guide["log_scale"]), params.model
        folded = scale * math.sqrt(2 / math.pi) * jnp.exp(-0.5 * (loc / scale) ** 2)
        folded = folded + loc * jax.scipy.special.erf(loc / scale / math.sqrt(2.0))
        entropy = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(scale)
        lost = jnp.sum(folded) / jnp.exp(log_b) + 2 * (log_b + math.log(2.0)) - jnp.sum(entropy)
        return -lost - 0.5 * jnp.sum(loc**2)  # of the latent of closed form: KL(N(loc, 1) || N(0, 1))

    def dist(params, x):
        rough = distrax.MultivariateNormalDiag(params["loc"], jnp.exp(params["log_scale"]))
        return distrax.Joint({"known": distrax.MultivariateNormalDiag(params["loc"], jnp.ones(2)), "rough": rough})

    def prior(params):
        rough = distrax.Independent(distrax.Laplace(jnp.zeros(2), jnp.exp(params)), 1)
        return {"known": distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)), "rough": rough}

    at = {"loc": jnp.array([0.4, -1.0]), "log_scale": jnp.array([0.1, -0.7])}
    guide = jvi.guides.from_distribution(lambda rng, x: at, dist)
    model = jvi.models.with_prior(prior, lambda params, x, z: jnp.zeros(()), init=lambda rng, x: jnp.array(0.2))
    params = jvi.objectives.Params(jnp.array(0.2), at)
    objective = elbo_kl(model, guide, num_samples=2, gradient=gradient)
    value, grads = jax.value_and_grad(exact)(params)
    assert_z_test(draws(objective, params, None, 20_000), jnp.concatenate([value[None], value[None], flat(grads)]))
    aux = objective(params, jax.random.key(0), None)[1]
    np.testing.assert_allclose(aux.kl["known"], 0.5 * at["loc"] ** 2, rtol=1e-5)
    assert aux.kl["rough"].shape == (2,)  # by entry, though estimated


@pytest.mark.quick
@pytest.mark.parametrize("gradient", [gradients.score, gradients.enumerated])
def test_discrete_latents_keep_an_exact_divergence(gradient):
    def prior(params):
        return distrax.Independent(distrax.Bernoulli(jnp.stack([params, -params])), 1)

    def fit(params, x, z):
        return norm.logpdf(x, params + z[0] - 0.5 * z[1])

    guide = jvi.guides.from_distribution(lambda rng, x: 0.0, lambda p, x: distrax.Independent(distrax.Bernoulli(p), 1))
    model = jvi.models.with_prior(prior, fit, init=lambda rng, x: 0.0)
    params = jvi.objectives.Params(jnp.array(0.4), jnp.array([-0.3, 0.9]))
    num_samples = 3 if gradient is gradients.score else 1
    objective = elbo_kl(model, guide, num_samples=num_samples, gradient=gradient)

    def exact(params):
        total = 0.0
        for z in itertools.product((0, 1), repeat=2):
            z = jnp.array(z)
            q, p = guide.dist(params.guide, None).log_prob(z), prior(params.model).log_prob(z)
            total += jnp.exp(q) * (fit(params.model, 0.7, z) + p - q)
        return total

    value, grads = jax.value_and_grad(exact)(params)
    samples, expected = draws(objective, params, 0.7, 20_000), jnp.concatenate([value[None], value[None], flat(grads)])
    if gradient is gradients.score:
        assert_z_test(samples, expected)
    else:
        np.testing.assert_allclose(samples[0], expected, rtol=1e-4)


@pytest.mark.quick
def test_a_part_that_sees_an_earlier_draw_is_compared_given_it():
    """a ~ N(m, 1), b | a ~ N(c a, 1), both with prior N(0, 1): KL is (m^2 + c^2 (1 + m^2)) / 2."""
    unit = distrax.Normal(0.0, 1.0)
    first = jvi.guides.from_distribution(lambda rng, x: 0.0, lambda m, x: distrax.Normal(m, 1.0))
    second = jvi.guides.from_distribution(lambda rng, x: 0.0, lambda c, x: distrax.Normal(c * x[1]["a"], 1.0))
    guide = jvi.guides.sequence(a=first, b=second)
    model = jvi.models.with_prior(lambda: {"a": unit, "b": unit}, lambda x, z: jnp.zeros(()))
    params = jvi.objectives.Params((), {"a": jnp.array(0.6), "b": jnp.array(-0.8)})
    objective = elbo_kl(model, guide)
    value, grads = jax.value_and_grad(lambda p: -0.5 * (p["a"] ** 2 + p["b"] ** 2 * (1 + p["a"] ** 2)))(params.guide)
    assert_z_test(draws(objective, params, None, 10_000), jnp.concatenate([value[None], value[None], flat(grads)]))
    scored = elbo_kl(model, guide, gradient=gradients.by_group(a=gradients.score))
    with pytest.raises(ValueError, match=r"jvi\.objectives\.score"):
        scored(params, jax.random.key(0), None)


@pytest.mark.long
def test_constrained_latents():
    """The distributions that `MeanField` tells are its own, and the entropy's estimate is unbiased."""
    space = jvi.space({"a": jvi.positive(2), "b": jvi.interval(-1.0, 3.0), "c": jvi.simplex(3), "d": jvi.real(2)})
    guide = jvi.guides.MeanField(space)
    loc = jnp.linspace(-0.5, 0.7, space.size)
    params, key = gaussian.Diagonal(loc, jnp.linspace(-0.3, 0.4, space.size)), jax.random.key(0)
    z, log_q = guide.sample_and_log_prob(params, key, None)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(guide.distribution(params, None).log_prob(z), log_q, rtol=1e-4)

    def one(key):
        z, log_q = guide.sample_and_log_prob(params, key, None)
        return guide.entropy(params, None, z) + log_q

    samples = jax.jit(jax.vmap(one))(jax.random.split(key, 5_000))
    assert_z_test(samples[:, None], [0.0])
    prior = {
        "a": tfp.distributions.Independent(tfp.distributions.LogNormal(jnp.zeros(2), 1.0), 1),
        "b": distrax.Uniform(-1.0, 3.0),
        "c": distrax.Dirichlet(jnp.ones(3)),
        "d": distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)),
    }
    model = jvi.models.with_prior(lambda: prior, lambda x, z: jnp.zeros(()))
    both = [elbo_kl(model, guide, num_samples=2_000), jvi.elbo(model, guide, num_samples=2_000)]
    params = jvi.objectives.Params((), params)
    found = jax.jit(lambda params: [objective(params, key, None) for objective in both])(params)
    values = [value for value, _ in found]
    spread = float(jnp.std(found[1][1].log_w)) / math.sqrt(2_000)
    assert abs(values[0] - values[1]) < 4 * spread


@pytest.mark.long
@pytest.mark.parametrize("build", [elbo_kl, elbo_entropy])
def test_minibatches_average_to_all_data(build):
    model, guide, guide_params = CASES["full_rank"]
    params, key = jvi.objectives.Params(MODEL_PARAMS, guide_params), jax.random.key(4)
    x = jnp.concatenate([BATCH, -BATCH])
    objective = jvi.objectives.subsampled(build(model, guide, num_samples=2), num_data=6)
    whole = objective(params, key, x)[0]
    parts = [objective(params, key, x[i : i + 2])[0] for i in (0, 2, 4)]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-5)
    local = jvi.objectives.global_local(
        build(jvi.models.with_prior(lambda: vector_prior(MODEL_PARAMS), lambda x, z: jnp.zeros(())), guide),
        jvi.elbo(
            jvi.split(norm.logpdf, lambda x, z: likelihood(MODEL_PARAMS, *x)), jvi.guides.MeanField(jvi.space(jvi.real()))
        ),
        num_data=6,
    )
    assert jnp.isfinite(local(local.init(key, x), key, x, beta=0.5)[0])


@pytest.mark.quick
def test_a_schedule_of_beta_with_free_bits_compiles_once():
    traces = []

    def fit(params, x, z):
        traces.append(1)
        return likelihood(params, x, z)

    model = jvi.models.with_prior(pieces_prior, fit, init=start)
    objective = jvi.elbo(model, AMORTIZED, free_bits=free_bits(0.1, per_dimension=True))
    svi = jvi.SVI(jvi.per_example(objective), jvi.optimizer(optax.adam, 1e-2))

    def schedule(step):
        return jnp.minimum(1.0, step / 20)

    jvi.fit_batches(svi, jax.random.key(0), BATCH, num_steps=40, batch_size=3, beta=schedule)
    count = len(traces)
    jvi.fit_batches(svi, jax.random.key(1), -BATCH, num_steps=60, batch_size=3, beta=schedule)
    assert len(traces) == count
    jvi.fit(svi, jax.random.key(0), BATCH, num_steps=40, beta=0.5)
    count = len(traces)
    jvi.fit(svi, jax.random.key(0), BATCH, num_steps=50, beta=0.7)
    assert len(traces) == count


@pytest.mark.quick
def test_what_cannot_be_is_refused():
    model, guide, guide_params = CASES["mean_field_pieces"]
    params, key = jvi.objectives.Params(MODEL_PARAMS, guide_params), jax.random.key(0)
    joint = jvi.learned(start, lambda params, x, z: likelihood(params, x, z))
    with pytest.raises(ValueError, match="with_prior"):
        jvi.elbo(joint, guide, free_bits=0.5)
    apart = jvi.split(lambda params, z: model.log_prior(params, z), likelihood, init=start)
    with pytest.raises(ValueError, match="prior of every latent apart"):
        jvi.elbo(apart, guide, free_bits=0.5)(params, key, BATCH[0])
    for wrong in (0.0, -1.0, math.nan, math.inf, True, "a bit"):
        with pytest.raises(ValueError, match="positive number of nats"):
            jvi.elbo(model, guide, free_bits=wrong)
    dense = jvi.elbo(VECTOR, jvi.guides.FullRank(SPACE), free_bits=free_bits(0.1, per_dimension=True))
    with pytest.raises(ValueError, match="per dimension need"):
        dense(params._replace(guide=DENSE), key, BATCH[0])
    with pytest.raises(ValueError, match="structure"):
        elbo_kl(VECTOR, guide)(params, key, BATCH[0])
    with pytest.raises(TypeError, match="function that returns"):
        jvi.models.with_prior(distrax.Normal(0.0, 1.0), likelihood)
    batched = jvi.models.with_prior(lambda: distrax.Normal(jnp.zeros(3), 1.0), lambda x, z: jnp.zeros(()))
    with pytest.raises(ValueError, match="batch shape"):
        batched.log_prior((), jnp.zeros(3))
    with pytest.raises(ValueError, match="beta other than 1"):
        elbo_entropy(joint, guide)(params, key, BATCH[0], beta=0.5)
