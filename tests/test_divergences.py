"""Bounds other than the ELBO: expectations of few draws by quadrature and by enumeration; orderings; refusals.

Each on a minibatch, its model learned, the KL term weighed by 1 and by less: z-tests, all of one row at a failure rate of 1e-4.
"""

from __future__ import annotations

import itertools
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm
from numpy.polynomial.hermite_e import hermegauss
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi import bounds, gradients, objectives
from jvi.guides import gaussian
from jvi.objectives.divergences import rank_weights
from jvi.objectives.thermodynamic import TvoBound

ORDERS = (0.5, 1.0, 2.0, -1.0)
X = jnp.array([1.2, 0.4])  # a minibatch, under per_example
BETAS = (1.0, 0.7)
OFFSET = 2.0  # log u takes both signs, so that what has a kink at u = 1 shows it
PARTITION = (0.0, 0.2, 0.6, 1.0)
FS = {
    name: getattr(tfp.vi, name)
    for name in (
        "amari_alpha", "kl_reverse", "kl_forward", "jensen_shannon", "arithmetic_geometric", "total_variation", "pearson",
        "squared_hellinger", "triangular", "log1p_abs", "jeffreys", "chi_square", "modified_gan",
    )
}  # fmt: skip


def f_power(log_u):
    return tfp.vi.t_power(log_u, 0.5)


FS["t_power"] = f_power
MODEL = jvi.split(
    lambda params, z: norm.logpdf(z),
    lambda params, x, z: norm.logpdf(x, z, jnp.exp(params)) + OFFSET,
    init=lambda rng, x: 0.0,
)
GUIDE = jvi.guides.MeanField(jvi.space(jvi.real()))
# Wider than the posterior, so that weights are bounded and their squares have a variance.
PARAMS = objectives.Params(jnp.asarray(0.1), gaussian.Diagonal(jnp.array([0.3]), jnp.array([-0.2])))


def log_weight(params, of_density, eps, x, beta):
    """log w at a draw that `params` make of `eps`; q's density has parameters of its own, so that they can be held fixed."""
    z = params.guide.loc[0] + jnp.exp(params.guide.log_scale[0]) * eps
    log_q = norm.logpdf(z, of_density.loc[0], jnp.exp(of_density.log_scale[0]))
    return norm.logpdf(x, z, jnp.exp(params.model)) + OFFSET + beta * (norm.logpdf(z) - log_q)


def quadrature(bound, num_draws, nodes=None):
    """The expected bound of so many draws, by Gauss-Hermite quadrature."""
    eps, weights = hermegauss(nodes or {1: 100, 2: 60, 4: 16}[num_draws])
    index = np.array(list(itertools.product(range(len(eps)), repeat=num_draws)))
    mass = jnp.asarray((weights / weights.sum())[index].prod(1))

    def exact(params, x, beta):
        log_w = jax.vmap(lambda eps: log_weight(params, params.guide, eps, x, beta))(jnp.asarray(eps))
        return mass @ jax.vmap(bound)(log_w[index])

    return exact


def fine(function):
    """The expectation of a function of one draw's log-weight that may have kinks, by the trapezoidal rule."""
    eps = np.linspace(-9.0, 9.0, 20_001)
    mass = np.exp(-0.5 * eps**2)
    mass = jnp.asarray(mass / mass.sum())

    def exact(params, x, beta):
        return mass @ function(jax.vmap(lambda e: log_weight(params, params.guide, e, x, beta))(jnp.asarray(eps)))

    return exact


def ranked(high, low, held=False):
    """The expectation of `high` times the greater of two log-weights plus `low` times the smaller."""
    eps = np.linspace(-9.0, 9.0, 20_001)
    mass = np.exp(-0.5 * eps**2)
    mass = mass / mass.sum()

    def exact(params, x, beta):
        of_density = jax.lax.stop_gradient(params.guide) if held else params.guide
        log_w = jax.vmap(lambda e: log_weight(params, of_density, e, x, beta))(jnp.asarray(eps))
        order = jnp.argsort(jax.lax.stop_gradient(log_w))
        smaller = jnp.cumsum(jnp.asarray(mass)[order])[jnp.argsort(order)]  # the chance that the other one is smaller
        return 2.0 * jnp.asarray(mass) @ ((high * smaller + low * (1.0 - smaller)) * log_w)

    return exact


