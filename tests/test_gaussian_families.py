"""Families of Gaussian fits against closed forms: gradients, exact answers, KL-optimal ones, many coordinates, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvi
from jvi._targets import Density, target_of
from jvi.gaussian_fits import families
from jvi.gaussian_fits._climb import Gaussian
from jvi.gaussian_fits._curvature import newton, probed
from jvi.gaussian_fits._draws import nearby, whitened, with_factors
from jvi.gaussian_fits._factored import Covariance, Factored, patched
from jvi.gaussian_fits._pattern import pattern
from jvi.gaussian_fits._saa import fitted
from jvi.gaussian_fits._sparse import Sparse
from jvi.gaussian_fits.matching import _proximal, matched_and_patched
from jvi.gaussian_fits.natural import natural_ascent

pytestmark = pytest.mark.quick
KEY = jax.random.key(0)
SIZE = 12
SPACE = jvi.space(jvi.real(SIZE))
NAMED = jvi.space({"a": jvi.real(5), "b": jvi.real(2, 3), "c": jvi.real()})
MEAN = np.random.default_rng(1).normal(size=SIZE)
GROUPS = ((0, 3, 4), (1, 11), (2,), (5, 6, 7), (10, 8, 9))
# L-BFGS stops where a step gains less than 1e-9 of the ELBO, here some ten nats: what is left is at most a hundred such steps.
CLOSE = 1e-6


def autoregressive(size, weight):
    """K of a chain: its precision is K' K, its variances 1, neighbours' correlation `weight`."""
    root = (np.eye(size) - weight * np.eye(size, k=-1)) / np.sqrt(1.0 - weight**2)
    root[0, 0] = 1.0
    return root


def covariances():
    rng = np.random.default_rng(2)
    dense = rng.normal(size=(SIZE, SIZE)) + 2.0 * np.eye(SIZE)
    dense = dense @ dense.T
    same = np.zeros((SIZE, SIZE))
    for group in GROUPS:
        same[np.ix_(group, group)] = 1.0
    factor = rng.normal(size=(SIZE, 2))
    pair = np.kron(autoregressive(SIZE // 2, 0.8), np.eye(2)) + 0.3 * np.kron(np.eye(SIZE // 2), [[0.0, 0.0], [1.0, 0.0]])
    chain = autoregressive(SIZE, 0.9)
    return {
        "full": (families.FullRank(), dense),
        "diagonal": (families.Diagonal(), np.diag(np.diag(dense))),
        "blocks": (families.Blocks(GROUPS), dense * same),
        "low rank": (families.LowRank(2), np.diag(rng.uniform(0.5, 2.0, SIZE)) + factor @ factor.T),
        "chain": (families.Markov(), np.linalg.inv(chain.T @ chain)),
        "chain of pairs": (families.Markov(2), np.linalg.inv(pair.T @ pair)),
    }


CASES = covariances()


def gaussian(mean, precision):
    def log_joint(z):
        apart = z - jnp.asarray(mean)
        return -0.5 * apart @ (jnp.asarray(precision) @ apart)

    return log_joint


def density_of(log_joint, size):
    return Density(target_of(log_joint, jvi.space(jvi.real(size)), with_data=False), None)


def curved(z):
    return -jnp.sum(jnp.cosh(0.5 * z)) - 0.1 * jnp.sum((z[1:] * z[:-1]) ** 2) + 0.3 * z[0]


def moments(posterior):
    """Mean and covariance of a guide's coordinates."""
    guide, kind = posterior.params.guide, type(posterior.guide)
    scale = np.exp(guide.log_scale)
    if kind is jvi.guides.MeanField:
        return guide.loc, np.diag(scale**2)
    if kind is jvi.guides.LowRank:
        return guide.loc, np.diag(scale**2) + guide.factor @ guide.factor.T
    root = scale[:, None] * (np.eye(len(scale)) + np.tril(guide.lower, -1) / np.sqrt(len(scale)))
    return guide.loc, root @ root.T


