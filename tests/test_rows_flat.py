"""Products that are rewritten before the gradient is taken: the numbers stay, and no gradient sums over two axes."""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jvi
from jvi._vectors import rows_flat

K, BATCH = 4, 3


def two_layers(z, params):
    return jax.nn.relu(z @ params["first"]) @ params["second"].T


def in_a_scan(z, params):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ params["square"]), None), z, None, length=2)[0]


def attention(z, params):
    return jax.nn.softmax(jnp.einsum("i,j->ij", z, z)) @ (z @ params["square"])


@pytest.mark.parametrize("network", [two_layers, in_a_scan, jax.jit(two_layers), jax.checkpoint(two_layers), attention])
def test_values_and_gradients_stay(network):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"first": (2, 5), "second": (6, 5), "square": (2, 2)}
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=False)}
    z = jax.random.normal(keys[3], (BATCH, K, 2))

    def loss(params):
        out = jax.vmap(jax.vmap(lambda one: network(one, params)))(z)
        return jnp.sum(jnp.sin(out)), {"out": out}

    plain = jax.value_and_grad(loss, has_aux=True)(params)
    flat = jax.value_and_grad(rows_flat(loss), has_aux=True)(params)
    chex.assert_trees_all_close(flat, plain, rtol=1e-5, atol=1e-6)


def test_a_training_step_sums_over_one_axis():
    model = jvi.learned(
        lambda rng, x: jnp.ones((2, 5)), lambda params, x, z: -0.5 * jnp.sum((x - z @ params) ** 2) - 0.5 * jnp.sum(z**2)
    )
    guide = jvi.guides.MeanField(jvi.space(jvi.real(2)))
    guide = jvi.guides.amortize(guide, jvi.encoders.MLP(jvi.guides.num_params(guide), hidden=(3,)))
    objective = jvi.per_example(jvi.iwae(model, guide, num_samples=K))
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-3))
    x = jnp.ones((BATCH, 5))
    state = svi.init(jax.random.key(0), x)
    step = str(jax.make_jaxpr(svi.step)(state, x))
    plain = str(jax.make_jaxpr(jax.grad(lambda params: objective(params, state.rng, x)[0]))(state.params))
    of_two_axes = re.compile(r"dimension_numbers=\(\(\[\d, \d\]")
    assert of_two_axes.search(plain)
    assert not of_two_axes.search(step)
