"""Mixtures of multivariate Student-t distributions: proposals whose tails are heavier than the target's, and which adapt to it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp

DEGREES = (3.0, 6.0, 12.0)


class Mixture(NamedTuple):
    """K Student-t components in D dimensions.

    Attributes:
      log_mix: normalized log-weights of the components [K].
      loc: [K, D].
      chol: roots of the scale matrices, lower triangular [K, D, D].
      df: degrees of freedom, one for all.

    Example:
      >>> import numpy as np
      >>> from jvi._mixtures import Mixture
      >>> mixture = Mixture(np.zeros(1), np.zeros((1, 2)), np.eye(2)[None], 12.0)
      >>> mixture.sample(np.random.default_rng(0), 5).shape
      (5, 2)
    """

    log_mix: np.ndarray
    loc: np.ndarray
    chol: np.ndarray
    df: float

    def sample(self, rng: np.random.Generator, num_samples: int) -> np.ndarray:
        """Draws [S, D] in random order: stratified over the components, which lowers the variance of the weights."""
        levels = (np.arange(num_samples) + rng.uniform()) / num_samples
        total = np.cumsum(np.exp(self.log_mix))
        chosen = np.minimum(np.searchsorted(total, levels * total[-1]), len(total) - 1)
        rng.shuffle(chosen)
        eps = (
            rng.normal(size=(num_samples, self.loc.shape[1])) / np.sqrt(rng.chisquare(self.df, num_samples) / self.df)[:, None]
        )
        out = np.empty_like(eps)
        for k in np.unique(chosen):
            out[chosen == k] = self.loc[k] + eps[chosen == k] @ self.chol[k].T
        return out

    def log_prob(self, v: np.ndarray) -> np.ndarray:
        """log q of v [S, D] -> [S], nats."""
        return logsumexp(self.log_mix + self.components(v)[0], axis=1)

    def components(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-density and squared Mahalanobis distance under each component: [S, K] each."""
        log_q, squares = np.empty((len(v), len(self.loc))), np.empty((len(v), len(self.loc)))
        for k, (loc, chol) in enumerate(zip(self.loc, self.chol, strict=True)):
            squares[:, k] = np.sum(solve_triangular(chol, (v - loc).T, lower=True, check_finite=False) ** 2, 0)
            log_q[:, k] = _log_t(squares[:, k], self.df, len(loc)) - np.sum(np.log(np.diag(chol)))
        return log_q, squares

    def score(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log q [S] and its gradient [S, D]."""
        log_q, squares = self.components(v)
        total = logsumexp(self.log_mix + log_q, axis=1)
        member = np.exp(self.log_mix + log_q - total[:, None])
        pull = member * (self.df + v.shape[1]) / (self.df + squares)
        grad = np.zeros_like(v)
        for k, (loc, chol) in enumerate(zip(self.loc, self.chol, strict=True)):
            white = solve_triangular(chol, (v - loc).T, lower=True, check_finite=False)
            grad -= pull[:, k, None] * solve_triangular(chol, white, lower=True, trans=1, check_finite=False).T
        return total, grad


def adapted(mixture: Mixture, v: np.ndarray, log_w: np.ndarray) -> Mixture:
    """One EM step of the mixture towards weighted draws, with a prior worth a few draws at what it was.

    Args:
      mixture: what the draws came from.
      v: draws [S, D].
      log_w: their log-weights [S]; tempered here until a part of them counts.

    References:
      Cappé, Douc, Guillin, Marin and Robert (2008), Adaptive Importance Sampling in General Mixture Classes.
    """
    size = v.shape[1]
    w = np.exp(tempered(log_w, least=min(0.5 * len(v), 20.0 + 5.0 * size)))
    log_q, squares = mixture.components(v)
    member = np.exp(mixture.log_mix + log_q - logsumexp(mixture.log_mix + log_q, axis=1)[:, None]) * w[:, None]
    pull = member * (mixture.df + size) / (mixture.df + squares)
    mass = member.sum(0)
    count = mass / np.sum(w**2)  # how many draws a component's share is worth
    keep = (1.0 + size) / (1.0 + size + count)
    locs, chols = mixture.loc.copy(), mixture.chol.copy()
    for k in range(len(mass)):
        if keep[k] > 0.9:
            continue
        locs[k] = pull[:, k] @ v / pull[:, k].sum()
        apart = v - locs[k]
        matrix = (apart * pull[:, k, None]).T @ apart / mass[k]
        try:
            chols[k] = np.linalg.cholesky(keep[k] * mixture.chol[k] @ mixture.chol[k].T + (1.0 - keep[k]) * matrix)
        except np.linalg.LinAlgError:
            locs[k] = mixture.loc[k]
    new = Mixture(np.log(0.95 * mass / mass.sum() + 0.05 / len(mass)), locs, chols, mixture.df)
    return max((new._replace(df=df) for df in DEGREES), key=lambda one: float(w @ one.log_prob(v)))


def tempered(log_w: np.ndarray, least: float) -> np.ndarray:
    """Normalized log-weights, raised to the largest power of 1, 1/2, 1/4, ... at which their effective number is `least`."""
    out = log_w - logsumexp(log_w)
    for _ in range(11):
        if np.exp(-logsumexp(2.0 * out)) >= least:
            break
        out = 0.5 * out - logsumexp(0.5 * out)
    return out


def _log_t(square: np.ndarray, df: float, size: int) -> np.ndarray:
    norm = gammaln(0.5 * (df + size)) - gammaln(0.5 * df) - 0.5 * size * math.log(df * math.pi)
    return norm - 0.5 * (df + size) * np.log1p(square / df)
