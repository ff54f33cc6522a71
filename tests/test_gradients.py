"""Gradient estimators against closed forms: z-tests, all of one row at a failure rate of 1e-4."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test, dense, flat
from jax.scipy.stats import norm

import jvi
from jvi.gradients import pathwise, stl
from jvi.guides import gaussian, low_rank

DESIGN = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4], [0.7, 0.1, 0.9], [-0.5, 0.6, 0.3]])
X = np.array([0.5, -1.0, 2.0, 0.3])
LOC = jnp.array([0.4, -0.2, 0.1])
LOG_SCALE = jnp.array([-0.5, 0.2, -1.0])
LOWER = jnp.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [-0.2, 0.4, 0.0]])
FACTOR = jnp.array([[0.5], [-0.3], [0.8]])
SPACE = jvi.space(jvi.real(3))

GUIDES = {
    "mean_field": (jvi.guides.MeanField(SPACE), gaussian.Diagonal(LOC, LOG_SCALE)),
    "full_rank": (jvi.guides.FullRank(SPACE), gaussian.Dense(LOC, LOG_SCALE, LOWER)),
    "low_rank": (jvi.guides.LowRank(SPACE, rank=1), low_rank.Factored(LOC, LOG_SCALE, FACTOR)),
}


def log_joint(params, x, z):
    """z ~ N(0, I), x ~ N(A z, s^2 I) with s = exp(params) learned."""
    return norm.logpdf(z).sum() + norm.logpdf(x, jnp.asarray(DESIGN) @ z, jnp.exp(params)).sum()


def covariance(params):
    if isinstance(params, gaussian.Diagonal):
        return jnp.diag(jnp.exp(2 * params.log_scale))
    if isinstance(params, gaussian.Dense):
        root = jnp.exp(params.log_scale)[:, None] * (jnp.eye(3) + jnp.tril(params.lower, -1) / math.sqrt(3.0))
        return root @ root.T
    return jnp.diag(jnp.exp(2 * params.log_scale)) + params.factor @ params.factor.T


def exact_elbo(params, x):
    """The ELBO of N(loc, cov) for the linear-Gaussian model, in closed form."""
    loc, cov, log_noise = params.guide.loc, covariance(params.guide), params.model
    design = jnp.asarray(DESIGN)
    residual = x - design @ loc
    prior = -0.5 * (loc @ loc + jnp.trace(cov)) - 1.5 * math.log(2 * math.pi)
    square = residual @ residual + jnp.trace(design @ cov @ design.T)
    likelihood = -0.5 * square * jnp.exp(-2 * log_noise) - 4 * (log_noise + 0.5 * math.log(2 * math.pi))
    entropy = 0.5 * jnp.linalg.slogdet(cov)[1] + 1.5 * (1 + math.log(2 * math.pi))
    return prior + likelihood + entropy


@pytest.mark.quick
@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("gradient", [pathwise, stl])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_elbo_and_its_gradients_are_unbiased(name, gradient, num_samples):
    guide, guide_params = GUIDES[name]
    objective = jvi.elbo(jvi.learned(lambda rng, x: 0.0, log_joint), guide, num_samples=num_samples, gradient=gradient)
    params = jvi.objectives.Params(jnp.asarray(-0.3), guide_params)

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, jnp.asarray(X))
        return jnp.concatenate([value[None], flat(grads)])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 20_000))
    value, grads = jax.value_and_grad(exact_elbo)(params, jnp.asarray(X))
    assert_z_test(samples, jnp.concatenate([value[None], flat(grads)]))


@pytest.mark.parametrize("gradient", [pathwise, stl])
def test_per_example_averages_over_data_with_draws_of_their_own(gradient):
    """x_i ~ N(z_i, 1): the value and gradients are the means of the closed forms over the batch."""
    model = jvi.learned(lambda rng, x: 0.0, lambda params, x, z: norm.logpdf(z, params, 1.0) + norm.logpdf(x, z))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()))
    objective = jvi.per_example(jvi.elbo(model, guide, num_samples=2, gradient=gradient))
    params = jvi.objectives.Params(jnp.asarray(0.2), gaussian.Diagonal(jnp.array([0.5]), jnp.array([-0.4])))
    batch = jnp.array([0.3, -1.0, 2.5])

    def exact(params, x):
        loc, var = params.guide.loc[0], jnp.exp(2 * params.guide.log_scale[0])
        fit = -0.5 * ((loc - params.model) ** 2 + (x - loc) ** 2 + 2 * var) - math.log(2 * math.pi)
        return fit + 0.5 * (jnp.log(var) + 1 + math.log(2 * math.pi))

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, batch)
        return jnp.concatenate([value[None], flat(grads)])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 20_000))
    value, grads = jax.value_and_grad(lambda params: jnp.mean(jax.vmap(lambda x: exact(params, x))(batch)))(params)
    assert_z_test(samples, jnp.concatenate([value[None], flat(grads)]))


@pytest.mark.quick
def test_stl_has_no_variance_at_the_exact_posterior_and_pathwise_has():
    cov = np.linalg.inv(np.eye(3) + DESIGN.T @ DESIGN)
    root = np.linalg.cholesky(cov)
    params = jvi.objectives.Params((), jax.tree.map(jnp.asarray, dense(cov @ DESIGN.T @ X, root)))
    model = jvi.model(lambda x, z: log_joint(0.0, x, z))
    spread = {}
    for gradient in (pathwise, stl):
        objective = jvi.elbo(model, jvi.guides.FullRank(SPACE), gradient=gradient)
        grads = jax.vmap(lambda key, o=objective: flat(jax.grad(o, has_aux=True)(params, key, jnp.asarray(X))[0].guide[:2]))
        spread[gradient] = float(grads(jax.random.split(jax.random.key(0), 100)).std(0).max())
    assert spread[stl] < 1e-5 < 0.1 < spread[pathwise]


def test_annealing_weighs_the_kl():
    prior, likelihood = (lambda z: norm.logpdf(z)), (lambda x, z: norm.logpdf(x, z))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()))
    objective = jvi.elbo(jvi.split(prior, likelihood), guide)
    params = objective.init(jax.random.key(0), 1.0)
    key = jax.random.key(1)
    terms = {name: value[0] for name, value in objective.terms(params, key, 1.0).items()}
    for beta in (0.0, 0.3, jnp.asarray(1.0)):
        expected = terms["log likelihood"] + beta * (terms["log prior"] - terms["log q"])
        np.testing.assert_allclose(objective(params, key, 1.0, beta=beta)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(objective(params, key, 1.0)[0], objective(params, key, 1.0, beta=jnp.asarray(1.0))[0], rtol=1e-6)
