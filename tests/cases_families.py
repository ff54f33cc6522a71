"""Rows of the table of laws: Gaussian-like families and mixtures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from cases_core import LOC, LOG_EVIDENCE, LOWER, MIXED, SCALE, Case, _gaussian, _mixed, dense
from jax.scipy.special import logsumexp
from jax.scipy.stats import multivariate_normal, norm, t

import jvi
from jvi.guides import block_diagonal, delta, gaussian, mixture, precision, sinh_arcsinh, student_t

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


CASES = {
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
    # What a point has in place of an evidence is the maximum of the log-joint, which is where it stands.
    "delta": Case(
        jvi.guides.Delta(PARTLY, of_coordinates=True),
        delta.Point(LOC),
        _of_mixed(lambda u: -0.5 * jnp.sum(((u - LOC) / SCALE) ** 2)),
    ),
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
