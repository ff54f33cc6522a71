"""Particles in chunks: the same numbers, in less memory."""

from __future__ import annotations

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import jvi
from jvi import gradients

KEY = jax.random.key(0)
X = jnp.array([[0.3, -1.0], [1.2, 0.4], [-0.7, 2.0]])


def log_joint(log_scale, x, z):
    return norm.logpdf(z).sum() + norm.logpdf(x, jnp.tanh(z), jnp.exp(log_scale)).sum()


def gaussian(output):
    loc, log_scale = jnp.split(output, 2)
    return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))


MODEL = jvi.learned(lambda rng, x: jnp.asarray(-0.2), log_joint)
GUIDE = jvi.guides.conditional(nn.Dense(4), gaussian)
BUILDERS = {
    "elbo": lambda **options: jvi.elbo(MODEL, GUIDE, **options),
    "iwae": lambda **options: jvi.iwae(MODEL, GUIDE, **options),
    "renyi": lambda **options: jvi.renyi(MODEL, GUIDE, alpha=0.5, **options),
    "score": lambda **options: jvi.objectives.score(MODEL, GUIDE, **options),
    "averaged score": lambda **options: jvi.elbo(
        MODEL, GUIDE, gradient=gradients.score, control=jvi.controls.moving_average(), **options
    ),
    "vimco": lambda **options: jvi.objectives.vimco(MODEL, GUIDE, **options),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", BUILDERS)
def test_chunks_change_no_number(name):
    """Value, gradient, log-weights and updates, with a chunk that divides K and one that does not."""
    objectives = [jvi.per_example(BUILDERS[name](num_samples=6, chunk_size=size)) for size in (None, 3, 4)]
    params = objectives[0].init(KEY, X)

    @jax.jit
    def all_of(params, key):
        return [jax.value_and_grad(objective, has_aux=True)(params, key, X) for objective in objectives]

    (whole, *parted) = (jax.tree.leaves(found) for found in all_of(params, jax.random.key(1)))
    for found in parted:
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_memory_is_that_of_a_chunk():
    """What XLA sets aside for value and gradient of 2,000 particles of three data, under per_example: nothing is run."""
    network = jvi.networks.network(nn.Dense(300))
    model = jvi.learned(
        lambda rng, x: network.init(rng, jnp.zeros(2)), lambda params, x, z: -jnp.sum(jnp.tanh(network.apply(params, z)) ** 2)
    )
    needed = {}
    for size in (None, 20):
        objective = jvi.per_example(jvi.iwae(model, GUIDE, num_samples=2_000, chunk_size=size))
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        needed[size] = step.lower(objective.init(KEY, X), KEY, X).compile().memory_analysis().temp_size_in_bytes
    assert needed[None] > 3 * 2_000 * 300 * 4
    assert needed[20] < needed[None] / 10
