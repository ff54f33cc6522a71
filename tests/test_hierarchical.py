"""Guides by way of auxiliary variables: bounds and gradients beside closed forms, and what makes each log-weight one."""

from __future__ import annotations

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from cases_core import LOG_EVIDENCE, assert_z_test, flat
from cases_hierarchical import CAUSE, around, around_init
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm
from jax.scipy.stats import t as student

import jvi
from jvi.guides import annealed, gaussian, semi_implicit
from jvi.guides.annealed import leapfrog

KEY = jax.random.key(11)
NUM = 4_000
HIERARCHICAL = ["auxiliary", "semi_implicit", "annealed", "importance_weighted"]


def arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


# --- Auxiliary


def _exact_auxiliary(params, x):
    """The ELBO of `cases.auxiliary_case` at any parameters: every term is the mean of a quadratic under a Gaussian (a, z)."""
    loc, scale = params.guide["a"].loc, jnp.exp(params.guide["a"].log_scale)
    weight, drift, noise = (params.guide["z"][name] for name in ("weight", "drift", "noise"))
    reverse = params.reverse
    mean, var = weight * loc + drift * x, weight**2 * scale**2 + noise**2
    own, width = (
        CAUSE["weight"] * CAUSE["loc"] + CAUSE["drift"] * x,
        math.hypot(CAUSE["weight"] * CAUSE["scale"], CAUSE["noise"]),
    )
    log_joint = norm.logpdf(mean, own, width) - 0.5 * var / width**2
    entropy = jnp.log(scale) + jnp.log(noise) + 1.0 + jnp.log(2.0 * jnp.pi)
    apart = loc - reverse["loc"] - reverse["gain"] * (mean - reverse["drift"] * x)
    spread = (1.0 - reverse["gain"] * weight) ** 2 * scale**2 + reverse["gain"] ** 2 * noise**2
    log_r = norm.logpdf(apart, 0.0, reverse["scale"]) - 0.5 * spread / reverse["scale"] ** 2
    return jnp.sum(log_joint + entropy + log_r) + LOG_EVIDENCE


def test_auxiliary_bound_and_gradient_are_the_closed_form_and_a_poor_reverse_loosens_it():
    case = CASES["auxiliary"]
    exact = arrays(case.params)
    np.testing.assert_allclose(_exact_auxiliary(exact, case.x), LOG_EVIDENCE, atol=1e-5)
    poor = exact._replace(reverse=exact.reverse | {"gain": 0.6 * exact.reverse["gain"], "scale": 1.4 * exact.reverse["scale"]})
    assert _exact_auxiliary(poor, case.x) < LOG_EVIDENCE - 0.2
    away = poor._replace(guide=poor.guide | {"z": poor.guide["z"] | {"weight": jnp.asarray(1.2)}})
    objective = jvi.elbo(jvi.model(case.log_joint), case.guide)

    def one(key):
        value, grads = jax.value_and_grad(lambda params: objective(jvi.objectives.Params((), params), key, case.x)[0])(away)
        return jnp.append(flat(grads), value)

    value, grads = jax.value_and_grad(_exact_auxiliary)(away, case.x)
    assert_z_test(jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM)), jnp.append(flat(grads), value))


def test_importance_weighted_bound_by_example_is_the_log_evidence_of_each_with_the_exact_parts():
    case = CASES["auxiliary"]
    objective = jvi.per_example(jvi.iwae(jvi.model(case.log_joint), case.guide, num_samples=3))
    value, aux = jax.jit(objective)(jvi.objectives.Params((), arrays(case.params)), KEY, jnp.array([0.9, -0.3, 2.0]))
    np.testing.assert_allclose(value, LOG_EVIDENCE, atol=1e-4)
    np.testing.assert_allclose(aux.log_w, LOG_EVIDENCE, atol=1e-4)


# --- SemiImplicit

COUNTS = (0, 1, 5, 100)
SHIFT = semi_implicit.Mixed(
    gaussian.Diagonal(np.array([0.5, -1.0]), np.log([0.9, 1.3])),
    {"loc": np.array([0.2, 0.1]), "weight": np.asarray(0.5), "scale": np.asarray(0.5)},
)


def _shift_marginal(z):
    return norm.logpdf(z, jnp.array([0.45, -0.4]), jnp.sqrt(0.25 * jnp.array([0.81, 1.69]) + 0.25)).sum()


