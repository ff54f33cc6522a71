"""Mixtures: stratified bounds and gradients against quadrature, their order, growth, nesting, refusals."""

from __future__ import annotations

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases import CASES
from cases_core import LOC, SCALE, assert_z_test
from cases_families import FAR, NESTED, REAL, STUDENT, TWO, pair
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import jvi
from jvi.guides import gaussian, mixture
from jvi.objectives import Params

KEY = jax.random.key(5)
ONE = jvi.space(jvi.real())
PART = jvi.guides.MeanField(ONE)
PAIR = jvi.guides.Mixture((PART, PART))
# Components that overlap a little, of unequal weights, apart from the target's modes.
AT = mixture.Mixed(
    np.array([0.3, -0.4]),
    (
        gaussian.Diagonal(np.array([-0.8]), np.array([-0.2])),
        gaussian.Diagonal(np.array([0.9]), np.array([-0.5])),
    ),
)


def target(x, z):
    return jnp.logaddexp(jnp.log(0.6) + norm.logpdf(z, -1.2, 0.6), jnp.log(0.4) + norm.logpdf(z, 1.0, 0.8)) - 1.7


MODEL = jvi.model(target)
NODES, WEIGHTS = (jnp.asarray(one) for one in np.polynomial.hermite_e.hermegauss(60))


def exact(bound, params):
    """A bound of one draw from each of two components, by quadrature over both noises."""
    at = [one.loc + jnp.exp(one.log_scale) * NODES.astype(one.loc.dtype) for one in params.components]
    log_mass = jax.nn.log_softmax(params.logits)

    def log_w(z):
        each = [m + norm.logpdf(z, one.loc, jnp.exp(one.log_scale)) for m, one in zip(log_mass, params.components, strict=True)]
        return target(None, z) - logsumexp(jnp.stack(each), 0)

    one, other = log_w(at[0]), log_w(at[1])
    if bound is jvi.bounds.elbo:
        inner = jnp.exp(log_mass[0]) * one[:, None] + jnp.exp(log_mass[1]) * other[None]
    else:
        inner = jnp.logaddexp(log_mass[0] + one[:, None], log_mass[1] + other[None])
    mass = WEIGHTS / jnp.sum(WEIGHTS)
    return mass @ inner @ mass


def arrays(params):
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.long
@pytest.mark.parametrize("bound", [jvi.bounds.elbo, jvi.bounds.iwae])
def test_stratified_bounds_and_all_their_gradients_are_unbiased(bound):
    with jax.enable_x64(True):
        value, grads = jax.value_and_grad(lambda params: exact(bound, params))(arrays(AT))
    expected = np.concatenate([np.atleast_1d(leaf).ravel() for leaf in (value, *jax.tree.leaves(grads))])
    objectives = [jvi.objectives.stratified(MODEL, PAIR, bound=bound)]
    if bound is jvi.bounds.elbo:
        assert objectives[0] == jvi.elbo(MODEL, PAIR) == jvi.elbo(MODEL, PAIR, gradient=jvi.gradients.stratified)
        objectives.append(jvi.elbo(MODEL, PAIR, gradient=jvi.gradients.score, num_samples=2))  # plain draws, and their scores

    def one(key):
        found = [jax.value_and_grad(one, has_aux=True)(Params((), arrays(AT)), key, None) for one in objectives]
        return jnp.concatenate([jnp.concatenate([v[None], ravel_pytree(g.guide)[0]]) for (v, _), g in found])

    samples = jax.jit(jax.vmap(one))(jax.random.split(KEY, 10_000))
    assert_z_test(samples, np.tile(expected, len(objectives)))
    if bound is jvi.bounds.elbo:
        by_strata, by_score = np.split(np.asarray(samples).var(0), 2)
        assert 1.5 * by_strata[1:].sum() < by_score[1:].sum()  # of two draws each


@pytest.mark.quick
def test_components_one_by_one_are_components_in_one_batch():
    unlike = jvi.guides.Mixture((PART, jvi.guides.MeanField(ONE, init_scale=0.2)))
    assert not unlike._alike

    def both(guide):
        z, log_mass = guide.strata(arrays(AT), KEY, None)
        return z, log_mass, jax.vmap(lambda one: guide.log_prob(arrays(AT), None, one))(z)

    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), both(PAIR), both(unlike))


