"""Stein variational gradient descent: kernels, the direction, answers that are known, and a verdict that is honest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

import jvi
from jvi.svgd import direction

KEY = jax.random.key(3)
LOC, COV = np.array([1.0, -2.0]), np.array([[1.0, 0.9], [0.9, 2.0]])
KERNELS = [jvi.kernels.RBF(1.7), jvi.kernels.InverseMultiquadric(1.7)]


def _correlated(z):
    return multivariate_normal.logpdf(z, jnp.asarray(LOC), jnp.asarray(COV))


def _two_modes(z):
    return jnp.logaddexp(norm.logpdf(z[0], -3.0), norm.logpdf(z[0], 3.0)) - jnp.log(2.0) + norm.logpdf(z[1])


def _unequal_modes(z):
    modes = jnp.logaddexp(norm.logpdf(z[0], -3.0) + jnp.log(0.9), norm.logpdf(z[0], 3.0) + jnp.log(0.1))
    return modes + norm.logpdf(z[1])


def _standard(z):
    return norm.logpdf(z).sum()


def _shifted(x, z):
    return norm.logpdf(jnp.log(z["rate"]), x, 0.5) - jnp.log(z["rate"])


@pytest.mark.quick
@pytest.mark.parametrize("kernel", KERNELS, ids=["rbf", "imq"])
def test_direction_is_that_of_its_definition_by_autodiff(kernel, float64):
    u, slopes = np.random.default_rng(0).normal(size=(2, 5, 3)) + 4.0

    def pair(a, b):
        return kernel(jnp.sum((a - b) ** 2).reshape(1, 1))[0][0, 0]

    def phi(b):
        terms = jax.vmap(lambda a, slope: pair(a, b) * slope + jax.grad(pair)(a, b))
        return jnp.mean(terms(jnp.asarray(u), jnp.asarray(slopes)), 0)

    np.testing.assert_allclose(
        direction(kernel, jnp.asarray(u), jnp.asarray(slopes)), jax.vmap(phi)(jnp.asarray(u)), atol=1e-12
    )


@pytest.mark.quick
def test_bandwidth_is_by_default_the_median_over_the_log_of_the_number():
    squared = jnp.array([[0.0, 4.0, 8.0], [4.0, 0.0, 6.0], [8.0, 6.0, 0.0]])
    h = float(np.median(squared) / np.log(4.0))
    for kernel in (jvi.kernels.RBF, jvi.kernels.InverseMultiquadric):
        for own, given in zip(kernel()(squared), kernel(h)(squared), strict=True):
            np.testing.assert_allclose(own, given, rtol=1e-6)


@pytest.mark.quick
def test_particles_that_coincide_stay_finite():
    out = direction(jvi.kernels.RBF(), jnp.ones((4, 2)), jnp.ones((4, 2)))
    assert bool(jnp.isfinite(out).all())


@pytest.mark.long
def test_a_correlated_gaussian_is_recovered_as_far_as_the_docstring_says():
    fit = jvi.svgd(KEY, _correlated, jvi.space(jvi.real(2)), num_particles=100, num_steps=700)
    z = fit.particles.z
    np.testing.assert_allclose(z.mean(0), LOC, atol=0.01)
    np.testing.assert_allclose(z.std(0), np.sqrt(np.diag(COV)), rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(z.T)[0, 1], 0.9 / 2**0.5, atol=0.02)
    assert fit.report.trusted
    assert abs(fit.report.log_evidence) < 5.0 * fit.report.log_evidence_se + 1e-3
    assert np.isclose(fit.log_prob(jnp.asarray(LOC)), _correlated(jnp.asarray(LOC)), atol=0.02)
    assert fit.sample(KEY, 30).shape == (30, 2)


@pytest.mark.long
def test_two_modes_share_the_particles():
    fit = jvi.svgd(KEY, _two_modes, jvi.space(jvi.real(2)), num_steps=700, init_scale=3.0)
    z = fit.particles.z
    assert 0.4 <= (z[:, 0] > 0.0).mean() <= 0.6  # how they started, and nothing moves them across
    for side in (z[z[:, 0] > 0.0], z[z[:, 0] < 0.0]):
        np.testing.assert_allclose(np.abs(side[:, 0].mean()), 3.0, atol=0.1)
        np.testing.assert_allclose(side.std(0), 1.0, atol=0.15)
    assert fit.report.trusted


def test_wrong_shares_of_modes_are_not_trusted():
    fit = jvi.svgd(KEY, _unequal_modes, jvi.space(jvi.real(2)), num_steps=300, init_scale=3.0)
    assert (fit.particles.z[:, 0] > 0.0).mean() > 0.3
    assert not fit.report.trusted
    assert "importance-weighted draws" in fit.report.reasons[0]


def test_collapsed_variances_are_not_trusted():
    fit = jvi.svgd(KEY, _standard, jvi.space(jvi.real(30)), num_particles=50, num_steps=300)
    assert fit.particles.z.std(0).mean() < 0.6
    assert not fit.report.trusted
    assert fit.report.advice


def test_particles_that_have_not_arrived_are_not_trusted():
    slow = jvi.optimizer(jvi.svi.cosine_adam, 0.1, 700)
    few = jvi.svgd(KEY, _correlated, jvi.space(jvi.real(2)), num_steps=5, optimizer=slow)
    assert not few.report.trusted


def test_latents_are_constrained_and_data_seen():
    kernel = jvi.kernels.InverseMultiquadric()
    fit = jvi.svgd(KEY, _shifted, jvi.space({"rate": jvi.positive()}), 1.5, num_particles=40, kernel=kernel, num_steps=400)
    log_rate = np.log(fit.particles.z["rate"])
    np.testing.assert_allclose(log_rate.mean(), 1.5, atol=0.02)
    np.testing.assert_allclose(log_rate.std(), 0.5, rtol=0.1)


@pytest.mark.quick
def test_what_is_no_kernel_or_count_is_refused():
    space = jvi.space(jvi.real(2))
    with pytest.raises(TypeError, match="kernel must be one of"):
        jvi.svgd(KEY, _standard, space, kernel="rbf")
    with pytest.raises(ValueError, match="num_particles must be 2 or more"):
        jvi.svgd(KEY, _standard, space, num_particles=1)
    with pytest.raises(ValueError, match="init_scale must be positive"):
        jvi.svgd(KEY, _standard, space, init_scale=0.0)
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        jvi.kernels.RBF(-1.0)
    with pytest.raises(TypeError, match="wrap the support"):
        jvi.svgd(KEY, _standard, jvi.real(2))
    assert jvi.kernels.RBF() == jvi.kernels.RBF()
    assert jvi.kernels.RBF(1.0) != jvi.kernels.InverseMultiquadric(1.0)
