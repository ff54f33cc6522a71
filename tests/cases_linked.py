"""Rows of the table of laws: series and trees."""

from __future__ import annotations

import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from cases_core import LOG_EVIDENCE, Case
from jax.extend.core import jaxprs_in_params
from jax.scipy.stats import multivariate_normal, norm
from scipy.stats import multivariate_normal as scipy_multivariate_normal

import jvi
from jvi.guides import _linked, autoregressive

TREE = (-1, 0, 0, 1, 3, 1)


def linked_gaussian(parents, dim, seed=0):
    """A dense Gaussian (mean [n D], covariance) whose precision links every node with its parent alone."""
    rng, n = np.random.default_rng(seed), len(parents)
    precision = np.zeros((n, dim, n, dim))
    for node, parent in enumerate(parents):
        row = rng.normal(size=(dim, 2 * dim))
        block = row.T @ row + 0.3 * np.eye(2 * dim)
        for a, i in enumerate((node, parent) if parent >= 0 else (node,)):
            for b, j in enumerate((node, parent) if parent >= 0 else (node,)):
                precision[i, :, j] += block[a * dim : (a + 1) * dim, b * dim : (b + 1) * dim]
    return rng.normal(size=n * dim), np.linalg.inv(precision.reshape(n * dim, n * dim))


def moments_of(loc, cov, parents):
    """Means [n, D], covariances [n, D, D] and those with the parents [n - 1, D, D] of a dense Gaussian."""
    n = len(parents)
    loc, blocks = loc.reshape(n, -1), np.swapaxes(cov.reshape(n, len(loc) // n, n, -1), 1, 2)
    return loc, blocks[np.arange(n), np.arange(n)], blocks[np.arange(1, n), np.asarray(parents[1:], int)]


def linked(loc, cov, parents):
    """The parameters of a Markov or tree guide with these moments, node by node."""
    loc, cov, lag = moments_of(loc, cov, parents)
    links = [a @ np.linalg.inv(cov[parent]) for a, parent in zip(lag, parents[1:], strict=True)]
    rest = [cov[i + 1] - link @ a.T for i, (link, a) in enumerate(zip(links, lag, strict=True))]
    roots = np.linalg.cholesky(np.stack([cov[0], *rest]))
    scale = np.diagonal(roots, axis1=1, axis2=2)
    below = [
        math.sqrt(loc.shape[1]) * (root / s[:, None])[np.tril_indices(len(s), -1)] for root, s in zip(roots, scale, strict=True)
    ]
    return _linked.Linked(loc, np.stack(links), np.log(scale), np.stack(below))


def _linked_case(guide, parents, dim=1):
    loc, cov = linked_gaussian(parents, dim)

    def log_joint(x, z):
        return multivariate_normal.logpdf(z.reshape(-1), jnp.asarray(loc), jnp.asarray(cov)) + LOG_EVIDENCE

    return Case(guide, linked(loc, cov, parents), log_joint)


def num_equations(guide):
    """How long the program is that draws, with its gradient."""

    def count(jaxpr):
        inner = [count(one) for eqn in jaxpr.eqns for one in jaxprs_in_params(eqn.params)]
        return len(jaxpr.eqns) + sum(inner)

    params = jax.eval_shape(lambda: guide.init(jax.random.key(0), None))
    draw = jax.grad(lambda params: guide.sample_and_log_prob(params, jax.random.key(0), None)[0].sum())
    return count(jax.make_jaxpr(draw)(params).jaxpr)


class Codes(flax.linen.Module):
    """Codes [T, W] that are linear in a whole series [T]."""

    width: int

    @flax.linen.compact
    def __call__(self, x):
        weight = self.param("weight", flax.linen.initializers.normal(), (len(x), self.width, len(x)))
        return weight @ x + self.param("bias", flax.linen.initializers.normal(), (len(x), self.width))


class LinearCombiner(flax.linen.Module):
    """Reads the coefficient, the shift and the log-scale of a step off its code."""

    @flax.linen.compact
    def __call__(self, before, code):
        return code[:1] * before + code[1:2], code[2:]


def _walk(x, z):
    """z_t = 0.8 z_{t-1} + N(0, 0.5^2), seen with noise of 0.7."""
    log_prior = norm.logpdf(z[0, 0]) + norm.logpdf(z[1:, 0], 0.8 * z[:-1, 0], 0.5).sum()
    return log_prior + norm.logpdf(x, z[:, 0], 0.7).sum()


def _walk_case():
    """The exact smoother of `_walk` step by step: coefficients constant, shifts linear in the whole series."""
    x = np.array([0.4, -1.1, 0.3, 1.9, 0.8])
    onward = np.eye(5) - 0.8 * np.eye(5, k=-1)
    root = np.linalg.solve(onward, np.diag([1.0, 0.5, 0.5, 0.5, 0.5]))
    prior = root @ root.T
    gain = prior @ np.linalg.inv(prior + 0.49 * np.eye(5))
    cov = prior - gain @ prior
    link = np.concatenate([[0.7], np.diag(cov, -1) / np.diag(cov)[:-1]])  # the first sees a draw of zero before it
    shift = gain - np.concatenate([np.zeros((1, 5)), link[1:, None] * gain[:-1]])
    scale = np.sqrt(np.concatenate([[cov[0, 0]], np.diag(cov)[1:] - link[1:] * np.diag(cov, -1)]))
    weight, bias = np.zeros((5, 3, 5)), np.zeros((5, 3))
    weight[:, 1], bias[:, 0], bias[:, 2] = shift, link, np.log(scale)
    params = autoregressive.Stepwise({"weight": weight, "bias": bias}, {}, np.zeros(1))
    guide = jvi.guides.AutoregressiveSequence(Codes(3), dim=1, combiner=LinearCombiner())
    evidence = scipy_multivariate_normal.logpdf(x, np.zeros(5), prior + 0.49 * np.eye(5))
    return Case(guide, params, _walk, x, float(evidence))


def _nested():
    markov = _linked_case(jvi.guides.Markov(4), (-1, 0, 1, 2))
    tree = _linked_case(jvi.guides.Tree(TREE, dim=2, parallel=True), TREE, 2)
    return Case(
        jvi.guides.product(a=markov.guide, b=jvi.guides.sequence(c=tree.guide)),
        {"a": markov.params, "b": {"c": tree.params}},
        lambda x, z: markov.log_joint(x, z["a"]) + tree.log_joint(x, z["b"]["c"]) - LOG_EVIDENCE,
    )


CASES = {
    "markov": _linked_case(jvi.guides.Markov(5, dim=2), (-1, 0, 1, 2, 3), 2),
    "markov_parallel": _linked_case(jvi.guides.Markov(5, dim=2, parallel=True), (-1, 0, 1, 2, 3), 2),
    "tree": _linked_case(jvi.guides.Tree(TREE, dim=2), TREE, 2),
    "markov_beside_parallel_tree": _nested(),
    "autoregressive": _walk_case(),
}
# Guides made of guides.
