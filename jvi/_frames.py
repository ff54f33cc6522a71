"""Frames: maps from a space in which a target is about N(0, I) to its coordinates."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular


class Affine:
    """u = loc + chol v.

    Attributes:
      loc: [D].
      chol: lower triangular [D, D].

    Example:
      >>> import numpy as np
      >>> from jvi._frames import Affine
      >>> frame = Affine(np.array([1.0, 0.0]), np.array([[2.0, 0.0], [1.0, 1.0]]))
      >>> frame.into(frame.out(np.array([[3.0, 4.0]])))
      array([[3., 4.]])
    """

    def __init__(self, loc: np.ndarray, chol: np.ndarray) -> None:
        self.loc, self.chol = loc, chol
        self._log_det = float(np.sum(np.log(np.abs(np.diag(chol)))))

    def out(self, v: np.ndarray) -> np.ndarray:
        """Coordinates [S, D] of v [S, D]."""
        return self.loc + v @ self.chol.T

    def into(self, u: np.ndarray) -> np.ndarray:
        """The inverse of `out`."""
        return solve_triangular(self.chol, (u - self.loc).T, lower=True).T

    def log_det(self, v: np.ndarray) -> np.ndarray:
        """log|du/dv| [S]."""
        return np.full(len(v), self._log_det)

    def pull(self, v: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """The gradient by v of f(u(v)) + log|du/dv|, from that of f by u."""
        return grads @ self.chol


class Bent:
    """An affine frame after a triangular map, in an order of its own:

        e_k = shift_k + sum_{j<k} mix_kj v_j + sum_{j<k} bend_kj (v_j^2 - 1) + exp(log_scale_k + sum_{j<k} spread_kj v_j) v_k

    `spread` lets a coordinate set the scale of later ones, as a hierarchical model's does; `bend` makes them follow its square.

    Attributes:
      base: the affine frame.
      order: which of its coordinates comes k-th [D].
      shift, log_scale: [D].
      mix, spread, bend: strictly lower triangular [D, D]; the last two have only a few first columns.
    """

    def __init__(self, base: Affine, order: np.ndarray, params: np.ndarray) -> None:
        self.base, self.order = base, order
        self.shift, self.log_scale, self.mix, self.spread, self.bend = unpack(params, len(order))

    def out(self, v: np.ndarray) -> np.ndarray:
        """Coordinates [S, D] of v [S, D]."""
        return self.base.out(self._straight(self.bent(v)[0]))

    def into(self, u: np.ndarray) -> np.ndarray:
        """The inverse of `out`."""
        e = self.base.into(u)[:, self.order]
        v = np.zeros_like(e)
        for k in range(e.shape[1]):
            before = v[:, :k]
            centre = self.shift[k] + before @ self.mix[k, :k] + (before**2 - 1.0) @ self.bend[k, :k]
            v[:, k] = (e[:, k] - centre) * np.exp(-_clip(self.log_scale[k] + before @ self.spread[k, :k]))
        return v

    def log_det(self, v: np.ndarray) -> np.ndarray:
        """log|du/dv| [S]."""
        return self.base.log_det(v) + np.sum(_clip(self.log_scale + v @ self.spread.T), 1)

    def pull(self, v: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """The gradient by v of f(u(v)) + log|du/dv|, from that of f by u."""
        _, scale = self.bent(v)
        g = self.base.pull(v, grads)[:, self.order]
        inside = np.abs(self.log_scale + v @ self.spread.T) < _MOST
        return g * scale + g @ self.mix + 2.0 * v * (g @ self.bend) + ((g * v * scale + 1.0) * inside) @ self.spread

    def bent(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """e and the scales exp(...) in it, [S, D] each."""
        scale = np.exp(_clip(self.log_scale + v @ self.spread.T))
        return self.shift + v @ self.mix.T + (v**2 - 1.0) @ self.bend.T + scale * v, scale

    def _straight(self, e: np.ndarray) -> np.ndarray:
        out = np.empty_like(e)
        out[:, self.order] = e
        return out


_MOST = 12.0  # largest log-scale


LEADERS = 4  # how many coordinates may set scales and bend others: with all of them, draws would be fitted and not the target


def entries(size: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Which entries of `mix` are free, and which of `spread` and `bend`."""
    rows, columns = np.tril_indices(size, -1)
    return (rows, columns), (rows[columns < LEADERS], columns[columns < LEADERS])


def unpack(params: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """The parts of a bent frame's parameters: shift, log_scale, and the free entries of mix, spread and bend."""
    below, led = entries(size)
    parts, at = [params[:size], params[size : 2 * size]], 2 * size
    for where in (below, led, led):
        matrix = np.zeros((size, size))
        matrix[where] = params[at : at + len(where[0])]
        parts.append(matrix)
        at += len(where[0])
    return tuple(parts)


def _clip(log_scale: np.ndarray) -> np.ndarray:
    return np.clip(log_scale, -_MOST, _MOST)
