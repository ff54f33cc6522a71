"""Gaussians of which each coordinate depends on few others: those of a parent in a tree, and some that all depend on."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from jvi._targets import Density
from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._draws import along
from jvi.guides.functions import Guide
from jvi.guides.gaussian import Dense, FullRank, dense
from jvi.spaces import Space

_MOST = 50.0  # largest log-scale


class Pattern(NamedTuple):
    """Which coordinates may depend on which. Made by `pattern`.

    Indices are places in `order`: first the free coordinates, which may all depend on one another, then those of each node of a tree,
    which depend on the free ones, on those of their own node and on those of its parent.

    Attributes:
      order: coordinates [D].
      num_free: how many are free.
      parents: of the nodes; -1 for the root.
      rows, columns: of a lower triangular matrix the entries below its diagonal that need not vanish [E].
      colour: which coordinates may be moved together to hear how gradients answer [D]: free ones alone, and a node's with those of
        depth more or less by three. A coordinate then hears two of them from its children only, and those tell of it themselves.
    """

    order: np.ndarray
    num_free: int
    parents: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    colour: np.ndarray

    @property
    def width(self) -> int:
        """Coordinates of a node."""
        return (len(self.order) - self.num_free) // len(self.parents)


def pattern(node: np.ndarray, parents: np.ndarray) -> Pattern:
    """The pattern of coordinates of a tree's nodes.

    Args:
      node: each coordinate's node, or -1 for the free ones [D]; every node has as many.
      parents: each node's parent, which comes before it; -1 for the root.

    Example:
      >>> import numpy as np
      >>> from jvi.gaussian_fits._sparse import pattern
      >>> found = pattern(np.array([-1, 0, 1, 2, 3, 4]), np.array([-1, 0, 1, 2, 3]))
      >>> found.colour.tolist()
      [0, 1, 2, 3, 1, 2]
    """
    order = np.argsort(node, kind="stable")
    num_free = int(np.sum(node < 0))
    width = (len(node) - num_free) // len(parents)
    depth = np.zeros(len(parents), int)
    for i in range(1, len(parents)):
        depth[i] = depth[parents[i]] + 1
    members = num_free + np.arange(len(parents) * width).reshape(-1, width)
    child = np.flatnonzero(parents >= 0)
    free, tied = np.arange(num_free), members.ravel()
    own, above = np.tril_indices(num_free, -1), np.tril_indices(width, -1)
    pairs = [
        own,
        _pairs(tied[:, None], free[None]),
        (members[:, above[0]], members[:, above[1]]),
        _pairs(members[child][:, :, None], members[parents[child]][:, None, :]),
    ]
    rows, columns = (np.concatenate([np.ravel(pair[side]) for pair in pairs]) for side in (0, 1))
    _, of_tied = np.unique(width * (depth % 3)[:, None] + np.arange(width), return_inverse=True)
    return Pattern(order, num_free, parents, rows, columns, np.concatenate([free, num_free + of_tied.ravel()]))


def declared(space: Space) -> Pattern | None:
    """The pattern that a space declares by `jvi.sequence` and `jvi.tree`; None where it declares none.

    Of several trees those count that have the parents of the largest: their coordinates may depend on one another node by node.
    """
    sizes = {support.parents: support.size for support in space.supports if support.parents}
    if not sizes:
        return None
    parents = max(sizes, key=lambda one: sizes[one])
    parts = [
        np.repeat(np.arange(len(parents)), support.size // len(parents))
        if support.parents == parents
        else -np.ones(support.size, int)
        for support in space.supports
    ]
    return pattern(np.concatenate(parts), np.asarray(parents))


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
        return self.loc + self._straight(self._solve(noise))

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
        below = (self.below + params[2 * size :] / self._sds[columns]) * grown[rows]
        return Sparse(self.loc + self._straight(self._solve(params[None, :size]))[0], self.pattern, self.own * grown, below)

    def slope(self, params: np.ndarray, noise: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """Gradient [P] of the ELBO of `moved(params)`, from the target's gradients [N, D] at its draws."""
        size, (rows, columns), there = len(self.loc), (self.pattern.rows, self.pattern.columns), self.moved(params)
        grads = grads[:, self.pattern.order]
        centred, pulled = there._solve(noise), there._solve(grads, transposed=True)
        shift = self._solve(grads.mean(0)[None], transposed=True)[0]
        grown = np.exp(np.clip(params[size : 2 * size], -_MOST, _MOST))
        # d(K^-1 noise) = -K^-1 dK K^-1 noise.
        along_entries = -np.einsum("ne,ne->e", pulled[:, rows], centred[:, columns]) / len(noise)
        below = along_entries * grown[rows] / self._sds[columns]
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
        return self._straight(self._solve(self._solve(slope[None, self.pattern.order], transposed=True)))[0]

    def _straight(self, rows: np.ndarray) -> np.ndarray:
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
    def _sds(self) -> np.ndarray:
        """The coordinates' sds [D] in the pattern's order, about: they set the units of parameters."""
        return np.sqrt(np.mean(self._solve(np.random.default_rng(0).normal(size=(64, len(self.loc)))) ** 2, 0))


