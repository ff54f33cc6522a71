"""Discrete latents against enumeration, the KL term weighed by 1 and by less: z-tests of a row at a failure rate of 1e-4."""

from __future__ import annotations

import functools
import itertools
import math

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi import _concrete, controls, gradients, noise, objectives
from jvi._distributions import logits_of

tfd = tfp.distributions
X = jnp.array([0.7, -0.4])  # two data, under per_example
BETAS = (1.0, 0.4)
CONSTANT = -6.0  # nats: evidences are far from zero, which is what a baseline is for
WEIGHTS = jnp.array([0.8, -1.1, 0.5])
NET = nn.Sequential((nn.Dense(4), nn.tanh, nn.Dense(1)))
NUM_DRAWS = 20_000


def bits_prior(loc, z):
    return jnp.sum(z * jnp.log(0.3) + (1.0 - z) * jnp.log(0.7))


def bits_likelihood(loc, x, z):
    """Three bits that a datum couples; `loc` is learned. Not linear in a bit, so that relaxed ones are no short cut."""
    z = 1.0 * z
    return norm.logpdf(x, loc * (z @ WEIGHTS) + z[0] * z[1] + 0.5 * z[2] ** 2, 0.6) + CONSTANT


def hot_prior(loc, z):
    return 1.0 * z @ jnp.log(jnp.array([0.2, 0.3, 0.5]))


def hot_likelihood(loc, x, z):
    z = 1.0 * z
    return norm.logpdf(x, loc * (z @ WEIGHTS) + (z[0] + 0.3 * z[1]) ** 2, 0.6) + CONSTANT


def bits(params, x):
    return distrax.Independent(distrax.Bernoulli(params["at"] + params["slope"] * x), 1)


def one_hot(params, x):
    return distrax.OneHotCategorical(params["at"] + params["slope"] * x)


def start(rng, x):
    return {"at": jnp.array([0.4, -0.6, 0.9]), "slope": jnp.array([0.3, 0.5, -0.7])}


BITS = (
    jvi.split(bits_prior, bits_likelihood, init=lambda rng, x: jnp.asarray(0.9)),
    jvi.guides.from_distribution(start, bits),
    np.array(list(itertools.product([0.0, 1.0], repeat=3))),
)
HOT = (
    jvi.split(hot_prior, hot_likelihood, init=lambda rng, x: jnp.asarray(0.9)),
    jvi.guides.from_distribution(start, one_hot),
    np.eye(3),
)


def score(control, num_samples=2):
    return lambda model, guide: objectives.score(model, guide, num_samples=num_samples, control=control)


def surrogate(num_samples, temperature):
    return lambda model, guide: objectives.relax(model, guide, network=NET, num_samples=num_samples, temperature=temperature)


# Of each: latents, draws per step K, and the objective.
ROWS = {
    "enumerated": (BITS, objectives.enumerate_elbo),
    "score": (BITS, score(controls.none)),
    "score, leave one out": (BITS, score(controls.leave_one_out)),
    "score, moving average": (BITS, score(controls.moving_average(0.9))),
    "score, learned": (BITS, score(controls.learned(nn.Dense(1), inputs=lambda x: x[None]))),
    "score, given": (BITS, score(controls.given(lambda x: -2.0 * x**2))),
    "rebar": (BITS, functools.partial(objectives.rebar, num_samples=2)),
    "relax": (BITS, surrogate(2, 0.4)),
    "relax, network alone": (BITS, surrogate(1, None)),
    "disarm": (BITS, objectives.disarm),
    "disarm, two pairs": (BITS, functools.partial(objectives.disarm, num_samples=4)),
    "disarm, Sobol pairs": (BITS, functools.partial(objectives.disarm, num_samples=8, noise=noise.sobol)),
    "rebar, antithetic": (BITS, functools.partial(objectives.rebar, num_samples=3, noise=noise.antithetic)),
    "one-hot rebar, Sobol": (HOT, functools.partial(objectives.rebar, num_samples=4, noise=noise.sobol)),
    "one-hot score": (HOT, score(controls.leave_one_out, 3)),
    "one-hot rebar": (HOT, functools.partial(objectives.rebar, num_samples=1)),
    "one-hot relax": (HOT, surrogate(2, 0.8)),
}


