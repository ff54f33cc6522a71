"""What encoders share: layers of the default precision, and inputs of variable length."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jvi import _tree
from jvi._typing import Array


def precision() -> Any:
    """The default float type: float32, or float64 under x64. Flax takes float32 whatever JAX is set to."""
    return jnp.result_type(float)


def dense(num_outputs: int) -> nn.Dense:
    """A linear layer."""
    return nn.Dense(num_outputs, param_dtype=precision())


def norm() -> nn.LayerNorm:
    """Every vector standardized by itself."""
    return nn.LayerNorm(param_dtype=precision())


def last(num_outputs: int) -> nn.Dense:
    """A linear layer that starts near zero, a hundredth of Flax's usual, so that what it is added to starts where it was."""
    small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
    return nn.Dense(num_outputs, kernel_init=small, param_dtype=precision())


def real(values: Any) -> Array:
    """Values as an array of real numbers; whole numbers and booleans take the default type."""
    values = jnp.asarray(values)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(precision())


def elements(encoder: nn.Module, inputs: Any, mask: Any = None) -> tuple[Array, Array]:
    """Values [N, F] and mask [N] of `values` and `mask` or of the pair; values that are masked out are zero, whatever they were.

    Raises:
      TypeError: if `inputs` are neither.
      ValueError: if the shapes are others.
    """
    name = type(encoder).__name__
    inputs = inputs if mask is None else (inputs, mask)
    parts: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    if len(parts) not in (1, 2) or not all(hasattr(part, "shape") for part in parts):
        raise TypeError(
            f"{name} takes an array [N, F], or (values [N, F], mask [N]); got {_tree.shapes(inputs)}. Where x holds more than that, "
            "name what the encoder sees, as in jvi.guides.amortize(guide, encoder, inputs=lambda x: (x['values'], x['mask']))."
        )
    values = real(parts[0])
    values = values[:, None] if values.ndim == 1 else values
    mask = jnp.ones(values.shape[:1], bool) if len(parts) == 1 else jnp.asarray(parts[1])
    if values.ndim != 2 or mask.shape != values.shape[:1]:
        raise ValueError(
            f"{name} takes one datum, without a batch axis: values [N, F] or [N], and a mask [N] where there is one; got "
            f"{_tree.shapes(inputs)}. jvi.per_example and jax.vmap add examples."
        )
    mask = mask.astype(bool)
    return jnp.where(mask[:, None], values, 0.0), mask