def of_order(alpha):
    return quadrature(lambda log_w: bounds.renyi(log_w, alpha), 2)


ROWS = {  # the objective, its expected value, and what the guide's gradient is that of
    "elbo, stl": (jvi.elbo(MODEL, GUIDE, num_samples=2), quadrature(bounds.elbo, 1), None),
    "iwae": (jvi.iwae(MODEL, GUIDE, num_samples=2), quadrature(bounds.iwae, 2), None),
    "dreg": (objectives.dreg(MODEL, GUIDE, num_samples=2), quadrature(bounds.iwae, 2), None),
    "vimco": (objectives.vimco(MODEL, GUIDE, num_samples=2), quadrature(bounds.iwae, 2), None),
    "score": (objectives.score(MODEL, GUIDE, num_samples=2), quadrature(bounds.elbo, 1), None),
    **{f"renyi, {alpha}": (jvi.renyi(MODEL, GUIDE, alpha=alpha, num_samples=2), of_order(alpha), None) for alpha in ORDERS},
    "miwae": (objectives.miwae(MODEL, GUIDE, num_groups=3, num_samples=2), quadrature(bounds.iwae, 2), None),
    "miwae of one": (objectives.miwae(MODEL, GUIDE, num_groups=2, num_samples=1), quadrature(bounds.elbo, 1), None),
    "piwae, elbo": (
        objectives.piwae(MODEL, GUIDE, num_groups=2, num_samples=1),
        quadrature(bounds.iwae, 2),
        quadrature(bounds.elbo, 1),
    ),
    "piwae": (
        objectives.piwae(MODEL, GUIDE, num_groups=2, num_samples=2, chunk_size=2),
        quadrature(bounds.iwae, 4),
        quadrature(bounds.iwae, 2),
    ),
    "renyi, the greatest": (jvi.renyi(MODEL, GUIDE, alpha=-math.inf, num_samples=2), ranked(1.0, 0.0), None),
    "renyi, the least": (jvi.renyi(MODEL, GUIDE, alpha=math.inf, num_samples=2), ranked(0.0, 1.0), None),
    "cubo": (objectives.cubo(MODEL, GUIDE, num_samples=2), quadrature(bounds.cubo, 2), None),
    "cubo of order 3.5": (
        objectives.cubo(MODEL, GUIDE, num_samples=2, order=3.5),
        of_order(-2.5),
        None,
    ),
    "tvo": (
        objectives.tvo(MODEL, GUIDE, num_samples=2, partition=PARTITION),
        quadrature(lambda log_w: bounds.tvo(log_w, PARTITION), 2),
        None,
    ),
    "tail_adaptive": (
        objectives.tail_adaptive(MODEL, GUIDE, num_samples=2),
        quadrature(bounds.elbo, 1),
        ranked(2 / 3, 1 / 3, held=True),
    ),
}


def estimates(objective, params, count):
    """Values and gradients of a minibatch, as a function of beta -> [count, ...]; compiled once."""
    batched, keys = jvi.per_example(objective), jax.random.split(jax.random.key(9), count)

    def one(key, beta):
        (value, _), grads = jax.value_and_grad(batched, has_aux=True)(params, key, X, beta=beta)
        return jnp.concatenate([value[None], flat(grads)])

    compiled = jax.jit(jax.vmap(one, (0, None)))
    return lambda beta: compiled(keys, beta)


def expected(params, exact, of_guide):
    """What the estimates are on average, as a function of beta."""

    def mean(function):
        return lambda params, beta: jnp.mean(jax.vmap(lambda x: function(params, x, beta))(X))

    @jax.jit
    def both(beta):
        value, grads = jax.value_and_grad(mean(exact))(params, beta)
        if of_guide is not None:
            grads = grads._replace(guide=jax.grad(mean(of_guide))(params, beta).guide)
        return jnp.concatenate([value[None], flat(grads)])

    return both