def start_of(objective):
    """Parameters away from where a control variate starts."""
    params = objective.init(jax.random.key(0), X)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=float)).reshape(leaf.shape), params.control
    )
    return params._replace(control=moved)


def samples_of(objective, params, num=NUM_DRAWS):
    """Values and gradients of model and guide at each of `BETAS`, [num, 1 + 1 + 6]; compiled once."""

    def one(key, beta):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, X, beta=beta)
        return jnp.concatenate([value[None], flat(grads.model), flat(grads.guide)])

    compiled, keys = jax.jit(jax.vmap(one, (0, None))), jax.random.split(jax.random.key(5), num)
    return {beta: np.asarray(compiled(keys, beta)) for beta in BETAS}


@functools.cache
def drawn(name):
    (model, guide, _), build = ROWS[name]
    objective = jvi.per_example(build(model, guide))
    return samples_of(objective, start_of(objective), 10 if name == "enumerated" else NUM_DRAWS)


def expected(latents, beta, bound=jvi.bounds.elbo, num=1):
    """The mean over the data of the bound of K draws, summed over all K-tuples of values; and its gradients."""
    model, guide, table = latents
    tuples = jnp.asarray(list(itertools.product(table, repeat=num)))  # [V^K, K, D]

    def exact(params, x):
        log_q = jax.vmap(jax.vmap(lambda z: guide.log_prob(params[1], x, z)))(tuples)
        log_prior = jax.vmap(jax.vmap(lambda z: model.log_prior(params[0], z)))(tuples)
        fit = jax.vmap(jax.vmap(lambda z: model.log_likelihood(params[0], x, z)))(tuples)
        return jnp.sum(jnp.exp(log_q.sum(1)) * jax.vmap(bound)(fit + beta * (log_prior - log_q)))

    params = (model.init(None, None), start(None, None))
    value, grads = jax.value_and_grad(lambda params: jnp.mean(jax.vmap(lambda x: exact(params, x))(X)))(params)
    return jnp.concatenate([value[None], flat(grads)])


SLOW = ("disarm, Sobol pairs", "rebar, antithetic", "one-hot rebar, Sobol", "relax, network alone")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in ROWS])
def test_value_and_gradients_are_those_of_enumeration(name):
    for beta, samples in drawn(name).items():
        right = expected(ROWS[name][0], beta)
        if name == "enumerated":
            np.testing.assert_allclose(samples, np.tile(right, (10, 1)), rtol=2e-5)
        else:
            assert_z_test(samples, right)


@pytest.mark.long
@pytest.mark.parametrize("latents", [BITS, HOT], ids=["bits", "one-hot"])
def test_vimco_is_unbiased_for_the_bound_of_two_draws(latents):
    model, guide, _ = latents
    objective = jvi.per_example(objectives.vimco(model, guide, num_samples=2))
    for beta, samples in samples_of(objective, start_of(objective), 40_000).items():
        assert_z_test(samples, expected(latents, beta, jvi.bounds.iwae, 2))


def test_control_variates_lower_the_variance():
    """Total variance of the guide's gradient by two draws a step, each less than plain REINFORCE's beyond four standard errors."""

    def spread(name):
        grads = drawn(name)[1.0][:, 2:].astype(float)
        squares = np.sum((grads - grads.mean(0)) ** 2, 1)
        return squares.mean(), squares.std() / np.sqrt(len(squares))

    assert spread("enumerated")[0] < 1e-8
    plain, error = spread("score")
    for name in ("score, leave one out", "rebar", "disarm"):
        value, its = spread(name)
        assert 1e-4 < value < plain - 4 * np.hypot(error, its), name


