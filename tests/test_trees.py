"""Guides over trees: exact on linear-Gaussian trees, of any shape, and plain errors for what is no tree."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_linked import linked_gaussian, moments_of, num_equations
from jax.scipy.stats import norm
from scipy.stats import multivariate_normal as scipy_normal

import jvi
from jvi.guides import Tree

pytestmark = pytest.mark.quick
KEY = jax.random.key(5)

RNG = np.random.default_rng(2)
# Brownian motion along a phylogeny of 8 tips, with branch lengths: two traits that evolve together.
PHYLOGENY = (-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)
LENGTHS = np.array([1.0, *RNG.uniform(0.2, 1.5, size=14)])
TIPS = np.arange(7, 15)
RATE = np.array([[0.8, 0.0], [-0.5, 0.4]])
# A grand mean, 3 schools, 2 classes in each, and 2 pupils in each class, one effect each.
NESTED = (-1, 0, 0, 0, *(1 + np.arange(6) // 2), *(4 + np.arange(12) // 2))
SPREAD = np.array([2.0, *[1.0] * 3, *[0.6] * 6, *[0.4] * 12])


def grown(parents, roots):
    """The covariance of increments `roots` @ eps summed from the root, dense."""
    n, dim = len(parents), roots.shape[1]
    path = np.eye(n)
    for i, parent in enumerate(parents):
        if parent >= 0:
            path[i] += path[parent]
    spread = np.kron(path, np.eye(dim)) @ np.concatenate([np.kron(np.eye(n)[i : i + 1], r) for i, r in enumerate(roots)])
    return spread @ spread.T


def posterior(prior, seen, noise, x):
    """Mean and covariance given x = z[seen] + noise, and log p(x)."""
    marginal = prior[np.ix_(seen, seen)] + noise**2 * np.eye(len(seen))
    gain = prior[:, seen] @ np.linalg.inv(marginal)
    return gain @ x, prior - gain @ prior[seen], scipy_normal.logpdf(x, np.zeros(len(seen)), marginal)


def brownian(x, z):
    eps = jax.vmap(lambda d, length: jnp.linalg.solve(jnp.asarray(RATE), d) / jnp.sqrt(length))(
        z - jnp.concatenate([jnp.zeros((1, 2)), z[np.asarray(PHYLOGENY[1:])]]), jnp.asarray(LENGTHS)
    )
    log_det = len(LENGTHS) * np.log(np.linalg.det(RATE)) + np.log(LENGTHS).sum()
    return norm.logpdf(eps).sum() - log_det + norm.logpdf(x, z[TIPS].reshape(-1), 0.3).sum()


def nested(x, z):
    steps = z - jnp.concatenate([jnp.zeros(1), z[np.asarray(NESTED[1:])]])
    return norm.logpdf(steps, 0.0, jnp.asarray(SPREAD)).sum() + norm.logpdf(x, z[10:], 0.3).sum()


MODELS = {
    "Brownian motion": (
        PHYLOGENY, 2, brownian, np.sqrt(LENGTHS)[:, None, None] * RATE, np.arange(14, 30), Tree(PHYLOGENY, dim=2, parallel=True)
    ),
    "nested effects": (NESTED, 1, nested, SPREAD[:, None, None], np.arange(10, 22), Tree(NESTED)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_tree_at_the_posteriors_moments_is_the_posterior(float64, name):
    parents, _, log_joint, roots, seen, guide = MODELS[name]
    x = np.random.default_rng(4).normal(size=len(seen))
    loc, cov, log_evidence = posterior(grown(parents, roots), seen, 0.3, x)
    moments = moments_of(loc, cov, parents)
    objective = jvi.elbo(jvi.model(log_joint), guide, gradient=jvi.gradients.stl)
    params = objective.init(KEY, x)._replace(guide=guide.from_moments(*moments))

    @jax.jit
    def draw(params, keys):
        one = jax.value_and_grad(lambda params, key: objective(params, key, x)[0])
        return jax.vmap(lambda key: one(params, key))(keys), guide.marginals(params.guide)

    (bound, grads), found = draw(params, jax.random.split(KEY, 20))
    np.testing.assert_allclose(bound, log_evidence, rtol=1e-10)
    for leaf in jax.tree.leaves(grads.guide):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-8)
    for value, expected in zip(found, moments, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-12)
    entropy = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * cov)[1]
    np.testing.assert_allclose(guide.entropy(params.guide, x, None), entropy, rtol=1e-12)


def random_tree(n, reach=None):
    rng = np.random.default_rng(0)
    return (-1, *(int(rng.integers(max(0, i - (reach or i)), i)) for i in range(1, n)))


SHAPES = {
    "chain": tuple(range(-1, 11)),
    "star": (-1, *[0] * 11),
    "broom, not by depth": (-1, 0, 0, 1, 3, 4, 0, 0, 5, 0, 8, 8),
    "random": random_tree(12),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_sweeps_agree_with_dense_algebra_for_trees_of_any_shape(float64, shape):
    """Draws and gradients of the serial and the parallel sweep, beside a dense solve."""
    parents = SHAPES[shape]
    loc, cov = linked_gaussian(parents, 1)
    serial, parallel = Tree(parents), Tree(parents, parallel=True)
    params = serial.from_moments(*moments_of(loc, cov, parents))

    def dense(params):
        eps = jax.random.normal(KEY, params.loc.shape, params.loc.dtype) * jnp.exp(params.log_scale)
        links = jnp.zeros((12, 12)).at[np.arange(1, 12), np.asarray(parents[1:])].set(params.link[:, 0, 0])
        return (params.loc + jnp.linalg.solve(jnp.eye(12) - links, eps))[:, 0]

    def drawn(guide):
        return lambda params: guide.sample_and_log_prob(params, KEY, None)[0]

    @jax.jit
    def both(params):
        results = [jax.vjp(draw, params) for draw in (dense, drawn(serial), drawn(parallel))]
        return [(z, pull(jnp.cos(jnp.arange(12.0)))[0]) for z, pull in results]

    expected, *found = both(params)
    for other in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), expected, other)


@pytest.mark.long
def test_chunks_of_wide_and_deep_trees_follow_their_parents(float64):
    """Wide enough that a depth is taken in several chunks: draws are their parents' links, plus noise."""
    for parents in (random_tree(3_000), random_tree(2_000, reach=9), (-1, *[0] * 1_999, *range(1, 1_000))):
        guide = Tree(parents)
        params = guide.init(KEY, None)
        link = jax.random.uniform(jax.random.key(1), params.link.shape, minval=0.5, maxval=0.9)
        params = params._replace(link=link)
        z, log_q = jax.jit(guide.sample_and_log_prob)(params, KEY, None)
        np.testing.assert_allclose(jax.jit(guide.log_prob)(params, None, z), log_q, rtol=1e-9)