def assert_right(objective, params, exact, of_guide, count):
    found, right = estimates(objective, params, count), expected(params, exact, of_guide)
    for beta in BETAS:
        assert_z_test(found(beta), right(beta))


@pytest.mark.parametrize("name", ROWS)
def test_value_and_gradients_of_few_draws_match_quadrature(name):
    assert_right(ROWS[name][0], PARAMS, *ROWS[name][1:], 20_000)


def test_f_divergences_and_their_gradients_match_quadrature():
    assert len(FS) == 14
    rows = [jvi.per_example(objectives.f_divergence(MODEL, GUIDE, f, num_samples=2)) for f in FS.values()]

    def all_rows(params, rng):
        return jnp.stack([objective(params, rng, X, beta=0.7)[0] for objective in rows])

    def with_gradients(function):
        grads = jax.jacrev(function)(PARAMS)
        return jnp.concatenate([function(PARAMS)[:, None], *(leaf.reshape(14, -1) for leaf in jax.tree.leaves(grads))], 1)

    def exact(params):
        each = fine(lambda log_w: jnp.stack([-f(log_w) for f in FS.values()], 1))
        return jnp.mean(jax.vmap(lambda x: each(params, x, 0.7))(X), 0)

    sample = jax.vmap(lambda key: with_gradients(lambda params: all_rows(params, key)))
    samples = jax.jit(sample)(jax.random.split(jax.random.key(2), 20_000))
    assert_z_test(samples.reshape(len(samples), -1), jax.jit(lambda: with_gradients(exact))().ravel())


# A latent of three values: all that draws can be, enumerated.
LEVELS = 3
CATEGORICAL = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(LEVELS), lambda params, x: distrax.Categorical(params))
DISCRETE = jvi.split(
    lambda params, z: jax.nn.log_softmax(params)[z],
    lambda params, x, z: norm.logpdf(x, z.astype(jnp.float32)) + OFFSET,
    init=lambda rng, x: jnp.zeros(LEVELS),
)
DISCRETE_PARAMS = objectives.Params(jnp.array([0.3, -0.4, 0.1]), jnp.array([0.2, 0.5, -0.6]))


def enumeration(bound, num_draws):
    """The expected bound of so many draws, over all values that they take."""
    index = np.array(list(itertools.product(range(LEVELS), repeat=num_draws)))

    def exact(params, x, beta):
        log_q, log_prior = jax.nn.log_softmax(params.guide), jax.nn.log_softmax(params.model)
        log_w = jax.vmap(lambda z: DISCRETE.log_likelihood(params.model, x, z))(jnp.arange(LEVELS)) + beta * (log_prior - log_q)
        return jnp.exp(log_q[index].sum(1)) @ jax.vmap(bound)(log_w[index])

    return exact


def scored(build, **options):
    return build(DISCRETE, CATEGORICAL, gradient=gradients.score, **options)


DISCRETE_ROWS = {
    "miwae": (scored(objectives.miwae, num_groups=2, num_samples=2), enumeration(bounds.iwae, 2), None),
    "piwae": (
        scored(objectives.piwae, num_groups=2, num_samples=2),
        enumeration(bounds.iwae, 4),
        enumeration(bounds.iwae, 2),
    ),
    "piwae, elbo": (
        scored(objectives.piwae, num_groups=3, num_samples=1),
        enumeration(bounds.iwae, 3),
        enumeration(bounds.elbo, 1),
    ),
    "renyi": (scored(jvi.renyi, alpha=0.5, num_samples=2), enumeration(lambda w: bounds.renyi(w, 0.5), 2), None),
    "renyi, the greatest": (scored(jvi.renyi, alpha=-math.inf, num_samples=2), enumeration(jnp.max, 2), None),
    "cubo": (scored(objectives.cubo, num_samples=3), enumeration(bounds.cubo, 3), None),
    "tvo": (
        scored(objectives.tvo, num_samples=3, partition=PARTITION, control=jvi.controls.leave_one_out),
        enumeration(lambda w: bounds.tvo(w, PARTITION), 3),
        None,
    ),
    "f, no control": (
        objectives.f_divergence(
            DISCRETE, CATEGORICAL, tfp.vi.pearson, num_samples=2, gradient=gradients.score, control=jvi.controls.none
        ),
        enumeration(lambda w: -jnp.mean(tfp.vi.pearson(w)), 1),
        None,
    ),
    "f": (
        scored(objectives.f_divergence, f=tfp.vi.total_variation, num_samples=2),
        enumeration(lambda w: -jnp.mean(tfp.vi.total_variation(w)), 1),
        None,
    ),
}


