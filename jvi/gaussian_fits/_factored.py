"""Gaussians with covariance diagonal plus low rank, and the projection of others onto them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._draws import with_factors
from jvi.guides.functions import Guide
from jvi.guides.low_rank import Factored as Params
from jvi.guides.low_rank import LowRank
from jvi.spaces import Space

_MOST = 50.0  # largest log-scale


class Factored:
    """u = loc + scale * noise[:D] + factor noise[D:].

    Attributes:
      loc: [D].
      scale: sds of the diagonal part [D].
      factor: [D, r].
      num_params, num_noise: P and D + r.
    """

    def __init__(self, loc: np.ndarray, scale: np.ndarray, factor: np.ndarray) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        self.num_params, self.num_noise = 2 * len(loc) + factor.size, sum(factor.shape)
        self._scaled = factor / scale[:, None]
        self._inner = np.eye(factor.shape[1]) + self._scaled.T @ self._scaled
        self._log_det = float(np.sum(np.log(scale)) + 0.5 * np.linalg.slogdet(self._inner)[1])

    @classmethod
    def of(cls, gaussian: Gaussian, rank: int) -> Factored:
        """The member closest to a dense Gaussian, KL(Gaussian || member)."""
        size = len(gaussian.loc)
        start = cls(gaussian.loc, np.sqrt(np.sum(gaussian.chol**2, 1)), np.zeros((size, rank)))
        return patched(Covariance(np.zeros(size), gaussian.chol, np.zeros((size, 0))), start, num_steps=300)

    @property
    def num_draws(self) -> int:
        """How many draws to begin with."""
        size, rank = self.factor.shape
        return max(64, 4 * (size + rank) if size <= 500 else 16 * rank)

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Noise [count, D + r]."""
        return with_factors(rng, count, *self.factor.shape)

    def out(self, noise: np.ndarray) -> np.ndarray:
        """Coordinates [N, D] of noise [N, D + r]."""
        return self.loc + self._centred(noise)

    def entropy(self) -> float:
        """Nats."""
        return self._log_det + 0.5 * len(self.loc) * (1.0 + LOG_2PI)

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """Log-density [N] of the coordinates of noise [N, D + r]."""
        white = self._centred(noise) / self.scale
        along = white @ self._scaled
        square = np.sum(white**2, 1) - np.sum(along * np.linalg.solve(self._inner, along.T).T, 1)
        return -0.5 * square - self._log_det - 0.5 * len(self.loc) * LOG_2PI

    def moved(self, params: np.ndarray) -> Factored:
        """The member at parameters [P] relative to this one, which is at zero.

        They are a shift in units of the Gaussian, log-scales, and what the factor gains, in units of the scales.
        """
        size = len(self.loc)
        grown = np.exp(np.clip(params[size : 2 * size], -_MOST, _MOST))
        gain = self.scale[:, None] * params[2 * size :].reshape(self.factor.shape)
        return Factored(self.loc + self.scale * self._stretched(params[:size]), self.scale * grown, self.factor + gain)

    def slope(self, params: np.ndarray, noise: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """Gradient [P] of the ELBO of `moved(params)`, from the target's gradients [N, D] at its draws."""
        size = len(self.loc)
        there = self.moved(params)
        shift = self._stretched(self.scale * grads.mean(0))
        solved = np.linalg.solve(there._inner, there._scaled.T).T  # [D, r]
        own = np.mean(grads * noise[:, :size], 0) * there.scale + 1.0 - np.sum(there._scaled * solved, 1)
        outer = grads.T @ noise[:, size:] / len(noise) + solved / there.scale[:, None]
        return np.concatenate([shift, own, (self.scale[:, None] * outer).ravel()])

    def guide(self, space: Space) -> tuple[Guide, Params]:
        """jvi's guide of this Gaussian, and its parameters."""
        guide = LowRank(space, self.factor.shape[1])
        return guide, Params(jnp.asarray(self.loc), jnp.log(jnp.asarray(self.scale)), jnp.asarray(self.factor))

    def _centred(self, noise: np.ndarray) -> np.ndarray:
        size = len(self.loc)
        return noise[:, :size] * self.scale + noise[:, size:] @ self.factor.T

    def _stretched(self, v: np.ndarray) -> np.ndarray:
        """(I + W W')^1/2 v [D], where W is the factor in units of the scales."""
        values, vectors = np.linalg.eigh(self._inner - np.eye(len(self._inner)))
        # Of the square root only its excess over I along W is needed: (sqrt(1 + s) - 1) / s, which is 1/2 at zero.
        values = np.maximum(values, 0.0)
        excess = vectors / (1.0 + np.sqrt(1.0 + values)) @ vectors.T
        return v + self._scaled @ (excess @ (self._scaled.T @ v))


class Covariance(NamedTuple):
    """diag(own) + plus plus' - minus minus', never formed.

    Attributes:
      own: [D].
      plus: [D, k].
      minus: [D, l].
    """

    own: np.ndarray
    plus: np.ndarray
    minus: np.ndarray

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """The product with a matrix [D, m]."""
        return self.own[:, None] * matrix + self.plus @ (self.plus.T @ matrix) - self.minus @ (self.minus.T @ matrix)

    def variances(self) -> np.ndarray:
        """The diagonal [D]."""
        return self.own + np.sum(self.plus**2, 1) - np.sum(self.minus**2, 1)


def patched(covariance: Covariance, start: Factored, *, num_steps: int = 20) -> Factored:
    """The Gaussian, diagonal plus low rank, closest to a covariance, KL(N(., covariance) || it), by factor analysis from `start`.

    A factor of zeros would stay so; it begins along the leading directions.

    Args:
      covariance: what to come close to.
      start: where to begin; its mean is kept.
      num_steps: of expectation and maximization, at most.

    References:
      Rubin and Thayer (1982), EM Algorithms for ML Factor Analysis.
    """
    variances = covariance.variances()
    scale, factor = start.scale, start.factor
    if not factor.any():
        scale, factor = _led(covariance, factor.shape[1])
    for _ in range(num_steps):
        scaled = factor / scale[:, None] ** 2
        weights = np.linalg.solve(np.eye(factor.shape[1]) + factor.T @ scaled, scaled.T)  # E[factors | u] = weights u
        cross = covariance.times(weights.T)
        second = np.eye(factor.shape[1]) - weights @ factor + weights @ cross
        before, factor = factor, np.linalg.solve(second, cross.T).T
        # No more than rounding keeps the rest of a variance from vanishing where a factor explains a coordinate whole.
        scale = np.sqrt(np.maximum(variances - np.sum(factor * cross, 1), 1e-8 * variances))
        if np.max(np.abs(factor - before) / np.sqrt(variances)[:, None]) < 1e-10:
            break
    return Factored(start.loc, scale, factor)


def _led(covariance: Covariance, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and factor to begin from: the leading directions of the correlations."""
    sds = np.sqrt(covariance.variances())
    basis = np.random.default_rng(0).normal(size=(len(sds), rank))
    for _ in range(8):
        basis = np.linalg.qr(covariance.times(basis / sds[:, None]) / sds[:, None])[0]
    values, vectors = np.linalg.eigh(basis.T @ (covariance.times(basis / sds[:, None]) / sds[:, None]))
    factor = sds[:, None] * (basis @ vectors) * np.sqrt(np.maximum(values - 1.0, 0.01))
    return np.sqrt(np.maximum(sds**2 - np.sum(factor**2, 1), 0.1 * sds**2)), factor
