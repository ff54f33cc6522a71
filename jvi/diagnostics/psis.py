"""Pareto-smoothed importance sampling: k-hat, and weights with a tamed tail. Pure, on the device, jit-able."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jvi._typing import Array, Scalar

__all__ = ["khat_threshold", "pareto_khat", "psis"]


def pareto_khat(log_w: Array) -> Scalar:
    """k-hat: the shape of the generalized Pareto distribution fitted to the upper tail of the weights.

    The weights have about 1 / k-hat finite moments. Below `khat_threshold(S)` importance sampling with them works; from 0.7 on it is
    biased, at 1 or more the weights have no mean. Necessary, not sufficient: a mode that q never visits leaves no trace in it.

    Args:
      log_w: log-weights [S], nats, of fresh draws.

    Returns:
      k-hat, a scalar; infinity where there is no tail to fit (fewer than 5 distinct large weights).

    Raises:
      ValueError: if `log_w` is not [S] with S >= 25 or so, whose tail has 5 draws or more.

    Example:
      >>> import jax, jvi
      >>> u = jax.random.uniform(jax.random.key(0), (10_000,))
      >>> round(float(jvi.diagnostics.pareto_khat(-0.5 * jax.numpy.log(u))), 1)  # weights u**-0.5 have k = 0.5
      0.5

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling; the fit is that of Zhang and Stephens
      (2009), with a weak prior that draws k-hat towards 0.5.
    """
    tail, cutoff, valid = _tail(log_w - jnp.max(log_w))
    return _fit(jnp.exp(tail) - jnp.exp(cutoff), valid)[0]


def psis(log_w: Array) -> tuple[Array, Scalar]:
    """Smooth the largest weights: each becomes the expected order statistic of the fitted Pareto tail.

    Args:
      log_w: log-weights [S], nats.

    Returns:
      Smoothed log-weights [S] in the order given, normalized to sum to one, and k-hat.

    Raises:
      ValueError: as `pareto_khat`.

    Example:
      >>> import jax, jvi
      >>> log_w, khat = jvi.diagnostics.psis(jax.random.normal(jax.random.key(0), (1_000,)))
      >>> log_w.shape, round(float(jax.numpy.exp(log_w).sum()), 4)
      ((1000,), 1.0)

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
    """
    log_w = log_w - jnp.max(log_w)
    tail, cutoff, valid = _tail(log_w)
    khat, sigma = _fit(jnp.exp(tail) - jnp.exp(cutoff), valid)
    count = jnp.sum(valid)
    rank = jnp.cumsum(valid) - 0.5  # expected order statistics at (j - 1/2) / n
    log_survival = jnp.log1p(-jnp.clip(rank / count, 0.0, 1.0 - 0.25 / tail.shape[0]))
    flat = jnp.abs(khat) < jnp.finfo(log_w.dtype).eps
    excess = jnp.where(flat, -log_survival, jnp.expm1(-khat * log_survival) / jnp.where(flat, 1.0, khat)) * sigma
    smoothed = jnp.minimum(jnp.log(excess + jnp.exp(cutoff)), 0.0)
    keep = valid & jnp.isfinite(khat)
    order = jnp.argsort(log_w)[-tail.shape[0] :]
    out = log_w.at[order].set(jnp.where(keep, smoothed, tail))
    return out - logsumexp(out), khat


def khat_of(log_w: np.ndarray) -> float:
    """k-hat of weights on the host [S], by the same fit; infinity where there is no tail."""
    excess, _ = _host_tail(np.asarray(log_w, float))
    return _host_fit(excess)[0]


def smooth(log_w: np.ndarray) -> np.ndarray:
    """Smoothed, normalized log-weights [S] on the host, as those of `psis`."""
    log_w = log_w - np.max(log_w)
    excess, cutoff = _host_tail(log_w)
    khat, sigma = _host_fit(excess)
    out = log_w.copy()
    if np.isfinite(khat):
        survival = np.log1p(-(np.arange(len(excess)) + 0.5) / len(excess))
        tail = sigma * (-survival if abs(khat) < 1e-12 else np.expm1(-khat * survival) / khat)
        out[np.argsort(log_w)[-len(excess) :]] = np.minimum(np.log(tail + np.exp(cutoff)), 0.0)
    out -= np.max(out)
    return out - np.log(np.sum(np.exp(out)))


def _host_tail(log_w: np.ndarray) -> tuple[np.ndarray, float]:
    ordered = np.sort(log_w - np.max(log_w))
    size = math.ceil(min(len(ordered) / 5, 3 * math.sqrt(len(ordered))))
    cutoff = max(ordered[-size - 1], math.log(np.finfo(float).tiny))
    return np.exp(ordered[ordered > cutoff]) - np.exp(cutoff), cutoff


def _host_fit(excess: np.ndarray) -> tuple[float, float]:
    n = len(excess)
    if n < 5:
        return math.inf, math.nan
    grid = np.arange(1, 31 + math.isqrt(n))
    b = (1 - np.sqrt(len(grid) / (grid - 0.5))) / (3.0 * excess[int(n / 4 + 0.5) - 1]) + 1 / excess[-1]
    k = np.mean(np.log1p(-b[:, None] * excess), 1)
    log_like = n * (np.log(-b / k) - k - 1)
    weights = np.exp(log_like - np.max(log_like))
    b_mean = np.sum(b * weights) / np.sum(weights)
    k_mean = np.mean(np.log1p(-b_mean * excess))
    return float((n * k_mean + 5.0) / (n + 10.0)), float(-k_mean / b_mean)


def khat_threshold(num_samples: int) -> float:
    """The k-hat up to which `num_samples` weighted draws give reliable estimates: min(1 - 1 / log10(S), 0.7).

    Example:
      >>> import jvi
      >>> round(jvi.diagnostics.khat_threshold(1_000), 3), jvi.diagnostics.khat_threshold(10_000)
      (0.667, 0.7)

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
    """
    return min(1.0 - 1.0 / math.log10(max(num_samples, 11)), 0.7)


def _tail(log_w: Array) -> tuple[Array, Array, Array]:
    """The largest log-weights, ascending [M]; the cut-off below them; which of them lie above it (ties may not)."""
    if log_w.ndim != 1 or log_w.shape[0] <= 20:
        raise ValueError(f"log_w must be [S] with S > 20, for a tail to be fitted; got shape {list(log_w.shape)}.")
    size = math.ceil(min(log_w.shape[0] / 5, 3 * math.sqrt(log_w.shape[0])))
    ordered = jnp.sort(log_w)
    cutoff = jnp.maximum(ordered[-size - 1], math.log(np.finfo(log_w.dtype).tiny))
    return ordered[-size:], cutoff, ordered[-size:] > cutoff


def _fit(excess: Array, valid: Array) -> tuple[Scalar, Scalar]:
    """Shape and scale of a generalized Pareto distribution: `excess` [M] ascending, of which the `valid`, last, ones count."""
    prior_scale, prior_count = 3.0, 10.0
    size = excess.shape[0]
    count = jnp.sum(valid)
    n = count.astype(excess.dtype)
    safe = jnp.where(valid, excess, 0.0)

    # A grid of values of b = k / sigma (in Zhang and Stephens' sign), whose length depends on how many excesses count.
    grid = jnp.arange(1, 30 + math.isqrt(size) + 1)
    length = 30 + jnp.floor(jnp.sqrt(n)).astype(int)
    quartile = excess[size - count + jnp.floor(n / 4 + 0.5).astype(int) - 1]
    b = (1 - jnp.sqrt(length / (grid - 0.5))) / (prior_scale * quartile) + 1 / excess[-1]

    def mean_log(b: Array) -> Array:
        return jnp.sum(jnp.log1p(-b[..., None] * jnp.expand_dims(safe, tuple(range(b.ndim)))), -1) / n

    k = mean_log(b)
    in_grid = grid <= length
    log_like = jnp.where(in_grid, n * (jnp.log(-b / k) - k - 1), -jnp.inf)
    weights = jnp.exp(log_like - logsumexp(log_like))
    weights = jnp.where(weights >= 10 * np.finfo(excess.dtype).eps, weights, 0.0)
    b_mean = jnp.sum(jnp.where(weights > 0, b, 0.0) * weights) / jnp.sum(weights)
    k_mean = mean_log(b_mean)
    shape = (n * k_mean + prior_count * 0.5) / (n + prior_count)
    fits = count > 4
    return jnp.where(fits, shape, jnp.inf), jnp.where(fits, -k_mean / b_mean, jnp.nan)