@pytest.mark.parametrize("name", DISCRETE_ROWS)
def test_scored_gradients_of_few_draws_match_enumeration(name):
    assert_right(DISCRETE_ROWS[name][0], DISCRETE_PARAMS, *DISCRETE_ROWS[name][1:], 20_000)


def test_covariance_gradient_of_tvo_is_its_formula():
    """sum_t db_t (sum_k w_k grad f_k + Cov_w[grad log pi_t, f]), f = log w, pi_t = p^b q^(1 - b): written out, draw by draw."""
    objective = scored(objectives.tvo, num_samples=5, partition=PARTITION)
    params, key = DISCRETE_PARAMS, jax.random.key(4)
    grads, aux = jax.jit(jax.grad(objective, has_aux=True))(params, key, X[0])
    log_q, log_p = jax.nn.log_softmax(params.guide), jax.nn.log_softmax(params.model)
    table = jnp.stack([DISCRETE.log_joint(params.model, X[0], jnp.asarray(z)) for z in range(LEVELS)]) - log_q
    z = np.abs(np.asarray(table)[None, :] - np.asarray(aux.log_w)[:, None]).argmin(1)
    score_q, score_p = np.eye(LEVELS)[z] - np.exp(log_q), np.eye(LEVELS)[z] - np.exp(log_p)
    f = np.asarray(aux.log_w)
    by_model, by_guide = np.zeros(LEVELS), np.zeros(LEVELS)
    for b, step in zip(PARTITION, np.diff(PARTITION), strict=False):
        w = np.exp(b * f) / np.exp(b * f).sum()
        off = (w * (f - w @ f))[:, None]
        by_model += step * (w @ score_p + (off * b * score_p).sum(0))
        by_guide += step * (-w @ score_q + (off * (1 - b) * score_q).sum(0))
    np.testing.assert_allclose(grads.model, by_model, atol=1e-5)
    np.testing.assert_allclose(grads.guide, by_guide, atol=1e-5)


def test_bounds_are_in_their_order():
    """On the same draws of a bad guide, whatever they are; around log p(x) in expectation, in standard errors."""
    model = jvi.model(lambda x, z: norm.logpdf(z) + norm.logpdf(x, z))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()), init_scale=1.0)
    objective = jvi.iwae(model, guide, num_samples=1_000)
    params = objective.init(jax.random.key(0), 2.0)
    partitions = [(0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)]
    few = [list(rest) for rest in itertools.combinations(range(6), 5)]

    def ladder(log_w):
        by_alpha = [bounds.renyi(log_w, a) for a in (math.inf, 20.0, 2.0, 1.0, 0.5, 0.0, -1.0, -math.inf)]
        by_partition = [bounds.tvo(log_w, partition) for partition in partitions]
        by_group = [bounds.miwae(log_w, m) for m in (1_000, 200, 10, 1)]
        five = jnp.mean(jnp.stack([bounds.iwae(log_w[jnp.asarray(rest)]) for rest in few]))
        in_five_and_six = [bounds.elbo(log_w[:6]), five, bounds.iwae(log_w[:6])]
        by_order = [bounds.iwae(log_w), bounds.cubo(log_w, 1.5), bounds.cubo(log_w), bounds.cubo(log_w, 4.0)]
        ladders = (by_alpha, [*by_partition, bounds.iwae(log_w)], by_group, in_five_and_six, by_order)
        return [jnp.stack(one) for one in ladders]

    keys = jax.random.split(jax.random.key(1), 500)
    ladders = jax.jit(jax.vmap(lambda key: ladder(objective(params, key, 2.0)[1].log_w)))(keys)
    for one in ladders:
        assert float(jnp.diff(one, axis=1).min()) > -1e-5
        assert float(jnp.diff(one.mean(0)).min()) > 1e-5
    lower, upper = np.asarray(ladders[-1])[:, [0, 2]].T
    log_evidence = float(norm.logpdf(2.0, 0.0, 2**0.5))
    error = math.sqrt(len(keys))
    assert lower.mean() - 3.7 * lower.std() / error < log_evidence < upper.mean() - 3.7 * upper.std() / error


