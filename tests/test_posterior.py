from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from jax.scipy.stats import norm

import jvi
from jvi.diagnostics import elbo_estimate, verdict

pytestmark = pytest.mark.quick
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def posterior():
    """x ~ N(z, 1), z ~ N(0, 1), x = 2; the guide N(0.8, 0.9^2) is close to the posterior N(1, 0.5), not equal."""
    model = jvi.model(lambda x, z: norm.logpdf(z["m"]) + norm.logpdf(x, z["m"]))
    guide = jvi.guides.MeanField(jvi.space({"m": jvi.real()}))
    params = guide.init(KEY, None)._replace(loc=jnp.array([0.8]), log_scale=jnp.log(jnp.array([0.9])))
    return jvi.Posterior(model, guide, jvi.objectives.Params((), params), jnp.asarray(2.0))


def test_draws_have_the_guides_moments(posterior):
    draws = posterior.sample(KEY, 20_000)["m"]
    assert draws.shape == (20_000,)
    assert abs(draws.mean() - 0.8) < 4 * 0.9 / np.sqrt(20_000)
    assert abs(draws.std() - 0.9) < 4 * 0.9 / np.sqrt(40_000)


def test_chunks_do_not_change_the_draws(posterior):
    whole = posterior.sample(KEY, 100)["m"]
    np.testing.assert_array_equal(whole, posterior.sample(KEY, 100, chunk_size=7)["m"])


def test_log_prob_is_the_guides(posterior):
    np.testing.assert_allclose(posterior.log_prob({"m": jnp.array(0.1)}), norm.logpdf(0.1, 0.8, 0.9), rtol=1e-6)


def test_log_evidence_and_elbo_match_the_closed_forms(posterior):
    exact = norm.logpdf(2.0, 0.0, np.sqrt(2.0))
    estimate = posterior.log_evidence(KEY, 50_000)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
    assert 0 < estimate.standard_error < 0.01
    kl = np.log(np.sqrt(0.5) / 0.9) + (0.9**2 + 0.2**2) / (2 * 0.5) - 0.5
    elbo = elbo_estimate(posterior, KEY, num_samples=50_000)
    assert abs(elbo.value - (exact - kl)) < 4 * elbo.standard_error


def test_standard_errors_are_calibrated(posterior):
    """Over 200 repetitions the errors in standard errors have variance one, within four of its own standard errors."""
    exact = norm.logpdf(2.0, 0.0, np.sqrt(2.0))
    scores = []
    for key in jax.random.split(KEY, 200):
        estimate = posterior.log_evidence(key, 2_000)
        scores.append((estimate.value - exact) / estimate.standard_error)
    assert abs(np.var(scores) - 1.0) < 4 * np.sqrt(2 / 200)


def test_predictive_has_the_mixtures_moments_in_bounded_chunks(posterior):
    draws = posterior.predictive(KEY, lambda rng, z: z["m"] + jax.random.normal(rng, (2,)), 10_000, chunk_size=999)
    assert draws.shape == (10_000, 2)
    assert abs(draws[:, 0].var() - (0.81 + 1.0)) < 4 * 1.81 * np.sqrt(2 / 10_000)
    correlation = np.corrcoef(draws.T)[0, 1]
    assert abs(correlation - 0.81 / 1.81) < 4 / np.sqrt(10_000)


def test_predictive_of_a_learned_model_sees_its_parameters():
    model = jvi.learned(lambda rng, x: jnp.asarray(3.0), lambda params, x, z: -(z**2))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()))
    params = jvi.objectives.Params(model.init(KEY, None), guide.init(KEY, None))
    draws = jvi.Posterior(model, guide, params, None).predictive(KEY, lambda params, rng, z: params + 0 * z, 4)
    np.testing.assert_array_equal(draws, jnp.full(4, 3.0))


def test_of_finds_model_and_guide_under_per_example():
    case = CASES["conditional_linen"]
    svi = jvi.SVI(jvi.per_example(jvi.elbo(jvi.model(case.log_joint), case.guide)))
    batch = jnp.ones((5, 1))
    posterior = jvi.Posterior.of(svi, svi.init(KEY, batch), batch[0])
    assert posterior.guide == case.guide
    assert posterior.sample(KEY, 3).shape == (3, 1)


def test_a_posterior_is_a_pytree(posterior):
    draw = jax.jit(lambda posterior, key: posterior.guide.sample_and_log_prob(posterior.params.guide, key, posterior.x))
    assert draw(posterior, KEY)[1].shape == ()
    moved = jax.tree.map(lambda leaf: leaf + 0, posterior)
    assert moved.guide == posterior.guide


def test_the_verdict_tells_a_good_fit_from_a_bad_one(posterior):
    good = verdict(posterior, KEY)
    assert good.reliable
    assert str(good).startswith("reliable")
    narrow = posterior.params._replace(guide=posterior.params.guide._replace(log_scale=jnp.log(jnp.array([0.15]))))
    bad = verdict(jvi.Posterior(posterior.model, posterior.guide, narrow, posterior.x), KEY)
    assert not bad.reliable
    assert str(bad).startswith("NOT RELIABLE")
    assert bad.ess < good.ess