def test_elbo_siwae_and_the_evidence_are_in_order():
    """With more draws the bound rises; without overlap of the components, or with, it stays below log p(x) = -1.7."""
    objectives = [jvi.elbo(MODEL, PAIR), *(jvi.objectives.stratified(MODEL, PAIR, num_samples=k) for k in (1, 4, 32))]

    def one(key):
        return jnp.stack([objective(Params((), arrays(AT)), key, None)[0] for objective in objectives])

    samples = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 20_000)))
    error = samples.std(0) / np.sqrt(len(samples))
    means = np.append(samples.mean(0), -1.7)
    assert (np.diff(means)[:-1] > 3.0 * error[1:]).all(), (means, error)
    assert means[-2] < -1.7 + 3.0 * error[-1]


@pytest.mark.parametrize("name", ["mixture_nested", "mixture_in_product"])
def test_at_the_exact_posterior_bounds_are_the_evidence_and_the_elbos_gradient_has_no_noise(name):
    case = CASES[name]
    params, model = Params((), arrays(case.params)), jvi.model(case.log_joint)
    elbo, siwae = (build(model, case.guide, num_samples=2) for build in (jvi.elbo, jvi.objectives.stratified))
    together = jax.jit(lambda params: (jax.value_and_grad(elbo, has_aux=True)(params, KEY, None), siwae(params, KEY, None)))
    ((value, aux), grads), (tighter, of_siwae) = together(params)
    for found in (value, aux.log_w, tighter, of_siwae.log_w):
        np.testing.assert_allclose(found, case.log_evidence, atol=1e-4)
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, 0.0, atol=2e-4), grads.guide)


@pytest.mark.quick
def test_draws_come_from_the_components_by_their_weights():
    guide, params = CASES["mixture_nested"].guide, arrays(NESTED)
    z = jax.jit(jax.vmap(lambda key: guide.sample_and_log_prob(params, key, None)[0]))(jax.random.split(KEY, 20_000))
    strata, log_mass = jax.jit(guide.strata)(params, KEY, None)
    assert strata.shape == (3, 3)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_mass)), 1.0, rtol=1e-6)
    below = np.stack([norm.cdf(0.5, LOC, SCALE), norm.cdf(0.5, FAR, 0.7)])
    below = np.concatenate([below, student_below(0.5)[None]])
    assert_z_test(z < 0.5, np.exp(log_mass) @ below)


def student_below(u):
    return scipy.stats.t.cdf((u - STUDENT.loc) / np.exp(STUDENT.log_scale), 2.0 + np.exp(STUDENT.log_excess))


@pytest.mark.quick
def test_strata_of_parts_are_all_choices():
    """A product of mixtures has a stratum for every pair; the later parts of a sequence see the draw of theirs."""
    after = jvi.guides.from_distribution(lambda rng, x: jnp.ones(()), lambda params, x: distrax.Normal(x[1]["a"][0], 1e-3))
    three = jvi.guides.Mixture((jvi.guides.MeanField(REAL),) * 3)
    guide = jvi.guides.sequence(a=pair(REAL), b=after, c=three)
    params = jax.jit(lambda key: guide.init(key, None))(KEY)
    z, log_mass = jax.jit(guide.strata)(params, KEY, None)
    assert [z[name].shape for name in "abc"] == [(6, 3), (6,), (6, 3)]
    np.testing.assert_allclose(z["b"], z["a"][:, 0], atol=0.01)
    np.testing.assert_allclose(jnp.exp(log_mass), 1.0 / 6.0, rtol=1e-5)
    assert len(np.unique(np.asarray(z["a"][:, 0]))) == 2
    assert not hasattr(jvi.guides.product(a=PART, b=PART), "strata")
    by_group = jvi.elbo(jvi.model(lambda x, z: -jnp.sum(z["a"] ** 2)), guide, gradient=jvi.gradients.by_group())
    plain = jvi.elbo(jvi.model(lambda x, z: -jnp.sum(z["a"] ** 2)), guide)
    values = jax.jit(lambda params: [objective(params, KEY, None)[0] for objective in (by_group, plain)])(Params((), params))
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.quick
def test_strata_have_the_latents_that_are_known():
    """The bound is that of the mixture without them, of a model that is told them."""
    mixed = jvi.guides.product(a=PAIR)
    known = jvi.guides.partial(mixed, scale=1.5, where=(0.2, 0.3))
    params = Params((), {"a": arrays(AT)})
    z, log_mass = known.strata(params.guide, KEY, None)
    assert {name: leaf.shape for name, leaf in z.items()} == {"a": (2,), "scale": (2,), "where": (2, 2)}
    np.testing.assert_allclose(log_mass, jax.nn.log_softmax(AT.logits), rtol=1e-6)

    def log_joint(x, z):
        return target(x, z["a"]) + norm.logpdf(z["a"], z["where"][1], z["scale"])

    whole = jvi.model(log_joint)
    told = jvi.model(lambda x, z: log_joint(x, {**z, "scale": 1.5, "where": jnp.array([0.2, 0.3])}))

    @partial(jax.jit, static_argnums=0)
    def graded(objective, params):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, KEY, None)
        return value, grads

    for build in (jvi.elbo, jvi.objectives.stratified):
        (value, grads), (same, others) = graded(build(whole, known), params), graded(build(told, mixed), params)
        np.testing.assert_allclose(value, same, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, others)


