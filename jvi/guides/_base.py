"""What Gaussian families on the coordinates of a space share."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jvi._typing import Array, Latent, Scalar
from jvi.spaces import Space

LOG_2PI = math.log(2.0 * math.pi)


def start(space: Space, init_scale: float) -> tuple[Array, Array]:
    """Mean and log standard deviations [D] of a guide that has seen nothing."""
    return jnp.zeros(space.size), jnp.full(space.size, math.log(init_scale))


def log_standard(eps: Array) -> Scalar:
    """The log-density of standard normal noise [D]."""
    return -0.5 * (jnp.sum(eps**2) + eps.shape[0] * LOG_2PI)


def below(lower: Array) -> Array:
    """What lies below the diagonal of a root relative to that diagonal, of parameters [..., D, D] relative to sqrt(D) besides."""
    return jnp.tril(lower, -1) / math.sqrt(lower.shape[-1])


def gaussian_entropy(space: Space, log_root_det: Scalar, z: Latent) -> Scalar:
    """The entropy of a Gaussian on the coordinates whose Cholesky factor has this log-determinant, plus log|det dz/du| at `z`."""
    gaussian = log_root_det + 0.5 * space.size * (1.0 + LOG_2PI)
    constrained = any(support.bijector is not None for support in space.supports)
    return gaussian - space.unconstrain(z)[1] if constrained else gaussian


def check(space: Space, init_scale: float) -> None:
    """Raise for what is no space, and for a scale that is none."""
    if not isinstance(space, Space):
        raise TypeError(f"space must be made by jvi.space, as in jvi.space({{'w': jvi.real(3)}}); got {space!r}.")
    check_scale(init_scale)


def check_scale(init_scale: float) -> None:
    """Raise for a scale that is none."""
    if not init_scale > 0.0:
        raise ValueError(f"init_scale must be positive, got {init_scale}.")
