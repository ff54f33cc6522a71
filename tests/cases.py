"""The tables: every guide with a posterior that it holds exactly, a row each; and the test of an estimator against a closed form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import distrax
import flax.linen
import flow_maps
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.scipy.special import logsumexp
from jax.scipy.stats import multivariate_normal, norm, t
from scipy.stats import multivariate_normal as scipy_multivariate_normal
from scipy.stats import norm as scipy_norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi.guides import (
    _linked,
    annealed,
    autoregressive,
    auxiliary,
    block_diagonal,
    gaussian,
    low_rank,
    mixture,
    precision,
    semi_implicit,
    sinh_arcsinh,
    student_t,
)
from jvi.guides._through import WithNetwork

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
EVIDENCE_OF_ONE = float(norm.logpdf(1.3, 0.0, 2**0.5))
GAMMA = {"shape": 7.0, "rate": 3.0}
EVIDENCE_OF_COUNT = float(tfp.distributions.NegativeBinomial(3.0, probs=1.0 / 3.0).log_prob(4.0))

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


CASES |= {
    "markov": _linked_case(jvi.guides.Markov(5, dim=2), (-1, 0, 1, 2, 3), 2),
    "markov_parallel": _linked_case(jvi.guides.Markov(5, dim=2, parallel=True), (-1, 0, 1, 2, 3), 2),
    "tree": _linked_case(jvi.guides.Tree(TREE, dim=2), TREE, 2),
    "markov_beside_parallel_tree": _nested(),
    "autoregressive": _walk_case(),
}
# Guides made of guides.

tfb = tfp.bijectors
POINT = np.array([0.8, -0.5])
KERNEL = np.array([[0.3, -0.2, 0.7], [0.5, 0.1, -0.4]])
BIAS = np.array([0.1, 0.2, -0.3])
PLATE = np.array([[1.3], [-0.4], [0.6], [2.1]])
ROWS = np.arange(12.0).reshape(4, 3) / 7.0
FLAT = {"kernel": np.array([[0.5, 0.0]]), "bias": np.array([0.3, 0.1])}


def _moved(params, x):
    return distrax.MultivariateNormalDiag(params + x, jnp.full(3, 0.5))


def _moved_first(params, x):
    return _moved(params, x[0])


def _moved_after(params, x):
    features, before = x
    return distrax.MultivariateNormalDiag(params * features + before["a"], jnp.full(3, 0.5))


def _start(rng, x):
    return jnp.zeros(3)


def _first_two(x):
    return x[:2]


def _triangular():
    return tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)


def _known(x):
    return 2.0 * x


def _softmax(x, z):
    u = jnp.log(z[:3]) - jnp.log(z[3])
    surface = 0.5 * math.log(4.0)  # TFP's density is that of the simplex's surface, not of its first three entries
    log_det = jnp.log(z).sum() + surface
    return multivariate_normal.logpdf(u, jnp.asarray(LOC), jnp.asarray(LOWER @ LOWER.T)) - log_det + LOG_EVIDENCE


def _triangle(x, z):
    u = jnp.stack([jnp.log(z[1, 1]), z[1, 0], jnp.log(z[0, 0])])  # TFP fills a triangle from its end
    return norm.logpdf(u, LOC, SCALE).sum() - jnp.log(z[0, 0]) - jnp.log(z[1, 1]) + LOG_EVIDENCE


def _each_of_plate(x, z):
    return (norm.logpdf(z[:, 0]) + norm.logpdf(x[:, 0], z[:, 0])).sum()


def _nested(x, z):
    """Of the network's output at `x` and the offsets: u ~ N(0.5 x + 0.7, 1), v ~ N(x - 0.2, e^0.6), log b ~ N(u + v - x, 0.25)."""
    moved = math.exp(0.3)
    first = norm.logpdf(z["a"]["u"], 0.5 * x[0] + 0.7, 1.0) + norm.logpdf(z["a"]["v"], x[0] - 0.2, moved)
    last = norm.logpdf(jnp.log(z["b"]), z["a"]["u"] + z["a"]["v"] - x[0], 0.5) - jnp.log(z["b"])
    return first + last + LOG_EVIDENCE


def _sum_of_both(params, x):
    return distrax.Normal(x[1]["a"]["u"] + x[1]["a"]["v"] + params["loc"], jnp.exp(params["log_scale"]))


