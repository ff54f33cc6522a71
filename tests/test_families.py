"""Families beyond the Gaussians: densities and gradients against closed forms, fits to the evidence, modes."""

from __future__ import annotations

import distrax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases import CASES
from cases_core import LOC, LOWER, assert_z_test, dense
from cases_families import BLOCK_LOC, GROUPS, REAL, block_covariance, precision_of
from tensorflow_probability.substrates.jax import bijectors as tfb

import jvi
from jvi.guides import delta, sinh_arcsinh, student_t

KEY = jax.random.key(3)
FAMILIES = ("block_diagonal", "precision", "student_t", "dense_sinh_arcsinh")
TIGHT = (*FAMILIES, "sinh_arcsinh_constrained", "mixture_constrained", "mixture_of_products")
LINE = np.linspace(-60.0, 60.0, 60_001)


def smooth(z):
    """A bounded log-joint, so that tails do not decide."""
    return jnp.sin(z) + 0.5 * jnp.cos(2.0 * z) - jnp.log1p(z**2)


# A family of one coordinate, its parameters, and its density written out by `(params, u)`.
def _student(params, u):
    df = 2.0 + jnp.exp(params.log_excess)
    return jax.scipy.stats.t.logpdf(u, df, params.loc, jnp.exp(params.log_scale))


def _bent(params, u):
    delta, v = jnp.exp(-params.log_tail), (u - params.loc) * jnp.exp(-params.log_scale)
    s = jnp.sinh(delta * jnp.arcsinh(v) - params.skew)
    return jnp.log(delta) + 0.5 * jnp.log((1.0 + s**2) / (2.0 * jnp.pi * (1.0 + v**2))) - 0.5 * s**2 - params.log_scale


ONE = jvi.space(jvi.real())
SINGLE = {
    "student_t": (jvi.guides.StudentT(ONE), student_t.HeavyTailed(*np.array([[0.3], [-0.2], [0.0]])), _student),
    "sinh_arcsinh": (jvi.guides.SinhArcsinh(ONE), sinh_arcsinh.Skewed(*np.array([[0.3], [-0.2], [0.5], [0.2]])), _bent),
}


@pytest.mark.parametrize("name", SINGLE)
def test_pathwise_and_stl_gradients_are_unbiased(name):
    guide, params, density = SINGLE[name]

    def exact(params):
        u = jnp.tan(jnp.pi * (jnp.linspace(0.0, 1.0, 40_002)[1:-1] - 0.5))  # from minus to plus infinity
        log_q = density(jax.tree.map(jnp.squeeze, params), u)
        return jnp.trapezoid(jnp.exp(log_q) * (smooth(u) - log_q), u)

    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(exact)(jax.tree.map(jnp.asarray, params))
    model = jvi.model(lambda x, z: smooth(z))
    objectives = [jvi.elbo(model, guide, gradient=one) for one in (jvi.gradients.pathwise, jvi.gradients.stl)]
    at = jvi.objectives.Params((), jax.tree.map(jnp.asarray, params))

    def one(key):
        found = [jax.value_and_grad(objective, has_aux=True)(at, key, None) for objective in objectives]
        return jnp.concatenate([jnp.concatenate([bound[None], *grads.guide]) for (bound, _), grads in found])

    samples = jax.jit(jax.vmap(one))(jax.random.split(KEY, 20_000))
    assert_z_test(samples, np.tile(np.concatenate([value[None], *grad]), 2))


@pytest.mark.quick
def test_students_draws_are_students():
    """The share of draws below each of the distribution's own quantiles, at degrees of freedom from the least to the normal's."""
    df = np.array([2.0001, 2.5, 5.0, 1e6])
    guide = jvi.guides.StudentT(jvi.space(jvi.real(4)))
    params = student_t.HeavyTailed(jnp.zeros(4), jnp.zeros(4), jnp.log(jnp.asarray(df) - 2.0))
    z = jax.jit(jax.vmap(lambda key: guide.sample_and_log_prob(params, key, None)[0]))(jax.random.split(KEY, 50_000))
    levels = np.array([0.001, 0.05, 0.3, 0.5, 0.9, 0.999])
    below = z[:, :, None] < scipy.stats.t.ppf(levels, df[:, None])[None]
    assert_z_test(below.reshape(len(z), -1), np.tile(levels, 4))


