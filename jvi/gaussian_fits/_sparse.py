"""Gaussians of which each coordinate depends on few others: those of a parent in a tree, and some that all depend on."""

from __future__ import annotations

from functools import cached_property

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._draws import along
from jvi.gaussian_fits._pattern import Pattern
from jvi.guides.functions import Guide
from jvi.guides.gaussian import Dense, FullRank, dense
from jvi.spaces import Space

_MOST = 50.0  # largest log-scale


class Sparse:
    """u = loc + K^-1 noise with precision K' K; K is lower triangular in the pattern's order, and zero outside the pattern.

    So a row of K holds what a coordinate takes from those that it depends on.

    Attributes:
      loc: [D].
      pattern: which entries of K need not vanish.
      own, below: K's diagonal [D], and its entries below [E], in the pattern's order.
      num_params, num_noise: P and D.
    """

    def __init__(self, loc: np.ndarray, pattern: Pattern, own: np.ndarray, below: np.ndarray) -> None:
        self.loc, self.pattern, self.own, self.below = loc, pattern, own, below
        self._log_det = -float(np.sum(np.log(np.abs(own))))
        self.num_params, self.num_noise = 2 * len(loc) + len(below), len(loc)

    @classmethod
    def of(cls, gaussian: Gaussian, pattern: Pattern) -> Sparse:
        """The member whose precision is the pattern's part of a dense Gaussian's, or has its widths where that is none."""
        inverse = np.linalg.inv(gaussian.chol)
        precision = (inverse.T @ inverse)[np.ix_(pattern.order, pattern.order)]
        found = cls.from_precision(gaussian.loc, pattern, np.diag(precision), precision[pattern.rows, pattern.columns])
        return found or cls.spread(gaussian.loc, pattern, np.sqrt(np.sum(gaussian.chol**2, 1)))

    @classmethod
    def spread(cls, loc: np.ndarray, pattern: Pattern, scale: np.ndarray) -> Sparse:
        """The member without dependence, of these widths."""
        return cls(loc, pattern, 1.0 / scale[pattern.order], np.zeros(len(pattern.rows)))

    @classmethod
    def from_precision(cls, loc: np.ndarray, pattern: Pattern, own: np.ndarray, below: np.ndarray) -> Sparse | None:
        """The member with this precision's diagonal and entries below it, in the pattern's order; None if that is not positive."""
        size = len(loc)
        lower = csc_matrix((below, (pattern.rows, pattern.columns)), (size, size))
        # From the last coordinate to the first nothing fills in, because whatever a coordinate is left with depends on one another.
        turned = (lower + lower.T + csc_matrix((own, (np.arange(size),) * 2), (size, size)))[::-1, ::-1].tocsc()
        try:
            factors = _factored(turned)
        except RuntimeError:
            return None
        pivots = factors.U.diagonal()
        if not np.all(pivots > 0.0) or not np.array_equal(factors.perm_r, np.arange(size)):
            return None
        root = factors.L.T[::-1, ::-1].tocsr()
        scale = np.sqrt(pivots)[::-1]
        return cls(loc, pattern, scale, scale[pattern.rows] * np.asarray(root[pattern.rows, pattern.columns]).ravel())

    @property
    def num_draws(self) -> int:
        """How many draws to begin with."""
        return max(256, 32 * (self.pattern.width + self.pattern.num_free))

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Noise [count, D], in the pattern's order."""
        return along(rng, count, self.pattern.num_free, self.pattern.parents, self.pattern.width)

    def out(self, noise: np.ndarray) -> np.ndarray:
        """Coordinates [N, D] of noise [N, D]."""
        return self.loc + self.straight(self._solve(noise))

    def entropy(self) -> float:
        """Nats."""
        return self._log_det + 0.5 * len(self.loc) * (1.0 + LOG_2PI)

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """Log-density [N] of the coordinates of noise [N, D]."""
        return -0.5 * np.sum(noise**2, 1) - self._log_det - 0.5 * len(self.loc) * LOG_2PI

    def moved(self, params: np.ndarray) -> Sparse:
        """The member at parameters [P] relative to this one, which is at zero.

        They are a shift in units of the Gaussian, the rows' log-scales, and what K's rows gain, in units of the coordinates' sds.
        """
        size, (rows, columns) = len(self.loc), (self.pattern.rows, self.pattern.columns)
        grown = np.exp(np.clip(params[size : 2 * size], -_MOST, _MOST))
        below = (self.below + params[2 * size :] / self.sds[columns]) * grown[rows]
        return Sparse(self.loc + self.straight(self._solve(params[None, :size]))[0], self.pattern, self.own * grown, below)

    def slope(self, params: np.ndarray, noise: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """Gradient [P] of the ELBO of `moved(params)`, from the target's gradients [N, D] at its draws."""
        size, (rows, columns), there = len(self.loc), (self.pattern.rows, self.pattern.columns), self.moved(params)
        grads = grads[:, self.pattern.order]
        centred, pulled = there._solve(noise), there._solve(grads, transposed=True)
        shift = self._solve(grads.mean(0)[None], transposed=True)[0]
        grown = np.exp(np.clip(params[size : 2 * size], -_MOST, _MOST))
        # d(K^-1 noise) = -K^-1 dK K^-1 noise.
        along_entries = -np.einsum("ne,ne->e", pulled[:, rows], centred[:, columns]) / len(noise)
        below = along_entries * grown[rows] / self.sds[columns]
        return np.concatenate([shift, -np.mean(pulled * noise, 0) - 1.0, below])

    def root(self) -> np.ndarray:
        """Lower triangular [D, D], of the covariance."""
        inverse = np.empty((len(self.loc),) * 2)
        inverse[self.pattern.order] = self._solve(np.eye(len(self.loc))).T
        return np.linalg.cholesky(inverse @ inverse.T)

    def guide(self, space: Space) -> tuple[Guide, Dense]:
        """jvi's guide of this Gaussian, and its parameters."""
        return FullRank(space), dense(jnp.asarray(self.loc), jnp.asarray(self.root()))

    def precision(self) -> tuple[np.ndarray, np.ndarray]:
        """The diagonal [D] of the precision, and its entries [E], in the pattern's order."""
        size = len(self.loc)
        root = csc_matrix((self.below, (self.pattern.rows, self.pattern.columns)), (size, size)) + csc_matrix(
            (self.own, (np.arange(size),) * 2), (size, size)
        )
        full = (root.T @ root).tocsr()
        return full.diagonal(), np.asarray(full[self.pattern.rows, self.pattern.columns]).ravel()

    def by_covariance(self, slope: np.ndarray) -> np.ndarray:
        """The covariance times a vector [D] of the coordinates."""
        return self.straight(self._solve(self._solve(slope[None, self.pattern.order], transposed=True)))[0]

    def straight(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N, D] of the pattern's order, in that of the coordinates."""
        out = np.empty_like(rows)
        out[:, self.pattern.order] = rows
        return out

    def _solve(self, rows: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        """K^-1 of each row, or K^-T."""
        return self._factors.solve(np.ascontiguousarray(rows.T), "T" if transposed else "N").T

    @cached_property
    def _factors(self):
        size = len(self.loc)
        places = np.arange(size)
        rows, columns = np.concatenate([places, self.pattern.rows]), np.concatenate([places, self.pattern.columns])
        return _factored(csc_matrix((np.concatenate([self.own, self.below]), (rows, columns)), (size, size)))

    @cached_property
    def sds(self) -> np.ndarray:
        """The coordinates' sds [D] in the pattern's order, about: they set the units of parameters."""
        return np.sqrt(np.mean(self._solve(np.random.default_rng(0).normal(size=(64, len(self.loc)))) ** 2, 0))


def _factored(matrix: csc_matrix):
    return splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True, "Equil": False})
