"""Spaces: pytrees of supports, and their map from R^n.

Guides live on R^n, and `Space.constrain` is the only place where supports enter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Array, Latent, PyTree, Scalar
from jvi.supports import Support

__all__ = ["Space", "space"]


@spec
class Space:
    """A pytree of supports, and the bijection between R^`size` and the latents. Made by `space`.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> space = jvi.space({"w": jvi.real(3), "noise": jvi.positive()})
      >>> space.size
      4
      >>> z, log_det = space.constrain(jnp.array([0.5, 1.0, 2.0, 3.0]))
      >>> {name: value.shape for name, value in z.items()}, float(log_det)
      ({'noise': (), 'w': (3,)}, 0.5)
    """

    treedef: Any
    supports: tuple[Support, ...]

    @property
    def size(self) -> int:
        """The number of unconstrained coordinates."""
        return sum(support.size for support in self.supports)

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each unconstrained coordinate, such as `w[0]`."""
        out: list[str] = []
        for name, support in zip(self._paths(), self.supports, strict=True):
            indices = np.ndindex(support.unconstrained_shape)
            out += [f"{name}[{','.join(map(str, i))}]" if i else name for i in indices]
        return tuple(out)

    def constrain(self, u: Array) -> tuple[Latent, Scalar]:
        """Map coordinates to a latent.

        Args:
          u: coordinates [size].

        Returns:
          The latent `z`, a pytree, and log|det dz/du|, a scalar. A simplex and the like have fewer coordinates than
          entries; their density is with respect to the free entries, as in the Dirichlet's and the LKJ's.

        Raises:
          ValueError: if `u` is not [size].
        """
        if np.shape(u) != (self.size,):
            raise ValueError(f"u must have shape [{self.size}], one point of {self}; got {list(np.shape(u))}.")
        parts, log_det, start = [], jnp.zeros((), u.dtype), 0
        for support in self.supports:
            part = u[start : start + support.size].reshape(support.unconstrained_shape)
            value, term = support.constrain(part)
            parts.append(value)
            log_det = log_det + term if support.bijector is not None else log_det
            start += support.size
        return jax.tree.unflatten(self.treedef, parts), log_det

    def unconstrain(self, z: Latent) -> tuple[Array, Scalar]:
        """Map a latent to its coordinates: `z` -> (u [size], log|det du/dz|).

        Raises:
          ValueError: if `z` is not of this space.
        """
        self.check(z)
        parts, log_det = [], 0.0
        for support, value in zip(self.supports, jax.tree.leaves(z), strict=True):
            u, term = support.unconstrain(jnp.asarray(value))
            parts.append(u.reshape(-1))
            log_det = log_det + term
        dtype = jnp.result_type(*parts) if parts else float
        return jnp.concatenate(parts) if parts else jnp.zeros(0), jnp.asarray(log_det, dtype)

    def check(self, z: Latent, what: str = "z") -> Latent:
        """Return `z` if it has the structure and the shapes of this space.

        Raises:
          ValueError: if it has not; the message names the leaf.
        """
        if jax.tree.structure(z) != self.treedef:
            raise ValueError(f"{what} must have the structure of {self}; got {_tree.shapes(z)}.")
        for (name, leaf), support in zip(_tree.named_leaves(z), self.supports, strict=True):
            if np.shape(leaf) != support.shape:
                raise ValueError(
                    f"{what}{name} must have shape {list(support.shape)} ({support.name}), got {list(np.shape(leaf))}."
                )
        return z

    def _paths(self) -> list[str]:
        tree = jax.tree.unflatten(self.treedef, self.supports)
        paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_support)
        return [jax.tree_util.keystr(path, simple=True, separator=".") or "z" for path, _ in paths]

    def __repr__(self) -> str:
        return f"space({', '.join(f'{n}: {s}' for n, s in zip(self._paths(), self.supports, strict=True))})"


def space(supports: PyTree) -> Space:
    """Make a space from a pytree (a dict, a tuple, a NamedTuple, one support) of supports.

    Raises:
      TypeError: if a leaf is not a support, or there is none.

    Example:
      >>> import jvi
      >>> jvi.space({"rate": jvi.positive(), "mix": jvi.simplex(3)})
      space(mix: simplex[3], rate: positive[])
    """
    leaves, treedef = jax.tree.flatten(supports, is_leaf=_is_support)
    for leaf in leaves:
        if not _is_support(leaf):
            raise TypeError(f"every leaf of a space must be a support such as jvi.real(3); got {leaf!r}.")
    if not leaves:
        raise TypeError("a space needs at least one support such as jvi.real(3); got none.")
    return Space(treedef, tuple(leaves))


def _is_support(leaf: Any) -> bool:
    return isinstance(leaf, Support)