def _sum_init(rng, x):
    return {"loc": jnp.zeros(()), "log_scale": jnp.zeros(())}


ONE_REAL = jvi.guides.MeanField(jvi.space(jvi.real(1)))
SCALAR = jvi.guides.MeanField(jvi.space(jvi.real()))
COMPOSED = jvi.guides.transform(
    jvi.guides.amortize(
        jvi.guides.sequence(a=jvi.guides.product(u=SCALAR, v=SCALAR), b=jvi.guides.from_distribution(_sum_init, _sum_of_both)),
        flax.linen.Dense(6),
    ),
    {"b": tfb.Exp},
)
HALF_SCALE = math.log(0.5) / 2

CASES |= {
    "given_linen": Case(
        jvi.guides.given(flax.linen.Dense(3), jvi.guides.from_distribution(_start, _moved), inputs=_first_two),
        WithNetwork({"kernel": KERNEL, "bias": BIAS}, LOC),
        lambda x, z: norm.logpdf(z, LOC + POINT @ KERNEL + BIAS, 0.5).sum() + LOG_EVIDENCE,
        np.append(POINT, 9.0),
    ),
    "given_sequence": Case(
        jvi.guides.given(
            flax.linen.Dense(3),
            jvi.guides.sequence(
                a=jvi.guides.from_distribution(_start, _moved_first), b=jvi.guides.from_distribution(_start, _moved_after)
            ),
        ),
        WithNetwork({"kernel": KERNEL, "bias": BIAS}, {"a": LOC, "b": SCALE}),
        lambda x, z: (
            norm.logpdf(z["a"], LOC + POINT @ KERNEL + BIAS, 0.5).sum()
            + norm.logpdf(z["b"], SCALE * (POINT @ KERNEL + BIAS) + z["a"], 0.5).sum()
            + LOG_EVIDENCE
        ),
        POINT,
    ),
    "transform_simplex": Case(
        jvi.guides.transform(jvi.guides.FullRank(jvi.space(jvi.real(3))), tfb.SoftmaxCentered), dense(LOC, LOWER), _softmax
    ),
    "transform_triangle": Case(
        jvi.guides.transform(_PART, _triangular),
        gaussian.Diagonal(LOC, np.log(SCALE)),
        _triangle,
    ),
    "amortize": Case(
        jvi.guides.amortize(ONE_REAL, flax.linen.Dense(2)),
        WithNetwork(FLAT, gaussian.Diagonal(np.array([-0.3]), np.array([HALF_SCALE - 0.1]))),
        _mean_of_one,
        X_ONE,
        EVIDENCE_OF_ONE,
    ),
    "plate": Case(
        jvi.guides.plate(_PART, 4),
        gaussian.Diagonal(ROWS, np.log(1.0 + ROWS)),
        lambda x, z: norm.logpdf(z, ROWS, 1.0 + ROWS).sum() + LOG_EVIDENCE,
    ),
    "plate_shared": Case(
        jvi.guides.plate(jvi.guides.amortize(ONE_REAL, flax.linen.Dense(2)), 4, shared=True),
        WithNetwork(FLAT, gaussian.Diagonal(np.array([-0.3]), np.array([HALF_SCALE - 0.1]))),
        _each_of_plate,
        PLATE,
        float(scipy_norm.logpdf(PLATE, 0.0, 2**0.5).sum()),
    ),
    "freeze_partial": Case(
        jvi.guides.freeze(
            jvi.guides.product(a=_PART, b=jvi.guides.partial(jvi.guides.product(c=_PART), d=(1.0, 2.0), e=_known)), "a", "b/c"
        ),
        {"a": gaussian.Diagonal(LOC, np.log(SCALE)), "b": {"c": gaussian.Diagonal(-LOC, np.log(SCALE))}},
        lambda x, z: (
            norm.logpdf(z["a"], LOC, SCALE).sum()
            + norm.logpdf(z["b"]["c"], -LOC, SCALE).sum()
            + LOG_EVIDENCE
            + 0.0 * z["b"]["d"][1]
        ),
        POINT,
    ),
    # product in sequence in amortize in transform
    "nested": Case(
        COMPOSED,
        WithNetwork(
            {"kernel": np.array([[0.5, 0.0, 1.0, 0.0, -1.0, 0.0]]), "bias": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])},
            {
                "a": {
                    "u": gaussian.Diagonal(np.array([0.6]), np.array([-0.2])),
                    "v": gaussian.Diagonal(np.array([-0.5]), np.array([-0.1])),
                },
                "b": {"loc": -0.5, "log_scale": math.log(0.5) - 0.6},
            },
        ),
        _nested,
        X_ONE,
    ),
}  # fmt: skip
# Families beyond the Gaussians above. Densities of coordinates u, and what they become of the constrained latents of `MIXED`.
GROUPS = ((3, 0), (1,), (4, 2))
BLOCK_LOC = np.array([0.3, -1.2, 0.7, 0.1, -0.4])
BLOCK_ROOTS = np.array([[[0.5, 0.0], [0.6, 1.5]], [[0.8, 0.0], [-0.9, 0.4]]])
BLOCK_LOG_SCALE = np.log([1.5, 0.7, 0.4, 0.5, 0.8])  # the roots' diagonals, in the order of the coordinates
DF = np.array([2.6, 5.0, 40.0])
SKEW = np.array([0.6, -0.3, 0.0])
LOG_TAIL = np.array([0.2, -0.3, 0.4])
LOGITS = np.array([0.4, -0.3, 0.9])
FAR = 2.0 * LOC[::-1] - 1.0


