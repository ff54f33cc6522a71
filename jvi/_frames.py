"""Frames: maps from a space in which a target is about N(0, I) to its coordinates."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.linalg import solve_triangular


class Frame(Protocol):
    """A map from v, in which a target is about N(0, I), to its coordinates u; points by row [S, D]."""

    def out(self, v: np.ndarray) -> np.ndarray:
        """Coordinates of v."""
        ...

    def into(self, u: np.ndarray) -> np.ndarray:
        """The inverse of `out`."""
        ...

    def log_det(self, v: np.ndarray) -> np.ndarray:
        """log|du/dv| [S]."""
        ...

    def pull(self, v: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """The gradient by v of f(u(v)) + log|du/dv|, from that of f by u."""
        ...


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

        e_k = shift_k + sum_{j<k} (mix_kj v_j + bend_kj (v_j^2 - 1)) + scale_k sinh(tail_k (arsinh v_k + skew_k))
        log scale_k = log_scale_k + sum_{j<k} (spread_kj v_j + level_kj rounded(v_j))

    `spread` lets a coordinate set the scale of later ones, as a hierarchical model's does, and `level` lets that come to an end, as it
    does where the data take over from the prior; `bend` makes them follow its square.

    Attributes:
      base: the affine frame.
      order: which of its coordinates comes k-th [D].
      params: all that follows, as `unpack` takes it apart.
      shift, log_scale, skew, log_tail: [D].
      mix: strictly lower triangular [D, D].
      spread, bend, level: the same, of which there are only a few first columns [D, min(D, LEADERS)].

    References:
      Jones and Pewsey (2009), Sinh-arcsinh Distributions.
    """

    def __init__(self, base: Affine, order: np.ndarray, params: np.ndarray) -> None:
        self.base, self.order, self.params = base, order, params
        self.shift, self.log_scale, self.skew, self.log_tail, *matrices = unpack(params, len(order))
        self.mix, self.spread, self.bend, self.level = matrices

    def out(self, v: np.ndarray) -> np.ndarray:
        """Coordinates [S, D] of v [S, D]."""
        scale, t = self.parts(v)
        return self.base.out(self._straight(self._centre(v) + scale * np.sinh(t)))

    def into(self, u: np.ndarray) -> np.ndarray:
        """The inverse of `out`."""
        e = self.base.into(u)[:, self.order]
        v = np.zeros_like(e)
        for k in range(e.shape[1]):
            led = v[:, :LEADERS]  # the matrices are zero where v is not there yet
            centre = self.shift[k] + v[:, :k] @ self.mix[k, :k] + (led**2 - 1.0) @ self.bend[k]
            log_scale = self.log_scale[k] + led @ self.spread[k] + rounded(led) @ self.level[k]
            t = np.arcsinh((e[:, k] - centre) * np.exp(-_clip(log_scale)))
            v[:, k] = np.sinh(t * np.exp(-self.log_tail[k]) - self.skew[k])
        return v

    def log_det(self, v: np.ndarray) -> np.ndarray:
        """log|du/dv| [S]."""
        own = np.log(np.cosh(self.parts(v)[1])) + self.log_tail - 0.5 * np.log1p(v**2)
        return self.base.log_det(v) + np.sum(_clip(self._log_scale(v)) + own, 1)

    def pull(self, v: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """The gradient by v of f(u(v)) + log|du/dv|, from that of f by u."""
        g = self.base.pull(v, grads)[:, self.order]
        scale, t = self.parts(v)
        stretch = (g * scale * np.sinh(t) + 1.0) * (np.abs(self._log_scale(v)) < _MOST)
        own = (g * scale * np.cosh(t) + np.tanh(t)) * np.exp(self.log_tail) / np.sqrt(1.0 + v**2) - v / (1.0 + v**2)
        led, out = v[:, :LEADERS], own + g @ self.mix
        out[:, :LEADERS] += stretch @ self.spread + 2.0 * (led * (g @ self.bend) + _near(led) * (stretch @ self.level))
        return out

    def parts(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """scale_k and tail_k (arsinh v_k + skew_k), [S, D] each."""
        return np.exp(_clip(self._log_scale(v))), np.exp(self.log_tail) * (np.arcsinh(v) + self.skew)

    def _centre(self, v: np.ndarray) -> np.ndarray:
        return self.shift + v @ self.mix.T + (v[:, :LEADERS] ** 2 - 1.0) @ self.bend.T

    def _log_scale(self, v: np.ndarray) -> np.ndarray:
        return self.log_scale + v[:, :LEADERS] @ self.spread.T + rounded(v[:, :LEADERS]) @ self.level.T

    def _straight(self, e: np.ndarray) -> np.ndarray:
        out = np.empty_like(e)
        out[:, self.order] = e
        return out


_MOST = 12.0  # largest log-scale


LEADERS = 4  # how many coordinates may set scales and bend others: with all of them, draws would be fitted and not the target


def entries(size: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Which entries of `mix` are free, and which of `spread`, `bend` and `level`."""
    rows, columns = np.tril_indices(size, -1)
    return (rows, columns), (rows[columns < LEADERS], columns[columns < LEADERS])


def rounded(v: np.ndarray) -> np.ndarray:
    """v^2 - 1 near the middle, and a line beyond: scales must not run away where few draws have been."""
    return _near(v) * (2.0 * v - _near(v)) - 1.0


def _near(v: np.ndarray) -> np.ndarray:
    return np.clip(v, -2.5, 2.5)


def unpack(params: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """The parts of a bent frame's parameters: shift, log_scale, skew, log_tail, and the free entries of mix, spread, bend and level."""
    below, led = entries(size)
    parts, at = list(params[: 4 * size].reshape(4, size)), 4 * size
    few = min(size, LEADERS)
    for where, width in ((below, size), (led, few), (led, few), (led, few)):
        matrix = np.zeros((size, width))
        matrix[where] = params[at : at + len(where[0])]
        parts.append(matrix)
        at += len(where[0])
    return tuple(parts)


def _clip(log_scale: np.ndarray) -> np.ndarray:
    return np.clip(log_scale, -_MOST, _MOST)