def test_the_program_does_not_grow_with_depth_and_a_spec_is_hashed_once():
    assert num_equations(Tree(range(-1, 29), dim=2)) == num_equations(Tree(range(-1, 2_999), dim=2))
    guide = Tree(np.arange(-1, 99_999))
    again = Tree(tuple(range(-1, 99_999)))
    assert guide == again
    start = time.perf_counter()
    for _ in range(1_000):
        hash(guide)
    assert time.perf_counter() - start < 0.1  # 0.6 s if the tuple was hashed each time


def test_trees_from_lists_arrays_and_tuples_are_one():
    trees = {Tree([-1, 0, 0]), Tree(np.array([-1, 0, 0], np.int32)), Tree((-1, 0, 0)), Tree(jnp.array([-1, 0, 0]))}
    assert len(trees) == 1
    assert Tree([-1, 0, 0]).parents == (-1, 0, 0)
    assert Tree([-1, 0, 1]) != Tree([-1, 0, 0])
    assert len(repr(Tree(range(-1, 99)))) < 150
    alone = Tree([-1], dim=2)
    params = alone.init(KEY, None)
    z, log_q = alone.sample_and_log_prob(params, KEY, None)
    np.testing.assert_allclose(alone.log_prob(params, None, z), log_q, rtol=1e-5)


@pytest.mark.parametrize(
    ("parents", "kind", "match"),
    [
        ((), ValueError, "at least one node"),
        ((-1, 0, 3, 2), ValueError, r"parents\[2\] = 3 closes a cycle: 2 -> 3 -> 2"),
        ((0, 0), ValueError, r"parents\[0\] = 0 closes a cycle: 0 -> 0"),
        ((-1, 2, 0), ValueError, r"parents\[1\] = 2 is not a node before 1: number the nodes"),
        ((1, -1), ValueError, r"parents\[0\] = 1 is not a node before 0"),
        ((-1, 0, -1), ValueError, r"one root, got 2: parents\[0\] and parents\[2\]"),
        ((-1, 0, 7), ValueError, r"parents\[2\] = 7 is no node: there are 3"),
        ((-1, -2), ValueError, r"parents\[1\] = -2 is no node"),
        ((-1, 0, 1.0), TypeError, r"parents\[2\] = 1.0 \(float\)"),
        ((-1, 0, None), TypeError, r"parents\[2\] = None"),
        (((-1, 0), (0, 0)), TypeError, r"got shape \[2, 2\]"),
        ("-1, 0", TypeError, "flat sequence of whole numbers"),
        (3, TypeError, "flat sequence of whole numbers"),
    ],
)
def test_what_is_no_tree_is_refused(parents, kind, match):
    with pytest.raises(kind, match=match):
        Tree(parents)
    with pytest.raises(kind, match=match):
        jvi.tree(parents)


def test_declared_trees_are_real():
    support = jvi.tree(np.array([-1, 0, 0]), dim=2)
    assert (support.shape, support.size, support.parents) == ((3, 2), 6, (-1, 0, 0))
    assert support == jvi.tree([-1, 0, 0], dim=2) != jvi.tree([-1, 0, 1], dim=2)
    z, _ = jvi.space(support).constrain(jnp.arange(6.0))
    np.testing.assert_array_equal(z, jnp.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match=r"z must have shape \[3\]"):
        Tree([-1, 0, 0]).log_prob(Tree([-1, 0, 0]).init(KEY, None), None, z)
