"""Rows of the table of laws: combinators."""

from __future__ import annotations

import math

import distrax
import flax.linen
import jax.numpy as jnp
import numpy as np
from cases_core import _PART, EVIDENCE_OF_ONE, LOC, LOG_EVIDENCE, LOWER, SCALE, X_ONE, Case, _mean_of_one, dense
from jax.scipy.stats import multivariate_normal, norm
from scipy.stats import norm as scipy_norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi.guides import gaussian
from jvi.guides._through import WithNetwork

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

CASES = {
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