def divergence(loc, covariance, mean, precision):
    """KL(N(loc, covariance) || N(mean, precision^-1)), nats."""
    product, apart = covariance @ precision, loc - mean
    return 0.5 * (np.trace(product) - len(loc) - np.linalg.slogdet(product)[1] + apart @ precision @ apart)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_sample_average_elbo_are_those_of_finite_differences(name):
    family, covariance = CASES[name]
    density, rng = density_of(curved, SIZE), np.random.default_rng(3)
    start = family.near(SPACE, Gaussian(0.3 * MEAN, 0.3 * np.linalg.cholesky(covariance), 0.0))
    noise, params = start.draws(rng, 64), 0.1 * rng.normal(size=start.num_params)

    def elbo(params):
        there = start.moved(params)
        return density.values(there.out(noise)).mean() + there.entropy()

    slope = start.slope(params, noise, density.grads(start.moved(params).out(noise))[1])
    h = 1e-5
    differences = [(elbo(params + h * row) - elbo(params - h * row)) / (2 * h) for row in np.eye(len(params))]
    # Rounding of values below a hundred, over h, is 1e-9; the differences' own error, h^2, is 1e-10 times a third derivative.
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_members_have_the_densities_of_their_guides(name, float64):
    family, covariance = CASES[name]
    member = family.near(SPACE, Gaussian(MEAN, np.linalg.cholesky(covariance), 0.0))
    member = member.moved(0.1 * np.random.default_rng(4).normal(size=member.num_params))
    noise = np.random.default_rng(5).normal(size=(20, member.num_noise))
    guide, params = member.guide(SPACE)
    log_q = [float(guide.log_prob(params, None, u)) for u in jnp.asarray(member.out(noise))]
    np.testing.assert_allclose(member.log_prob(noise), log_q, rtol=1e-9)
    whole = member.draws(np.random.default_rng(6), 64)
    np.testing.assert_allclose(member.entropy(), -member.log_prob(whole).mean(), rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_moment_matching_is_exact_where_the_family_holds_the_posterior(name):
    family, covariance = CASES[name]
    precision = np.linalg.inv(covariance)
    fit = jvi.gaussian_fits.moment_matched(KEY, gaussian(MEAN, precision), SPACE, family=family)
    assert divergence(*moments(fit), MEAN, precision) < CLOSE
    assert fit.report.trusted
    log_z = 0.5 * (SIZE * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])
    np.testing.assert_allclose(fit.report.elbo, log_z, atol=CLOSE + 5 * fit.report.elbo_se)


@pytest.mark.long
def test_members_move_to_the_optimum_from_elsewhere():
    """From unit widths at the origin, so that the steps do the work and not the start."""
    for family, covariance in CASES.values():
        precision = np.linalg.inv(covariance)
        density = density_of(gaussian(MEAN, precision), SIZE)
        member = family.spread(density, np.zeros(SIZE), np.ones(SIZE))
        noise = member.draws(np.random.default_rng(7), 256)
        for _ in range(3):
            member, _ = fitted(density, member, noise)
        log_w = density.values(member.out(noise)) - member.log_prob(noise)
        log_z = 0.5 * (SIZE * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])
        assert abs(log_z - log_w.mean()) < CLOSE, family  # exact moments: the mean is the ELBO


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_the_best_blocks_invert_the_blocks_of_the_precision(groups):
    precision = np.linalg.inv(CASES["full"][1])
    family = families.Blocks(groups)
    space = SPACE if groups else NAMED

    def log_joint(z):
        u = z if groups else jnp.concatenate([z["a"], z["b"].reshape(-1), z["c"][None]])
        return gaussian(MEAN, precision)(u)

    fit = jvi.gaussian_fits.moment_matched(KEY, log_joint, space, family=family)
    best = np.zeros((SIZE, SIZE))
    for group in family.groups_of(space):
        best[np.ix_(group, group)] = np.linalg.inv(precision[np.ix_(group, group)])
    loc, covariance = moments(fit)
    excess = divergence(loc, covariance, MEAN, precision) - divergence(MEAN, best, MEAN, precision)
    assert -1e-9 < excess < CLOSE
    sd = np.sqrt(np.diag(best))
    # A relative error e in a covariance costs at least e^2 / 4 nats, along a direction that the target holds as tight.
    np.testing.assert_allclose(covariance / sd / sd[:, None], best / sd / sd[:, None], atol=2.0 * np.sqrt(CLOSE))


