"""Fits without learning rates against closed forms; frames, mixtures and bridges against theirs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_t

import jvi
from jvi._bridge import MIXED, bridge, grouped_ess
from jvi._frames import Affine, Bent
from jvi._mixtures import Mixture, adapted, tempered
from jvi._targets import BudgetSpentError, Density, target_of
from jvi.diagnostics import pareto_khat
from jvi.diagnostics.psis import khat_of, psis, smooth
from jvi.gaussian_fits._bends import bent, best_bent, following, unbent
from jvi.gaussian_fits._draws import whitened

pytestmark = pytest.mark.quick
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
ROOT = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-2.0, 0.3, 3.0]])
COVARIANCE = ROOT @ ROOT.T
PRECISION = np.linalg.inv(COVARIANCE)
MEAN = np.array([1.0, -2.0, 30.0])
SPACE = jvi.space(jvi.real(3))
LOG_Z = 1.5 * np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(COVARIANCE)[1]


def gaussian(z):
    apart = z - jnp.asarray(MEAN)
    return -0.5 * apart @ jnp.asarray(PRECISION) @ apart


FITS = {
    "moment_matched": jvi.gaussian_fits.moment_matched,
    "laplace": jvi.gaussian_fits.laplace,
    "pathfinder": jvi.gaussian_fits.pathfinder,
    "batch_and_match": jvi.gaussian_fits.batch_and_match,
    "natural_gradient": jvi.gaussian_fits.natural_gradient,
}


def moments(posterior):
    guide = posterior.params.guide
    below = np.tril(guide.lower, -1) / np.sqrt(len(guide.loc))
    root = np.exp(guide.log_scale)[:, None] * (np.eye(len(guide.loc)) + below)
    return guide.loc, root @ root.T


@pytest.mark.parametrize("name", FITS)
def test_fits_are_exact_on_a_correlated_gaussian(name):
    posterior = FITS[name](KEY, gaussian, SPACE)
    loc, covariance = moments(posterior)
    sd = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_allclose((loc - MEAN) / sd, 0.0, atol=1e-3)
    np.testing.assert_allclose(covariance / sd / sd[:, None], COVARIANCE / sd / sd[:, None], atol=2e-3)
    assert posterior.report.trusted
    np.testing.assert_allclose([posterior.report.elbo, posterior.report.log_evidence], LOG_Z, atol=1e-4)
    assert posterior.report.num_grads > 0


def test_the_mean_field_optimum_has_conditional_sds_and_linear_response_the_marginal_ones():
    fit = jvi.gaussian_fits.moment_matched(KEY, gaussian, SPACE, family=jvi.gaussian_fits.families.Diagonal())
    np.testing.assert_allclose(fit.params.guide.loc, MEAN, atol=1e-3)
    np.testing.assert_allclose(np.exp(-2.0 * fit.params.guide.log_scale), np.diag(PRECISION), rtol=1e-3)
    best = LOG_Z + 0.5 * (np.linalg.slogdet(PRECISION)[1] - np.sum(np.log(np.diag(PRECISION))))
    np.testing.assert_allclose(fit.report.elbo, best, atol=5 * fit.report.elbo_se + 1e-3)
    assert not fit.report.trusted  # correlation 0.85: its weights are poor
    np.testing.assert_allclose(jvi.gaussian_fits.linear_response(fit), COVARIANCE, rtol=1e-3)


def test_whitened_draws_have_exact_moments():
    draws = whitened(np.random.default_rng(1), 64, 5)
    np.testing.assert_allclose(draws.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(draws.T @ draws / 64, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(np.mean(draws**3, 0), 0.0, atol=1e-12)


def frames():
    base = Affine(MEAN, ROOT)
    params = 0.3 * np.random.default_rng(2).normal(size=4 * 3 + 4 * 3)
    return {"affine": base, "bent": Bent(base, np.array([2, 0, 1]), params)}


def test_frames_that_have_yet_to_bend_are_the_gaussian():
    density = Density(target_of(lambda z: -0.5 * jnp.sum((z - MEAN) @ PRECISION * (z - MEAN)), SPACE, with_data=False), None)
    base = Affine(MEAN, ROOT)
    v = np.random.default_rng(7).normal(size=(256, 3))
    for frame in unbent(density, base, v):
        u = frame.out(v)
        np.testing.assert_allclose(frame.into(u), v, atol=1e-10)
        log_q = [-0.5 * np.sum(white**2, 1) - one.log_det(white) for one, white in ((frame, v), (base, base.into(u)))]
        np.testing.assert_allclose(*log_q, atol=1e-10)


@pytest.mark.parametrize("name", frames())
def test_frames_are_bijections_with_the_right_determinants_and_gradients(name):
    frame = frames()[name]
    v = np.random.default_rng(3).normal(size=(5, 3))
    np.testing.assert_allclose(frame.into(frame.out(v)), v, atol=1e-10)

    def density(v):  # of a target whose log-density is sum(sin(u))
        return np.sum(np.sin(frame.out(v)), 1) + frame.log_det(v)

    found = frame.pull(v, np.cos(frame.out(v)))
    h = 1e-6
    for j in range(3):
        shift = h * np.eye(3)[j]
        np.testing.assert_allclose(found[:, j], (density(v + shift) - density(v - shift)) / (2 * h), rtol=1e-5, atol=1e-6)
    jacobian = np.stack([(frame.out(v + h * row) - frame.out(v - h * row)) / (2 * h) for row in np.eye(3)], -1)
    np.testing.assert_allclose(frame.log_det(v), np.linalg.slogdet(jacobian)[1], rtol=1e-6)


MIXTURE = Mixture(np.log([0.3, 0.7]), np.array([[0.0, 0.0], [4.0, 1.0]]), np.stack([np.eye(2), [[0.5, 0.0], [0.2, 1.0]]]), 6.0)


def test_mixtures_have_the_density_and_the_score_of_student_t():
    v = np.random.default_rng(4).normal(2.0, 3.0, size=(7, 2))
    parts = [
        np.exp(log_mix) * multivariate_t(loc, chol @ chol.T, df=6.0).pdf(v)
        for log_mix, loc, chol in zip(MIXTURE.log_mix, MIXTURE.loc, MIXTURE.chol, strict=True)
    ]
    np.testing.assert_allclose(MIXTURE.log_prob(v), np.log(sum(parts)), rtol=1e-10)
    value, score = MIXTURE.score(v)
    np.testing.assert_allclose(value, MIXTURE.log_prob(v))
    for j in range(2):
        shift = 1e-6 * np.eye(2)[j]
        np.testing.assert_allclose(score[:, j], (MIXTURE.log_prob(v + shift) - MIXTURE.log_prob(v - shift)) / 2e-6, rtol=1e-5)
    draws = MIXTURE.sample(np.random.default_rng(5), 40_000)
    np.testing.assert_allclose(draws.mean(0), [2.8, 0.7], atol=5 * 2.6 / 200)
    away = MIXTURE._replace(loc=MIXTURE.loc + 1.0)
    log_w = MIXTURE.log_prob(draws) - MIXTURE.log_prob(draws)
    assert adapted(away, draws, log_w).log_prob(draws).mean() > away.log_prob(draws).mean()


def test_tempering_keeps_enough_draws():
    log_w = 30.0 * np.random.default_rng(6).normal(size=1_000)
    assert np.exp(-np.log(np.sum(np.exp(2 * tempered(log_w, 1.0))))) < 20
    assert np.exp(-np.log(np.sum(np.exp(2 * tempered(log_w, 200.0))))) >= 200
    np.testing.assert_allclose(np.sum(np.exp(tempered(log_w, 200.0))), 1.0)


def test_a_bridge_finds_the_normalizing_constant_and_mixes():
    """From a proposal three sds off: the evidence within five of its standard errors, and so the moments."""

    def score(v):
        apart = v - np.array([3.0, -1.0])
        return -0.5 * np.sum(apart**2 / [1.0, 0.25], 1), -apart / [1.0, 0.25]

    start = Mixture(np.zeros(1), np.zeros((1, 2)), np.eye(2)[None], 12.0)
    found = bridge(score, start, np.random.default_rng(7))
    assert abs(found.log_evidence - np.log(2 * np.pi * 0.5)) < 5 * found.log_evidence_se
    assert found.mixing >= MIXED
    draws = found.v.reshape(-1, 2)
    error = 5.0 / np.sqrt(grouped_ess(found.v))
    assert (np.abs(draws.mean(0) - [3.0, -1.0]) / [1.0, 0.5] < error).all()
    assert (np.abs(draws.std(0) / [1.0, 0.5] - 1.0) < error).all()


def test_k_hat_and_smoothing_on_the_host_are_those_on_the_device(float64):
    log_w = np.random.default_rng(8).standard_t(3.0, size=2_000)
    np.testing.assert_allclose(khat_of(log_w), float(pareto_khat(jnp.asarray(log_w))), rtol=1e-9)
    np.testing.assert_allclose(smooth(log_w), psis(jnp.asarray(log_w))[0], atol=1e-9)


def test_a_density_counts_pads_and_keeps_its_budget():
    density = Density(target_of(gaussian, SPACE, with_data=False), None)
    for count in (1, 15, 16, 17, 513, 1_100):
        u = RNG.normal(size=(count, 3)) + MEAN
        values, grads = density.grads(u)
        np.testing.assert_allclose(values, -0.5 * np.einsum("si,ij,sj->s", u - MEAN, PRECISION, u - MEAN), rtol=1e-9)
        np.testing.assert_allclose(grads, -(u - MEAN) @ PRECISION, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(density.values(u), values, rtol=1e-12)
    assert density.num_grads == density.num_values == 1 + 15 + 16 + 17 + 513 + 1_100
    density.most_grads = 10
    with pytest.raises(BudgetSpentError):
        density.values(u)


def saturating(z):
    """A skewed a, log of a Gamma(1/2), that sets the scale of b, up to 1; normalized."""
    a, b = z
    precision = 1.0 + jnp.exp(-a)
    log_a = 0.5 * a - jnp.exp(a) - 0.5 * jnp.log(jnp.pi)
    return log_a - 0.5 * precision * b**2 + 0.5 * jnp.log(precision / (2.0 * jnp.pi))


def shared_scale(z):
    """z1 has the scale e^z0, and z2 follows what z1 is in units of it: normalized."""
    unit = z[1] * jnp.exp(-z[0])
    return jnp.sum(-0.5 * jnp.array([z[0], unit, (z[2] - unit) / 0.3]) ** 2) - z[0] - jnp.log(0.3) - 1.5 * jnp.log(2.0 * jnp.pi)


def centred_group(z):
    """Eight members around z1, as close as e^z0: normalized."""
    places = jnp.sum(-0.5 * ((z[2:] - z[1]) * jnp.exp(-z[0])) ** 2) - 8.0 * z[0]
    return places - 0.5 * z[0] ** 2 - 0.5 * z[1] ** 2 - 5.0 * jnp.log(2.0 * jnp.pi)


def of_normal(log_joint, size):
    """A density, a frame around it, and what tells how far a frame's image of a normal is from it: minus a divergence."""
    density = Density(target_of(log_joint, jvi.space(jvi.real(size)), with_data=False), None)
    loc, covariance = moments(jvi.gaussian_fits.moment_matched(KEY, log_joint, jvi.space(jvi.real(size))))
    v = np.random.default_rng(9).normal(size=(20_000, size))

    def elbo(frame):
        return np.mean(
            density.values(frame.out(v)) + frame.log_det(v) + 0.5 * np.sum(v**2, 1) + 0.5 * size * np.log(2.0 * np.pi)
        )

    return density, Affine(loc, np.linalg.cholesky(covariance)), elbo


