"""Implicit reparameterization: pathwise and stl gradients of draws that no transform of a fixed noise gives, against quadrature."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi.gradients import pathwise, stl

tfd = tfp.distributions
UNIT = np.linspace(0.0, 1.0, 4_002)[1:-1]
LINE = np.tan(np.pi * (UNIT - 0.5))  # from minus to plus infinity
RAY = UNIT / (1.0 - UNIT)
CIRCLE = 2.0 * np.pi * UNIT - np.pi

# A family by (log of its) parameters, at what parameters, and points that cover its support.
FAMILIES = {
    "distrax gamma": (lambda p: distrax.Gamma(jnp.exp(p[0]), jnp.exp(p[1])), (0.7, 0.2), RAY),
    "distrax beta": (lambda p: distrax.Beta(jnp.exp(p[0]), jnp.exp(p[1])), (0.5, 1.0), UNIT),
    "tfp inverse gamma": (lambda p: tfd.InverseGamma(jnp.exp(p[0]), jnp.exp(p[1])), (1.5, 0.2), RAY),
    "tfp student": (lambda p: tfd.StudentT(jnp.exp(p[0]), p[1], 0.8), (1.5, 0.3), LINE),
    "tfp von mises": (lambda p: tfd.VonMises(p[0], jnp.exp(p[1])), (0.3, 0.8), CIRCLE),
}


def target(z):
    """A smooth, bounded log-joint, so that tails do not decide."""
    return jnp.sin(z) + 0.5 * jnp.cos(2.0 * z) - jnp.log1p(z**2)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # inside TFP
@pytest.mark.parametrize("name", FAMILIES)
def test_implicit_gradients_are_unbiased(name):
    family, at, points = FAMILIES[name]
    guide = jvi.guides.from_distribution(lambda rng, x: jnp.asarray(at), lambda params, x: family(params))
    model = jvi.model(lambda x, z: target(z))

    def exact(params):
        log_q = family(params).log_prob(jnp.asarray(points, float))
        return jnp.trapezoid(jnp.exp(log_q) * (target(jnp.asarray(points, float)) - log_q), jnp.asarray(points, float))

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value, grad = jax.value_and_grad(exact)(jnp.asarray(at, float))

    params = jvi.objectives.Params((), jnp.asarray(at))
    objectives = [jvi.elbo(model, guide, gradient=gradient) for gradient in (pathwise, stl)]

    def one(key):
        found = [jax.value_and_grad(objective, has_aux=True)(params, key, None) for objective in objectives]
        return jnp.concatenate([jnp.concatenate([bound[None], grads.guide]) for (bound, _), grads in found])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 5_000))
    assert_z_test(samples, np.tile(np.concatenate([value[None], grad]), 2))


def test_dirichlet_gradients_are_unbiased():
    """E[sum_i c_i log z_i] and the entropy of a Dirichlet are known in closed form."""
    weights = jnp.array([1.0, -0.5, 2.0])
    at = jnp.array([0.4, 0.1, 1.1])

    def exact(params):
        digamma = jax.scipy.special.digamma
        a = jnp.exp(params)
        mean_log = digamma(a) - digamma(a.sum())
        log_beta = jax.scipy.special.gammaln(a).sum() - jax.scipy.special.gammaln(a.sum())
        return jnp.sum(weights * mean_log) - (jnp.sum((a - 1.0) * mean_log) - log_beta)

    model = jvi.model(lambda x, z: jnp.sum(weights * jnp.log(z)))
    value, grad = jax.value_and_grad(exact)(at)
    guide = jvi.guides.from_distribution(lambda rng, x: at, lambda params, x: distrax.Dirichlet(jnp.exp(params)))
    objective = jvi.elbo(model, guide)

    def one(key):
        (bound, _), grads = jax.value_and_grad(objective, has_aux=True)(jvi.objectives.Params((), at), key, None)
        return jnp.concatenate([bound[None], grads.guide])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(6), 5_000))
    assert_z_test(samples, jnp.concatenate([value[None], grad]))
