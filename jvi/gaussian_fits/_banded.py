"""Gaussians of which each block of coordinates depends on the one before it alone."""

from __future__ import annotations

from functools import cached_property

import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky_banded
from scipy.linalg.lapack import dtbtrs  # pyright: ignore[reportAttributeAccessIssue]

from jvi._targets import Density
from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._draws import nearby
from jvi.guides.functions import Guide
from jvi.guides.gaussian import Dense, FullRank, dense
from jvi.spaces import Space

_MOST = 50.0  # largest log-scale


class Banded:
    """u = loc + K^-1 noise with precision K' K; K is lower triangular, and zero left of the block before the diagonal's.

    So row i of K holds what coordinate i takes from those before it. K is stored by diagonals: band[k, j] = K[j + k, j].

    Attributes:
      loc: [D].
      band: [2 b, D].
      block_size: b, which divides D.
      num_params, num_noise: P and D.
    """

    def __init__(self, loc: np.ndarray, band: np.ndarray, block_size: int) -> None:
        self.loc, self.band, self.block_size = loc, band, block_size
        size = len(loc)
        offset, column = np.indices(band.shape)
        row = column + offset
        self._below = np.nonzero((offset > 0) & (row < size) & (row // block_size - column // block_size < 2))
        self._rows = self._below[0] + self._below[1]
        self._log_det = -float(np.sum(np.log(np.abs(band[0]))))
        self.num_params, self.num_noise = 2 * size + len(self._rows), size

    @classmethod
    def of(cls, gaussian: Gaussian, block_size: int) -> Banded:
        """The member with a dense Gaussian's covariances of neighbours."""
        covariance = gaussian.chol @ gaussian.chol.T
        return cls(gaussian.loc, _band(covariance, block_size), block_size)

    @classmethod
    def probed(cls, density: Density, loc: np.ndarray, scale: np.ndarray, block_size: int) -> Banded:
        """The member whose precision is the curvature at `loc`, from 3 b differences of gradients; diag(scale^2) where that fails.

        Coordinates three blocks apart are moved at once: of a target with the same dependence, none of them answers for another.
        """
        size = len(loc)
        step = np.maximum(density.eps ** (1.0 / 3.0) * scale, 8.0 * density.eps * np.abs(loc))
        colour = np.arange(size) % (3 * block_size)
        probes = np.stack([np.where(colour == c, step, 0.0) for c in range(min(3 * block_size, size))])
        grads = density.grads(np.concatenate([loc + probes, loc - probes]))[1]
        change = -0.5 * (grads[: len(probes)] - grads[len(probes) :])
        column = np.arange(size)
        curvature = np.zeros((2 * block_size, size))
        for k in range(min(2 * block_size, size)):
            at = column[: size - k]
            # The curvature is symmetric: both of its estimates count.
            curvature[k, at] = 0.5 * (change[colour[at], at + k] / step[at] + change[colour[at + k], at] / step[at + k])
        keep = (column + np.arange(2 * block_size)[:, None]) // block_size - column // block_size < 2
        try:
            band = _reversed_cholesky(np.where(keep, curvature, 0.0))
        except np.linalg.LinAlgError:
            band = np.zeros_like(curvature)
            band[0] = 1.0 / scale
        return cls(loc, band, block_size)

    @property
    def num_draws(self) -> int:
        """How many draws to begin with."""
        return max(256, 32 * self.block_size)

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Noise [count, D]."""
        return nearby(rng, count, len(self.loc))

    def out(self, noise: np.ndarray) -> np.ndarray:
        """Coordinates [N, D] of noise [N, D]."""
        return self.loc + self._solve(noise)

    def entropy(self) -> float:
        """Nats."""
        return self._log_det + 0.5 * len(self.loc) * (1.0 + LOG_2PI)

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """Log-density [N] of the coordinates of noise [N, D]."""
        return -0.5 * np.sum(noise**2, 1) - self._log_det - 0.5 * len(self.loc) * LOG_2PI

    def moved(self, params: np.ndarray) -> Banded:
        """The member at parameters [P] relative to this one, which is at zero.

        They are a shift in units of the Gaussian, the rows' log-scales, and what K's rows gain, in units of the coordinates' sds.
        """
        size = len(self.loc)
        grown = np.exp(np.clip(params[size : 2 * size], -_MOST, _MOST))
        band = self.band.copy()
        band[self._below] += params[2 * size :] / self._sds[self._below[1]]
        band[self._below] *= grown[self._rows]
        band[0] *= grown
        return Banded(self.loc + self._solve(params[None, :size])[0], band, self.block_size)

    def slope(self, params: np.ndarray, noise: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """Gradient [P] of the ELBO of `moved(params)`, from the target's gradients [N, D] at its draws."""
        size = len(self.loc)
        there = self.moved(params)
        centred, pulled = there._solve(noise), there._solve(grads, transposed=True)
        shift = self._solve(grads.mean(0)[None], transposed=True)[0]
        # d(K^-1 noise) = -K^-1 dK K^-1 noise.
        along = [-np.mean(pulled[:, k:] * centred[:, : size - k], 0) for k in range(min(len(self.band), size))]
        outer = np.zeros_like(self.band)
        for k, row in enumerate(along):
            outer[k, : size - k] = row
        grown = np.exp(np.clip(params[size : 2 * size], -_MOST, _MOST))
        below = outer[self._below] * grown[self._rows] / self._sds[self._below[1]]
        return np.concatenate([shift, -np.mean(pulled * noise, 0) - 1.0, below])

    def guide(self, space: Space) -> tuple[Guide, Dense]:
        """jvi's guide of this Gaussian, and its parameters."""
        chol = np.tril(self._solve(np.eye(len(self.loc))).T)
        return FullRank(space), dense(jnp.asarray(self.loc), jnp.asarray(chol))

    def _solve(self, rows: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        """K^-1 of each row, or K^-T."""
        return dtbtrs(self.band, rows.T, uplo=b"L", trans=b"T" if transposed else b"N")[0].T

    @cached_property
    def _sds(self) -> np.ndarray:
        """The coordinates' sds [D], about: they set the units of parameters."""
        return np.sqrt(np.mean(self._solve(np.random.default_rng(0).normal(size=(64, len(self.loc)))) ** 2, 0))


def _band(covariance: np.ndarray, block_size: int) -> np.ndarray:
    """K by diagonals: each block's regression on the block before it."""
    size = len(covariance)
    band = np.zeros((2 * block_size, size))
    for start in range(0, size, block_size):
        now = slice(start, start + block_size)
        before = slice(max(0, start - block_size), start)
        weights = np.linalg.solve(covariance[before, before], covariance[before, now]).T
        left = covariance[now, now] - weights @ covariance[before, now]
        own = np.linalg.inv(np.linalg.cholesky(left))
        rows = np.concatenate([-own @ weights, own], 1)
        for i in range(block_size):
            for j in range(rows.shape[1] - block_size + i + 1):
                column = before.start + j
                band[start + i - column, column] = rows[i, j]
    return band


def _reversed_cholesky(precision: np.ndarray) -> np.ndarray:
    """K with K' K = precision, both by diagonals: the Cholesky factor from the last coordinate to the first."""
    size, width = precision.shape[1], len(precision)
    # In reversed order entry (i, j) is (D-1-j, D-1-i); the factor F has F F' = that, and K is F' turned back.
    turned = np.zeros_like(precision)
    for k in range(min(width, size)):
        turned[k, : size - k] = precision[k, : size - k][::-1]
    factor = cholesky_banded(turned, lower=True)
    band = np.zeros_like(precision)
    for k in range(min(width, size)):
        band[k, : size - k] = factor[k, : size - k][::-1]
    return band
