"""Linen and NNX, as encoder and as decoder: the same amortized model, trained through `fit_batches`."""

from __future__ import annotations

import distrax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.scipy.stats import norm

import jvi

pytestmark = pytest.mark.quick

# x ~ N(a z + b, 1) and z ~ N(0, 1) make x ~ N(b, 1 + a^2); the exact posterior is N((x - b) a / (1 + a^2), 1 / (1 + a^2)), which
# a linear encoder holds: the fitted bound is the log-likelihood at its maximum.
DATA = (2.0 * np.random.default_rng(0).normal(size=(2_000, 1)) + 1.0).astype(np.float32)
KINDS = {
    "linen": (flax.linen.Dense(2), flax.linen.Dense(1)),
    "nnx": (jvi.networks.network(nnx.Linear, 1, 2), jvi.networks.network(nnx.Linear, 1, 1)),
}


def gaussian(output):
    # With exp in place of softplus some random starts have an sd of 1e3 and a bound of -1e7, and 2,000 steps are not enough.
    return distrax.MultivariateNormalDiag(output[:1], jax.nn.softplus(output[1:]))


@pytest.mark.parametrize("encoder", KINDS)
@pytest.mark.parametrize("decoder", KINDS)
def test_an_amortized_model_reaches_the_maximum_likelihood(encoder, decoder):
    net = jvi.networks.network(KINDS[decoder][1])

    def log_joint(params, x, z):
        return norm.logpdf(z).sum() + norm.logpdf(x, net.apply(params, z)).sum()

    model = jvi.learned(lambda rng, x: net.init(rng, jnp.zeros(1)), log_joint)
    guide = jvi.guides.conditional(KINDS[encoder][0], gaussian)
    svi = jvi.SVI(jvi.per_example(jvi.elbo(model, guide)), jvi.optimizer(jvi.svi.cosine_adam, 0.02, num_steps=2_000))
    state, info = jvi.fit_batches(svi, jax.random.key(0), DATA, num_steps=2_000, batch_size=100)
    assert info.finite.all()
    value, aux = jax.jit(svi.objective)(state.params, jax.random.key(1), DATA)
    best = float(np.mean(norm.logpdf(DATA, DATA.mean(), DATA.std())))
    error = float(np.std(aux.log_w - norm.logpdf(DATA, DATA.mean(), DATA.std()))) / np.sqrt(len(DATA))
    # Minibatches' noise may cost what a sample's own does: p / (2 N) nats is what a fit to one data set loses on the next.
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert abs(float(value) - best) < 4 * error + num_params / (2 * len(DATA))


def test_parameters_are_plain_trees_that_optax_takes():
    net = jvi.networks.network(nnx.Linear, 1, 2)
    params = net.init(jax.random.key(0), jnp.ones(1))
    assert {name: leaf.shape for name, leaf in params.items()} == {"kernel": (1, 2), "bias": (2,)}
    optax.adam(1e-3).init(params)
    np.testing.assert_allclose(net.apply(params, jnp.ones(1)), params["kernel"][0] + params["bias"], rtol=1e-6)
