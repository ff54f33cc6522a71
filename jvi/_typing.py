"""Names for the types that run through every signature."""

from __future__ import annotations

import math
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
      >>> print(Estimate(-31.25163, 0.0412))
      -31.252 ± 0.041
    """

    value: Array | float
    standard_error: Array | float

    def __str__(self) -> str:
        value, error = float(self.value), float(self.standard_error)
        decimals = 2 if not 0.0 < error < math.inf else max(0, 1 - math.floor(math.log10(error)))
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
