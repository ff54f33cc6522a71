"""Pareto k-hat: ArviZ's numbers, known tails, on the device."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvi.diagnostics import khat_threshold, pareto_khat, psis

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ announces its next major version when imported
    import arviz

pytestmark = pytest.mark.quick


def reference(log_w):
    """ArviZ's smoothed, normalized log-weights and k-hat."""
    if hasattr(arviz, "psislw"):
        smoothed, khat = arviz.psislw(log_w.copy())
        return np.asarray(smoothed), float(khat)
    from arviz_stats.base import array_stats

    smoothed, khat = array_stats.psislw(-log_w)  # ArviZ 1 takes log-likelihoods, whose negatives are the log-weights
    return np.asarray(smoothed), float(khat)


def draws(name, size):
    rng = np.random.default_rng(3)
    return {
        "normal": lambda: rng.normal(size=size),
        "wide_normal": lambda: 4.0 * rng.normal(size=size) - 1_000.0,
        "exponential": lambda: 0.9 * rng.exponential(size=size),
        "light": lambda: np.log(rng.uniform(size=size)),
        "ties": lambda: np.round(rng.normal(size=size), 1),
        "student": lambda: rng.standard_t(3, size=size),
    }[name]()


# ArviZ 1 rounds the tail's length down, not up as its psislw before it, and knows no ties: on these sizes both agree.
NAMES = ["normal", "wide_normal", "exponential", "light", "student"] + ["ties"] * hasattr(arviz, "psislw")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [100, 900, 4_900])
def test_khat_and_weights_equal_arviz(name, size, float64):
    log_w = draws(name, size)
    smoothed, khat = jax.jit(psis)(jnp.asarray(log_w))
    expected_smoothed, expected_khat = reference(log_w)
    np.testing.assert_allclose(khat, expected_khat, atol=1e-6)
    np.testing.assert_allclose(pareto_khat(jnp.asarray(log_w)), expected_khat, atol=1e-6)
    np.testing.assert_allclose(np.sort(smoothed), np.sort(expected_smoothed), atol=1e-6)
    if name != "ties":
        np.testing.assert_allclose(smoothed, expected_smoothed, atol=1e-6)


def test_float32_is_close_to_float64():
    log_w = draws("normal", 5_000)
    with jax.enable_x64(True):
        exact = float(pareto_khat(jnp.asarray(log_w)))
    np.testing.assert_allclose(float(pareto_khat(jnp.asarray(log_w, jnp.float32))), exact, atol=1e-3)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_khat_recovers_a_pareto_tail(k):
    """Weights u**-k have tail shape k; the mean over 40 samples lies within five standard errors, the prior's pull to 0.5 and the
    bias of maximum likelihood from n tail values, (1 + k) (3 + k) / (n (1 + 3 k)) (Giles et al. 2016)."""
    u = jax.random.uniform(jax.random.key(1), (40, 5_000), minval=1e-7)
    khat = np.asarray(jax.vmap(pareto_khat)(-k * jnp.log(u)))
    n = 3 * np.sqrt(5_000)
    pull, bias = 10 * abs(k - 0.5) / (10 + n), (1 + k) * (3 + k) / (n * (1 + 3 * k))
    assert abs(khat.mean() - k) < 5 * khat.std(ddof=1) / np.sqrt(40) + pull + bias


def test_degenerate_weights_have_no_tail_to_fit():
    assert pareto_khat(jnp.zeros(1_000)) == jnp.inf
    smoothed, khat = psis(jnp.zeros(1_000))
    assert khat == jnp.inf
    np.testing.assert_allclose(smoothed, -np.log(1_000), rtol=1e-6)


def test_threshold_depends_on_the_sample_size():
    assert khat_threshold(100) == 0.5
    np.testing.assert_allclose(khat_threshold(1_000), 2 / 3)
    assert khat_threshold(10**6) == 0.7
