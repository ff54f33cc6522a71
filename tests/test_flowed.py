"""A frame bent by a flow: a bijection with the Jacobian that it says, closer to the target than what it began as."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import jvi
from jvi._flowed import flowed
from jvi._frames import Affine
from jvi._targets import Density, target_of


def banana(z):
    return norm.logpdf(z[0], 0.0, 2.0) + norm.logpdf(z[1], 0.25 * z[0] ** 2, 0.5) + norm.logpdf(z[2])


@pytest.fixture(scope="module")
def fitted():
    density = Density(target_of(banana, jvi.space(jvi.real(3)), with_data=False), None)
    base = Affine(np.array([0.0, 1.0, 0.0]), np.diag([0.9, 0.5, 1.0]))
    return density, base, flowed(density, base, np.random.default_rng(0), num_steps=300)


def log_weights(density, frame, v):
    return density.values(frame.out(v)) + frame.log_det(v) + 0.5 * np.sum(v**2, 1) + 1.5 * np.log(2 * np.pi)


def test_it_is_a_bijection_and_says_its_jacobian(fitted):
    _, _, frame = fitted
    v = np.random.default_rng(1).normal(size=(7, 3))
    np.testing.assert_allclose(frame.into(frame.out(v)), v, atol=1e-9)
    step = 1e-6
    sides = [frame.out(v + sign * step * np.eye(3)[j]) for j in range(3) for sign in (1.0, -1.0)]
    jacobian = np.stack([(sides[2 * j] - sides[2 * j + 1]) / (2 * step) for j in range(3)], 2)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], frame.log_det(v), atol=1e-6)


def test_it_pulls_gradients_back(fitted):
    density, _, frame = fitted
    v = np.random.default_rng(2).normal(size=(5, 3))
    found = frame.pull(v, density.grads(frame.out(v))[1])

    def value(v):
        return density.values(frame.out(v)) + frame.log_det(v)

    for j in range(3):
        along = 1e-5 * np.eye(3)[j]
        np.testing.assert_allclose(found[:, j], (value(v + along) - value(v - along)) / 2e-5, atol=1e-5)


def test_it_comes_closer_to_the_target_than_its_base_and_counts_its_gradients(fitted):
    density, base, frame = fitted
    v = np.random.default_rng(3).normal(size=(2_000, 3))
    before, after = (log_weights(density, one, v) for one in (base, frame))
    assert after.mean() > before.mean() + 4.0 * (before.std() + after.std()) / np.sqrt(2_000)
    assert density.num_grads >= 300 * 64


def test_the_budget_ends_a_flow():
    density = Density(target_of(banana, jvi.space(jvi.real(3)), with_data=False), None)
    density.most_grads = -1
    with pytest.raises(RuntimeError):
        flowed(density, Affine(np.zeros(3), np.eye(3)), np.random.default_rng(0))
    assert jax.config.jax_enable_x64 is False
    assert jnp.zeros(1).dtype == jnp.float32