@pytest.mark.quick
def test_students_density_is_exact_for_any_degrees_of_freedom():
    df = np.array([2.001, 3.0, 30.0, 1e3, 1e5, 1e8])  # float32 would lose a difference of log-gammas from 1e4 on
    guide = jvi.guides.StudentT(jvi.space(jvi.real(6)))
    params = student_t.HeavyTailed(jnp.zeros(6), jnp.zeros(6), jnp.log(jnp.asarray(df) - 2.0))
    for u in (0.0, 1.5, -40.0):
        exact = scipy.stats.t.logpdf(u, np.asarray(2.0 + jnp.exp(params.log_excess), float)).sum()
        np.testing.assert_allclose(guide.log_prob(params, None, jnp.full(6, u)), exact, rtol=3e-6)
    grads = jax.grad(lambda params: guide.log_prob(params, None, jnp.full(6, 1.5)))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in grads)


@pytest.mark.quick
def test_bent_densities_are_those_of_a_bent_normal(float64):
    """P(u < bend(e)) is the normal's P(eps < e), by quadrature of the density; without a bend it is the mean-field guide."""
    guide, params, _ = SINGLE["sinh_arcsinh"]
    params = jax.tree.map(jnp.asarray, params)
    density = np.exp(jax.vmap(lambda u: guide.log_prob(params, None, u))(jnp.asarray(LINE)))
    below = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1])) * (LINE[1] - LINE[0])])
    eps = np.array([-2.0, -0.5, 0.0, 1.0, 2.0])
    at = 0.3 + np.exp(-0.2) * np.sinh((np.arcsinh(eps) + 0.5) * np.exp(0.2))
    np.testing.assert_allclose(np.interp(at, LINE, below), scipy.stats.norm.cdf(eps), atol=1e-6)
    space = jvi.space(jvi.real(3))
    for kind, plain in ((jvi.guides.SinhArcsinh, jvi.guides.MeanField), (jvi.guides.DenseSinhArcsinh, jvi.guides.FullRank)):
        bent, straight = (one(space).sample_and_log_prob(one(space).init(KEY, None), KEY, None) for one in (kind, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), bent, straight)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("guide", "params", "loc", "covariance"),
    [
        (
            jvi.guides.BlockDiagonal(jvi.space(jvi.real(5)), GROUPS),
            CASES["block_diagonal"].params,
            BLOCK_LOC,
            block_covariance(),
        ),
        (jvi.guides.Precision(REAL), precision_of(LOWER @ LOWER.T), LOC, LOWER @ LOWER.T),
    ],
    ids=["block_diagonal", "precision"],
)
def test_gaussian_densities_entropies_and_draws_are_the_full_rank_guides(guide, params, loc, covariance, float64):
    full = jvi.guides.FullRank(guide.space)
    same = dense(loc, np.linalg.cholesky(covariance))
    params = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, params))
    z = jnp.linspace(-1.0, 2.0, len(loc))
    score, score_of_full = (jax.grad(one.log_prob, 2)(at, None, z) for one, at in ((guide, params), (full, same)))
    np.testing.assert_allclose(score, score_of_full, rtol=1e-9)
    np.testing.assert_allclose(guide.entropy(params, None, z), full.entropy(same, None, z), rtol=1e-9)
    draw = jax.jit(jax.vmap(lambda key: guide.sample_and_log_prob(params, key, None)[0]))
    draws = np.asarray(draw(jax.random.split(KEY, 20_000)))
    products = (draws - loc)[:, :, None] * (draws - loc)[:, None, :]
    moments = np.concatenate([draws, products.reshape(len(draws), -1)], 1)
    assert_z_test(moments, np.concatenate([loc, covariance.reshape(-1)]))


@pytest.mark.quick
def test_blocks_of_one_size_are_one_product():
    def equations(num_blocks):
        guide = jvi.guides.BlockDiagonal(jvi.space({f"z{i}": jvi.real(2 + i % 2) for i in range(num_blocks)}))
        mixed = jax.make_jaxpr(lambda params, eps: guide._each(eps, params, lambda root, eps: root @ eps))
        return len(mixed(guide.init(KEY, None), jnp.zeros(guide.space.size)).jaxpr.eqns)

    assert equations(4) == equations(400)


@pytest.mark.parametrize("name", FAMILIES)
def test_fits_reach_the_evidence_inside_their_class(name):
    case = CASES[name]
    svi = jvi.SVI(
        jvi.elbo(jvi.model(case.log_joint), case.guide, num_samples=8), jvi.optimizer(jvi.svi.cosine_adam, 0.1, num_steps=1_500)
    )
    state, _ = jvi.fit(svi, KEY, num_steps=1_500)
    posterior = jvi.Posterior.of(svi, state)
    log_w = jvi.posterior.log_weights(posterior, jax.random.key(1), num_samples=4_000)
    np.testing.assert_allclose(jnp.mean(log_w), case.log_evidence, atol=0.01)
    assert jnp.std(log_w) < 0.1  # they are constant where q is the posterior