def block_covariance():
    covariance = np.zeros((5, 5))
    for group, root in zip((GROUPS[0], GROUPS[2]), BLOCK_ROOTS, strict=True):
        covariance[np.ix_(group, group)] = root @ root.T
    covariance[1, 1] = 0.7**2
    return covariance


def blocked():
    scale = np.diagonal(BLOCK_ROOTS, axis1=1, axis2=2)
    lower = np.sqrt(2.0) * np.tril(BLOCK_ROOTS / scale[:, :, None], -1)
    return block_diagonal.Blocked(BLOCK_LOC, BLOCK_LOG_SCALE, (lower,))


def precision_of(covariance):
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    scale = np.diag(root)
    return precision.PrecisionRoot(LOC, -np.log(scale), np.sqrt(len(LOC)) * np.tril(root / scale[:, None], -1))


def student_density(u):
    return jnp.sum(t.logpdf(u, jnp.asarray(DF), jnp.asarray(LOC), jnp.asarray(SCALE)))


def bent_density(v):
    """Jones and Pewsey's, of standardized v, with their epsilon and delta."""
    epsilon, delta = jnp.asarray(SKEW), jnp.exp(-jnp.asarray(LOG_TAIL))
    s = jnp.sinh(delta * jnp.arcsinh(v) - epsilon)
    log_c = 0.5 * jnp.log1p(s**2)
    return jnp.sum(jnp.log(delta) + log_c - 0.5 * jnp.log(2.0 * jnp.pi * (1.0 + v**2)) - 0.5 * s**2)


def skewed_density(u):
    return bent_density((u - LOC) / SCALE) - float(np.log(SCALE).sum())


def mixed_density(u):
    """Two Gaussians and a Student-t, at weights softmax(LOGITS)."""
    each = [norm.logpdf(u, LOC, SCALE).sum(), norm.logpdf(u, FAR, 0.7).sum(), student_density(u)]
    return logsumexp(jnp.stack(each) + jax.nn.log_softmax(jnp.asarray(LOGITS)))


def two_gaussians(u):
    each = [norm.logpdf(u, LOC, SCALE).sum(), norm.logpdf(u, FAR, 0.7).sum()]
    return logsumexp(jnp.stack(each) + jax.nn.log_softmax(jnp.asarray(LOGITS[:2])))


def _of(density):
    return lambda x, z: density(z) + LOG_EVIDENCE


def _of_mixed(density):
    """The density of (exp(u0), sigmoid(u1), u2) by that of u, by the change of variables written out."""

    def log_joint(x, z):
        u = jnp.stack([jnp.log(z["a"]), jnp.log(z["b"]) - jnp.log1p(-z["b"]), z["c"]])
        return density(u) - jnp.log(z["a"]) - jnp.log(z["b"]) - jnp.log1p(-z["b"]) + LOG_EVIDENCE

    return log_joint


