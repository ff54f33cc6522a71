"""Resampling: which particles go on, `(rng, log_w) -> ancestors [K]`, so that particle k has K w[k] / sum(w) offspring on average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array, PRNGKey

__all__ = ["multinomial", "systematic"]


def multinomial(rng: PRNGKey, log_w: Array) -> Array:
    """Ancestors drawn independently of one another.

    Args:
      rng: key, consumed.
      log_w: log-weights [K], up to a constant.

    Returns:
      Indices [K], int32.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> jvi.resampling.multinomial(jax.random.key(0), jnp.array([-jnp.inf, 0.0])).tolist()
      [1, 1]

    References:
      Gordon, Salmond and Smith (1993), Novel Approach to Nonlinear/Non-Gaussian Bayesian State Estimation.
    """
    return jax.random.categorical(rng, log_w, shape=log_w.shape)


def systematic(rng: PRNGKey, log_w: Array) -> Array:
    """Ancestors at equal distances on the cumulated weights: a particle's offspring differ by less than one from their expectation.

    Args:
      rng: key, consumed.
      log_w: log-weights [K], up to a constant.

    Returns:
      Indices [K], int32, in increasing order.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> jvi.resampling.systematic(jax.random.key(0), jnp.log(jnp.array([0.5, 0.25, 0.0, 0.25]))).tolist()
      [0, 0, 1, 3]

    References:
      Kitagawa (1996), Monte Carlo Filter and Smoother; Douc, Cappé and Moulines (2005), Comparison of Resampling Schemes.
    """
    count = log_w.shape[0]
    cumulated = jnp.cumsum(jax.nn.softmax(log_w))
    ticks = (jax.random.uniform(rng, (), log_w.dtype) + jnp.arange(count, dtype=log_w.dtype)) / count
    # Below the last sum, which rounding may leave beside 1, so that no tick falls on a particle without weight.
    ticks = jnp.minimum(ticks, 1.0 - np.finfo(log_w.dtype).epsneg)
    return jnp.searchsorted(cumulated / cumulated[-1], ticks, side="right").astype(jnp.int32)