def _precision(params, rng, x):
    """Gamma(2, 2), of which no density is asked."""
    return params * jnp.mean(jax.random.exponential(rng, (2,))), jnp.nan


def _inverse_root(params, x):
    return distrax.Normal(params, x[1] ** -0.5)


def _semi_implicit(name):
    """Conditional, marginal, entropy of the conditional: a mixture over locations, and one over scales."""
    if name == "locations":
        mixing = jvi.guides.MeanField(jvi.space(jvi.real(2)))
        conditional = jvi.guides.from_distribution(around_init, around)
        return mixing, conditional, SHIFT, _shift_marginal
    mixing = jvi.guides.from_functions(lambda rng, x: jnp.ones(()), _precision)
    conditional = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), _inverse_root)
    params = semi_implicit.Mixed(np.ones(()), np.asarray(0.3))
    return mixing, conditional, params, lambda z: student.logpdf(z, 4.0, 0.3)  # Gamma(v / 2, v / 2) precisions


@pytest.mark.long
@pytest.mark.parametrize("name", ["locations", "scales"])
def test_semi_implicit_bound_rises_with_the_draws_to_the_elbo_of_the_marginal(name):
    mixing, conditional, params, marginal = _semi_implicit(name)
    guides = [jvi.guides.SemiImplicit(mixing, conditional, num_auxiliary=count) for count in COUNTS]
    params = arrays(params)

    def one(key):  # z is the same for all: the model's density drops out of the differences
        z, log_qs = zip(*(guide.sample_and_log_prob(params, key, None) for guide in guides), strict=True)
        return marginal(z[0]) - jnp.stack(log_qs)

    log_w = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM)), float)
    means, error = log_w.mean(0), np.diff(log_w, axis=1).std(0) / NUM**0.5
    assert np.all(np.diff(means) > 4.0 * error)
    # The marginal is the posterior here: what is left is at most log(1 + chi^2 / (K + 1)), of (z, eps) from independence: 0.04.
    last = log_w[:, -1]
    assert -0.05 < last.mean() < 4.0 * last.std() / NUM**0.5
    assert_z_test(np.exp(log_w[:, 1:]), np.ones(len(COUNTS) - 1))  # every K makes log-weights, for every bound


def test_semi_implicit_with_no_other_draws_has_the_conditional_entropy():
    guide = CASES["semi_implicit"].guide
    guide = jvi.guides.SemiImplicit(guide.mixing, guide.conditional, num_auxiliary=0)
    objective = jvi.elbo(jvi.model(lambda x, z: norm.logpdf(z, 0.0, 2.0).sum()), guide)

    def exact(params):
        scale = jnp.exp(params.mixing.log_scale)
        loc, weight, noise = (params.conditional[name] for name in ("loc", "weight", "scale"))
        var = weight**2 * scale**2 + noise**2
        log_joint = norm.logpdf(loc + weight * params.mixing.loc, 0.0, 2.0) - var / 8.0
        return jnp.sum(log_joint + 0.5 * jnp.log(2.0 * jnp.pi * noise**2) + 0.5)

    def one(key):
        return flat(jax.grad(lambda params: objective(jvi.objectives.Params((), params), key, None)[0])(arrays(SHIFT)))

    assert_z_test(jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM)), flat(jax.grad(exact)(arrays(SHIFT))))


# --- ImportanceWeighted

WIDE = gaussian.Diagonal(jnp.array([0.2, -0.1]), jnp.log(jnp.array([1.2, 1.5])))


def _narrow(x, z):
    return norm.logpdf(z, jnp.array([0.6, -0.4]), 0.7).sum() + LOG_EVIDENCE


def test_elbo_of_the_importance_weighted_guide_is_iwae_value_and_gradient():
    base, model = jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.model(_narrow)
    own = jvi.elbo(model, jvi.guides.ImportanceWeighted(base, model, num_samples=6))
    iwae = jvi.iwae(model, base, num_samples=6, gradient=jvi.gradients.pathwise)
    params = jvi.objectives.Params((), WIDE)

    def bound(params, key):
        z_key = jax.random.split(key)[1]  # the guide chooses by the first of two keys, and draws by the second
        return jnp.stack([own(params, key, None)[0], iwae(params, z_key, None)[0]])

    def both(key):
        return bound(params, key), jax.jacrev(bound)(params, key)

    value, slopes = jax.jit(jax.vmap(both))(jax.random.split(KEY, 20))
    np.testing.assert_allclose(value[:, 0], value[:, 1], atol=1e-5)
    for leaf in jax.tree.leaves(slopes):
        np.testing.assert_allclose(leaf[:, 0], leaf[:, 1], atol=1e-4)


