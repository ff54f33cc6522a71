"""Names for the types that run through every signature."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array  # a typed key, made by jax.random.key
PyTree: TypeAlias = Any
Params: TypeAlias = Any  # a pytree of arrays
Scalar: TypeAlias = jax.Array  # shape []
Data: TypeAlias = Any  # a pytree of arrays: one datum, or a batch with a leading axis [B, ...]
Latent: TypeAlias = Any  # a pytree of arrays: one draw


class Estimate(NamedTuple):
    """A Monte Carlo estimate with its standard error, in the same unit.

    Example:
      >>> from jvi._typing import Estimate
      >>> print(Estimate(-31.25, 0.04))
      -31.25 ± 0.04
    """

    value: Array | float
    standard_error: Array | float

    def __str__(self) -> str:
        return f"{float(self.value):.2f} ± {float(self.standard_error):.2g}"