@pytest.mark.quick
def test_the_point_maximizes_the_density_that_it_says():
    """Of Gamma(3, 2) the mode is 1, and that of the logarithm's density log(3 / 2)."""
    model = jvi.model(lambda x, z: distrax.Gamma(3.0, 2.0).log_prob(z))
    for of_coordinates, mode in ((False, 1.0), (True, 1.5)):
        objective = jvi.elbo(model, jvi.guides.Delta(jvi.space(jvi.positive()), of_coordinates), num_samples=2)

        def value(loc, objective=objective):
            return objective(jvi.objectives.Params((), delta.Point(loc[None])), KEY, None)[0]

        at = jnp.log(mode)
        derivatives = jax.jit(lambda at, value=value: (value(at), jax.grad(value)(at), jax.grad(jax.grad(value))(at)))(at)
        log_det = at if of_coordinates else 0.0
        # The slope by log z is 3 - 2 z, of the latent's own density less one; its derivative is -2 z.
        expected = (scipy.stats.gamma.logpdf(mode, 3.0, scale=0.5) + log_det, 0.0, -2.0 * mode)
        np.testing.assert_allclose(derivatives, expected, atol=1e-5)


def test_a_point_beside_a_gaussian_is_fitted_to_what_the_gaussian_leaves():
    """x ~ N(b, exp(a)^2) n times, b ~ N(0, 1): the point a maximizes the bound of log p(x, a), as in variational EM."""
    x = jnp.array([0.3, 1.4, -0.7, 2.2, 0.9])
    space = jvi.space(jvi.real())

    def log_joint(x, z):
        return jax.scipy.stats.norm.logpdf(z["b"]) + jax.scipy.stats.norm.logpdf(x, z["b"], jnp.exp(z["a"])).sum()

    guide = jvi.guides.product(a=jvi.guides.Delta(space), b=jvi.guides.MeanField(space))
    svi = jvi.SVI(
        jvi.elbo(jvi.model(log_joint), guide, num_samples=16), jvi.optimizer(jvi.svi.cosine_adam, 0.05, num_steps=3_000)
    )
    state, _ = jvi.fit(svi, KEY, x, num_steps=3_000)
    grid = np.linspace(-1.0, 1.5, 2_001)
    log_evidence = [
        scipy.stats.multivariate_normal.logpdf(x, np.zeros(5), np.ones((5, 5)) + np.exp(2.0 * a) * np.eye(5)) for a in grid
    ]  # b is Gaussian given a, so that its guide is exact and the bound is log p(x | a)
    np.testing.assert_allclose(state.params.guide["a"].loc[0], grid[np.argmax(log_evidence)], atol=0.02)


# What may lie around a part that is a point.
AROUND = {
    "product": lambda guide: jvi.guides.product(c=guide),
    "sequence": lambda guide: jvi.guides.sequence(c=guide),
    "given": lambda guide: jvi.guides.given(jnp.sin, guide),
    "transform": lambda guide: jvi.guides.transform(guide, {"b": tfb.Exp}),
    "amortize": lambda guide: jvi.guides.amortize(guide, flax.linen.Dense(9)),
    "parameterize": lambda guide: jvi.guides.parameterize(guide, lambda rng, x: guide.init(rng, x), lambda params, x: params),
    "plate": lambda guide: jvi.guides.plate(guide, 2),
    "freeze": lambda guide: jvi.guides.freeze(guide, "b"),
    "partial": lambda guide: jvi.guides.partial(guide, c=1.0),
    "importance-weighted": lambda guide: jvi.guides.ImportanceWeighted(guide, jvi.model(lambda x, z: 0.0), num_samples=2),
    "deep": lambda guide: jvi.guides.plate(jvi.guides.freeze(jvi.guides.transform(guide, {"a": tfb.Exp})), 2),
}


