from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvi
from jvi import bounds

pytestmark = pytest.mark.quick
LOG_W = jnp.array([-3.0, 0.5, 1.2, -0.4, 2.0])


def test_bounds_are_their_formulas():
    w = np.exp(np.asarray(LOG_W, np.float64))
    np.testing.assert_allclose(bounds.elbo(LOG_W), np.mean(np.log(w)), rtol=1e-6)
    np.testing.assert_allclose(bounds.iwae(LOG_W), np.log(np.mean(w)), rtol=1e-6)
    for alpha in (-3.0, -1.0, 0.5, 2.0, 5.0):
        np.testing.assert_allclose(bounds.renyi(LOG_W, alpha), np.log(np.mean(w ** (1 - alpha))) / (1 - alpha), rtol=1e-6)
    np.testing.assert_allclose(bounds.ess(LOG_W), w.sum() ** 2 / (w**2).sum(), rtol=1e-6)


def test_renyi_limits_are_exact():
    assert bounds.renyi(LOG_W, 1.0) == bounds.elbo(LOG_W)
    assert bounds.renyi(LOG_W, 0.0) == bounds.iwae(LOG_W)
    assert bounds.renyi(LOG_W, math.inf) == LOG_W.min()
    assert bounds.renyi(LOG_W, -math.inf) == LOG_W.max()


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6, 1e-7])
def test_renyi_does_not_cancel_near_one(step):
    """Beside alpha = 1 the bound is the ELBO plus (1 - alpha) / 2 times the variance of the log-weights."""
    for alpha in (1.0 - step, 1.0 + step):
        expected = np.mean(LOG_W) + (1.0 - alpha) / 2 * np.var(LOG_W)
        np.testing.assert_allclose(bounds.renyi(LOG_W, alpha), expected, atol=3 * step**2 + 1e-6)


def test_renyi_decreases_in_alpha():
    values = [float(bounds.renyi(LOG_W, alpha)) for alpha in (-math.inf, -20.0, -1.0, 0.0, 0.5, 1.0, 2.0, 20.0, math.inf)]
    assert values == sorted(values, reverse=True)


def test_bounds_stand_extreme_weights():
    far = jnp.array([-1e4, 1e4, 0.0])
    np.testing.assert_allclose(bounds.iwae(far), 1e4 - math.log(3), rtol=1e-6)
    np.testing.assert_allclose(bounds.ess(far), 1.0, rtol=1e-6)
    some_zero = jnp.array([-jnp.inf, 0.0])
    np.testing.assert_allclose(bounds.iwae(some_zero), -math.log(2), rtol=1e-6)
    assert bounds.ess(some_zero) == 1.0
    assert bounds.ess(jnp.full(3, -jnp.inf)) == 0.0
    for alpha in (0.5, 3.0):
        assert bool(jnp.isfinite(bounds.renyi(far, alpha)))


def test_gradients_of_bounds_are_weight_averages():
    np.testing.assert_allclose(jax.grad(bounds.iwae)(LOG_W), jax.nn.softmax(LOG_W), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda w: bounds.renyi(w, 0.3))(LOG_W), jax.nn.softmax(0.7 * LOG_W), rtol=1e-5)


def test_one_sample_makes_every_bound_its_log_weight():
    one = jnp.array([-1.5])
    for bound in (bounds.elbo, bounds.iwae, lambda w: bounds.renyi(w, 0.5), lambda w: bounds.renyi(w, math.inf)):
        np.testing.assert_allclose(bound(one), -1.5, rtol=1e-6)
    assert bounds.ess(one) == 1.0


def test_iwae_is_nondecreasing_in_k_and_tends_to_the_evidence():
    """x ~ N(z, 1), z ~ N(0, 1), and a guide that is not the posterior: paired draws, in standard errors."""
    model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z) + jax.scipy.stats.norm.logpdf(x, z))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()), init_scale=1.0)
    x = 2.0
    counts = (1, 2, 5, 20, 100, 1000)
    objective = jvi.iwae(model, guide, num_samples=max(counts))
    params = objective.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1), 1_000)
    log_w = jax.jit(jax.vmap(lambda key: objective(params, key, x)[1].log_w))(keys)
    values = np.array([jax.vmap(bounds.iwae)(log_w[:, :k]) for k in counts])
    differences = np.diff(values, axis=0)
    z_scores = differences.mean(1) / (differences.std(1, ddof=1) / math.sqrt(len(keys)))
    assert (z_scores > -3.7).all()  # each fails with probability 1e-4 where two bounds are equal
    assert (z_scores[:3] > 5).all()  # and here they are clearly not
    log_evidence = float(jax.scipy.stats.norm.logpdf(x, 0.0, math.sqrt(2.0)))
    error = math.sqrt(values[-1].var(ddof=1) / len(keys))
    weight_variance = float(jnp.var(jnp.exp(log_w - log_evidence)))
    bias = weight_variance / (2 * counts[-1])  # of the logarithm of a mean
    assert abs(values[-1].mean() + bias - log_evidence) < 3.9 * error + bias / 2
