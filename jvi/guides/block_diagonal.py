"""A Gaussian on the coordinates of a space whose covariance is block-diagonal."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from jvi._groups import Groups, check_groups, groups_of
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import below, check, gaussian_entropy, log_standard, start
from jvi.spaces import Space


class Blocked(NamedTuple):
    """Parameters of `BlockDiagonal`: every block's covariance is L L', L = diag(exp(log_scale)) (I + tril(lower, -1) / sqrt(S)).

    Attributes:
      loc: mean of the coordinates [D].
      log_scale: log of the diagonals of the blocks' roots, in the order of the coordinates [D].
      lower: for every size S above 1 that a block has, smallest first, [N, S, S] of the N blocks of that size in the order of the
        groups. Only what lies below the diagonal is used.
    """

    loc: Array
    log_scale: Array
    lower: tuple[Array, ...]


@spec
class BlockDiagonal:
    """A Gaussian whose coordinates depend on each other within blocks: u = loc + L eps, L block-diagonal.

    For what is correlated in known groups: the coefficients of every group of a hierarchical model, say. A block of size S has
    S (S + 3) / 2 numbers to fit; all blocks of one size are one batched product, so that thousands of small ones cost little.

    Attributes:
      space: where the draws live.
      groups: which coordinates every block holds, in the order of `space.names`; by default a block for every named latent.
      init_scale: initial standard deviation of every coordinate.

    Raises:
      TypeError: if `space` is not a Space, or `groups` not of tuples.
      ValueError: if the groups do not hold every coordinate once, or `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> space = jvi.space({"a": jvi.real(2), "b": jvi.real(2), "c": jvi.positive()})
      >>> params = jvi.guides.BlockDiagonal(space).init(jax.random.key(0), None)
      >>> [lower.shape for lower in params.lower]  # two blocks of two coordinates; that of one needs no more than its scale
      [(2, 2, 2)]

    References:
      Titsias and Lázaro-Gredilla (2014), Doubly Stochastic Variational Bayes for Non-Conjugate Inference; Tan, Bhaskaran and Nott
      (2020), Conditionally Structured Variational Gaussian Approximation with Importance Weights.
    """

    space: Space
    groups: Groups | None = None
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, self.init_scale)
        check_groups(self.space, self.groups)

    def init(self, rng: PRNGKey, x: Data) -> Blocked:
        """Parameters at the origin with covariance init_scale^2 I; `rng` and `x` are not used."""
        shapes = [(*index.shape, index.shape[1]) for index in self._indices() if index.shape[1] > 1]
        return Blocked(*start(self.space, self.init_scale), tuple(jnp.zeros(shape) for shape in shapes))

    def sample_and_log_prob(self, params: Blocked, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        mixed = self._each(eps, params, lambda root, eps: eps + root @ eps)
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * mixed)
        return z, log_standard(eps) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: Blocked, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        eps = self._each((u - params.loc) * jnp.exp(-params.log_scale), params, _solved)
        return log_standard(eps) - jnp.sum(params.log_scale) + log_det

    def entropy(self, params: Blocked, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return gaussian_entropy(self.space, jnp.sum(params.log_scale), z)

    def _indices(self) -> list[np.ndarray]:
        """For every size of a block, smallest first, the coordinates of the blocks [N, S]."""
        groups = groups_of(self.space, self.groups)
        sizes = sorted({len(group) for group in groups})
        return [np.array([group for group in groups if len(group) == size]) for size in sizes]

    def _each(self, values: Array, params: Blocked, function: object) -> Array:
        """`function(root, values)` of every block, [S, S] and [S] -> [S], in the order of the coordinates [D]."""
        indices, lowers = self._indices(), iter(params.lower)
        parts = []
        for index in indices:
            part = values[index]
            if index.shape[1] > 1:
                part = jax.vmap(function)(below(next(lowers)), part)  # pyright: ignore[reportArgumentType]
            parts.append(part.reshape(-1))
        order = np.concatenate([index.reshape(-1) for index in indices])
        return jnp.concatenate(parts)[np.argsort(order)]


def _solved(root: Array, white: Array) -> Array:
    return solve_triangular(root, white, lower=True, unit_diagonal=True)