REAL, PARTLY = jvi.space(jvi.real(3)), jvi.space(MIXED)
STUDENT = student_t.HeavyTailed(LOC, np.log(SCALE), np.log(DF - 2.0))
BENT = sinh_arcsinh.Skewed(LOC, np.log(SCALE), SKEW, LOG_TAIL)
TWO = mixture.Mixed(LOGITS[:2], (gaussian.Diagonal(LOC, np.log(SCALE)), gaussian.Diagonal(FAR, np.full(3, np.log(0.7)))))
# The same as `mixed_density`, as a mixture of a mixture and a Student-t.
NESTED = mixture.Mixed(np.array([np.log(np.exp(LOGITS[:2]).sum()), LOGITS[2]]), (TWO, STUDENT))


def pair(space):
    return jvi.guides.Mixture((jvi.guides.MeanField(space), jvi.guides.MeanField(space)))


def nested(space):
    return jvi.guides.Mixture((pair(space), jvi.guides.StudentT(space)))


def _two_pairs(x, z):
    """A mixture of two products: dependent, given nothing."""
    each = [
        norm.logpdf(z["a"], LOC, SCALE).sum() + two_gaussians(z["b"]),
        norm.logpdf(z["a"], FAR, 0.7).sum() + two_gaussians(-z["b"]),
    ]
    return logsumexp(jnp.stack(each) + jax.nn.log_softmax(jnp.asarray(LOGITS[:2]))) + LOG_EVIDENCE


def _mirrored(params):
    return params._replace(components=tuple(one._replace(loc=-one.loc) for one in params.components))


CASES |= {
    "block_diagonal": Case(
        jvi.guides.BlockDiagonal(jvi.space(jvi.real(5)), GROUPS),
        blocked(),
        lambda x, z: multivariate_normal.logpdf(z, jnp.asarray(BLOCK_LOC), jnp.asarray(block_covariance())) + LOG_EVIDENCE,
    ),
    "block_diagonal_constrained": Case(
        jvi.guides.BlockDiagonal(PARTLY),
        block_diagonal.Blocked(LOC, np.log(SCALE), ()),
        _of_mixed(lambda u: norm.logpdf(u, LOC, SCALE).sum()),
    ),
    "precision": Case(jvi.guides.Precision(REAL), precision_of(LOWER @ LOWER.T), _gaussian(LOWER @ LOWER.T)),
    "precision_constrained": Case(jvi.guides.Precision(PARTLY), precision_of(LOWER @ LOWER.T), _mixed),
    "student_t": Case(jvi.guides.StudentT(REAL), STUDENT, _of(student_density)),
    "sinh_arcsinh": Case(jvi.guides.SinhArcsinh(REAL), BENT, _of(skewed_density)),
    "sinh_arcsinh_constrained": Case(jvi.guides.SinhArcsinh(PARTLY), BENT, _of_mixed(skewed_density)),
    "dense_sinh_arcsinh": Case(
        jvi.guides.DenseSinhArcsinh(REAL),
        sinh_arcsinh.DenseSkewed(*dense(LOC, LOWER)[:2], SKEW, LOG_TAIL, dense(LOC, LOWER).lower),
        lambda x, z: bent_density(jnp.linalg.solve(jnp.asarray(LOWER), z - LOC)) - np.log(np.diag(LOWER)).sum() + LOG_EVIDENCE,
    ),
    "mixture": Case(pair(REAL), TWO, _of(two_gaussians)),
    "mixture_nested": Case(nested(REAL), NESTED, _of(mixed_density)),
    "mixture_constrained": Case(nested(PARTLY), NESTED, _of_mixed(mixed_density)),
    "mixture_in_product": Case(
        jvi.guides.product(a=pair(REAL), b=jvi.guides.StudentT(REAL)),
        {"a": TWO, "b": STUDENT},
        lambda x, z: two_gaussians(z["a"]) + student_density(z["b"]) + LOG_EVIDENCE,
    ),
    "mixture_of_products": Case(
        jvi.guides.Mixture((jvi.guides.product(a=jvi.guides.MeanField(REAL), b=pair(REAL)),) * 2),
        mixture.Mixed(
            LOGITS[:2],
            ({"a": TWO.components[0], "b": TWO}, {"a": TWO.components[1], "b": _mirrored(TWO)}),
        ),
        _two_pairs,
    ),
}


