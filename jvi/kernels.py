"""Kernels of Stein variational gradient descent, as functions of squared distances."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import Array, Scalar

__all__ = ["RBF", "InverseMultiquadric", "Kernel"]


@runtime_checkable
class Kernel(Protocol):
    """Any spec that can be called like these is a kernel.

    Example:
      >>> import jvi
      >>> isinstance(jvi.kernels.RBF(), jvi.kernels.Kernel)
      True
    """

    def __call__(self, squared: Array) -> tuple[Array, Array]:
        """Squared distances [N, N] -> the kernel's values, and their derivatives by the squared distances, [N, N] each."""
        ...


@spec
class RBF:
    """k(u, v) = exp(-|u - v|^2 / h).

    Attributes:
      bandwidth: h; by default the median of the squared distances over log(N + 1), at which the particles around one add up to about
        its own weight.

    Raises:
      ValueError: if `bandwidth` is not positive.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> value, slope = jvi.kernels.RBF(bandwidth=2.0)(jnp.array([[0.0, 2.0], [2.0, 0.0]]))
      >>> round(float(value[0, 1]), 4), round(float(slope[0, 1]), 4)
      (0.3679, -0.1839)

    References:
      Liu and Wang (2016), Stein Variational Gradient Descent.
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        _check(self.bandwidth)

    def __call__(self, squared: Array) -> tuple[Array, Array]:
        """Values and derivatives, of squared distances [N, N]."""
        h = _width(self.bandwidth, squared)
        value = jnp.exp(-squared / h)
        return value, -value / h


@spec
class InverseMultiquadric:
    """k(u, v) = (1 + |u - v|^2 / h)^-1/2, whose tails reach farther than the Gaussian's.

    Attributes:
      bandwidth: h; by default as for `RBF`.

    Raises:
      ValueError: if `bandwidth` is not positive.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> value, slope = jvi.kernels.InverseMultiquadric(bandwidth=1.0)(jnp.array([[0.0, 3.0], [3.0, 0.0]]))
      >>> float(value[0, 1]), float(slope[0, 1])
      (0.5, -0.0625)

    References:
      Gorham and Mackey (2017), Measuring Sample Quality with Kernels.
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        _check(self.bandwidth)

    def __call__(self, squared: Array) -> tuple[Array, Array]:
        """Values and derivatives, of squared distances [N, N]."""
        h = _width(self.bandwidth, squared)
        inner = 1.0 + squared / h
        value = jax.lax.rsqrt(inner)
        return value, -0.5 * value / (inner * h)


def _width(bandwidth: float | None, squared: Array) -> Scalar | float:
    if bandwidth is not None:
        return bandwidth
    h = jnp.median(squared) / math.log(len(squared) + 1.0)
    return jnp.where(h > 0.0, h, 1.0)  # where most particles coincide, any width will do


def _check(bandwidth: float | None) -> None:
    if bandwidth is not None and not bandwidth > 0.0:
        raise ValueError(f"bandwidth must be positive, or None for the median's, got {bandwidth}.")