@pytest.mark.long
@pytest.mark.parametrize("block_size", [1, 3])
def test_the_best_chain_is_stationary(block_size):
    """The slope by the precision's free entries, S P S - S, is zero."""
    precision = np.linalg.inv(CASES["full"][1])
    fit = jvi.gaussian_fits.moment_matched(KEY, gaussian(MEAN, precision), SPACE, family=families.Markov(block_size))
    loc, covariance = moments(fit)
    block = np.arange(SIZE) // block_size
    near = np.abs(block[:, None] - block) < 2
    assert not np.abs(np.linalg.inv(covariance)[~near]).max() > 1e-5  # of a chain, to single precision
    sd = np.sqrt(np.diag(covariance))
    slope = (covariance @ precision @ covariance - covariance) / sd / sd[:, None]
    np.testing.assert_allclose(slope[near], 0.0, atol=2.0 * np.sqrt(CLOSE))
    np.testing.assert_allclose((loc - MEAN) / sd, 0.0, atol=2.0 * np.sqrt(CLOSE))


@pytest.mark.long
def test_a_chain_of_two_thousand_states_is_fitted():
    size, weight = 2_000, 0.9
    mean = np.random.default_rng(8).normal(size=size)

    def log_joint(z):
        apart = z - jnp.asarray(mean)
        return -0.5 * (apart[0] ** 2 + jnp.sum((apart[1:] - weight * apart[:-1]) ** 2) / (1.0 - weight**2))

    fit = jvi.gaussian_fits.moment_matched(KEY, log_joint, jvi.space(jvi.real(size)), family=families.Markov(), num_starts=1)
    log_z = 0.5 * (size * np.log(2 * np.pi) + (size - 1) * np.log(1.0 - weight**2))
    # On its draws the best chain is no worse than the posterior, which is exact there; fresh draws agree within 0.02.
    assert abs(log_z - fit.report.elbo) < 0.02 + 5 * fit.report.elbo_se
    assert fit.report.trusted
    assert fit.report.num_grads < 20_000


@pytest.mark.long
def test_a_thousand_coordinates_of_low_rank_are_fitted():
    size, rank = 1_000, 3
    rng = np.random.default_rng(9)
    mean, scale, factor = rng.normal(size=size), rng.uniform(0.5, 2.0, size), rng.normal(size=(size, rank))
    truth = Factored(mean, scale, factor)
    scaled = factor / scale[:, None] ** 2
    inner = np.linalg.inv(np.eye(rank) + factor.T @ scaled)

    def log_joint(z):
        apart = z - jnp.asarray(mean)
        along = jnp.asarray(scaled).T @ apart
        return -0.5 * (jnp.sum((apart / jnp.asarray(scale)) ** 2) - along @ (jnp.asarray(inner) @ along))

    space, family = jvi.space(jvi.real(size)), families.LowRank(rank)
    fit = jvi.gaussian_fits.moment_matched(KEY, log_joint, space, family=family, num_starts=1)
    log_z = truth.entropy() - 0.5 * size
    # Chance correlations of 32 pairs of draws move the ELBO on them by 1/2 sqrt(2 rank / 32) nats, which hides as much overfitting.
    assert -5 * fit.report.elbo_se < log_z - fit.report.elbo < 0.02 + 3 * 0.5 * np.sqrt(2 * rank / 32)
    assert fit.report.khat < 0.7