@pytest.mark.quick
def test_a_plate_of_mixtures_says_what_works_for_it():
    """n copies of C components have C^n strata: scores do for a plate, and strata for a mixture of plates."""
    model = jvi.model(lambda x, z: jnp.sum(norm.logpdf(z)))
    plate = jvi.guides.plate(PAIR, 3)
    params = Params((), jax.jit(lambda key: plate.init(key, None))(KEY))
    with pytest.raises(TypeError, match=r"gradients.score, or a Mixture of plates, for a plate of mixtures"):
        jax.eval_shape(jvi.elbo(model, plate), params, KEY, None)
    for build in (jvi.objectives.stratified, lambda *pair: jvi.elbo(*pair, gradient=jvi.gradients.stratified)):
        with pytest.raises(ValueError, match=r"for a plate of mixtures.*gradients.score, or a Mixture of plates"):
            build(model, plate)
    mixed = jvi.guides.Mixture((jvi.guides.plate(PART, 3),) * 2)
    for objective in (jvi.elbo(model, plate, gradient=jvi.gradients.score, num_samples=2), jvi.elbo(model, mixed)):
        value, grads = jax.jit(
            lambda key, objective=objective: jax.value_and_grad(objective, has_aux=True)(objective.init(key, None), key, None)
        )(KEY)
        assert jnp.isfinite(value[0])
        assert all(bool((jnp.abs(leaf) > 0.0).any()) for leaf in jax.tree.leaves(grads.guide))


@pytest.mark.quick
def test_growing_keeps_the_old_density():
    guide, params = pair(REAL), arrays(TWO)
    one = gaussian.Diagonal(jnp.full(3, 2.0), jnp.zeros(3))
    z = jnp.array([0.4, -0.3, 1.0])
    own = float(norm.logpdf(z, 2.0, 1.0).sum())
    for bigger, grown in (
        guide.grow(params, one, 0.25),
        guide.grow(params, one, 0.25, guide=jvi.guides.MeanField(REAL, init_scale=3.0)),
    ):
        assert len(bigger.guides) == len(grown.components) == 3
        density = 0.75 * jnp.exp(guide.log_prob(params, None, z)) + 0.25 * jnp.exp(own)
        np.testing.assert_allclose(bigger.log_prob(grown, None, z), jnp.log(density), rtol=1e-5)
    with pytest.raises(ValueError, match=r"weight must lie between 0 and 1, got 1.0"):
        guide.grow(params, one, 1.0)


@jvi._spec.spec
class Amortized:
    """A guide whose parameters are a linear function of x, as a network's would be."""

    guide: object

    def init(self, rng, x):
        params = self.guide.init(rng, x)
        return params, 0.01 * jnp.ones_like(ravel_pytree(params)[0])

    def at(self, params, x):
        flat, back = ravel_pytree(params[0])
        return back(flat + params[1] * x)

    def sample_and_log_prob(self, params, rng, x):
        return self.guide.sample_and_log_prob(self.at(params, x), rng, x)

    def log_prob(self, params, x, z):
        return self.guide.log_prob(self.at(params, x), x, z)

    def strata(self, params, rng, x):
        return self.guide.strata(self.at(params, x), rng, x)


@pytest.mark.quick
def test_mixtures_can_be_amortized():
    guide = Amortized(PAIR)
    objective = jvi.per_example(jvi.elbo(MODEL, guide, num_samples=2))
    x = jnp.linspace(-1.0, 1.0, 4)

    @jax.jit
    def step(key):
        params = objective.init(key, x)
        return jax.value_and_grad(objective, has_aux=True)(params, key, x)

    (value, aux), grads = step(KEY)
    assert jnp.isfinite(value)
    assert aux.log_w.shape == (4, 2)
    assert all(bool((jnp.abs(leaf) > 0.0).any()) for leaf in jax.tree.leaves(grads.guide))


