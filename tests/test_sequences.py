"""Guides of time series: the chain that holds a smoother, and the one that a network draws step by step."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_linked import linked_gaussian, moments_of, num_equations
from scipy.stats import multivariate_normal as scipy_normal

import jvi
from jvi.guides import AutoregressiveSequence, Gated, Markov

pytestmark = pytest.mark.quick
KEY = jax.random.key(3)
NUM_STEPS = 12
# A state of position and velocity; the position is seen, with noise.
ONWARD = np.array([[1.0, 0.4], [-0.3, 0.9]])
SHOCK = np.array([[0.3, 0.0], [0.1, 0.2]])
SEEN = np.array([[1.0, 0.3]])
NOISE = 0.5


def log_joint(x, z):
    """A linear-Gaussian state-space model, step by step."""
    eps = jax.vmap(lambda d: jnp.linalg.solve(jnp.asarray(SHOCK), d))(z[1:] - z[:-1] @ ONWARD.T)
    log_prior = jax.scipy.stats.norm.logpdf(z[0]).sum() + jax.scipy.stats.norm.logpdf(eps).sum()
    log_prior -= (NUM_STEPS - 1) * np.log(np.linalg.det(SHOCK))
    return log_prior + jax.scipy.stats.norm.logpdf(x, (z @ SEEN.T)[:, 0], NOISE).sum()


@pytest.fixture(scope="module")
def smoother():
    """Data, the smoother's mean and covariance, and log p(x), by dense algebra in float64."""
    size = 2 * NUM_STEPS
    onward = np.eye(size) - np.kron(np.eye(NUM_STEPS, k=-1), ONWARD)
    root = np.linalg.solve(onward, np.kron(np.eye(NUM_STEPS), SHOCK))
    root[:, :2] = np.linalg.solve(onward, np.eye(size)[:, :2])
    prior, seen = root @ root.T, np.kron(np.eye(NUM_STEPS), SEEN)
    marginal = seen @ prior @ seen.T + NOISE**2 * np.eye(NUM_STEPS)
    x = np.linalg.cholesky(marginal) @ np.random.default_rng(1).normal(size=NUM_STEPS)
    gain = prior @ seen.T @ np.linalg.inv(marginal)
    return x, gain @ x, prior - gain @ seen @ prior, scipy_normal.logpdf(x, np.zeros(NUM_STEPS), marginal)


CHAIN = tuple(range(-1, NUM_STEPS - 1))


@pytest.mark.parametrize("parallel", [False, True])
def test_the_chain_at_the_smoothers_moments_is_the_posterior(float64, smoother, parallel):
    x, loc, cov, log_evidence = smoother
    guide = Markov(NUM_STEPS, dim=2, parallel=parallel)
    moments = moments_of(loc, cov, CHAIN)
    params = guide.from_moments(*moments)
    objective = jvi.elbo(jvi.model(log_joint), guide, gradient=jvi.gradients.stl)
    of_params = objective.init(KEY, x)._replace(guide=params)

    @jax.jit
    def one(keys):
        return jax.vmap(lambda key: jax.value_and_grad(lambda p: objective(p, key, x)[0])(of_params))(keys)

    bound, grads = one(jax.random.split(KEY, 20))
    np.testing.assert_allclose(bound, log_evidence, rtol=1e-10)
    for leaf in jax.tree.leaves(grads.guide):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-8)
    for found, expected in zip(jax.jit(guide.marginals)(params), moments, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    entropy = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * cov)[1]
    np.testing.assert_allclose(guide.entropy(params, x, None), entropy, rtol=1e-12)


def test_a_fit_of_the_chain_recovers_the_smoother(smoother):
    x, loc, cov, log_evidence = smoother
    guide = Markov(NUM_STEPS, dim=2)
    optimizer = jvi.optimizer(jvi.svi.cosine_adam, 0.03, num_steps=1_500)
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), guide, num_samples=4), optimizer)
    state, info = jvi.fit(svi, KEY, x.astype(np.float32), num_steps=1_500)
    found = jax.jit(guide.marginals)(state.params.guide)
    expected = moments_of(loc, cov, CHAIN)
    sd = np.sqrt(np.diag(cov)).reshape(NUM_STEPS, 2)
    np.testing.assert_array_less(np.abs(found.loc - expected[0]) / sd, 0.01)
    np.testing.assert_array_less(np.abs(found.cov - expected[1]) / (sd[:, :, None] * sd[:, None, :]), 0.01)
    np.testing.assert_array_less(np.abs(found.lag_one - expected[2]) / (sd[1:, :, None] * sd[:-1, None, :]), 0.01)
    # Of a posterior in its class the bound does not even vary.
    np.testing.assert_allclose(info.bound[-100:], log_evidence, atol=1e-3)