@pytest.mark.parametrize("latents", [BITS, HOT], ids=["bits", "one-hot"])
def test_the_control_variate_descends_the_squared_gradient(latents, float64):
    """Draw for draw, its gradient is minus the derivative of the squared gradient by the logits."""
    family = bits if latents is BITS else one_hot
    guide = jvi.guides.from_distribution(
        lambda rng, x: start(rng, x)["at"], lambda p, x: family({"at": p, "slope": 0.0 * p}, x)
    )
    objective = objectives.relax(latents[0], guide, network=NET)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), objective.init(jax.random.key(0), X[0]))
    gradient = jax.jit(lambda control, key: jax.grad(objective, has_aux=True)(params._replace(control=control), key, X[0])[0])
    step = 1e-5
    for seed in range(3):
        key = jax.random.key(seed)
        found = gradient(params.control, key).control
        for name in ("log_temperature", "scale"):
            ends = [params.control._replace(**{name: getattr(params.control, name) + sign * step}) for sign in (1.0, -1.0)]
            up, down = (jnp.sum(gradient(end, key).guide ** 2) for end in ends)
            np.testing.assert_allclose(getattr(found, name), -(up - down) / (2 * step), rtol=1e-5, atol=1e-8)
        bias = params.control.network["layers_2"]["bias"]
        moved = [
            {**params.control.network, "layers_2": {**params.control.network["layers_2"], "bias": bias + sign * step}}
            for sign in (1.0, -1.0)
        ]
        up, down = (jnp.sum(gradient(params.control._replace(network=one), key).guide ** 2) for one in moved)
        np.testing.assert_allclose(found.network["layers_2"]["bias"][0], -(up - down) / (2 * step), rtol=1e-5, atol=1e-8)


def test_relax_learns_to_lower_its_variance():
    """(z - 0.45)^2, ten times: the posterior's logit is 1. A fit ends there, with less variance than without a control variate."""
    model = jvi.model(lambda x, z: 10.0 * (z - 0.45) ** 2)
    guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
    learned = objectives.relax(model, guide, network=NET)
    svi = jvi.SVI(learned, jvi.optimizer(jvi.svi.cosine_adam, 0.03, num_steps=2_000))
    state, _ = jvi.fit(svi, jax.random.key(0), num_steps=2_000, progress=False)
    assert abs(float(state.params.guide) - 1.0) < 0.05
    plain = objectives.score(model, guide, num_samples=1)
    begun = learned.init(jax.random.key(0), None).control
    controls = {"end": (learned, state.params.control), "start": (learned, begun), "none": (plain, ())}
    spread = {}
    for name, (objective, control) in controls.items():
        params = state.params._replace(
            guide=jnp.asarray(0.5), control=control
        )  # away from the optimum, where all could be quiet
        grads = jax.vmap(lambda key, o=objective, p=params: jax.grad(o, has_aux=True)(p, key, None)[0].guide)
        found = np.asarray(jax.jit(grads)(jax.random.split(jax.random.key(1), 10_000)), float)
        squares = (found - found.mean()) ** 2
        spread[name] = (squares.mean(), squares.std() / 100)
    for other in ("start", "none"):
        (value, error), (more, its) = spread["end"], spread[other]
        assert value < more - 4 * np.hypot(error, its), spread


def gradient_samples(objective, params, x, num=40_000):
    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.concatenate([value[None], flat(grads)])

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(9), num))


def logistic_rule():
    """Nodes and weights of the logistic law: the trapezoid, which is exact to 1e-7."""
    at = jnp.linspace(-18.0, 18.0, 2_001)
    return at, 0.018 * jax.scipy.stats.logistic.pdf(at)


def mean_of_relaxed(logit, temperature):
    noise, weights = logistic_rule()
    return weights @ jax.nn.sigmoid((logit + noise) / temperature)


def bit(logit):
    return jvi.guides.from_distribution(lambda rng, x: jnp.asarray(logit), lambda p, x: distrax.Bernoulli(p))


def test_concrete_is_unbiased_for_its_own_bound():
    """One relaxed bit, a relaxed prior and a learned mean: the bound and its gradients by quadrature."""
    temperature, x = 0.6, 0.7

    def log_joint(loc, x, z):
        return tfd.RelaxedBernoulli(0.5, logits=-0.4).log_prob(z) + norm.logpdf(x, loc * z + z**2, 0.6)

    model = jvi.learned(lambda rng, x: jnp.asarray(0.9), log_joint)
    objective = jvi.elbo(model, bit(0.8), gradient=gradients.concrete(temperature))
    samples = gradient_samples(objective, objective.init(jax.random.key(0), x), x)

    def exact(loc, logit):
        noise, weights = logistic_rule()
        z = jax.nn.sigmoid((logit + noise) / temperature)
        q = tfd.RelaxedBernoulli(temperature, logits=logit)
        return weights @ jax.vmap(lambda z: log_joint(loc, x, z) - q.log_prob(z))(z)

    with jax.enable_x64(True):
        value, grads = jax.value_and_grad(exact, (0, 1))(jnp.asarray(0.9), jnp.asarray(0.8))
    assert_z_test(samples, [value, *grads])


