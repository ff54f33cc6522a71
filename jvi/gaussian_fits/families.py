"""Families of Gaussians on a space's coordinates: which of them may depend on which."""

from __future__ import annotations

import numpy as np

from jvi._checks import check_count
from jvi._groups import check_groups, groups_of
from jvi._spec import spec
from jvi._targets import Density
from jvi.gaussian_fits._climb import Gaussian
from jvi.gaussian_fits._curvature import probed
from jvi.gaussian_fits._factored import Factored
from jvi.gaussian_fits._pattern import Pattern, pattern
from jvi.gaussian_fits._sparse import Sparse
from jvi.gaussian_fits._triangular import Triangular
from jvi.spaces import Space

__all__ = ["Blocks", "Diagonal", "FullRank", "LowRank", "Markov"]


@spec
class FullRank:
    """Every coordinate may depend on every other: D^2 numbers.

    Example:
      >>> import jvi
      >>> jvi.gaussian_fits.families.FullRank()
      FullRank()
    """

    def check(self, space: Space) -> None:
        """Fits every space."""

    def near(self, space: Space, gaussian: Gaussian) -> Triangular:
        """The member to begin from where a dense Gaussian is known."""
        return Triangular.of(gaussian, (tuple(range(space.size)),))

    def spread(self, density: Density, loc: np.ndarray, scale: np.ndarray) -> Triangular:
        """The member to begin from where only a point and widths are known."""
        return Triangular.spread(loc, scale, (tuple(range(len(loc))),))


@spec
class Diagonal:
    """No coordinate depends on another, mean-field: 2 D numbers, and sds that are about the conditional ones.

    Example:
      >>> import jax.numpy as jnp, jax, jvi
      >>> precision = jnp.array([[2.0, 1.2], [1.2, 1.0]])
      >>> log_joint = lambda z: -0.5 * z @ precision @ z
      >>> family = jvi.gaussian_fits.families.Diagonal()
      >>> fit = jvi.gaussian_fits.moment_matched(jax.random.key(0), log_joint, jvi.space(jvi.real(2)), family=family)
      >>> jnp.exp(-2.0 * fit.params.guide.log_scale).round(3)
      Array([2., 1.], dtype=float32)
    """

    def check(self, space: Space) -> None:
        """Fits every space."""

    def near(self, space: Space, gaussian: Gaussian) -> Triangular:
        """The member to begin from where a dense Gaussian is known."""
        return Triangular.of(gaussian, tuple((i,) for i in range(space.size)))

    def spread(self, density: Density, loc: np.ndarray, scale: np.ndarray) -> Triangular:
        """The member to begin from where only a point and widths are known."""
        return Triangular.spread(loc, scale, tuple((i,) for i in range(len(loc))))


@spec
class Blocks:
    """Coordinates depend on each other within blocks, which are independent: the Cholesky factor of the covariance is block-diagonal.

    The guide of the posterior is the equivalent `jvi.guides.FullRank`, of D^2 numbers.

    Attributes:
      groups: which coordinates each block holds; by default a block for each named latent of the space.

    Example:
      >>> import jvi
      >>> jvi.gaussian_fits.families.Blocks(((0, 2), (1,))).groups_of(jvi.space(jvi.real(3)))
      ((0, 2), (1,))
      >>> jvi.gaussian_fits.families.Blocks().groups_of(jvi.space({"a": jvi.real(2), "b": jvi.real()}))
      ((0, 1), (2,))
    """

    groups: tuple[tuple[int, ...], ...] | None = None

    def check(self, space: Space) -> None:
        """Raise a ValueError if the groups do not hold each coordinate of the space once."""
        check_groups(space, self.groups)

    def groups_of(self, space: Space) -> tuple[tuple[int, ...], ...]:
        """The groups, or those of the space's latents."""
        return groups_of(space, self.groups)

    def near(self, space: Space, gaussian: Gaussian) -> Triangular:
        """The member to begin from where a dense Gaussian is known."""
        return Triangular.of(gaussian, self.groups_of(space))

    def spread(self, density: Density, loc: np.ndarray, scale: np.ndarray) -> Triangular:
        """The member to begin from where only a point and widths are known."""
        return Triangular.spread(loc, scale, self.groups_of(density.target.space))


@spec
class LowRank:
    """Covariance diagonal plus rank r: D (r + 2) numbers, and time and memory linear in D.

    Attributes:
      rank: r, less than the number of coordinates.

    Raises:
      TypeError: if `rank` is not a whole number.
      ValueError: if it is less than 1.

    Example:
      >>> import jvi
      >>> jvi.gaussian_fits.families.LowRank(4)
      LowRank(rank=4)
    """

    rank: int

    def __post_init__(self) -> None:
        check_count(self.rank, "rank")

    def check(self, space: Space) -> None:
        """Raise a ValueError if the rank is too large for the space."""
        if self.rank >= space.size:
            raise ValueError(
                f"rank must be less than the number of coordinates, {space.size} of {space}; got {self.rank}. Use FullRank()."
            )

    def near(self, space: Space, gaussian: Gaussian) -> Factored:
        """The member to begin from where a dense Gaussian is known."""
        return Factored.of(gaussian, self.rank)

    def spread(self, density: Density, loc: np.ndarray, scale: np.ndarray) -> Factored:
        """The member to begin from where only a point and widths are known; its factor is random, as at zero the slope vanishes."""
        factor = np.random.default_rng(0).normal(size=(len(loc), self.rank)) / np.sqrt(len(loc))
        return Factored(loc, scale, scale[:, None] * factor)


@spec
class Markov:
    """Each block of consecutive coordinates depends on the one before it alone, as the states of a chain do.

    The precision is block-tridiagonal, and its Cholesky factor block-bidiagonal: time and memory of the fit are O(D b^2). The guide
    of the posterior is the equivalent `jvi.guides.FullRank`, whose D^2 numbers are what bounds D, at some thousand.

    Attributes:
      block_size: b, coordinates of a block; it divides their number.

    Raises:
      TypeError: if `block_size` is not a whole number.
      ValueError: if it is less than 1.

    Example:
      >>> import jvi
      >>> jvi.gaussian_fits.families.Markov(block_size=2)
      Markov(block_size=2)
    """

    block_size: int = 1

    def __post_init__(self) -> None:
        check_count(self.block_size, "block_size")

    def check(self, space: Space) -> None:
        """Raise a ValueError if the blocks do not add up to the space."""
        if space.size % self.block_size:
            raise ValueError(
                f"block_size must divide the number of coordinates, {space.size} of {space}; got {self.block_size}. "
                "A latent real(T, b) has T blocks of b coordinates."
            )

    def near(self, space: Space, gaussian: Gaussian) -> Sparse:
        """The member to begin from where a dense Gaussian is known."""
        return Sparse.of(gaussian, self._pattern(space))

    def spread(self, density: Density, loc: np.ndarray, scale: np.ndarray) -> Sparse:
        """The member to begin from where only a point and widths are known: that of the curvature there."""
        plain = Sparse.spread(loc, self._pattern(density.target.space), scale)
        return probed(density, plain)[1] or plain

    def _pattern(self, space: Space) -> Pattern:
        blocks = space.size // self.block_size
        return pattern(np.repeat(np.arange(blocks), self.block_size), np.arange(-1, blocks - 1))


Family = FullRank | Diagonal | Blocks | LowRank | Markov
