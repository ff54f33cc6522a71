"""Targets: a model's posterior as a log-density on R^n, and as a function of many points that the host calls."""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi import sharding
from jvi._loops import rows
from jvi._precision import precise, wide
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Scalar
from jvi._vectors import vector_first
from jvi.models import Model, model
from jvi.models.densities import WithoutData
from jvi.spaces import Space
from jvi.supports import Support

_LANES, _ROWS = 16, 512  # points that a device evaluates together, and in one call


@spec
class Target:
    """The posterior of a model over a space, as an unnormalized log-density of the space's coordinates.

    Attributes:
      model: with nothing to learn.
      space: where its latent lives.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> target = jvi._targets.Target(jvi.model(lambda x, z: -0.5 * (z - x) ** 2), jvi.space(jvi.real()))
      >>> float(target.log_density(1.0, jnp.array([3.0])))
      -2.0
    """

    model: Model
    space: Space

    def log_density(self, x: Data, u: Array) -> Scalar:
        """log p(x, z(u)) + log|dz/du|, nats, at one point u [D]."""
        z, log_det = self.space.constrain(u)
        return vector_first(self.model.log_joint)((), x, z) + log_det


def target_of(log_joint: Any, space: Any, *, with_data: bool = True) -> Target:
    """The target of a log-joint, or a model, and a space.

    Args:
      log_joint: `(x, z) -> scalar`, or `(z) -> scalar` where not `with_data`; or a model with nothing to learn.
      space: made by `jvi.space`.
      with_data: whether there are data.

    Raises:
      TypeError: if one is of another kind.
    """
    if isinstance(space, Support):
        raise TypeError(f"space must be made by jvi.space; wrap the support: jvi.space({space!r}).")
    if not isinstance(space, Space):
        raise TypeError(f"space must be made by jvi.space, as in jvi.space({{'w': jvi.real(3)}}); got {space!r}.")
    if isinstance(log_joint, Model):
        return Target(log_joint, space)
    if not callable(log_joint):
        raise TypeError(f"log_joint must be a function (x, z) -> scalar, or (z) -> scalar without data; got {log_joint!r}.")
    function: Any = log_joint
    return Target(model(function if with_data else WithoutData(function)), space)


@spec
class _Gradient:
    target: Target

    def __call__(self, x: Data, u: Array) -> tuple[Scalar, Array]:
        return jax.value_and_grad(self.target.log_density, argnums=1)(x, u)


@spec
class _Value:
    target: Target

    def __call__(self, x: Data, u: Array) -> Scalar:
        return self.target.log_density(x, u)


@spec
class _Constrain:
    target: Target

    def __call__(self, x: Data, u: Array) -> Latent:
        return self.target.space.constrain(u)[0]


class BudgetSpentError(RuntimeError):
    """A density was asked for more than its budget allows."""


class Density:
    """A target at its data, evaluated from the host at many points [S, D]; it counts what it does.

    Whatever the fit, it compiles two programs: values, and values with gradients. Not finite is minus infinity.

    Attributes:
      target: what is evaluated.
      mesh: of devices that share the points, or None.
      num_values, num_grads: how often so far.
      eps: relative precision of its values: that of float64 where the log-joint allows.
      context: makes the precision that it works in.
      deadline, most_grads: when `perf_counter` or `num_grads` passes them, evaluations raise `BudgetSpentError`.

    Example:
      >>> import jvi, numpy as np
      >>> target = jvi._targets.Target(jvi.model(lambda x, z: -0.5 * (z - x) ** 2), jvi.space(jvi.real()))
      >>> density = jvi._targets.Density(target, 1.0)
      >>> density.grads(np.array([[3.0], [1.0]]))[1].ravel() + 0.0, density.num_grads
      (array([-2.,  0.]), 2)
    """

    def __init__(self, target: Target, x: Data, mesh: Any = None) -> None:
        self.target, self.mesh = target, mesh
        self._lanes = _LANES * sharding.num_devices(mesh)
        self._rows = max(_ROWS, self._lanes)
        self.num_values = self.num_grads = 0
        self.deadline = self.most_grads = float("inf")
        try:
            self._begin(precise, x)
        except (TypeError, ValueError):
            self._begin(nullcontext, x)  # a log-joint that mixes types works in single precision only; another fails again

    def _begin(self, context: Any, x: Data) -> None:
        self.context = context
        with context():
            self.x = sharding.put(self.mesh, jax.tree.map(_widest, x))
            self.dtype = jnp.result_type(float)
            out = jax.eval_shape(self.target.log_density, self.x, jax.ShapeDtypeStruct((self.target.space.size,), self.dtype))
        self.eps = float(np.finfo(out.dtype).eps)

    def left(self, began: float) -> float:
        """Seconds left of the budget since `began`, by the scarcer of time and gradients."""
        now = perf_counter()
        return min(self.deadline - now, (now - began) * (self.most_grads / max(self.num_grads, 1) - 1.0))

    def values(self, u: np.ndarray) -> np.ndarray:
        """Log-densities [S] at u [S, D], nats."""
        self.num_values += len(u)
        return _finite(self._each(_Value(self.target), u))

    def grads(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-densities [S] and their gradients [S, D]; where either is not finite minus infinity and zeros."""
        self.num_grads += len(u)
        values, grads = self._each(_Gradient(self.target), u)
        fine = np.isfinite(values) & np.isfinite(grads).all(1)
        return np.where(fine, values, -np.inf), np.where(fine[:, None], grads, 0.0)

    def constrain(self, u: np.ndarray) -> Latent:
        """Latents [S, ...] of coordinates [S, D]."""
        return self._each(_Constrain(self.target), u)

    def _each(self, function: Any, u: np.ndarray) -> Any:
        if perf_counter() > self.deadline or self.num_grads > self.most_grads:
            raise BudgetSpentError
        parts = np.array_split(np.asarray(u, self.dtype), -(-len(u) // self._rows))

        def one(part: np.ndarray) -> Any:
            padded = np.concatenate([part, np.repeat(part[-1:], self._rows - len(part), 0)])
            with self.context(), sharding.entered(self.mesh):
                found = jax.device_get(rows(function, self._lanes, self.x, padded, len(part)))
            return jax.tree.map(lambda leaf: _wide(np.asarray(leaf)[: len(part)]), found)

        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(one, parts))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, -np.inf)


def _wide(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf


def _widest(leaf: Any) -> Any:
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if leaf.dtype == np.float32 and wide() else leaf