@pytest.mark.quick
def test_concrete_densities_are_those_of_tfp():
    """Of a joint of bits and one-hot vectors."""

    def dist(params, x):
        return distrax.Joint(
            {"b": distrax.Independent(distrax.Bernoulli(params[:2]), 1), "c": distrax.OneHotCategorical(params)}
        )

    logits = jnp.array([0.3, -1.0, 0.5])
    guide = jvi.guides.from_distribution(lambda rng, x: logits, dist)
    z, log_q = gradients.concrete(0.7)(guide, logits, jax.random.key(3), None)
    with jax.numpy_rank_promotion("allow"):
        of_bits = tfd.RelaxedBernoulli(0.7, logits=logits[:2]).log_prob(z["b"]).sum()
        of_hot = tfd.RelaxedOneHotCategorical(0.7, logits=logits).log_prob(z["c"])
    np.testing.assert_allclose(log_q, of_bits + of_hot, rtol=1e-4)


def test_straight_through_is_right_in_value_and_in_the_model_and_as_biased_as_said():
    """log p = slope z is linear: the gradient is (slope - logit) times that of E[relaxed bit], which is not the probability."""
    slope, logit = 1.7, 0.8
    model = jvi.learned(lambda rng, x: jnp.asarray(slope), lambda slope, x, z: slope * z)
    bias = {}
    for temperature in (1.0, 0.2):
        objective = jvi.elbo(model, bit(logit), gradient=gradients.straight_through.at(temperature))
        samples = gradient_samples(objective, objective.init(jax.random.key(0), None), None)
        relaxed = jax.grad(mean_of_relaxed)(logit, temperature)
        p = float(jax.nn.sigmoid(logit))
        elbo = slope * p - p * np.log(p) - (1 - p) * np.log(1 - p)
        assert_z_test(samples, [elbo, p, (slope - logit) * relaxed])
        bias[temperature] = abs(float(relaxed) / (p * (1 - p)) - 1.0)
    assert bias[0.2] < 0.03 < 0.2 < bias[1.0]


def softmax_rule(logits, temperature):
    """Relaxed one-hot vectors of three, and the weights that make sums of expectations: the trapezoid over two Gumbel differences."""
    at = jnp.linspace(-24.0, 24.0, 401)
    a, b = (axis.ravel() for axis in jnp.meshgrid(at, at))
    # Differences of Gumbels to the last one: their density is 2 exp(-a - b) / (1 + exp(-a) + exp(-b))^3.
    log_density = math.log(2.0) - a - b - 3.0 * jax.nn.logsumexp(jnp.stack([-a, -b, jnp.zeros_like(a)]), 0)
    scores = jnp.stack([logits[0] + a, logits[1] + b, logits[2] + jnp.zeros_like(a)], 1)
    return jax.nn.softmax(scores / temperature), (at[1] - at[0]) ** 2 * jnp.exp(log_density)


@pytest.mark.long
def test_relaxed_one_hot_gradients_match_quadrature():
    """Concrete's own bound and its gradients; straight-through's, which is that of the log-joint at the draw by the relaxed one."""
    temperature, logits, slopes = 0.8, jnp.array([0.4, -0.6, 0.9]), jnp.array([1.5, -0.7, 0.2])

    def log_joint(loc, x, z):
        return tfd.RelaxedOneHotCategorical(0.8, logits=jnp.array([0.1, 0.3, -0.2])).log_prob(z) + loc * (z @ slopes) * x

    guide = jvi.guides.from_distribution(lambda rng, x: logits, lambda p, x: distrax.OneHotCategorical(p))
    model = jvi.learned(lambda rng, x: jnp.asarray(0.9), log_joint)
    objective = jvi.elbo(model, guide, gradient=gradients.concrete(temperature))
    samples = gradient_samples(objective, objective.init(jax.random.key(0), 0.7), 0.7)

    def exact(loc, logits):
        z, weights = softmax_rule(logits, temperature)
        q = tfd.RelaxedOneHotCategorical(temperature, logits=logits)
        return weights @ jax.vmap(lambda z: log_joint(loc, 0.7, z) - q.log_prob(z))(z)

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value, (by_loc, by_logits) = jax.value_and_grad(exact, (0, 1))(jnp.asarray(0.9), jnp.asarray(logits, float))
    assert_z_test(samples, [value, by_loc, *by_logits])

    linear = jvi.learned(lambda rng, x: jnp.asarray(0.9), lambda loc, x, z: loc * (z @ slopes))
    objective = jvi.elbo(linear, guide, gradient=gradients.straight_through.at(temperature))
    samples = gradient_samples(objective, objective.init(jax.random.key(0), None), None)
    with jax.enable_x64(True):
        at = jnp.asarray(logits, float)
        p, log_p = jax.nn.softmax(at), jax.nn.log_softmax(at)
        # The log-weight is linear in the draw, its density's own derivative has mean zero: what is left is that of the relaxed draw.
        by_draw = 0.9 * slopes - log_p

        def relaxed(at):
            z, weights = softmax_rule(at, temperature)
            return weights @ (z @ by_draw)

        right = np.asarray([p @ by_draw, p @ slopes, *jax.grad(relaxed)(at)])
    assert_z_test(samples, right)


