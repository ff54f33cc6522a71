"""The gradient of a continuous mixture's own ELBO, beside closed forms: what is exact in it, and what the chain's length decides."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm

import jvi
from jvi.gradients import uivi
from jvi.guides import gaussian, semi_implicit

KEY = jax.random.key(5)
NUM = 4_000
PRECISION, CENTRE = np.array([[1.0, -0.6], [-0.6, 1.5]]), np.array([0.5, -1.0])


def _joint(x, z):
    return -0.5 * (z - CENTRE) @ jnp.asarray(PRECISION, float) @ (z - CENTRE)


def _linear(params, rng, x):
    z = params["loc"] + params["weight"] @ x[1] + params["scale"] * jax.random.normal(rng, (2,))
    return z, _log_linear(params, x, z)


def _log_linear(params, x, z):
    return norm.logpdf(z, params["loc"] + params["weight"] @ x[1], params["scale"]).sum()


def _linear_init(rng, x):
    return {"loc": jnp.zeros(2), "weight": jnp.eye(2), "scale": jnp.ones(())}


MIXING = jvi.guides.MeanField(jvi.space(jvi.real(2)))
GUIDE = jvi.guides.SemiImplicit(MIXING, jvi.guides.from_functions(_linear_init, _linear, _log_linear), num_auxiliary=2)
# The reverse conditional has sds of about 0.6 both ways.
PARAMS = semi_implicit.Mixed(
    gaussian.Diagonal(jnp.array([0.3, -0.2]), jnp.log(jnp.array([0.9, 1.1]))),
    {"loc": jnp.array([0.2, 0.1]), "weight": jnp.array([[1.0, 0.4], [-0.3, 0.8]]), "scale": jnp.array(0.8)},
)


def _moments(params):
    """Of eps ~ N(m, S) and z = W eps + b + noise: m, S, the mean of z and its covariance."""
    loc, cov, of = params.mixing.loc, jnp.diag(jnp.exp(2.0 * params.mixing.log_scale)), params.conditional
    return loc, cov, of["weight"] @ loc + of["loc"], of["weight"] @ cov @ of["weight"].T + of["scale"] ** 2 * jnp.eye(2)


def _elbo(params, *, marginal):
    """The ELBO up to a constant, by the marginal's entropy or by the conditional's."""
    _, _, mean, cov = _moments(params)
    apart = mean - CENTRE
    log_joint = -0.5 * (jnp.trace(jnp.asarray(PRECISION, float) @ cov) + apart @ jnp.asarray(PRECISION, float) @ apart)
    return log_joint + (0.5 * jnp.linalg.slogdet(cov)[1] if marginal else 2.0 * jnp.log(params.conditional["scale"]))


@pytest.mark.long
def test_gradient_is_that_of_the_marginal_elbo_and_without_moves_that_of_the_bound_without_other_draws():
    settled, still = uivi(num_warmup=4, num_inner=2, num_steps=5, step_size=0.25), uivi(num_warmup=0, step_size=1e-5)
    objectives = [jvi.elbo(jvi.model(_joint), GUIDE, gradient=gradient) for gradient in (settled, still)]

    def one(key):
        found = [jax.value_and_grad(of, has_aux=True)(jvi.objectives.Params((), PARAMS), key, None) for of in objectives]
        z, log_q = GUIDE.sample_and_log_prob(PARAMS, jax.random.split(key)[0], None)
        return [flat(grads) for _, grads in found], found[0][0][0] - (_joint(None, z) - log_q)

    (long, none), gap = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM))
    np.testing.assert_allclose(gap, 0.0, atol=1e-4)  # the value is the guide's own bound
    true, conditional = (flat(jax.grad(lambda p, m=m: _elbo(p, marginal=m))(PARAMS)) for m in (True, False))
    assert_z_test(long, true)
    assert_z_test(none, conditional)
    assert np.abs(true - conditional).max() > 10.0 * np.asarray(long).std(0).max() / NUM**0.5  # so the test can tell them apart


def test_every_state_is_an_exact_draw_given_z_however_poor_the_moves():
    poor = uivi(num_warmup=1, num_inner=2, num_steps=3, step_size=0.9)

    def one(key):
        found = poor.chain(GUIDE, PARAMS, key, None)
        z, _ = GUIDE.sample_and_log_prob(PARAMS, jax.random.split(key)[0], None)
        eps = found.eps[-1]
        return jnp.concatenate([eps, jnp.ravel(eps[:, None] * eps[None]), jnp.ravel(eps[:, None] * z[None])]), found.acceptance

    found, acceptance = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM))
    assert 0.3 < acceptance.mean() < 0.9  # enough is refused for a missing test to show
    loc, cov, mean, _ = _moments(PARAMS)
    second, cross = cov + jnp.outer(loc, loc), cov @ PARAMS.conditional["weight"].T + jnp.outer(loc, mean)
    assert_z_test(found, jnp.concatenate([loc, jnp.ravel(second), jnp.ravel(cross)]))


def test_noise_of_a_space_moves_in_its_coordinates():
    """Precisions eps of which the log is normal, over a normal of that precision."""
    mixing = jvi.guides.MeanField(jvi.space(jvi.positive()), init_scale=0.6)
    conditional = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda p, x: distrax.Normal(p, x[1] ** -0.5))
    guide = jvi.guides.SemiImplicit(mixing, conditional, num_auxiliary=0)
    params = guide.init(KEY, None)

    def one(key):
        eps = uivi(num_warmup=2, num_steps=3, step_size=0.8).chain(guide, params, key, None).eps[0]
        z, _ = guide.sample_and_log_prob(params, jax.random.split(key)[0], None)
        return jnp.stack([eps, jnp.log(eps), eps * z**2])

    found = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM))
    assert_z_test(found, [np.exp(0.6**2 / 2.0), 0.0, 1.0])


@pytest.mark.quick
def test_it_goes_with_data_and_learned_models():
    model = jvi.learned(lambda rng, x: jnp.zeros(2), lambda params, x, z: norm.logpdf(x, z @ params).sum() + _joint(x, z))
    objective = jvi.per_example(jvi.elbo(model, GUIDE, gradient=uivi(), num_samples=3))
    x = jnp.ones(4)
    params = objective.init(KEY, x)
    grads = jax.eval_shape(jax.grad(objective, has_aux=True), params, KEY, x)[0]
    assert jax.tree.structure(grads) == jax.tree.structure(params)


@pytest.mark.quick
def test_what_does_not_fit_is_refused():
    model, opaque = jvi.model(_joint), jvi.guides.from_functions(_linear_init, lambda params, rng, x: (jnp.zeros(2), 0.0))
    with pytest.raises(ValueError, match=r"gradients\.uivi is for a jvi\.guides\.SemiImplicit"):
        jvi.elbo(model, MIXING, gradient=uivi())
    with pytest.raises(ValueError, match="mixing must be a guide with a log_prob"):
        jvi.elbo(model, jvi.guides.SemiImplicit(opaque, GUIDE.conditional), gradient=uivi())
    with pytest.raises(ValueError, match=r"gradients\.uivi is for the ELBO.*num_samples=4"):
        jvi.iwae(model, GUIDE, num_samples=4, gradient=uivi())
    with pytest.raises(ValueError, match="biased for any divergence"):
        jvi.objectives.f_divergence(model, GUIDE, jnp.negative, num_samples=4, gradient=uivi())
    with pytest.raises(ValueError, match="step_size must be positive"):
        uivi(step_size=0.0)
    with pytest.raises(ValueError, match="num_inner must be 1 or more"):
        uivi(num_inner=0)
    assert uivi(step_size=0.2) == uivi(step_size=0.2)