def test_importance_weighted_draws_tend_to_the_posterior_and_weigh_up_to_it_for_any_number():
    base, model = jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.model(_narrow)
    guides = [jvi.guides.ImportanceWeighted(base, model, num_samples=count) for count in (2, 500)]

    def one(key):
        (few, log_q), (many, _) = (guide.sample_and_log_prob(WIDE, key, None) for guide in guides)
        weight = jnp.exp(_narrow(None, few) - log_q - LOG_EVIDENCE)
        return jnp.concatenate([weight * few, weight * few**2, weight[None]]), jnp.concatenate([many, many**2])

    weighed, plain = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM))
    moments = np.array([0.6, -0.4, 0.36 + 0.49, 0.16 + 0.49])
    assert_z_test(weighed, np.append(moments, 1.0))
    assert_z_test(plain, moments)


# --- Annealed

LOC, COV = np.array([0.5, -0.3]), np.array([[1.0, 0.8], [0.8, 1.0]])
LOG_NORM = -math.log(2.0 * math.pi) - 0.5 * math.log(1.0 - 0.8**2)
# The best mean-field Gaussian has the conditional variances, and misses log Z by half the log of what they differ by.
MEAN_FIELD = LOG_EVIDENCE + 0.5 * math.log(1.0 - 0.8**2)


def _correlated(x, z):
    apart = z - jnp.asarray(LOC)
    return -0.5 * apart @ jnp.asarray(np.linalg.inv(COV)) @ apart + LOG_NORM + LOG_EVIDENCE


def _annealed(num_steps, step, keep=0.8):
    guide = jvi.guides.Annealed(jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.model(_correlated), num_steps)
    base = gaussian.Diagonal(jnp.asarray(LOC), jnp.full(2, math.log(0.6)))
    logit = jnp.asarray(math.log(keep / (1.0 - keep)))
    return guide, annealed.Path(base, jnp.full(2, math.log(step)), jnp.zeros(num_steps), logit)


def test_annealed_bound_rises_from_that_of_the_base_to_log_z():
    pairs = [_annealed(num_steps, 0.25) for num_steps in (8, 32, 256)]

    def one(key):
        draws = [guide.sample_and_log_prob(params, key, None) for guide, params in pairs]
        return jnp.stack([_correlated(None, z) - log_q for z, log_q in draws])

    log_w = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 2_000)), float)
    means, error = log_w.mean(0), log_w.std(0) / 2_000**0.5
    assert means[0] > MEAN_FIELD + 5.0 * error[0]
    assert np.all(np.diff(means) > 5.0 * np.hypot(error[1:], error[:-1]))
    assert LOG_EVIDENCE - 0.05 < means[-1] < LOG_EVIDENCE + 4.0 * error[-1]
    assert_z_test(np.exp(log_w - LOG_EVIDENCE), np.ones(3))  # log-weights, whatever the steps