@pytest.mark.quick
def test_draws_of_straight_through_are_exact():
    guide = jvi.guides.from_distribution(start, one_hot)
    z, log_q = gradients.straight_through(guide, start(None, None), jax.random.key(0), X[0])
    assert sorted(np.asarray(z)) == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(log_q, guide.log_prob(start(None, None), X[0], z), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    "dist",
    [
        distrax.Independent(distrax.Bernoulli(probs=jnp.array([0.2, 0.7])), 1),
        tfd.Independent(tfd.Bernoulli(logits=jnp.array([0.2, 0.7])), 1),
        tfd.OneHotCategorical(probs=jnp.array([0.2, 0.7, 0.1])),
        distrax.Joint((distrax.OneHotCategorical(jnp.arange(3.0)), distrax.Bernoulli(0.3))),
    ],
)
def test_log_masses_are_those_of_the_distributions(dist):
    with jax.numpy_rank_promotion("allow"):
        found = logits_of(dist)
    leaves = [jnp.arange(logits.size) % logits.size == 1 for logits in found.values]
    leaves = [leaf.reshape(logits.shape).astype(float) for leaf, logits in zip(leaves, found.values, strict=True)]
    log_q = sum(_concrete.log_mass(*one) for one in zip(leaves, found.values, found.one_hot, strict=True))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(log_q, dist.log_prob(found.latent(leaves, as_drawn=True)), rtol=1e-6)


MODEL = jvi.model(lambda x, z: jnp.sum(z))
MEAN_FIELD = jvi.guides.MeanField(jvi.space(jvi.real()))


def of(dist):
    return jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda params, x: dist(params))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: jvi.elbo(MODEL, MEAN_FIELD, gradient=gradients.concrete(0.5)), ValueError, "from_distribution"),
        (lambda: jvi.elbo(MODEL, MEAN_FIELD, gradient=gradients.straight_through), ValueError, "from_distribution"),
        (lambda: objectives.disarm(MODEL, MEAN_FIELD), ValueError, "from_distribution"),
        (lambda: objectives.rebar(MODEL, MEAN_FIELD), ValueError, "from_distribution"),
        (lambda: objectives.disarm(*BITS[:2], num_samples=3), ValueError, "pairs"),
        (lambda: objectives.disarm(*BITS[:2], num_samples=4, chunk_size=1), ValueError, "chunk_size must be even"),
        (lambda: objectives.disarm(*BITS[:2], num_samples=4, noise=noise.antithetic), ValueError, r"noise\.sobol"),
        (lambda: objectives.rebar(*BITS[:2], temperature=0.0), ValueError, "greater than 0"),
        (lambda: gradients.concrete(-1.0), ValueError, "greater than 0"),
        (lambda: jvi.elbo(*BITS[:2], gradient="score"), TypeError, r"one of jvi\.gradients"),
        (lambda: objectives.rebar(*BITS[:2], noise="sobol"), TypeError, r"one of jvi\.noise"),
        (lambda: objectives.subsampled(jvi.per_example(objectives.score(*BITS[:2])), num_data=3), TypeError, "PerExample"),
        (lambda: gradients.straight_through.at(True), ValueError, "greater than 0"),
        (lambda: objectives.relax(*BITS[:2], network=None), TypeError, "rebar"),
        (lambda: objectives.vimco(*BITS[:2], num_samples=1), ValueError, "2 or more"),
        (lambda: jvi.iwae(*BITS[:2], num_samples=2, gradient=gradients.straight_through), ValueError, "vimco"),
    ],
)
def test_what_cannot_be_is_refused_when_built(build, error, match):
    with pytest.raises(error, match=match):
        build()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("build", "dist", "error", "match"),
    [
        (objectives.disarm, distrax.OneHotCategorical, TypeError, "relax"),
        (objectives.rebar, distrax.Categorical, TypeError, r"distrax\.OneHotCategorical"),
        (objectives.rebar, lambda p: distrax.MultivariateNormalDiag(p, p), TypeError, "pathwise"),
        (objectives.rebar, distrax.Bernoulli, ValueError, "Independent"),
    ],
)
def test_what_cannot_be_is_refused_once_traced(build, dist, error, match):
    objective = build(MODEL, of(dist))
    with pytest.raises(error, match=match):
        objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)