@pytest.mark.quick
def test_what_would_be_biased_is_refused_with_what_to_take_instead():
    params = Params((), PAIR.init(KEY, None))
    for build in (
        lambda guide: jvi.elbo(MODEL, guide, gradient=jvi.gradients.stl),
        lambda guide: jvi.elbo(MODEL, guide, gradient=jvi.gradients.pathwise),
        lambda guide: jvi.iwae(MODEL, guide, num_samples=2),
        lambda guide: jvi.objectives.dreg(MODEL, guide, num_samples=2),
    ):
        with pytest.raises(
            TypeError, match=r"params.logits, but not differentiably.*gradients.stratified.*objectives.stratified"
        ):
            jax.eval_shape(build(PAIR), params, KEY, None)
    for build in (jvi.iwae, jvi.objectives.cubo):
        with pytest.raises(ValueError, match=r"for the ELBO; .*jvi.objectives.stratified"):
            build(MODEL, PAIR, num_samples=4, gradient=jvi.gradients.stratified)
    with pytest.raises(ValueError, match=r"takes jvi.bounds.iwae or jvi.bounds.elbo"):
        jvi.objectives.stratified(MODEL, PAIR, bound=jvi.bounds.renyi)
    with pytest.raises(ValueError, match="needs a guide with strata"):
        jvi.objectives.stratified(MODEL, PART)
    count = jvi.guides.from_distribution(
        lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Categorical(params * jnp.ones(3))
    )
    steps = jvi.guides.from_functions(
        lambda rng, x: jnp.zeros(()), lambda p, key, x: (jnp.round(p + jax.random.normal(key)), p), lambda p, x, z: 0.0 * p
    )
    for part, words in ((count, "z is int32"), (steps, r"strata depend on params.components\[0\]")):
        guide = jvi.guides.Mixture((part, part))
        with pytest.raises(TypeError, match=words):
            jax.eval_shape(jvi.elbo(jvi.model(lambda x, z: 0.0 * z), guide), Params((), guide.init(KEY, None)), KEY, None)


@pytest.mark.quick
def test_bad_mixtures_are_refused():
    other = jvi.guides.MeanField(jvi.space(jvi.real(2)))
    bare = jvi.guides.from_functions(lambda rng, x: 0.0, lambda params, rng, x: (params, 0.0))
    rows = [
        (lambda: jvi.guides.Mixture(()), ValueError, "at least one guide"),
        (lambda: jvi.guides.Mixture(PART), ValueError, "tuple"),
        (lambda: jvi.guides.Mixture((PART, ONE)), TypeError, r"guides\[1\] must be a guide"),
        (lambda: jvi.guides.Mixture((PART, bare)), ValueError, r"guides\[1\] needs a log_prob"),
        (lambda: jvi.guides.Mixture((PART, other)), ValueError, r"guides\[1\] is over space\(z: real\[2\]\)"),
        (lambda: jvi.guides.Mixture((PART,), spread=-1.0), ValueError, "spread"),
    ]
    for build, kind, words in rows:
        with pytest.raises(kind, match=words):
            build()
    unlike = jvi.guides.Mixture((jvi.guides.product(a=PART), jvi.guides.product(a=other)))
    params = unlike.init(KEY, None)
    for call in (unlike.sample_and_log_prob, unlike.strata):
        with pytest.raises(ValueError, match=r"same structure and shapes: guides\[1\] has \['a'\]: float32.*2\]"):
            jax.eval_shape(call, params, KEY, None)


@pytest.mark.quick
def test_mixtures_are_equal_when_rebuilt_start_apart_and_follow_the_default_precision(float64):
    def build():
        space = jvi.space({"w": jvi.real(2), "s": jvi.positive()})
        part = jvi.guides.FullRank(space)
        return [jvi.guides.Mixture((part, part)), jvi.guides.Mixture((part, jvi.guides.product(w=part)), spread=2.0)]

    assert build() == build()
    assert [hash(guide) for guide in build()] == [hash(guide) for guide in build()]
    guide = build()[0]
    params = guide.init(KEY, None)
    z, log_q = jax.eval_shape(guide.sample_and_log_prob, params, KEY, None)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, z, log_q))} == {jnp.dtype("float64")}
    assert jnp.abs(params.components[0].loc - params.components[1].loc).max() > 0.3
    both = build()[1].init(KEY, None).components
    assert jnp.abs(both[0].loc - both[1]["w"].loc).max() > 0.3
