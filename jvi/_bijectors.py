"""The maps from R^n that supports are made of: TFP's bijectors, and two that TFP lacks."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from jvi._typing import Array

tfb = tfp.bijectors

exp = tfb.Exp
sigmoid = tfb.Sigmoid
ascending = tfb.Ascending
correlation = tfb.CorrelationCholesky


def running_sum_of_exp() -> tfb.Bijector:
    """u -> cumsum(exp(u)) along the last axis."""
    return tfb.Chain([tfb.Cumsum(), tfb.Exp()])


def triangle() -> tfb.Bijector:
    """R^(n(n+1)/2) -> lower-triangular [n, n] with a positive diagonal."""
    return tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)


def triangle_diagonal(size: int) -> np.ndarray:
    """Which of `triangle`'s `size` coordinates land on the diagonal: bool [size]."""
    with jax.ensure_compile_time_eval():  # also while something else is being traced
        where = np.asarray(tfp.math.fill_triangular(jnp.arange(size)))
    return np.isin(np.arange(size), np.diag(where))


class Sticks(tfb.IteratedSigmoidCentered):
    """Stick-breaking onto the simplex, in logs: finite far out, and kept off the faces, where a later log is infinite."""

    def _forward(self, x: Array) -> Array:
        return jnp.maximum(super()._forward(x), np.finfo(x.dtype).tiny)

    def _forward_log_det_jacobian(self, x: Array) -> Array:
        # dz_k/dx_k = stick_k s_k (1 - s_k), where stick_k = prod_{j<k} (1 - s_j) is what is left of the stick.
        # So (1 - s_j) enters as often as there are entries from j on; the same counts centre the map at 1/K each.
        counts = jnp.expand_dims(jnp.arange(x.shape[-1], 0, -1, dtype=x.dtype), tuple(range(x.ndim - 1)))
        logit = x - jnp.log(counts)
        return jnp.sum(jax.nn.log_sigmoid(logit) + counts * jax.nn.log_sigmoid(-logit), -1)


class Stereographic(tfb.Bijector):
    """R^(n-1) -> the unit sphere in R^n without its south pole; the determinant is that of surface to volume."""

    def __init__(self) -> None:
        super().__init__(forward_min_event_ndims=1, name="stereographic")

    def _forward(self, x: Array) -> Array:
        square = jnp.sum(x**2, -1, keepdims=True)
        return jnp.concatenate([2 * x, 1 - square], -1) / (1 + square)

    def _inverse(self, y: Array) -> Array:
        return y[..., :-1] / (1 + y[..., -1:])

    def _forward_log_det_jacobian(self, x: Array) -> Array:
        return x.shape[-1] * (math.log(2.0) - jnp.log1p(jnp.sum(x**2, -1)))

    def _forward_event_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], input_shape[-1] + 1)

    def _inverse_event_shape(self, output_shape: Any) -> Any:
        return (*output_shape[:-1], output_shape[-1] - 1)
