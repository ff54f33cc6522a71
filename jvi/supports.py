"""Supports: which values one latent may take, and their maps from R^n, which come from TFP's bijectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _bijectors, _limits
from jvi._checks import check_count
from jvi._parents import chain, check_parents
from jvi._spec import spec
from jvi._typing import Array, Scalar

__all__ = [
    "Support",
    "cholesky_correlation",
    "cholesky_covariance",
    "interval",
    "lower_bounded",
    "negative",
    "ordered",
    "positive",
    "positive_ordered",
    "real",
    "sequence",
    "simplex",
    "tree",
    "unit_interval",
    "unit_vector",
    "upper_bounded",
]

Limits = Callable[["Support", np.finfo], tuple[Any, Any]]


@spec
class Support:
    """The values one latent may take: the image of R^n under `loc + scale * bijector(u)`.

    Made by `real`, `positive`, `simplex` and their siblings.

    Outside `limits`, where the map leaves the range of its dtype, `u` is clipped and the log-determinant continues with
    slope one towards the inside: draws and densities stay finite however extreme `u` is, and gradients point back.

    Attributes:
      name: the constructor's name.
      shape: shape of the latent.
      unconstrained_shape: shape of its coordinates `u`.
      bijector: builds the TFP bijector; None for the identity.
      limits: the range of `u` within which the map is exact, for a dtype.
      loc, scale: the affine map applied after the bijector.
      parents: which entry of the leading axis depends on which, where that was declared: a rooted tree, as in `jvi.guides.Tree`.

    Example:
      >>> import jvi
      >>> jvi.interval(-1.0, 1.0, 3)
      interval[3]
    """

    name: str
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    bijector: Callable[[], Any] | None = None
    limits: Limits | None = None
    loc: float = 0.0
    scale: float = 1.0
    parents: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """How many unconstrained coordinates the latent has."""
        return math.prod(self.unconstrained_shape)

    def __repr__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.shape))}]"

    def constrain(self, u: Array) -> tuple[Array, Scalar]:
        """Map coordinates to the latent: `u` of `unconstrained_shape` -> (z of `shape`, log|det dz/du|)."""
        if self.bijector is None or self.limits is None:
            return u, jnp.zeros((), u.dtype)
        bijector, dims = self.bijector(), len(self.unconstrained_shape)
        low, high = self.limits(self, np.finfo(u.dtype))
        inner = jnp.clip(u, jnp.asarray(low, u.dtype), jnp.asarray(high, u.dtype))
        with jax.numpy_rank_promotion("allow"):  # TFP relies on it
            z, log_det = bijector.forward(inner), jnp.sum(bijector.forward_log_det_jacobian(inner, dims))
        return self._shift(z), log_det - jnp.sum(jnp.abs(u - inner)) + self._log_scale()

    def unconstrain(self, z: Array) -> tuple[Array, Scalar]:
        """Map the latent to its coordinates: `z` of `shape` -> (u of `unconstrained_shape`, log|det du/dz|)."""
        if self.bijector is None:
            return z, jnp.zeros((), z.dtype)
        bijector, dims = self.bijector(), len(self.unconstrained_shape)
        with jax.numpy_rank_promotion("allow"):
            u = bijector.inverse((z - self.loc) / self.scale)
            log_det = jnp.sum(bijector.forward_log_det_jacobian(u, dims))
        return u, -log_det - self._log_scale()

    def _shift(self, value: Array) -> Array:
        return value if (self.loc, self.scale) == (0.0, 1.0) else self.loc + self.scale * value

    def _log_scale(self) -> float:
        return self.size * math.log(abs(self.scale))


def real(*shape: int) -> Support:
    """Any real number: `real()`, `real(3)`, `real(2, 3)`."""
    return Support("real", _shape(shape), _shape(shape))


def sequence(num_steps: int, dim: int | None = None) -> Support:
    """Real numbers [T, D], or [T], of which every step depends on its neighbours: as `real`, for guides that follow a chain.

    Raises:
      TypeError, ValueError: if `num_steps` or `dim` is not a whole number, 1 or more.

    Example:
      >>> import jvi
      >>> jvi.space({"level": jvi.sequence(100), "noise": jvi.positive()})
      space(level: sequence[100], noise: positive[])
    """
    return _linked("sequence", chain(check_count(num_steps, "num_steps")), dim)


def tree(parents: Any, dim: int | None = None) -> Support:
    """Real numbers [n, D], or [n], of which every node depends on its parent and children: as `real`, for guides that follow a tree.

    `parents[i]` is less than i, and the root's is -1.

    Raises:
      TypeError, ValueError: if `parents` is no such array, naming the node.

    Example:
      >>> import jvi
      >>> jvi.tree([-1, 0, 0], dim=2), jvi.tree([-1, 0, 1]) == jvi.tree([-1, 0, 0])
      (tree[3,2], False)
    """
    return _linked("tree", check_parents(parents), dim)


def positive(*shape: int) -> Support:
    """Greater than zero: exp(u)."""
    return _elementwise("positive", shape, _bijectors.exp, _limits.exp)


def negative(*shape: int) -> Support:
    """Less than zero: -exp(u)."""
    return _elementwise("negative", shape, _bijectors.exp, _limits.exp, scale=-1.0)


def lower_bounded(lower: float, *shape: int) -> Support:
    """Greater than `lower`: lower + exp(u)."""
    return _elementwise("lower_bounded", shape, _bijectors.exp, _limits.exp, loc=_finite("lower", lower))


def upper_bounded(upper: float, *shape: int) -> Support:
    """Less than `upper`: upper - exp(u)."""
    return _elementwise("upper_bounded", shape, _bijectors.exp, _limits.exp, loc=_finite("upper", upper), scale=-1.0)


def interval(lower: float, upper: float, *shape: int) -> Support:
    """Between `lower` and `upper`: lower + (upper - lower) * sigmoid(u).

    Raises:
      ValueError: if `lower` is not less than `upper`, or one is not finite.
    """
    lower, upper = _finite("lower", lower), _finite("upper", upper)
    if not lower < upper:
        raise ValueError(f"lower must be less than upper, got lower={lower} and upper={upper}.")
    return _elementwise("interval", shape, _bijectors.sigmoid, _limits.sigmoid, loc=lower, scale=upper - lower)


def unit_interval(*shape: int) -> Support:
    """Between zero and one: sigmoid(u)."""
    return _elementwise("unit_interval", shape, _bijectors.sigmoid, _limits.sigmoid)


def simplex(*shape: int) -> Support:
    """Positive numbers that sum to one along the last axis, by stick-breaking; `simplex(3)` has two coordinates.

    Under stick-breaking a Dirichlet has independent coordinates, so that a mean-field guide can follow it.
    """
    shape = _last_axis("simplex", _shape(shape), least=2)
    return Support("simplex", shape, (*shape[:-1], shape[-1] - 1), _bijectors.Sticks, _limits.sticks)


def ordered(*shape: int) -> Support:
    """Increasing along the last axis: u[0], then steps exp(u[i])."""
    shape = _last_axis("ordered", _shape(shape))
    return Support("ordered", shape, shape, _bijectors.ascending, _limits.ordered)


def positive_ordered(*shape: int) -> Support:
    """Positive and increasing along the last axis: the running sum of exp(u)."""
    shape = _last_axis("positive_ordered", _shape(shape))
    return Support("positive_ordered", shape, shape, _bijectors.running_sum_of_exp, _limits.exp)


def unit_vector(size: int) -> Support:
    """A vector of length one, by stereographic projection from R^(size - 1); its density is per unit of surface.

    `u = 0` is the last axis; the opposite point lies at infinity. A posterior with mass there shows as a high k-hat.

    Raises:
      ValueError: if `size` is less than 2.
    """
    (size,) = _last_axis("unit_vector", _shape((size,)), least=2)
    return Support("unit_vector", (size,), (size - 1,), _bijectors.Stereographic, _limits.wide)


def cholesky_correlation(size: int) -> Support:
    """The Cholesky factor [size, size] of a correlation matrix; size (size - 1) / 2 coordinates.

    Its density is with respect to the entries below the diagonal, as in the LKJ distribution of Cholesky factors.
    """
    (size,) = _last_axis("cholesky_correlation", _shape((size,)), least=2)
    return Support("cholesky_correlation", (size, size), (size * (size - 1) // 2,), _bijectors.correlation, _limits.wide)


def cholesky_covariance(size: int) -> Support:
    """The Cholesky factor [size, size] of a covariance matrix, exp(u) on the diagonal; size (size + 1) / 2 coordinates."""
    (size,) = _last_axis("cholesky_covariance", _shape((size,)))
    return Support("cholesky_covariance", (size, size), (size * (size + 1) // 2,), _bijectors.triangle, _limits.triangle)


def _elementwise(name: str, shape: Any, bijector: Any, limits: Limits, loc: float = 0.0, scale: float = 1.0) -> Support:
    return Support(name, _shape(shape), _shape(shape), bijector, limits, loc, scale)


def _linked(name: str, parents: tuple[int, ...], dim: int | None) -> Support:
    shape = (len(parents),) if dim is None else (len(parents), check_count(dim, "dim"))
    return Support(name, shape, shape, parents=parents)


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    entries = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (int, np.integer)) or entry < 0:
            raise TypeError(f"a shape is made of whole numbers, as in jvi.real(2, 3); got {shape!r}.")
    return tuple(int(entry) for entry in entries)


def _last_axis(name: str, shape: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
    if not shape or shape[-1] < least:
        raise ValueError(f"jvi.{name} needs a last axis of {least} or more, as in jvi.{name}(3); got shape {list(shape)}.")
    return shape


def _finite(name: str, value: Any) -> float:
    if np.ndim(value) or not np.isfinite(value):
        raise ValueError(f"{name} must be one finite number, got {value!r}.")
    return float(value)