@pytest.mark.quick
def test_what_needs_a_density_refuses_a_point():
    point = jvi.guides.Delta(REAL)
    model = jvi.model(lambda x, z: jnp.sum(z))
    beside = jvi.guides.product(a=point, b=jvi.guides.MeanField(REAL))
    inside = [build(beside) for build in AROUND.values()]
    for guide in (point, beside, *inside):
        for build in (
            lambda guide=guide: jvi.iwae(model, guide, num_samples=5),
            lambda guide=guide: jvi.renyi(model, guide, alpha=0.5, num_samples=5),
            lambda guide=guide: jvi.objectives.cubo(model, guide, num_samples=5),
        ):
            with pytest.raises(ValueError, match=r"point, without a density.*jvi.elbo"):
                build()
        with pytest.raises(ValueError, match=r"intractable|log_prob"):
            jvi.elbo(model, guide, gradient=jvi.gradients.stl)
        with pytest.raises(ValueError, match="log_prob"):
            jvi.objectives.dreg(model, guide, num_samples=2)
        params = jvi.objectives.Params((), guide.init(KEY, jnp.ones(3)))
        with pytest.raises(ValueError, match="say nothing of the evidence"):
            jvi.diagnostics.verdict(jvi.Posterior(model, guide, params, None), KEY)
    with pytest.raises(ValueError, match=r"guides\[0\] needs a log_prob"):
        jvi.guides.Mixture((point, point))
    with pytest.raises(ValueError, match=r"guides\[0\] needs a log_prob"):
        jvi.guides.Mixture((beside, beside))
    # What is mixed over needs no density: the draws have one all the same.
    around = jvi.guides.from_distribution(
        lambda rng, x: jnp.ones(()), lambda params, x: distrax.MultivariateNormalDiag(params * x[1])
    )
    jvi.iwae(model, jvi.guides.SemiImplicit(point, around, num_auxiliary=2), num_samples=5)


@pytest.mark.quick
def test_bad_families_are_refused():
    rows = [
        (lambda: jvi.guides.BlockDiagonal(REAL, ((0, 1),)), "missing .2.*space.names"),
        (lambda: jvi.guides.BlockDiagonal(REAL, ((0, 1), (1, 2, 3))), "more than one .1., not of the space .3."),
        (lambda: jvi.guides.BlockDiagonal(REAL, ((0, 1, 2), ())), "no group be empty"),
        (lambda: jvi.guides.BlockDiagonal(REAL, init_scale=-1.0), "init_scale must be positive"),
        (lambda: jvi.guides.StudentT(REAL, init_df=2.0), "init_df must be more than 2.*2.0"),
        (lambda: jvi.guides.StudentT(REAL, init_df=np.inf), "init_df.*finite"),
    ]
    for build, words in rows:
        with pytest.raises(ValueError, match=words):
            build()
    for kind in (jvi.guides.BlockDiagonal, jvi.guides.Precision, jvi.guides.StudentT, jvi.guides.SinhArcsinh, jvi.guides.Delta):
        with pytest.raises(TypeError, match=r"jvi\.space"):
            kind({"w": jvi.real(3)})
    with pytest.raises(TypeError, match="hashable"):
        jvi.guides.BlockDiagonal(REAL, [[0, 1, 2]])


@pytest.mark.quick
def test_families_are_equal_when_rebuilt_and_follow_the_default_precision(float64):
    def build():
        space = jvi.space({"w": jvi.real(2), "s": jvi.positive()})
        kinds = (
            jvi.guides.Precision,
            jvi.guides.StudentT,
            jvi.guides.SinhArcsinh,
            jvi.guides.DenseSinhArcsinh,
            jvi.guides.Delta,
        )
        return [jvi.guides.BlockDiagonal(space, ((0, 2), (1,))), *(kind(space) for kind in kinds)]

    assert build() == build()
    assert [hash(guide) for guide in build()] == [hash(guide) for guide in build()]
    for guide in build():
        params = guide.init(KEY, None)
        z, log_q = jax.eval_shape(guide.sample_and_log_prob, params, KEY, None)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, z, log_q))} == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", TIGHT)
def test_in_double_precision_the_laws_are_tight(name, float64):
    jax.clear_caches()  # JAX 0.10 keeps NumPy constants of jitted functions in the precision of their first use
    case = CASES[name]
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), case.params)

    def one(key):
        z, log_q = case.guide.sample_and_log_prob(params, key, case.x)
        return log_q, case.guide.log_prob(params, case.x, z), case.log_joint(case.x, z)

    log_q, again, log_joint = jax.jit(jax.vmap(one))(jax.random.split(KEY, 100))
    np.testing.assert_allclose(log_q, again, atol=1e-9)
    np.testing.assert_allclose(log_joint - log_q, case.log_evidence, atol=1e-9)