@pytest.mark.long
@pytest.mark.parametrize(
    "family", [families.Diagonal(), families.Blocks(tuple((4 * i, 4 * i + 2, 4 * i + 1, 4 * i + 3) for i in range(100)))]
)
def test_small_blocks_of_many_coordinates_are_exact(family):
    size = 400
    within = (
        np.kron(np.eye(100), 0.5 * np.eye(4) + 0.5)
        if isinstance(family, families.Blocks)
        else np.diag(np.arange(1.0, size + 1))
    )
    mean = np.random.default_rng(10).normal(size=size)
    fit = jvi.gaussian_fits.moment_matched(KEY, gaussian(mean, within), jvi.space(jvi.real(size)), family=family, num_starts=1)
    # The ELBO is a thousand nats or so.
    assert divergence(*moments(fit), mean, within) < 100 * CLOSE


def test_draws_have_exact_moments_where_they_are_promised():
    draws = nearby(np.random.default_rng(11), 64, 200)
    product = draws.T @ draws / 64
    close = np.abs(np.arange(200)[:, None] - np.arange(200)) < 16
    np.testing.assert_allclose(product[close], np.eye(200)[close], atol=1e-12)
    draws = with_factors(np.random.default_rng(12), 64, 200, 5)
    product = draws.T @ draws / 64
    np.testing.assert_allclose(product[:, 200:], np.eye(205)[:, 200:], atol=1e-12)
    np.testing.assert_allclose(np.diag(product), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", ["chain", "chain of pairs"])
def test_a_probed_chain_has_the_precision_of_its_target(name):
    family, covariance = CASES[name]
    precision = np.linalg.inv(covariance)
    member = family.spread(density_of(gaussian(MEAN, precision), SIZE), np.zeros(SIZE), np.ones(SIZE))
    # Gradients are linear: rounding, 1e-16 over steps of 6e-6, is all there is.
    assert_precision(member, precision, 1e-8)


def assert_precision(member, precision, tolerance):
    root = member.root()
    np.testing.assert_allclose(np.linalg.inv(root @ root.T), precision, atol=tolerance * np.abs(precision).max())


def tree_with_free_ones(width=2, num_nodes=9, num_free=3):
    """A precision whose zeros are a random tree's, beside coordinates that all depend on; and its pattern, all in a mixed-up order."""
    rng = np.random.default_rng(5)
    parents = np.array([-1] + [rng.integers(i) for i in range(1, num_nodes)])
    node = rng.permutation(np.concatenate([np.full(num_free, -1), np.repeat(np.arange(num_nodes), width)]))
    found = pattern(node, parents)
    root = np.diag(rng.uniform(1.0, 3.0, len(node)))
    root[found.rows, found.columns] = 0.5 * rng.normal(size=len(found.rows))
    precision = np.empty_like(root)
    precision[np.ix_(found.order, found.order)] = root.T @ root
    return found, precision


def test_a_probed_tree_has_the_precision_of_its_target():
    found, precision = tree_with_free_ones()
    mean = np.random.default_rng(6).normal(size=len(precision))
    density = density_of(gaussian(mean, precision), len(precision))
    start = Sparse.spread(np.zeros(len(precision)), found, np.ones(len(precision)))
    slope, member = probed(density, start)
    assert_precision(member, precision, 1e-8)
    np.testing.assert_allclose(slope, precision @ mean, rtol=1e-9)
    # A Newton step is at the optimum, whatever the draws.
    noise = start.draws(np.random.default_rng(7), 16)
    there = newton(density, start, noise)
    np.testing.assert_allclose(there.loc, mean, atol=1e-6)
    assert_precision(there, precision, 1e-7)


def test_the_slope_of_a_sparse_member_is_that_of_its_elbo():
    found, precision = tree_with_free_ones()
    rng, size = np.random.default_rng(8), len(precision)
    density = density_of(gaussian(np.zeros(size), precision), size)
    start = Sparse.of(Gaussian(rng.normal(size=size), 0.7 * np.linalg.cholesky(np.linalg.inv(precision)), 0.0), found)
    assert_precision(start, precision / 0.49, 1e-9)
    noise, params, direction = start.draws(rng, 32), 0.1 * rng.normal(size=start.num_params), rng.normal(size=start.num_params)

    def elbo(params):
        member = start.moved(params)
        return density.values(member.out(noise)).mean() + member.entropy()

    slope = start.slope(params, noise, density.grads(start.moved(params).out(noise))[1])
    by_difference = (elbo(params + 1e-5 * direction) - elbo(params - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope @ direction, by_difference, rtol=1e-6)
    member = start.moved(params)
    np.testing.assert_allclose(member.log_prob(noise).mean(), -member.entropy(), rtol=1e-2)


def test_patches_keep_members_and_come_closer_to_others():
    _, covariance = CASES["low rank"]
    rng = np.random.default_rng(13)
    member = Factored(MEAN, rng.uniform(0.5, 2.0, SIZE), rng.normal(size=(SIZE, 2)))
    kept = patched(Covariance(member.scale**2, member.factor, np.zeros((SIZE, 0))), member)
    np.testing.assert_allclose(kept.scale, member.scale, rtol=1e-9)
    np.testing.assert_allclose(kept.factor, member.factor, atol=1e-9)
    other = Covariance(np.zeros(SIZE), np.linalg.cholesky(CASES["full"][1]), np.zeros((SIZE, 0)))

    def apart(q):
        return divergence(MEAN, CASES["full"][1], MEAN, np.linalg.inv(np.diag(q.scale**2) + q.factor @ q.factor.T))

    steps = [apart(patched(other, member, num_steps=n)) for n in (1, 2, 5, 20, 100)]
    assert (np.diff([apart(member), *steps]) < 0.0).all()
    near = Factored.of(Gaussian(MEAN, np.linalg.cholesky(covariance), 0.0), 2)
    # Factor analysis converges linearly, here by 0.85 a step, and stops at changes of 1e-10: far less than 1e-6 is left.
    np.testing.assert_allclose(near.factor @ near.factor.T + np.diag(near.scale**2), covariance, atol=1e-6)


def test_a_low_rank_proximal_step_solves_the_equation_of_the_dense_one():
    rng = np.random.default_rng(14)
    q = Factored(MEAN, rng.uniform(0.5, 2.0, SIZE), rng.normal(size=(SIZE, 2)))
    u, grads, rate = rng.normal(size=(8, SIZE)), rng.normal(size=(8, SIZE)), 3.0
    loc, found = _proximal(q, u, grads, rate)
    s = found.times(np.eye(SIZE))
    pull, mean, score = rate / (1 + rate), u.mean(0), grads.mean(0)
    left = rate * np.cov(grads.T, bias=True) + pull * np.outer(score, score)
    right = np.diag(q.scale**2) + q.factor @ q.factor.T + rate * np.cov(u.T, bias=True)
    right += pull * np.outer(mean - q.loc, mean - q.loc)
    np.testing.assert_allclose(s @ left @ s + s, right, atol=1e-9)
    np.testing.assert_allclose(found.variances(), np.diag(s), atol=1e-9)
    np.testing.assert_allclose(loc, pull * (s @ score + mean) + q.loc / (1 + rate), atol=1e-9)


def test_low_rank_scores_match_exactly_on_a_low_rank_gaussian():
    family, covariance = CASES["low rank"]
    precision = np.linalg.inv(covariance)
    fit = jvi.gaussian_fits.batch_and_match(KEY, gaussian(MEAN, precision), SPACE, rank=2)
    assert isinstance(fit.guide, jvi.guides.LowRank)
    assert divergence(*moments(fit), MEAN, precision) < CLOSE
    density = density_of(gaussian(MEAN, precision), SIZE)
    far = family.spread(density, np.zeros(SIZE), np.ones(SIZE))
    end = matched_and_patched(density, far, np.random.default_rng(15), num_steps=200, num_draws=32)
    assert divergence(end.loc, np.diag(end.scale**2) + end.factor @ end.factor.T, MEAN, precision) < CLOSE


def test_a_natural_gradient_step_is_exact_on_a_gaussian_from_anywhere():
    _, covariance = CASES["full"]
    precision = np.linalg.inv(covariance)
    density, draws = density_of(gaussian(MEAN, precision), SIZE), whitened(np.random.default_rng(16), 64, SIZE)
    for scale in (1e-3, 1.0, 1e3):
        found = natural_ascent(density, Gaussian(np.zeros(SIZE), scale * np.eye(SIZE), 0.0), draws, num_steps=1)
        # Rounding of the curvature in units of the start, relative to its largest eigenvalue, times the condition number.
        assert divergence(found.loc, found.chol @ found.chol.T, MEAN, precision) < 1e-9


def test_natural_gradients_never_lower_the_elbo_and_keep_the_precision_positive():
    def ridge(z):  # its curvature is indefinite away from the ridge
        return -0.5 * z[0] ** 2 - 2.0 * (z[1] - 0.3 * z[0] ** 2) ** 2 + jnp.log1p(z[0] ** 2)

    density, draws = density_of(ridge, 2), whitened(np.random.default_rng(17), 128, 2)
    start = Gaussian(np.array([3.0, -4.0]), 0.5 * np.eye(2), 0.0)
    elbos = [natural_ascent(density, start, draws, num_steps=steps).elbo for steps in range(1, 30)]
    assert (np.diff(elbos) >= 0.0).all()
    assert np.isfinite(elbos).all()


def test_natural_gradients_find_the_best_gaussian():
    features = np.random.default_rng(18).normal(size=(60, 4))
    counts = np.random.default_rng(19).poisson(np.exp(features @ [0.5, -0.5, 0.3, 0.0]))

    def log_joint(x, z):
        rows, y = x
        eta = rows @ z
        return jnp.sum(y * eta - jnp.exp(eta)) - 0.5 * jnp.sum(z**2)

    x, space = (features, counts.astype(float)), jvi.space(jvi.real(4))
    natural = jvi.gaussian_fits.natural_gradient(KEY, log_joint, space, x)
    best = jvi.gaussian_fits.moment_matched(KEY, log_joint, space, x)
    assert natural.report.trusted
    error = 5 * np.hypot(natural.report.elbo_se, best.report.elbo_se)
    assert abs(natural.report.elbo - best.report.elbo) < 0.02 + error  # both stop where fresh draws agree within 0.02


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (families.LowRank(SIZE), "rank must be less than the number of coordinates, 12 .* got 12. Use FullRank"),
        (families.Markov(5), "block_size must divide the number of coordinates, 12 .* got 5"),
        (families.Blocks(((0, 1), (1, 2, 14))), "missing .*3, 4, 5, 6, 7.* in more than one .1., not of the space .14."),
        (families.Blocks((tuple(range(SIZE)), ())), "no group be empty"),
    ],
)
def test_families_that_do_not_fit_the_space_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        jvi.gaussian_fits.moment_matched(KEY, curved, SPACE, family=family)


def test_what_is_no_family_is_refused():
    with pytest.raises(TypeError, match="families, as in FullRank"):
        jvi.gaussian_fits.moment_matched(KEY, curved, SPACE, family=families.Markov)
    with pytest.raises(ValueError, match="rank must be 1 or more"):
        families.LowRank(0)
    with pytest.raises(TypeError, match="block_size must be a whole number"):
        families.Markov(1.5)
    with pytest.raises(TypeError, match="hashable"):
        families.Blocks([[0, 1]])
    with pytest.raises(ValueError, match="Use FullRank"):
        jvi.gaussian_fits.batch_and_match(KEY, curved, SPACE, rank=SIZE)
    with pytest.raises(ValueError, match="num_steps must be 1 or more"):
        jvi.gaussian_fits.natural_gradient(KEY, curved, SPACE, num_steps=0)