def _flow_of(guide, layers, seed, x=None, scale=0.1, **kwargs):
    """Random parameters, and the log-joint of which the flow is then the posterior, as `flow_maps` writes it."""
    params = flow_maps.filled(guide, seed, scale, x)

    def log_joint(x, z):
        u = jnp.ravel(z)
        return flow_maps.log_density(guide, params, u, layers(guide, params, x), **kwargs) + LOG_EVIDENCE

    return Case(guide, params, log_joint, x)


def _affine_couplings(guide, params, x):
    return flow_maps.coupling_layers(guide, params, None if x is None else jnp.ravel(x), flow_maps.affine)


def _spline_couplings(guide, params, x):
    return flow_maps.coupling_layers(guide, params, None, flow_maps.spline)


def _autoregressions(guide, params, x):
    return flow_maps.autoregressive_layers(guide, params, None if x is None else jnp.ravel(x))


def _first(x):
    return x[1]["a"]


_FLOW = {"num_layers": 2, "hidden": (5,), "activation": jnp.tanh}
_R3, _R2 = jvi.space(jvi.real(3)), jvi.space(jvi.real(2))
_CONTEXT = np.array([0.5, -1.0])
CASES |= {
    "neural_spline": _flow_of(jvi.guides.NeuralSpline(_R3, num_bins=3, **_FLOW), _spline_couplings, 2),
    "inverse_autoregressive_conditional": _flow_of(
        jvi.guides.InverseAutoregressive(_R3, context=jnp.ravel, **_FLOW), _autoregressions, 3, _CONTEXT
    ),
    "masked_autoregressive": _flow_of(jvi.guides.MaskedAutoregressive(_R3, **_FLOW), _autoregressions, 4, reads_draws=True),
}
_NVP = jvi.guides.RealNVP(jvi.space(MIXED), context=jnp.ravel, **_FLOW)
_NVP_PARAMS = flow_maps.filled(_NVP, 5, 0.1, _CONTEXT)
_IAF = jvi.guides.InverseAutoregressive(_R2, context=_first, **_FLOW)
_EARLIER = flow_maps.filled(jvi.guides.RealNVP(_R2, **_FLOW), 6, 0.1)
_LATER = flow_maps.filled(_IAF, 7, 0.1, (None, {"a": np.zeros(2)}))


def _mixed_flow(x, z):
    u = jnp.stack([jnp.log(z["a"]), jnp.log(z["b"]) - jnp.log1p(-z["b"]), z["c"]])
    log_det = -jnp.log(z["a"]) - jnp.log(z["b"]) - jnp.log1p(-z["b"])
    return flow_maps.log_density(_NVP, _NVP_PARAMS, u, _affine_couplings(_NVP, _NVP_PARAMS, x)) + log_det + LOG_EVIDENCE


def _flow_after_flow(x, z):
    first = jvi.guides.RealNVP(_R2, **_FLOW)
    before = flow_maps.log_density(first, _EARLIER, z["a"], _affine_couplings(first, _EARLIER, None))
    return before + flow_maps.log_density(_IAF, _LATER, z["b"], _autoregressions(_IAF, _LATER, z["a"])) + LOG_EVIDENCE


CASES |= {
    "real_nvp_constrained_conditional": Case(_NVP, _NVP_PARAMS, _mixed_flow, _CONTEXT),
    "flow_after_flow": Case(
        jvi.guides.sequence(a=jvi.guides.RealNVP(_R2, **_FLOW), b=_IAF), {"a": _EARLIER, "b": _LATER}, _flow_after_flow
    ),
}


# a ~ N(m, 0.8^2) and z | a ~ N(1.5 a + 0.4 x, 0.5^2): z's marginal, and a given z, by coordinate.
CAUSE = {"loc": np.array([0.3, -0.6]), "scale": 0.8, "weight": 1.5, "drift": 0.4, "noise": 0.5}
MARGINAL_SCALE = math.hypot(CAUSE["weight"] * CAUSE["scale"], CAUSE["noise"])
GAIN = CAUSE["weight"] * CAUSE["scale"] ** 2 / MARGINAL_SCALE**2
CAUSE_SCALE = CAUSE["scale"] * CAUSE["noise"] / MARGINAL_SCALE


