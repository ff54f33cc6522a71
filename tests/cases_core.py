"""The table of laws: what a row is, its common parts, and the families that need no more."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import distrax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.stats import multivariate_normal, norm
from scipy.stats import nbinom
from scipy.stats import norm as scipy_norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi.guides import gaussian, low_rank

LOG_EVIDENCE = -2.5
FAILURE_RATE = 1e-4

LOC = np.array([0.3, -1.2, 0.7])
SCALE = np.array([0.5, 1.5, 0.8])
FACTOR = np.array([[0.4], [-0.7], [0.9]])
LOWER = np.array([[0.5, 0.0, 0.0], [0.6, 1.5, 0.0], [-0.3, 0.2, 0.8]])
MIXED = {"a": jvi.positive(), "b": jvi.unit_interval(), "c": jvi.real()}


class Case(NamedTuple):
    """A guide, parameters at which it is the exact posterior of `log_joint` given `x`, and the log evidence."""

    guide: Any
    params: Any
    log_joint: Any
    x: Any = None
    log_evidence: float = LOG_EVIDENCE


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_z_test(samples, expected):
    """Every column's mean is `expected`, by a two-sided z-test with a Bonferroni correction."""
    samples, expected = np.asarray(samples, np.float64), np.asarray(expected, np.float64)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    noisy = error > 1e-7
    np.testing.assert_allclose(samples.mean(0)[~noisy], expected[~noisy], atol=1e-5)
    z = np.abs(samples.mean(0) - expected)[noisy] / error[noisy]
    assert z.size, "nothing is random here"
    assert z.max() < scipy_norm.isf(FAILURE_RATE / 2 / z.size), z


def dense(loc, root):
    """The parameters of a full-rank guide whose covariance is root root'."""
    scale = np.diag(root)
    return gaussian.Dense(loc, np.log(scale), np.sqrt(len(loc)) * np.tril(root / scale[:, None], -1))


def _gaussian(cov):
    def log_joint(x, z):
        return multivariate_normal.logpdf(z, jnp.asarray(LOC), jnp.asarray(cov)) + LOG_EVIDENCE

    return log_joint


def _mixed(x, z):
    """The density of (exp(u0), sigmoid(u1), u2) for a Gaussian u, by the change of variables written out."""
    u = jnp.stack([jnp.log(z["a"]), jnp.log(z["b"]) - jnp.log1p(-z["b"]), z["c"]])
    log_det = -jnp.log(z["a"]) - jnp.log(z["b"]) - jnp.log1p(-z["b"])
    return multivariate_normal.logpdf(u, jnp.asarray(LOC), jnp.asarray(LOWER @ LOWER.T)) + log_det + LOG_EVIDENCE


def _mean_of_one(x, z):
    """x ~ N(z, 1), z ~ N(0, 1): the posterior is N(x / 2, 1 / 2) and the evidence N(x; 0, 2)."""
    return norm.logpdf(z[0]) + norm.logpdf(x[0], z[0])


def _halved(output):
    return distrax.MultivariateNormalDiag(output, jnp.full(1, 0.5**0.5))


def _poisson(x, z):
    """A count x with a Gamma(3, 2) rate: the posterior is Gamma(3 + x, 3)."""
    return distrax.Gamma(3.0, 2.0).log_prob(z) + x * jnp.log(z) - z - jax.scipy.special.gammaln(x + 1.0)


def _rate(kind):
    return lambda params, x: kind(params["shape"], params["rate"])


def _joint(params, x):
    return distrax.Joint(
        {"a": distrax.Normal(params[0], 2.0), "b": distrax.MultivariateNormalDiag(params[1], jnp.full(2, 0.5))}
    )


def _joint_density(x, z):
    return norm.logpdf(z["a"], 1.0, 2.0) + norm.logpdf(z["b"], 0.0, 0.5).sum() + LOG_EVIDENCE