def test_annealed_gradient_is_the_finite_difference_with_the_same_noise(float64):
    guide, params = _annealed(3, 0.3)
    params = params._replace(increments=jnp.array([0.3, -0.4, 0.8]))
    at, tree = ravel_pytree(params)
    assert at.dtype == jnp.float64

    def bound(at):
        z, log_q = guide.sample_and_log_prob(tree(at), KEY, None)
        return _correlated(None, z) - log_q

    slope, sides = jax.jit(lambda at, moved: (jax.grad(bound)(at), jax.vmap(bound)(moved)))(
        at, at[None] + 1e-5 * jnp.concatenate([jnp.eye(len(at)), -jnp.eye(len(at))])
    )
    np.testing.assert_allclose(slope, (sides[: len(at)] - sides[len(at) :]) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.quick
def test_leapfrog_leads_back_and_preserves_volume(float64):
    step, u, p = jnp.array([0.3, 0.5]), jnp.array([0.4, -1.0]), jnp.array([0.7, 0.2])
    slope = jax.grad(lambda u: -jnp.sum(u**4) + u[0] * jnp.sin(u[1]))

    def there_and_back(v):
        new, after = leapfrog(slope, step, v[:2], v[2:])
        return jnp.concatenate(leapfrog(slope, step, new, -after)), jnp.concatenate([new, after])

    v = jnp.concatenate([u, p])
    back, (_, jacobian) = jax.jit(lambda v: (there_and_back(v)[0], jax.jacobian(there_and_back)(v)))(v)
    np.testing.assert_allclose(back, jnp.concatenate([u, -p]), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, atol=1e-12)


def test_annealed_trains_beyond_the_best_mean_field():
    guide, _ = _annealed(4, 0.1)
    svi = jvi.SVI(jvi.elbo(jvi.model(_correlated), guide, num_samples=16), jvi.optimizer(jvi.svi.cosine_adam, 0.05, 400))
    _, info = jvi.fit(svi, KEY, None, num_steps=400, progress=False)
    last = info.bound[-200:]
    assert last.mean() > MEAN_FIELD + 0.1 + 5.0 * last.std() / 200**0.5
    assert info.finite.all()


# --- What all share


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_log_weights_are_constant_in_double_precision_too(name, float64):
    case = CASES[name]
    params = arrays(case.params)
    if name == "annealed":  # exact as steps shrink, whatever the temperatures
        params = params._replace(log_step=jnp.full(3, math.log(1e-7)))
    z, log_q = jax.jit(lambda key: case.guide.sample_and_log_prob(params, key, case.x))(KEY)
    assert log_q.dtype == jnp.float64
    np.testing.assert_allclose(case.log_joint(case.x, z) - log_q, case.log_evidence, atol=1e-11)


@pytest.mark.quick
def test_they_are_equal_when_rebuilt_and_have_no_density():
    def build():
        part, model = jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.model(_correlated)
        return [
            jvi.guides.Auxiliary(jvi.guides.sequence(a=part, z=part), part),
            jvi.guides.SemiImplicit(part, part),
            jvi.guides.ImportanceWeighted(part, model, 3),
            jvi.guides.Annealed(part, model, 3),
        ]

    assert build() == build()
    assert [hash(guide) for guide in build()] == [hash(guide) for guide in build()]
    assert not any(hasattr(guide, "log_prob") for guide in build())
    assert [getattr(guide, "reparameterized", False) for guide in build()] == [True, True, False, True]


@pytest.mark.quick
def test_wrong_parts_are_refused_by_name():
    part, model = jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.model(_correlated)
    opaque = jvi.guides.from_functions(lambda rng, x: (), lambda params, rng, x: (jnp.zeros(2), 0.0))
    with pytest.raises(TypeError, match="guide must be of two parts"):
        jvi.guides.Auxiliary(part, part)
    with pytest.raises(ValueError, match="got a, b, z"):
        jvi.guides.Auxiliary(jvi.guides.sequence(a=part, b=part, z=part), part)
    with pytest.raises(TypeError, match="reverse must be a guide with a log_prob, of draws of 'a'"):
        jvi.guides.Auxiliary(jvi.guides.sequence(a=part, z=part), opaque)
    with pytest.raises(TypeError, match="conditional must be a guide with a log_prob"):
        jvi.guides.SemiImplicit(part, opaque)
    with pytest.raises(ValueError, match="num_auxiliary must be 0 or more"):
        jvi.guides.SemiImplicit(part, part, num_auxiliary=-1)
    with pytest.raises(TypeError, match="guide must be a guide with a log_prob"):
        jvi.guides.Annealed(opaque, model, 3)
    with pytest.raises(TypeError, match=r"Annealed\.model must have.*jvi\.model"):
        jvi.guides.Annealed(part, _correlated, 3)
    with pytest.raises(TypeError, match="space must be given"):
        jvi.guides.Annealed(jvi.guides.Markov(3), model, 3)
    with pytest.raises(ValueError, match="init_persistence must be between 0 and 1"):
        jvi.guides.Annealed(part, model, 3, init_persistence=1.0)
    learned = jvi.learned(lambda rng, x: jnp.zeros(()), lambda params, x, z: _correlated(x, z) + params)
    for guide in (jvi.guides.Annealed(part, learned, 3), jvi.guides.ImportanceWeighted(part, learned, 3)):
        with pytest.raises(ValueError, match="model must have nothing to learn"):
            guide.init(KEY, None)
