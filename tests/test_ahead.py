"""Drawing ahead changes no number, and draws what it should."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvi._ahead import draw_ahead

KEY = jax.random.key(0)


def normals(key, scale):
    return scale * jax.random.normal(key, (3,)), jnp.sum(jax.random.normal(key, (3,)) ** 2)


def parameters_inside(key, scale):
    first, second = jax.random.split(key)
    return jax.random.gamma(first, 1.0 + scale), jax.random.bernoulli(second, 0.5)


def particles(key, scale):
    draws = jax.vmap(lambda key: scale * jax.random.uniform(key))(jax.random.split(key, 5))
    return draws, jax.grad(lambda scale: jnp.sum((scale * jax.random.normal(key)) ** 2))(scale)


def nothing_drawn(key, scale):
    return scale, jnp.zeros(2)


@pytest.mark.quick
@pytest.mark.parametrize("function", [normals, parameters_inside, particles, nothing_drawn])
def test_drawing_many_steps_ahead_changes_no_number(function):
    draw, rest = draw_ahead(function, KEY, 2.0)
    keys = jax.random.split(KEY, 7)

    @jax.jit
    def ahead(keys):
        draws = jax.vmap(draw)(keys)
        return jax.lax.map(lambda i: rest([leaf[i] for leaf in draws], 2.0), jnp.arange(7))

    expected = [function(key, 2.0) for key in keys]
    for found, *wanted in zip(jax.tree.leaves(ahead(keys)), *map(jax.tree.leaves, expected), strict=True):
        np.testing.assert_allclose(found, np.stack(wanted), rtol=1e-6)


@pytest.mark.quick
def test_draws_are_kept_and_not_what_is_made_of_them():
    draw, _ = draw_ahead(lambda key, x: jnp.sum(x * jax.random.normal(key, (3, 1))), KEY, jnp.ones((3, 100)))
    assert [leaf.shape for leaf in jax.eval_shape(draw, KEY)] == [(3, 1)]