@pytest.mark.parametrize("dim", [None, 2])
def test_scan_and_associative_scan_agree_in_values_and_gradients(float64, dim):
    serial, parallel = Markov(9, dim), Markov(9, dim, parallel=True)
    # The initial parameters have the right shapes; the moments of a dense Gaussian make them differ from step to step.
    start = jax.tree.leaves(serial.init(KEY, None))
    chain = tuple(range(-1, 8))
    params = serial.from_moments(*moments_of(*linked_gaussian(chain, dim or 1), chain))
    assert [leaf.shape for leaf in start] == [leaf.shape for leaf in jax.tree.leaves(params)]

    def loss(guide, params):
        z, log_q = guide.sample_and_log_prob(params, KEY, None)
        return jnp.sum(jnp.sin(z)) + log_q, z

    evaluate = jax.jit(jax.value_and_grad(lambda p: loss(serial, p), has_aux=True))
    (_, z), grads = evaluate(params)
    (_, other), others = jax.jit(jax.value_and_grad(lambda p: loss(parallel, p), has_aux=True))(params)
    assert z.shape == ((9,) if dim is None else (9, 2))
    np.testing.assert_allclose(z, other, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), grads, others)
    # By differences: the recurrence is differentiated as a linear system.
    ahead, behind = (evaluate(params._replace(link=params.link.at[3, 0, 0].add(h)))[0][0] for h in (1e-6, -1e-6))
    np.testing.assert_allclose(grads.link[3, 0, 0], (ahead - behind) / 2e-6, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("dim", [1, 2])
def test_a_chain_from_its_precision_has_its_moments(float64, dim):
    rng, size = np.random.default_rng(4), 5
    loc, cov = linked_gaussian(tuple(range(-1, size - 1)), dim)
    joint = np.linalg.inv(cov).reshape(size, dim, size, dim)
    at = np.arange(size)
    blocks = joint[at, :, at, :], joint[at[1:], :, at[:-1], :]
    pull = (np.linalg.inv(cov) @ loc).reshape(size, dim)
    guide = jvi.guides.Markov(size, dim)
    found = guide.marginals(guide.from_information(pull, *blocks))
    whole = cov.reshape(size, dim, size, dim)
    np.testing.assert_allclose(found.loc, loc.reshape(size, dim), atol=1e-10)
    np.testing.assert_allclose(found.cov, whole[at, :, at, :], atol=1e-10)
    np.testing.assert_allclose(found.lag_one, whole[at[1:], :, at[:-1], :], atol=1e-10)

    def by_chain(pull, own):
        return jnp.sum(weights * guide.from_information(pull, own, blocks[1]).loc)

    def by_dense(pull, own):
        dense = jnp.asarray(joint).at[at, :, at, :].set(own).reshape(size * dim, -1)
        return jnp.sum(weights * jnp.linalg.solve(dense, pull.ravel()).reshape(size, dim))

    weights = rng.normal(size=(size, dim))
    for one, other in zip(*(jax.grad(f, (0, 1))(pull, blocks[0]) for f in (by_chain, by_dense)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    with pytest.raises(ValueError, match="precision must have shape"):
        guide.from_information(pull, blocks[0][1:], blocks[1])


def test_the_program_does_not_grow_with_the_series():
    assert num_equations(Markov(50, dim=2)) == num_equations(Markov(100_000, dim=2))


def test_chains_of_one_step_and_rebuilt_ones():
    for guide in (Markov(1, dim=2), Markov(1, parallel=True)):
        params = guide.init(KEY, None)
        z, log_q = jax.jit(guide.sample_and_log_prob)(params, KEY, None)
        np.testing.assert_allclose(jax.jit(guide.log_prob)(params, None, z), log_q, rtol=1e-5)
    assert Markov(5, 2) == Markov(5, dim=2)
    assert len({Markov(5), Markov(5, 1), Markov(5, parallel=True), Markov(5)}) == 3


def test_bad_chains_are_refused():
    with pytest.raises(ValueError, match="num_steps must be 1 or more"):
        Markov(0)
    with pytest.raises(TypeError, match="dim must be a whole number"):
        Markov(3, dim=2.0)
    with pytest.raises(ValueError, match="init_scale must be positive"):
        Markov(3, init_scale=0.0)
    guide = Markov(3, dim=2)
    with pytest.raises(ValueError, match=r"z must have shape \[3, 2\].*got \[3\]"):
        guide.log_prob(guide.init(KEY, None), None, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"lag_one must have shape \[2, 2, 2\].*got \[3, 2, 2\]"):
        guide.from_moments(np.zeros((3, 2)), np.zeros((3, 2, 2)), np.zeros((3, 2, 2)))


def test_declared_sequences_are_real():
    space = jvi.space({"level": jvi.sequence(4, dim=2), "tone": jvi.sequence(3), "plain": jvi.real()})
    assert space.size == 12
    z, log_det = space.constrain(jnp.arange(12.0))
    assert (z["level"].shape, z["tone"].shape, float(log_det)) == ((4, 2), (3,), 0.0)
    np.testing.assert_array_equal(space.unconstrain(z)[0], jnp.arange(12.0))
    assert jvi.sequence(4, dim=2) == jvi.sequence(4, dim=2) != jvi.real(4, 2)
    assert jvi.sequence(3).parents == (-1, 0, 1)
    assert jvi.real(3).parents is None
    with pytest.raises(ValueError, match="num_steps"):
        jvi.sequence(0)


# Networks of time series


class Backward(nn.Module):
    """Codes of a step and what comes after it: a running mean from the end, of the steps that are no padding."""

    @nn.compact
    def __call__(self, x, mask):
        inner = jnp.where(mask[:, None], nn.tanh(nn.Dense(6)(x)), 0.0)
        return nn.Dense(5)(jnp.cumsum(inner[::-1], 0)[::-1] / 4.0)


def values(x):
    return x[0]


def observed(x):
    return x[1]


MASKED = AutoregressiveSequence(Backward(), dim=2, combiner=Gated(2, width=8), inputs=values, mask=observed)


def padded(num_steps, fill):
    x = np.full((9, 3), fill, np.float32)
    x[:num_steps] = np.random.default_rng(0).normal(size=(num_steps, 3))
    return x, np.arange(9) < num_steps


@pytest.fixture(scope="module")
def masked():
    """Parameters, and the guide's compiled functions."""
    params = jax.jit(MASKED.init)(KEY, padded(6, 0.0))._replace(before=jnp.array([0.4, -0.3]))
    return params, jax.jit(MASKED.sample_and_log_prob), jax.jit(MASKED.log_prob)


def test_padding_changes_nothing(masked):
    x, mask = padded(6, fill=50.0)
    params, draw, log_prob = masked
    z, log_q = draw(params, KEY, (x, mask))
    alone, log_alone = draw(params, KEY, (x[:6], mask[:6]))
    np.testing.assert_array_equal(z[6:], 0.0)
    np.testing.assert_allclose(z[:6], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_q, log_alone, rtol=1e-5)
    # What stands at padded places of a latent does not count either.
    np.testing.assert_allclose(log_prob(params, (x, mask), z.at[6:].set(7.0)), log_q, rtol=1e-5)


def test_a_step_sees_the_last_draw_that_is_no_padding(masked):
    x, mask = padded(9, fill=0.0)
    mask[[0, 3, 4]] = False
    params, draw, log_prob = masked
    z, log_q = draw(params, KEY, (x, mask))
    np.testing.assert_array_equal(z[jnp.array([0, 3, 4])], 0.0)
    np.testing.assert_allclose(log_prob(params, (x, mask), z), log_q, rtol=1e-5)
    moved = log_prob(params, (x, mask), z.at[2].add(0.5)) - log_q
    assert abs(float(moved)) > 1e-3


ENCODERS = {
    "recurrent": jvi.encoders.Recurrent(4, hidden=4),
    "convolution": jvi.encoders.TemporalConvolution(4, width=4, num_layers=2),
    "attention": jvi.encoders.SequenceTransformer(4, width=4, num_heads=2, num_layers=1),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_the_librarys_encoders_take_the_mask(name):
    """Padding changes neither draw nor density; the two densities agree; and every parameter of the encoder learns."""
    guide = AutoregressiveSequence(ENCODERS[name], dim=2, combiner=Gated(2, width=8), inputs=values, mask=observed)
    x, mask = padded(6, fill=50.0)
    # Unlike at the start, where the encoder's last layer is near zero.
    shapes, rng = jax.eval_shape(guide.init, KEY, (x, mask)), np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def all_of_it(params, x):
        def moved(params):
            z, log_q = guide.sample_and_log_prob(params, KEY, x)
            return jnp.sum(jnp.sin(z)), (z, log_q, guide.log_prob(params, x, z))

        return jax.grad(moved, has_aux=True)(params)

    slopes, (z, log_q, log_prob) = all_of_it(params, (x, mask))
    same, (alone, log_alone, _) = all_of_it(params, (x[:6], mask[:6]))
    np.testing.assert_allclose(z[:6], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(z[6:], 0.0)
    np.testing.assert_allclose([log_prob, log_alone], log_q, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slopes, same)
    assert all(np.isfinite(slope).all() and np.any(slope) for slope in jax.tree.leaves(slopes.encoder))


def test_what_pads_a_batch_changes_neither_value_nor_gradient(masked):
    def model_log_joint(x, z):
        seen = jnp.where(x[1], -0.5 * jnp.sum((x[0][:, :2] - z) ** 2, 1), 0.0)
        return jnp.sum(seen) - 0.5 * jnp.sum(z**2)

    objective = jvi.per_example(jvi.elbo(jvi.model(model_log_joint), MASKED))
    one, two = padded(9, 3.0), padded(4, 3.0)
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), one, two)
    params = jvi.objectives.Params((), masked[0])
    evaluate = jax.jit(jax.value_and_grad(lambda params, x: objective(params, KEY, x)[0]))
    other = jax.tree.map(lambda *leaves: np.stack(leaves), one, padded(4, -80.0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), evaluate(params, batch), evaluate(params, other)
    )


def test_the_default_combiner_starts_at_the_initial_scale():
    guide = AutoregressiveSequence(nn.Dense(4), dim=3, init_scale=0.02)
    x = jnp.ones((40, 2))
    params = jax.jit(guide.init)(KEY, x)
    _, log_scale = guide.combiner.apply(params.combiner, jnp.zeros(3), jnp.ones(4))
    np.testing.assert_allclose(jnp.exp(log_scale), 0.02, rtol=0.1)
    assert guide == AutoregressiveSequence(nn.Dense(4), dim=3, init_scale=0.02)
    assert guide != AutoregressiveSequence(nn.Dense(5), dim=3, init_scale=0.02)


class OneColumn(nn.Module):
    @nn.compact
    def __call__(self, before, code):
        return nn.Dense(2)(code)


def test_bad_networks_of_sequences_are_refused(masked):
    x = jnp.ones((4, 3))
    with pytest.raises(TypeError, match="network"):
        AutoregressiveSequence(3, dim=2)
    with pytest.raises(TypeError, match="mask must be a function"):
        AutoregressiveSequence(nn.Dense(2), dim=2, mask=True)
    guide = AutoregressiveSequence(nn.Dense(2), dim=2, combiner=OneColumn())
    params = jax.jit(guide.init)(KEY, x)
    with pytest.raises(ValueError, match=r"combiner must return \(mean \[2\]"):
        guide.sample_and_log_prob(params, KEY, x)
    with pytest.raises(ValueError, match=r"encoder must return codes \[T, H\], a row a step; got shape \[2\]"):
        AutoregressiveSequence(nn.Dense(2), dim=2).init(KEY, x[0])
    params, *_ = masked
    with pytest.raises(ValueError, match=r"z must have shape \[9, 2\]"):
        MASKED.log_prob(params, padded(9, 0.0), jnp.zeros((8, 2)))
