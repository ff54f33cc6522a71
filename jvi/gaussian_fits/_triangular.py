"""Gaussians with a triangular root within groups of coordinates, which are independent of each other."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular

from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._draws import nearby
from jvi.guides.functions import Guide
from jvi.guides.gaussian import Dense, Diagonal, FullRank, MeanField, dense
from jvi.spaces import Space

_MOST = 50.0  # largest log-scale


class Triangular:
    """u = loc + R noise, R lower triangular within each group and zero between groups.

    Groups of one size are worked on together, so that a thousand small ones cost no more than one.

    Attributes:
      loc: [D].
      index: for each size of group, which coordinates they hold [B, b], in rising order.
      roots: for each size of group, their roots [B, b, b].
      num_params, num_noise: P and D.
    """

    def __init__(self, loc: np.ndarray, index: tuple[np.ndarray, ...], roots: tuple[np.ndarray, ...]) -> None:
        self.loc, self.index, self.roots = loc, index, roots
        self._below = [np.tril_indices(where.shape[1], -1) for where in index]
        self._log_det = sum(float(np.sum(np.log(np.abs(np.diagonal(root, 0, 1, 2))))) for root in roots)
        self.num_params = 2 * len(loc) + sum(len(w) * len(b[0]) for w, b in zip(index, self._below, strict=True))
        self.num_noise = len(loc)

    @classmethod
    def of(cls, gaussian: Gaussian, groups: tuple[tuple[int, ...], ...]) -> Triangular:
        """The member closest to a dense Gaussian, KL(member || Gaussian): its precision's blocks are the Gaussian's."""
        index = _by_size(groups)
        if len(groups) == 1:
            return cls(gaussian.loc, index, (gaussian.chol[None],))
        inverse = solve_triangular(gaussian.chol, np.eye(len(gaussian.loc)), lower=True)
        width = 1.0 / np.linalg.norm(inverse, axis=0)
        scaled = inverse * width
        precision = scaled.T @ scaled  # with a unit diagonal, whatever the units of the coordinates
        roots = [np.linalg.cholesky(np.linalg.inv(precision[w[:, :, None], w[:, None]])) for w in index]
        return cls(gaussian.loc, index, tuple(width[w][:, :, None] * root for w, root in zip(index, roots, strict=True)))

    @classmethod
    def spread(cls, loc: np.ndarray, scale: np.ndarray, groups: tuple[tuple[int, ...], ...]) -> Triangular:
        """The member N(loc, diag(scale^2))."""
        index = _by_size(groups)
        return cls(loc, index, tuple(scale[w][:, :, None] * np.eye(w.shape[1]) for w in index))

    @property
    def num_draws(self) -> int:
        """How many draws to begin with."""
        width = max(w.shape[1] for w in self.index)
        return max(64, 4 * len(self.loc) if len(self.loc) <= 500 else 8 * width)

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Noise [count, D], exactly uncorrelated within groups."""
        noise = np.empty((count, len(self.loc)))
        noise[:, np.concatenate([w.ravel() for w in self.index])] = nearby(rng, count, len(self.loc))
        return noise

    def out(self, noise: np.ndarray) -> np.ndarray:
        """Coordinates [N, D] of noise [N, D]."""
        return self.loc + self._apply(noise)

    def entropy(self) -> float:
        """Nats."""
        return self._log_det + 0.5 * len(self.loc) * (1.0 + LOG_2PI)

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """Log-density [N] of the coordinates of noise [N, D]."""
        return -0.5 * np.sum(noise**2, 1) - self._log_det - 0.5 * len(self.loc) * LOG_2PI

    def moved(self, params: np.ndarray) -> Triangular:
        """The member at parameters [P] relative to this one, which is at zero."""
        size = len(self.loc)
        roots, at_scale, at = [], size, 2 * size
        for where, root, below in zip(self.index, self.roots, self._below, strict=True):
            count, width = where.shape
            change = np.zeros((count, width, width))
            log_scale = params[at_scale : at_scale + where.size].reshape(count, width)
            change[:, range(width), range(width)] = np.exp(np.clip(log_scale, -_MOST, _MOST))
            change[:, below[0], below[1]] = params[at : at + count * len(below[0])].reshape(count, -1)
            roots.append(root @ change)
            at_scale, at = at_scale + where.size, at + count * len(below[0])
        return Triangular(self.loc + self._apply(params[None, :size])[0], self.index, tuple(roots))

    def slope(self, params: np.ndarray, noise: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """Gradient [P] of the ELBO of `moved(params)`, from the target's gradients [N, D] at its draws."""
        shift, scales, belows = np.empty(len(self.loc)), [], []
        at = len(self.loc)
        for where, root, below in zip(self.index, self.roots, self._below, strict=True):
            pulled = _columns(grads, where) @ root  # [B, N, b]
            shift[where] = pulled.mean(1)
            outer = pulled.transpose(0, 2, 1) @ _columns(noise, where) / len(noise)
            log_scale = params[at : at + where.size]
            scales.append(np.diagonal(outer, 0, 1, 2).ravel() * np.exp(np.clip(log_scale, -_MOST, _MOST)) + 1.0)
            belows.append(outer[:, below[0], below[1]].ravel())
            at += where.size
        return np.concatenate([shift, *scales, *belows])

    def guide(self, space: Space) -> tuple[Guide, Diagonal | Dense]:
        """jvi's guide of this Gaussian, and its parameters."""
        if all(w.shape[1] == 1 for w in self.index):
            scale = self._apply(np.ones((1, len(self.loc))))[0]
            return MeanField(space), Diagonal(jnp.asarray(self.loc), jnp.log(jnp.asarray(scale)))
        chol = np.zeros((len(self.loc),) * 2)
        for where, root in zip(self.index, self.roots, strict=True):
            chol[where[:, :, None], where[:, None]] = root
        return FullRank(space), dense(jnp.asarray(self.loc), jnp.asarray(chol))

    def _apply(self, noise: np.ndarray) -> np.ndarray:
        out = np.empty(noise.shape)
        for where, root in zip(self.index, self.roots, strict=True):
            # A group's coordinates [B, N, b] go back to their columns [N, B, b].
            out[:, where] = (_columns(noise, where) @ root.transpose(0, 2, 1)).transpose(1, 0, 2)
        return out


def _columns(matrix: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The groups' columns of a matrix [N, D] -> [B, N, b]."""
    return matrix.T[where].transpose(0, 2, 1)


def _by_size(groups: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, ...]:
    sizes = sorted({len(group) for group in groups})
    return tuple(np.array([sorted(group) for group in groups if len(group) == size]) for size in sizes)
