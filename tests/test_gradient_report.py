"""Gradient reports against closed forms."""

from __future__ import annotations

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy.stats import norm as scipy_norm

import jvi
from jvi import gradients
from jvi.diagnostics.gradient import gradient_report
from jvi.guides import gaussian

FAILURE_RATE = 1e-4
KEY = jax.random.key(3)
SPACE = jvi.space(jvi.real(2))
SHIFT, SCALE, NOISE = jnp.array([0.8, -0.3]), jnp.array([0.5, 1.5]), 0.7


def log_joint(mean, x, z):
    """z ~ N(mean, I), with the mean learned."""
    return norm.logpdf(z, mean).sum()


# The pathwise gradient is mean - z by the location, z - mean by the model's mean, where z ~ N(SHIFT, SCALE^2), and
# 1 - scale eps (z - mean) by the log scale.
OBJECTIVE = jvi.elbo(
    jvi.learned(lambda rng, x: jnp.zeros(2), log_joint), jvi.guides.MeanField(SPACE), gradient=gradients.pathwise
)
PARAMS = jvi.objectives.Params(jnp.zeros(2), gaussian.Diagonal(SHIFT, jnp.log(SCALE)))
VARIANCE = {
    "model": SCALE**2,
    "guide.loc": SCALE**2,
    "guide.log_scale": SCALE**2 * SHIFT**2 + 2 * SCALE**4,
}
MEAN = {"model": SHIFT, "guide.loc": -SHIFT, "guide.log_scale": 1 - SCALE**2}
SNR = {name: float(jnp.mean(jnp.abs(MEAN[name]) / jnp.sqrt(VARIANCE[name]))) for name in MEAN}


@pytest.mark.quick
def test_moments_are_those_of_the_closed_form():
    report = gradient_report(OBJECTIVE, PARAMS, KEY, num_samples=20_000)
    assert report.num_samples == 20_000
    assert [row.leaf for row in report.rows] == [*MEAN, "total"]
    rows = {row.leaf: row for row in report.rows}
    for name in MEAN:
        row = rows[name]
        np.testing.assert_allclose(row.norm, np.linalg.norm(MEAN[name]), rtol=0.05)
        np.testing.assert_allclose(row.variance, np.mean(VARIANCE[name]), rtol=0.1)
        np.testing.assert_allclose(row.total_variance, 2 * row.variance, rtol=1e-6)
        assert row.size == 2
        assert row.num_constant == 0
    total = rows["total"]
    np.testing.assert_allclose(total.norm, math.sqrt(sum(rows[name].norm ** 2 for name in MEAN)), rtol=1e-6)
    np.testing.assert_allclose(total.total_variance, sum(rows[name].total_variance for name in MEAN), rtol=1e-6)
    np.testing.assert_allclose(total.variance, total.total_variance / 6, rtol=1e-6)
    np.testing.assert_allclose(total.snr.value, np.mean([rows[name].snr.value for name in MEAN]), rtol=1e-6)


@pytest.mark.quick
def test_the_signal_to_noise_ratio_is_within_its_standard_error_as_often_as_it_should_be():
    """Of 200 reports, errors over standard errors have mean 0 and the sd of Student's t, by five of their own standard errors."""
    z = []
    for key in jax.random.split(KEY, 200):
        rows = gradient_report(OBJECTIVE, PARAMS, key, num_samples=1_000).rows
        truth = [*SNR.values(), np.mean(list(SNR.values()))]
        z.append([(row.snr.value - true) / row.snr.standard_error for row, true in zip(rows, truth, strict=True)])
    z, inflated = np.array(z), math.sqrt(19 / 17)
    assert (np.abs(z.mean(0)) < 5 * inflated / math.sqrt(len(z)) + 0.1).all(), z.mean(0)
    assert (np.abs(z.std(0) / inflated - 1) < 5 / math.sqrt(2 * len(z))).all(), z.std(0)


@pytest.mark.quick
def test_chunks_bound_memory_and_change_the_figures_by_noise_only():
    whole, parted = (gradient_report(OBJECTIVE, PARAMS, KEY, num_samples=4_000, chunk_size=size) for size in (None, 30))
    assert parted.num_samples == 20 * 7 * 29  # groups of 200 draws, in seven chunks of at most 30
    for a, b in zip(whole.rows, parted.rows, strict=True):
        error = math.hypot(a.snr.standard_error, b.snr.standard_error)
        assert abs(a.snr.value - b.snr.value) < scipy_norm.isf(FAILURE_RATE / 8) * error
        np.testing.assert_allclose(a.variance, b.variance, rtol=0.3)


@pytest.mark.quick
def test_two_estimators_of_minibatches_in_one_call():
    """Of batches of x_i ~ N(z_i, 1) with q exact: sticking the landing has no noise, and pathwise has."""
    model = jvi.split(lambda z: norm.logpdf(z), lambda x, z: norm.logpdf(x, z))
    guide = jvi.guides.from_distribution(lambda rng, x: jnp.array(0.5), lambda a, x: distrax.Normal(a * x, 0.5**0.5))
    x = jnp.array([0.5, -1.0, 2.0])
    both = {
        name: jvi.per_example(jvi.elbo(model, guide, gradient=gradient))
        for name, gradient in {"pathwise": gradients.pathwise, "stl": gradients.stl}.items()
    }
    params = jvi.objectives.Params((), jnp.array(0.5))
    report = jvi.gradient_report(both, params, KEY, x, num_samples=400)
    assert [(row.objective, row.leaf) for row in report.rows] == [("pathwise", "guide"), ("stl", "guide")]
    plain, landed = report.rows
    assert landed.variance < 1e-10 < 0.01 < plain.variance
    annealed = jvi.gradient_report(both["stl"], params, KEY, x, num_samples=400, beta=0.5).rows[0]
    assert annealed.variance > 0.01


@pytest.mark.quick
def test_exact_gradients_have_no_noise():
    guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda logits, x: distrax.Categorical(logits))
    model = jvi.model(lambda x, z: jnp.log(jnp.array([0.2, 0.3, 0.5]))[z])
    objective = jvi.objectives.enumerate_elbo(model, guide)
    (row,) = jvi.gradient_report(objective, objective.init(KEY, None), KEY, num_samples=40).rows
    assert math.isinf(row.snr.value)
    assert row.num_constant == 3
    assert row.variance < 1e-12


@pytest.mark.quick
def test_the_table_is_aligned():
    text = str(jvi.gradient_report({"a": OBJECTIVE, "longer": OBJECTIVE}, PARAMS, KEY, num_samples=40))
    head, *lines, foot = text.splitlines()
    assert head.split() == ["objective", "leaf", "size", "norm", "of", "mean", "variance", "summed", "SNR", "±", "se"]
    assert {len(line) for line in lines} == {len(head)}
    assert [line.split()[1] for line in lines] == [*MEAN, "total"] * 2
    assert foot.startswith("40 gradients")


@pytest.mark.quick
def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_samples must be 40 or more"):
        gradient_report(OBJECTIVE, PARAMS, KEY, num_samples=10)
    with pytest.raises(ValueError, match="chunk_size must be 1 or more"):
        gradient_report(OBJECTIVE, PARAMS, KEY, chunk_size=0)
    with pytest.raises(TypeError, match="objective must be made by"):
        gradient_report(3, PARAMS, KEY)
    with pytest.raises(ValueError, match="params must hold"):
        gradient_report(OBJECTIVE, jvi.objectives.Params((), ()), KEY)
    with pytest.raises(TypeError, match="rng must be a typed key"):
        gradient_report(OBJECTIVE, PARAMS, 0)