def _effect(params, x):
    loc = params["weight"] * x[1]["a"] + params["drift"] * x[0]
    return distrax.MultivariateNormalDiag(loc, jnp.full(2, params["noise"]))


def _cause(params, x):
    """a given (x, z), of which the marginal mean of z is linear in x."""
    x, z = x
    return distrax.MultivariateNormalDiag(
        params["loc"] + params["gain"] * (z - params["drift"] * x), jnp.full(2, params["scale"])
    )


def _linear_effect(rng, x):
    return {"weight": jnp.ones(()), "drift": jnp.zeros(()), "noise": jnp.ones(())}


def _linear_cause(rng, x):
    return {"loc": jnp.zeros(2), "gain": jnp.zeros(()), "drift": jnp.zeros(()), "scale": jnp.ones(())}


def auxiliary_case():
    """The exact reverse model, and the marginal as the posterior."""
    pair = jvi.guides.sequence(
        a=jvi.guides.MeanField(jvi.space(jvi.real(2))), z=jvi.guides.from_distribution(_linear_effect, _effect)
    )
    forward = {"a": gaussian.Diagonal(CAUSE["loc"], np.full(2, math.log(CAUSE["scale"])))}
    forward["z"] = {name: np.asarray(CAUSE[name]) for name in ("weight", "drift", "noise")}
    reverse = {"loc": CAUSE["loc"] * (1.0 - GAIN * CAUSE["weight"]), "gain": np.asarray(GAIN)}
    reverse |= {"drift": np.asarray(CAUSE["drift"]), "scale": np.asarray(CAUSE_SCALE)}
    guide = jvi.guides.Auxiliary(pair, jvi.guides.from_distribution(_linear_cause, _cause))
    return Case(guide, auxiliary.Reversed(forward, reverse), _marginal, 0.9)


def _marginal(x, z):
    loc = CAUSE["weight"] * CAUSE["loc"] + CAUSE["drift"] * x
    return norm.logpdf(z, loc, MARGINAL_SCALE).sum() + LOG_EVIDENCE


def around(params, x):
    return distrax.MultivariateNormalDiag(params["loc"] + params["weight"] * x[1], jnp.full(2, params["scale"]))


def around_init(rng, x):
    return {"loc": jnp.zeros(2), "weight": jnp.ones(()), "scale": jnp.ones(())}


def _semi_implicit_case():
    """Exact at a finite K only where the draws do not depend on what is mixed over."""
    guide = jvi.guides.SemiImplicit(
        jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.guides.from_distribution(around_init, around), num_auxiliary=3
    )
    params = semi_implicit.Mixed(
        gaussian.Diagonal(LOC[:2], np.log(SCALE[:2])), {"loc": LOC[1:], "weight": np.zeros(()), "scale": np.asarray(0.7)}
    )
    return Case(guide, params, lambda x, z: norm.logpdf(z, LOC[1:], 0.7).sum() + LOG_EVIDENCE)


def _annealed_case():
    """Between equal densities the energy is kept up to the square of the step."""
    base = jvi.guides.FullRank(jvi.space(MIXED))
    guide = jvi.guides.Annealed(base, jvi.model(_mixed), num_steps=3, init_step=1e-3)
    path = annealed.Path(dense(LOC, LOWER), np.log([1e-3, 3e-3, 2e-3]), np.array([0.3, -0.5, 1.0]), np.asarray(0.8))
    return Case(guide, path, _mixed)


def _hierarchical_beside():
    inner, moved = auxiliary_case(), _annealed_case()
    return Case(
        jvi.guides.product(a=inner.guide, b=jvi.guides.product(c=moved.guide)),
        {"a": inner.params, "b": {"c": moved.params}},
        lambda x, z: _marginal(x, z["a"]) + _mixed(None, z["b"]["c"]) - LOG_EVIDENCE,
        0.9,
    )


CASES |= {
    "auxiliary": auxiliary_case(),
    "semi_implicit": _semi_implicit_case(),
    "annealed": _annealed_case(),
    "importance_weighted": Case(
        jvi.guides.ImportanceWeighted(CASES["mean_field"].guide, jvi.model(CASES["mean_field"].log_joint), num_samples=4),
        CASES["mean_field"].params,
        CASES["mean_field"].log_joint,
    ),
    "auxiliary_beside_annealed": _hierarchical_beside(),
}
