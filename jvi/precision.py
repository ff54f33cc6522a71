"""Networks in half precision: they compute in bfloat16, all else in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import PyTree

__all__ = ["Policy", "bfloat16"]


@spec
class Policy:
    """A type that networks compute in: numbers are rounded to it on their way in, parameters included, and widened on their way out.

    What is optimized stays in float32, and so do its gradients, log-densities, their sums and log-sum-exps: they are outside of the
    networks. `jvi.networks.network(module, precision=policy)` is for a network that guides or models take; the policy itself is for a
    function, such as a log-likelihood's call of `module.apply`.

    Attributes:
      compute: the type, such as `jnp.bfloat16`; float16, whose range is narrow, needs losses scaled, which nothing here does.

    Raises:
      TypeError: if `compute` is no floating-point type, or what a policy is called with is no function.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> dense = nn.Dense(2)
      >>> decode = jvi.precision.bfloat16(lambda params, z: dense.apply({"params": params}, z))
      >>> params = dense.init(jax.random.key(0), jnp.ones(3))["params"]
      >>> decode(params, jnp.ones(3)).dtype, jax.grad(lambda params: decode(params, jnp.ones(3)).sum())(params)["kernel"].dtype
      (dtype('float32'), dtype('float32'))
      >>> network = jvi.networks.network(dense, precision=jvi.precision.bfloat16)
      >>> bool((network.apply(params, jnp.ones(3)) == decode(params, jnp.ones(3))).all())
      True

    References:
      Micikevicius et al. (2018), Mixed Precision Training; Kalamkar et al. (2019), A Study of BFLOAT16 for Deep Learning Training.
    """

    compute: Any

    def __post_init__(self) -> None:
        try:
            compute = jnp.dtype(self.compute)
        except TypeError:
            compute = None
        if compute is None or not jnp.issubdtype(compute, jnp.floating):
            raise TypeError(f"compute must be a floating-point type such as jnp.bfloat16, got {self.compute!r}.")
        object.__setattr__(self, "compute", compute)

    def __call__(self, function: Callable[..., PyTree]) -> Computed:
        """`function` computed in this type; a spec, equal to that of the same function."""
        if not callable(function):
            raise TypeError(
                f"a precision is called with a function, got {function!r}; for a module, "
                "jvi.networks.network(module, precision=jvi.precision.bfloat16)."
            )
        return Computed(function, self)

    def lower(self, tree: PyTree) -> PyTree:
        """The real numbers of a pytree in this type; all else as it is."""
        return _cast(tree, self.compute)

    def lift(self, tree: PyTree) -> PyTree:
        """The real numbers of a pytree in the default type: float32, or float64 under x64."""
        return _cast(tree, jnp.result_type(float))


@spec
class Computed:
    """A function in another precision. Made by calling a `Policy`."""

    function: Callable[..., PyTree]
    policy: Policy

    def __call__(self, *args: Any) -> PyTree:
        """The function's value, in the default type."""
        return self.policy.lift(self.function(*self.policy.lower(args)))


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    def one(leaf: Any) -> Any:
        real = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if real else leaf

    return jax.tree.map(one, tree)


bfloat16 = Policy(jnp.bfloat16)