def _shifted(params, rng, x):
    eps = jax.random.normal(rng)
    return params + eps, norm.logpdf(eps)


class HalfNNX(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


_PART = jvi.guides.MeanField(jvi.space(jvi.real(3)))


def _after(params, x):
    return distrax.MultivariateNormalDiag(params + x[1]["a"], jnp.full(3, 0.5))


X_ONE = np.array([1.3])
EVIDENCE_OF_ONE = float(scipy_norm.logpdf(1.3, 0.0, 2**0.5))
GAMMA = {"shape": 7.0, "rate": 3.0}
EVIDENCE_OF_COUNT = float(nbinom.logpmf(4, 3, 2.0 / 3.0))

CASES = {
    "mean_field": Case(
        jvi.guides.MeanField(jvi.space(jvi.real(3))), gaussian.Diagonal(LOC, np.log(SCALE)), _gaussian(np.diag(SCALE**2))
    ),
    "full_rank": Case(
        jvi.guides.FullRank(jvi.space(jvi.real(3))),
        dense(LOC, LOWER),
        _gaussian(LOWER @ LOWER.T),
    ),
    "low_rank": Case(
        jvi.guides.LowRank(jvi.space(jvi.real(3)), rank=1),
        low_rank.Factored(LOC, np.log(SCALE), FACTOR),
        _gaussian(np.diag(SCALE**2) + FACTOR @ FACTOR.T),
    ),
    "full_rank_constrained": Case(jvi.guides.FullRank(jvi.space(MIXED)), dense(LOC, LOWER), _mixed),
    "distrax_gamma": Case(
        jvi.guides.from_distribution(lambda rng, x: GAMMA, _rate(distrax.Gamma)), GAMMA, _poisson, 4.0, EVIDENCE_OF_COUNT
    ),
    "tfp_gamma": Case(
        jvi.guides.from_distribution(lambda rng, x: GAMMA, _rate(tfp.distributions.Gamma)),
        GAMMA,
        _poisson,
        4.0,
        EVIDENCE_OF_COUNT,
    ),
    "distrax_joint": Case(
        jvi.guides.from_distribution(lambda rng, x: (1.0, jnp.zeros(2)), _joint), (1.0, np.zeros(2)), _joint_density
    ),
    "functions": Case(
        jvi.guides.from_functions(lambda rng, x: 0.0, _shifted, lambda params, x, z: norm.logpdf(z, params)),
        0.4,
        lambda x, z: norm.logpdf(z, 0.4) + LOG_EVIDENCE,
    ),
    "product": Case(
        jvi.guides.product(a=_PART, b=_PART),
        {"a": gaussian.Diagonal(LOC, np.log(SCALE)), "b": gaussian.Diagonal(-LOC, np.log(SCALE))},
        lambda x, z: norm.logpdf(z["a"], LOC, SCALE).sum() + norm.logpdf(z["b"], -LOC, SCALE).sum() + LOG_EVIDENCE,
    ),
    "sequence": Case(
        jvi.guides.sequence(a=_PART, b=jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), _after)),
        {"a": gaussian.Diagonal(LOC, np.log(SCALE)), "b": LOC},
        lambda x, z: norm.logpdf(z["a"], LOC, SCALE).sum() + norm.logpdf(z["b"], LOC + z["a"], 0.5).sum() + LOG_EVIDENCE,
    ),
    "conditional_linen": Case(
        jvi.guides.conditional(flax.linen.Dense(1), _halved),
        {"kernel": np.full((1, 1), 0.5), "bias": np.zeros(1)},
        _mean_of_one,
        X_ONE,
        EVIDENCE_OF_ONE,
    ),
    "conditional_nnx": Case(
        jvi.guides.conditional(HalfNNX, _halved),
        {"linear": {"kernel": np.full((1, 1), 0.5), "bias": np.zeros(1)}},
        _mean_of_one,
        X_ONE,
        EVIDENCE_OF_ONE,
    ),
}