CHUNKED = {
    "rebar": objectives.rebar,
    "relax": functools.partial(objectives.relax, network=NET),
    "disarm": objectives.disarm,
    "enumerate_elbo": objectives.enumerate_elbo,
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "enumerate_elbo")) for name in CHUNKED]
)
def test_chunks_of_particles_change_no_number(name):
    """Value, gradients and log-weights; with a chunk that divides K and one that does not."""
    by = [jvi.per_example(CHUNKED[name](*BITS[:2], num_samples=6, chunk_size=size, noise=noise.sobol)) for size in (None, 2, 4)]
    params = start_of(by[0])

    @jax.jit
    def all_of(key):
        return [jax.value_and_grad(objective, has_aux=True)(params, key, X) for objective in by]

    whole, *parted = (jax.tree.leaves(found) for found in all_of(jax.random.key(1)))
    for found in parted:
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_sobol_pairs_have_less_variance_than_independent_ones():
    """Of the guide's gradient by eight draws, beyond four standard errors."""
    spread = {}
    for make in (noise.independent, noise.sobol):
        objective = jvi.per_example(objectives.disarm(*BITS[:2], num_samples=8, noise=make))
        grads = samples_of(objective, start_of(objective), 5_000)[1.0][:, 2:].astype(float)
        squares = np.sum((grads - grads.mean(0)) ** 2, 1)
        spread[make] = (squares.mean(), squares.std() / np.sqrt(len(squares)))
    (less, its), (more, error) = spread[noise.sobol], spread[noise.independent]
    assert less < more - 4 * np.hypot(error, its)


@pytest.mark.quick
@pytest.mark.parametrize("build", [objectives.disarm, objectives.rebar])
def test_minibatches_of_a_global_latent_average_to_all_data(build):
    """Bits that all data share: N / B on the likelihood; and beta, and the terms of error reports."""
    prior, likelihood = (lambda z: jnp.sum(0.3 * z) - 1.0), (lambda x, z: norm.logpdf(x, z @ WEIGHTS, 1.0))
    guide = jvi.guides.from_distribution(lambda rng, x: WEIGHTS, lambda p, x: distrax.Independent(distrax.Bernoulli(p), 1))
    objective = objectives.subsampled(build(jvi.split(prior, likelihood), guide), num_data=4)
    x, key = jnp.arange(4.0), jax.random.key(2)
    params = objective.init(jax.random.key(0), x)
    one = jax.value_and_grad(objective, has_aux=True)
    both, ((whole, _), grads) = jax.jit(
        lambda: (jax.vmap(lambda x: one(params, key, x))(x.reshape(2, 2)), one(params, key, x))
    )()
    np.testing.assert_allclose(both[0][0].mean(), whole, rtol=1e-5)
    np.testing.assert_allclose(both[1].guide.mean(0), grads.guide, rtol=1e-4, atol=1e-5)
    terms = jax.jit(objective.terms)(params, key, x)
    annealed = terms["log likelihood"] + 0.3 * (terms["log prior"] - terms["log q"])
    np.testing.assert_allclose(jax.jit(objective)(params, key, x, beta=0.3)[0], annealed.mean(), rtol=1e-5)
