"""Small functions of pytrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array, PyTree


def path_name(path: tuple[Any, ...], root: str = "") -> str:
    """The path of a leaf as a user would write it, such as `guide.loc` or `x[0]['y']`."""
    name = root + jax.tree_util.keystr(path)
    return name.removeprefix(".")


def named_leaves(tree: PyTree, root: str = "") -> list[tuple[str, Any]]:
    """The leaves of `tree` with their names, in the order of `jax.tree.leaves`."""
    return [(path_name(path, root), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def where(condition: Array, tree: PyTree, other: PyTree) -> PyTree:
    """Leaf by leaf, `tree` where the scalar `condition` holds and `other` elsewhere (typed keys are let through)."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def non_finite(tree: PyTree, root: str = "") -> list[str]:
    """Names of the leaves that hold a value which is not finite, each with how many. For concrete arrays only."""
    found = []
    for name, leaf in named_leaves(tree, root):
        bad = int(np.sum(~np.isfinite(np.asarray(leaf))))
        if bad:
            found.append(f"{name} ({bad} of {np.size(leaf)})")
    return found


def shapes(tree: PyTree) -> str:
    """The shapes and types of `tree`, for error messages.

    Example:
      >>> import jax.numpy as jnp
      >>> from jvi._tree import shapes
      >>> shapes({"a": jnp.zeros(3), "b": jnp.zeros((), int)})
      "['a']: float32[3], ['b']: int32[]"
    """

    def one(leaf: Any) -> str:
        dtype = jnp.result_type(leaf)
        return f"{dtype.name}[{','.join(map(str, np.shape(leaf)))}]"

    return ", ".join(f"{name}: {one(leaf)}" if name else one(leaf) for name, leaf in named_leaves(tree)) or "nothing"