def probed(density: Density, start: Sparse, noise: np.ndarray | None = None) -> tuple[np.ndarray, Sparse | None]:
    """The mean gradient [D] at a member's draws, or at its mean, and the member whose precision is the mean curvature there.

    Curvature is told by differences of gradients, two for each colour and draw, however many coordinates there are. None where it is
    not positive.
    """
    pattern, size = start.pattern, len(start.loc)
    points = start.loc[None] if noise is None else start.out(noise)
    step = np.maximum(density.eps ** (1.0 / 3.0) * start._sds, 8.0 * density.eps * np.abs(start.loc[pattern.order]))
    heard = np.empty((pattern.colour.max() + 1, size))
    slope = np.zeros(size)
    for c in range(len(heard)):
        move = start._straight(np.where(pattern.colour == c, step, 0.0)[None])
        _, grads = density.grads(np.concatenate([points + move, points - move]))
        heard[c] = -0.5 * np.mean(grads[: len(points)] - grads[len(points) :], 0)[pattern.order]
        slope += np.mean(grads, 0) / len(heard)
    rows, columns = pattern.rows, pattern.columns
    own = heard[pattern.colour, np.arange(size)] / step
    below = heard[pattern.colour[columns], rows] / step[columns]
    # Entries among the free, and within a node, are told from both sides.
    sides = (rows < pattern.num_free) | (
        (rows - pattern.num_free) // pattern.width == (columns - pattern.num_free) // pattern.width
    )
    below[sides] = 0.5 * (below[sides] + heard[pattern.colour[rows[sides]], columns[sides]] / step[rows[sides]])
    return slope, Sparse.from_precision(start.loc, pattern, own, below)


def newton(density: Density, start: Sparse, noise: np.ndarray, *, num_steps: int = 40, least: float = 0.1) -> Sparse:
    """Steps towards where the mean gradient is zero and the precision is minus the mean curvature, the optimum of all Gaussians.

    A step goes as far as the ELBO of the same draws rises; they end where none gains more than `least` nats. Where the target depends
    otherwise than the pattern says, they gain nothing, and the start comes back.

    References:
      Opper and Archambeau (2009), The Variational Gaussian Approximation Revisited; Curtis, Powell and Reid (1974), for the colours.
    """
    here, elbo = start, _elbo(density, start, noise)
    for _ in range(num_steps):
        slope, curved = probed(density, here, noise)
        if curved is None:
            break
        (own, below), (own_new, below_new), step = here.precision(), curved.precision(), here.by_covariance(slope)
        for share in (1.0, 0.4, 0.16, 0.06):
            loc = here.loc + share * curved.by_covariance(slope) if share == 1.0 else here.loc + share * step
            trial = Sparse.from_precision(loc, here.pattern, own + share * (own_new - own), below + share * (below_new - below))
            found = -np.inf if trial is None else _elbo(density, trial, noise)
            if trial is not None and found > elbo:
                break
        else:
            break
        gain, here, elbo = found - elbo, trial, found
        if gain < least:
            break
    return here


def _elbo(density: Density, member: Sparse, noise: np.ndarray) -> float:
    return float(np.mean(density.values(member.out(noise)))) + member.entropy()


def _factored(matrix: csc_matrix):
    return splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True, "Equil": False})


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.broadcast_arrays(first, second)
    return rows, columns