def test_a_fit_lowers_the_chi_square_bound_to_the_evidence():
    model = jvi.model(lambda x, z: norm.logpdf(z) + norm.logpdf(x, z))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()), init_scale=1.5)
    objective = objectives.cubo(model, guide, num_samples=50)
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.05, num_steps=600))
    state, info = jvi.fit(svi, jax.random.key(0), 2.0, num_steps=600)
    log_evidence = float(norm.logpdf(2.0, 0.0, 2**0.5))
    assert info.bound[:20].mean() > log_evidence + 0.2
    assert abs(info.bound[-100:].mean() - log_evidence) < 0.01
    np.testing.assert_allclose(state.params.guide.loc, 1.0, atol=0.05)


def test_parted_gradients_reach_what_the_data_depend_on():
    """The global latent reaches a local `piwae` as data: its gradient is that of the value, as with `iwae` of the same draws."""
    prior = jvi.model(lambda x, z: norm.logpdf(z))
    local = jvi.model(lambda x, z: norm.logpdf(z, x[1]) + norm.logpdf(x[0], z))
    amortized = jvi.guides.from_distribution(
        lambda rng, x: jnp.array([0.5, -0.3]), lambda a, x: distrax.Normal(a[0] * (x[0] + x[1]), jnp.exp(a[1]))
    )
    inner = [objectives.piwae(local, amortized, num_groups=2, num_samples=2), jvi.iwae(local, amortized, num_samples=4)]
    found = []
    for one in inner:
        objective = objectives.global_local(jvi.elbo(prior, GUIDE), one, num_data=10)
        x = jnp.array([0.3, -1.0])
        params = jax.jit(objective.init)(jax.random.key(0), x)
        found.append(jax.jit(jax.value_and_grad(objective, has_aux=True))(params, jax.random.key(1), x))
    (parted, grads), (whole, plain) = found
    np.testing.assert_allclose(parted[0], whole[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), grads.outer, plain.outer)
    assert float(jnp.abs(grads.inner.guide - plain.inner.guide).max()) > 1e-3


@pytest.mark.quick
def test_rank_weights_share_ties_and_fall_with_rank():
    log_w = jnp.array([0.0, 3.0, 3.0, -1.0])
    np.testing.assert_allclose(rank_weights(log_w, -1.0), np.array([4 / 3, 2.0, 2.0, 1.0]) / (4 / 3 + 5.0), rtol=1e-6)
    np.testing.assert_allclose(rank_weights(log_w, 0.0), np.full(4, 0.25), rtol=1e-6)
    many = jnp.tile(log_w, 100)  # so many are sorted
    np.testing.assert_allclose(rank_weights(many, -1.0), jnp.tile(rank_weights(log_w, -1.0), 100) / 100, rtol=1e-5)