@pytest.mark.long
def test_a_bent_frame_holds_a_group_whose_scale_is_unknown():
    density, base, elbo = of_normal(centred_group, 10)
    assert elbo(base) < -0.5
    assert elbo(best_bent(density, base, np.random.default_rng(8))[0]) > -0.1


def test_a_bent_frame_whose_base_mixes_nothing_holds_units_that_are_shared():
    density, base, elbo = of_normal(shared_scale, 3)
    draws = whitened(RNG, 2_048, 3)
    order = np.arange(3)
    carried = Bent(base, order, np.zeros(len(following(base, order).params)))
    assert elbo(bent(density, carried, draws, num_steps=150)[0]) < -0.2
    assert elbo(bent(density, following(base, order), draws, num_steps=150)[0]) > -0.03


@pytest.mark.long
def test_a_bent_frame_follows_skewed_scales_that_saturate():
    """The ELBO of a normalized target is minus the KL divergence: the bent frame leaves little of the affine one's."""
    density = Density(target_of(saturating, jvi.space(jvi.real(2)), with_data=False), None)
    fit = jvi.gaussian_fits.moment_matched(KEY, saturating, jvi.space(jvi.real(2)))
    loc, covariance = moments(fit)
    base, draws = Affine(loc, np.linalg.cholesky(covariance)), whitened(RNG, 4_096, 2)
    frame, sample_average = max(
        (bent(density, start, draws, num_steps=150) for start in unbent(density, base, draws)), key=lambda f: f[1]
    )
    v = RNG.normal(size=(20_000, 2))
    values = density.values(frame.out(v)) + frame.log_det(v) + 0.5 * np.sum(v**2, 1) + np.log(2.0 * np.pi)
    elbo, error = np.mean(values), np.std(values) / np.sqrt(len(v))
    assert elbo - 3.0 * error > 0.25 * fit.report.elbo
    assert elbo < 3.0 * error
    assert abs(elbo - sample_average) < 4.0 * np.std(values) / np.sqrt(4_096) + 0.01
