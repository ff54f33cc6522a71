"""A Gaussian over the nodes of a rooted tree, every node linked to its parent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import jax
import numpy as np

from jvi._checks import check_count
from jvi._parents import check_parents
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.guides._base import LOG_2PI, check_scale
from jvi.guides._linked import (
    Linked,
    Moments,
    check_moments,
    check_shape,
    initial,
    log_density,
    moments,
    moved,
    of_moments,
    whitened,
)
from jvi.guides._sweeps import Branches


@spec
class Tree:
    """A Gaussian over the n nodes of a rooted tree: u_i = loc_i + A_i (u_parent(i) - loc_parent(i)) + L_i eps_i.

    It holds the exact posterior of a linear-Gaussian tree (Brownian motion along a phylogeny, nested random effects) in O(n) time and
    memory. A draw goes from the root to the leaves, many nodes at a time; its density is taken of all nodes at once.

    Attributes:
      parents: of every node; the root's is -1, and parents[i] < i. A list or an array becomes a tuple.
      dim: D; by default the latent is [n] in place of [n, D].
      init_scale: initial standard deviation of every entry; no links, means at zero.
      parallel: whether draws are by pointer doubling, for deep trees on accelerators: log2(depth) rounds of all nodes in place of one
        step for every depth. The draws are the same, to rounding.

    Raises:
      TypeError: if `parents` is no flat sequence of whole numbers, or `dim` is not a whole number.
      ValueError: if `parents` is no tree whose nodes come after their parents, naming the node, and the cycle if there is one.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.Tree(parents=(-1, 0, 0, 1, 1), dim=2)
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z.shape, log_q.shape
      ((5, 2), ())

    References:
      Felsenstein (1985), Phylogenies and the Comparative Method; Willsky (2002), Multiresolution Markov Models for Signal and Image
      Processing.
    """

    parents: Sequence[int] | np.ndarray
    dim: int | None = None
    init_scale: float = 0.1
    parallel: bool = False
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", check_parents(self.parents))
        if self.dim is not None:
            check_count(self.dim, "dim")
        check_scale(self.init_scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a draw."""
        return (len(self.parents),) if self.dim is None else (len(self.parents), self.dim)

    def init(self, rng: PRNGKey, x: Data) -> Linked:
        """Independent nodes at zero with standard deviation `init_scale`; `rng` and `x` are not used."""
        return initial(len(self.parents), self.dim or 1, self.init_scale)

    def sample_and_log_prob(self, params: Linked, rng: PRNGKey, x: Data) -> tuple[Array, Scalar]:
        """One draw, [n, D] or [n], and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        return moved(self._structure, params, eps).reshape(self.shape), log_density(params, eps)

    def log_prob(self, params: Linked, x: Data, z: Array) -> Scalar:
        """log q(z), nats."""
        check_shape("z", z, self.shape, "a draw's")
        return log_density(params, whitened(self._structure, params, z.reshape(params.loc.shape)))

    def entropy(self, params: Linked, x: Data, z: Array) -> Scalar:
        """q's entropy, nats; `z` is not used."""
        return params.log_scale.sum() + 0.5 * params.loc.size * (1.0 + LOG_2PI)

    def marginals(self, params: Linked) -> Moments:
        """Means [n, D], covariances [n, D, D], and those of every node but the root with its parent [n - 1, D, D]."""
        return moments(self._structure, params)

    def from_moments(self, loc: Array, cov: Array, lag_one: Array) -> Linked:
        """The parameters with these moments, such as an exact posterior's.

        Args:
          loc: means [n, D].
          cov: covariances [n, D, D], positive definite.
          lag_one: covariances of every node but the root, by row, with its parent, by column [n - 1, D, D].

        Raises:
          ValueError: for an array of another shape.
        """
        check_moments(len(self.parents), self.dim or 1, loc, cov, lag_one)
        return of_moments(self._structure, loc, cov, lag_one)

    @cached_property
    def _structure(self) -> Branches:
        return Branches(check_parents(self.parents), self.parallel)