@pytest.mark.quick
def test_new_bounds_stand_extreme_weights():
    far, some_zero = jnp.array([-1e4, 1e4, 0.0]), jnp.array([-jnp.inf, 0.0])
    np.testing.assert_allclose(bounds.cubo(far), 1e4 - math.log(3) / 2, rtol=1e-6)
    np.testing.assert_allclose(bounds.cubo(some_zero), -math.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(bounds.miwae(jnp.array([1e4, 1e4, -1e4, -1e4]), 2), 0.0, atol=1e-3)
    assert bool(jnp.isfinite(bounds.tvo(far, bounds.log_spaced(5))))
    assert bounds.tvo(some_zero, PARTITION) == -jnp.inf
    for bound in (bounds.cubo, lambda w: bounds.tvo(w, PARTITION)):
        assert bool(jnp.isfinite(jax.grad(bound)(far)).all())


WITHOUT_DENSITY = jvi.guides.from_functions(lambda rng, x: 0.0, lambda params, rng, x: (params, params))
PAIR = jvi.guides.product(a=CATEGORICAL, b=GUIDE)
REFUSED = {
    "cubo of one draw": (lambda: objectives.cubo(MODEL, GUIDE, num_samples=1), ValueError, "the ELBO"),
    "cubo of order 1": (lambda: objectives.cubo(MODEL, GUIDE, num_samples=2, order=1.0), ValueError, "bounds.iwae"),
    "cubo by stl": (lambda: objectives.cubo(MODEL, GUIDE, num_samples=2, gradient=gradients.stl), ValueError, "dreg"),
    "tvo by stl": (lambda: objectives.tvo(MODEL, GUIDE, num_samples=2, gradient=gradients.stl), ValueError, "dreg"),
    "tvo backwards": (lambda: objectives.tvo(MODEL, GUIDE, num_samples=2, partition=(0, 1, 0.5)), ValueError, "log_spaced"),
    "covariance of one draw": (
        lambda: scored(objectives.tvo, num_samples=1, control=objectives.covariance),
        ValueError,
        "num_samples of 2",
    ),
    "miwae by stl": (
        lambda: objectives.miwae(MODEL, GUIDE, num_groups=2, num_samples=2, gradient=gradients.stl),
        ValueError,
        "dreg",
    ),
    "miwae of no group": (lambda: objectives.miwae(MODEL, GUIDE, num_groups=0, num_samples=2), ValueError, "num_groups"),
    "piwae by stl": (
        lambda: objectives.piwae(MODEL, GUIDE, num_groups=2, num_samples=1, gradient=gradients.stl),
        ValueError,
        "dreg",
    ),
    "f by stl": (
        lambda: objectives.f_divergence(MODEL, GUIDE, tfp.vi.pearson, num_samples=1, gradient=gradients.stl),
        ValueError,
        "pathwise",
    ),
    "f that is a name": (lambda: objectives.f_divergence(MODEL, GUIDE, "pearson", num_samples=1), TypeError, "tfp.vi"),
    "iwae enumerated": (
        lambda: jvi.iwae(DISCRETE, CATEGORICAL, num_samples=2, gradient=gradients.enumerated),
        ValueError,
        "sum the latent out",
    ),
    "tvo enumerated in part": (
        lambda: objectives.tvo(MODEL, PAIR, num_samples=2, gradient=gradients.by_group(a=gradients.enumerated)),
        ValueError,
        "sum the latent out",
    ),
    "iwae by stl in part": (
        lambda: jvi.iwae(MODEL, PAIR, num_samples=2, gradient=gradients.by_group(a=gradients.score)),
        ValueError,
        "by_group",
    ),
    "tail_adaptive without a density": (
        lambda: objectives.tail_adaptive(MODEL, WITHOUT_DENSITY, num_samples=2),
        ValueError,
        "log_prob",
    ),
    "tail_adaptive of one": (lambda: objectives.tail_adaptive(MODEL, GUIDE, num_samples=1), ValueError, "rank"),
    "tail_adaptive upwards": (lambda: objectives.tail_adaptive(MODEL, GUIDE, num_samples=2, power=1.0), ValueError, "power"),
    "subsampled piwae": (
        lambda: objectives.subsampled(objectives.piwae(MODEL, GUIDE, num_groups=2, num_samples=2), num_data=9),
        TypeError,
        "one model",
    ),
    "covariance elsewhere": (
        lambda: objectives.covariance((), None, bounds.iwae, jnp.zeros(2)),
        ValueError,
        "leave_one_out",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_biased_is_refused_at_construction(name):
    build, error, hint = REFUSED[name]
    with pytest.raises(error, match=hint):
        build()


@pytest.mark.quick
def test_f_must_keep_the_shape():
    objective = objectives.f_divergence(MODEL, GUIDE, jnp.sum, num_samples=2)
    with pytest.raises(ValueError, match="entry by entry"):
        objective(PARAMS, jax.random.key(0), X[0])


def test_specs_rebuilt_are_equal():
    assert TvoBound(PARTITION) == TvoBound(PARTITION)
    one, other = (objectives.piwae(MODEL, GUIDE, num_groups=2, num_samples=2) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
