"""Bounds: K log-weights `log_w[k] = log p(x, z_k) - log q(z_k | x)` -> one scalar, in nats.

Pure functions of an array [K]; whether the gradient through them is the right one is the business of `jvi.gradients`
and `jvi.objectives`.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jvi._typing import Array, Scalar

__all__ = ["elbo", "ess", "iwae", "renyi"]


def elbo(log_w: Array) -> Scalar:
    """The evidence lower bound: mean_k log_w[k].

    Args:
      log_w: log-weights [K], nats.

    Raises:
      ValueError: if `log_w` is not [K] with K >= 1; so do all bounds.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> float(jvi.bounds.elbo(jnp.array([0.0, 2.0])))
      1.0

    References:
      Jordan et al. (1999), An Introduction to Variational Methods for Graphical Models.
    """
    return jnp.mean(_check(log_w))


def iwae(log_w: Array) -> Scalar:
    """The importance-weighted bound: log(mean_k exp(log_w[k])); no less than the ELBO and tends to log p(x) in K.

    Args:
      log_w: log-weights [K], nats.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> round(float(jvi.bounds.iwae(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log 2
      0.6931

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """
    num_samples = _check(log_w).shape[0]
    if num_samples == 1:
        return log_w[0]
    return logsumexp(log_w) - math.log(num_samples)


def renyi(log_w: Array, alpha: float) -> Scalar:
    """The variational Rényi bound: log(mean_k exp((1 - alpha) log_w[k])) / (1 - alpha).

    `alpha` = 1 is the ELBO, 0 the importance-weighted bound, infinity the least log-weight and minus infinity the
    greatest (VR-max). Decreasing in `alpha`.

    Args:
      log_w: log-weights [K], nats.
      alpha: order, any real number or an infinity; static.

    Raises:
      ValueError: if `alpha` is NaN.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> log_w = jnp.array([0.0, 2.0])
      >>> [round(float(jvi.bounds.renyi(log_w, a)), 3) for a in (-jnp.inf, 0.0, 0.5, 1.0, jnp.inf)]
      [2.0, 1.434, 1.24, 1.0, 0.0]

    References:
      Li and Turner (2016), Rényi Divergence Variational Inference.
    """
    check_alpha(alpha)
    if alpha == 1.0:
        return elbo(log_w)
    if alpha == 0.0:
        return iwae(log_w)
    if np.isinf(alpha):
        return jnp.min(_check(log_w)) if alpha > 0 else jnp.max(_check(log_w))
    # Around its mean and by expm1, so that nothing cancels when alpha is close to 1.
    mean = elbo(log_w)
    scaled = (1.0 - alpha) * (log_w - mean)
    top = jnp.max(scaled)
    return mean + (top + jnp.log1p(jnp.mean(jnp.expm1(scaled - top)))) / (1.0 - alpha)


def ess(log_w: Array) -> Scalar:
    """The effective sample size of the weights: (sum_k w_k)^2 / sum_k w_k^2, between 1 and K; 0 if all are zero.

    Args:
      log_w: log-weights [K], nats.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> float(jvi.bounds.ess(jnp.zeros(4))), float(jvi.bounds.ess(jnp.array([0.0, -jnp.inf])))
      (4.0, 1.0)

    References:
      Kong (1992), A Note on Importance Sampling using Standardized Weights.
    """
    if _check(log_w).shape[0] == 1:
        return jnp.where(jnp.isneginf(log_w[0]), 0.0, jnp.ones_like(log_w[0]))
    w = jnp.exp(log_w - jnp.maximum(jnp.max(log_w), np.finfo(log_w.dtype).min))
    square = jnp.sum(w**2)
    return jnp.where(square > 0, jnp.sum(w) ** 2 / jnp.where(square > 0, square, 1.0), jnp.zeros_like(square))


def check_alpha(alpha: float) -> None:
    """Refuse an `alpha` that is no order of a Rényi bound."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)) or np.isnan(alpha):
        raise ValueError(f"alpha must be a number or an infinity, got {alpha!r}.")


def _check(log_w: Array) -> Array:
    if jnp.ndim(log_w) != 1 or jnp.shape(log_w)[0] == 0:
        raise ValueError(f"log_w must be log-weights of shape [K] with K >= 1, got {list(jnp.shape(log_w))}; use jax.vmap.")
    return log_w
