"""Bounds: K log-weights `log_w[k] = log p(x, z_k) - log q(z_k | x)` -> one scalar, in nats.

Pure functions of an array [K]; whether the gradient through them is the right one is the business of `jvi.gradients`
and `jvi.objectives`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jvi._typing import Array, Scalar

__all__ = ["cubo", "elbo", "ess", "iwae", "log_spaced", "miwae", "renyi", "tvo"]


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


def miwae(log_w: Array, num_groups: int) -> Scalar:
    """The mean over M groups of K log-weights each of the groups' importance-weighted bounds.

    Args:
      log_w: log-weights [M * K], nats, group after group.
      num_groups: M; 1 is `iwae`, M * K the ELBO.

    Raises:
      ValueError: if the groups are not of one size.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> log_w = jnp.log(jnp.array([1.0, 3.0, 2.0, 2.0]))
      >>> round(float(jvi.bounds.miwae(log_w, 2)), 4)  # log 2 in both groups
      0.6931

    References:
      Rainforth et al. (2018), Tighter Variational Bounds are Not Necessarily Better.
    """
    count = _check(log_w).shape[0]
    if num_groups < 1 or count % num_groups:
        raise ValueError(f"{count} log-weights cannot be parted into num_groups={num_groups} groups of one size.")
    return jnp.mean(jax.vmap(iwae)(log_w.reshape(num_groups, -1)))


def cubo(log_w: Array, order: float = 2.0) -> Scalar:
    """The chi-square upper bound: log(mean_k exp(order * log_w[k])) / order, Rényi's with alpha = 1 - order.

    Only its limit in K bounds log p(x) from above: the logarithm of a finite mean lies below that of its expectation on average, by
    about var(w^order) / (2 K order E[w^order]^2), and at K = 1 it is the ELBO.

    Args:
      log_w: log-weights [K], nats.
      order: greater than 1; static.

    Raises:
      ValueError: if `order` is not greater than 1.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> round(float(jvi.bounds.cubo(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log(5) / 2
      0.8047

    References:
      Dieng et al. (2017), Variational Inference via chi Upper Bound Minimization.
    """
    check_order(order)
    return (logsumexp(order * _check(log_w)) - math.log(log_w.shape[0])) / order


def tvo(log_w: Array, partition: Sequence[float]) -> Scalar:
    """The thermodynamic bound: sum_t (b[t + 1] - b[t]) E_b[t][log w], E_b the mean with weights proportional to w^b.

    The left Riemann sum of the integral over b from 0 to 1 that is log p(x): it bounds log p(x) from below as K grows, the closer the
    finer the partition. (0, 1) is the ELBO.

    Args:
      log_w: log-weights [K], nats.
      partition: b, increasing from 0 to 1; static.

    Raises:
      ValueError: if `partition` is not such a sequence.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> log_w = jnp.array([0.0, 2.0])
      >>> [round(float(jvi.bounds.tvo(log_w, b)), 3) for b in ((0.0, 1.0), (0.0, 0.5, 1.0), jvi.bounds.log_spaced(5))]
      [1.0, 1.231, 1.323]

    References:
      Masrani, Le and Wood (2019), The Thermodynamic Variational Objective.
    """
    betas = np.asarray(check_partition(partition))
    # A weight of zero counts for the ELBO, the first term, only: minus infinity times nothing is nothing.
    finite = jnp.maximum(_check(log_w), np.finfo(log_w.dtype).min)
    weights = jax.nn.softmax(jnp.asarray(betas[1:-1, None], log_w.dtype) * finite[None, :], axis=1)
    means = jnp.sum(weights * finite[None, :], axis=1)
    return betas[1] * elbo(log_w) + jnp.sum(jnp.asarray(np.diff(betas)[1:], log_w.dtype) * means)


def log_spaced(num_partitions: int, first: float = 10**-1.09) -> tuple[float, ...]:
    """A partition for `tvo`: 0, then `num_partitions` points in geometric progression from `first` to 1.

    Args:
      num_partitions: intervals; 1 is (0, 1), whatever `first`.
      first: the first point after 0, by default 0.081, that of the authors' program.

    Raises:
      ValueError: if `num_partitions` is less than 1, or `first` not between 0 and 1.

    Example:
      >>> import jvi
      >>> [round(b, 3) for b in jvi.bounds.log_spaced(3, 0.01)]
      [0.0, 0.01, 0.1, 1.0]

    References:
      Masrani, Le and Wood (2019), The Thermodynamic Variational Objective.
    """
    if num_partitions < 1 or not 0.0 < first < 1.0:
        raise ValueError(
            f"a partition has one interval or more, and its first point lies between 0 and 1; got {num_partitions}, {first!r}."
        )
    return (0.0, *(first ** (1.0 - i / (num_partitions - 1)) for i in range(num_partitions - 1)), 1.0)


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


def check_order(order: float) -> None:
    """Refuse an `order` that is none of a chi-square upper bound."""
    if isinstance(order, bool) or not isinstance(order, (int, float, np.number)) or not 1.0 < order < math.inf:
        raise ValueError(f"order must be a finite number greater than 1, got {order!r}; order 1 is jvi.bounds.iwae.")


def check_partition(partition: Sequence[float]) -> tuple[float, ...]:
    """`partition` as a tuple, if it increases from 0 to 1."""
    betas = tuple(float(beta) for beta in partition)
    if betas[:1] != (0.0,) or betas[-1] != 1.0 or not all(a < b for a, b in itertools.pairwise(betas)):
        raise ValueError(f"partition must increase from 0.0 to 1.0, such as jvi.bounds.log_spaced(5); got {betas}.")
    return betas


def _check(log_w: Array) -> Array:
    if jnp.ndim(log_w) != 1 or jnp.shape(log_w)[0] == 0:
        raise ValueError(f"log_w must be log-weights of shape [K] with K >= 1, got {list(jnp.shape(log_w))}; use jax.vmap.")
    return log_w
