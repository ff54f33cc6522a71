"""What flows share: a Gaussian whose noise is bent before it is scaled, u = loc + L f(eps) with f the identity at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from jvi._checks import check_count
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import below, check, log_standard, start
from jvi.guides._conditioners import Conditioners
from jvi.guides.gaussian import Dense, Diagonal, dense
from jvi.spaces import Space

MAX_DENSE = 100
# Of one layer: a factor of e^3 either way is as much as a layer needs, and no chain of them overflows.
MAX_LOG_SCALE = 3.0

Context = Callable[[Data], Array]
Map = Callable[[Array], tuple[Array, Scalar]]


class Flow(NamedTuple):
    """Parameters of a flow: u = loc + L f(eps).

    Attributes:
      base: loc and L, of a dense Gaussian up to `MAX_DENSE` coordinates, of a diagonal one beyond.
      layers: the networks that make f.
    """

    base: Diagonal | Dense
    layers: Conditioners


# The flows take these three as methods: in what they share, only the layers differ.


def check_flow(self: Any) -> None:
    """Raise for what makes no flow."""
    check(self.space, self.init_scale)
    check_count(self.num_layers, "num_layers")
    if not isinstance(self.hidden, tuple):
        raise TypeError(f"hidden must be a tuple of widths such as (64, 64), got {self.hidden!r}.")
    for i, width in enumerate(self.hidden):
        check_count(width, f"hidden[{i}]")
    if self.context is not None and not callable(self.context):
        raise TypeError(f"context must be a function (x) -> array [C], got {self.context!r}.")


def at_origin(self: Any, rng: PRNGKey, x: Data) -> Flow:
    """Parameters at which the guide is a Gaussian at the origin with standard deviation `init_scale`."""
    return Flow(_base(self.space, self.init_scale), self._layers(rng, x))


def at_gaussian(self: Any, rng: PRNGKey, x: Data, loc: Array, root: Array) -> Flow:
    """Parameters at which the guide is a given Gaussian of the coordinates.

    Args:
      rng: key of the networks' hidden weights.
      x: one datum; only its context's shape matters.
      loc: mean [D].
      root: lower triangular, with a positive diagonal, such that the covariance is root root' [D, D]. Beyond 100 coordinates
        only its diagonal, the variances, is kept.

    Raises:
      ValueError: if the shapes are not those of the space.
    """
    return Flow(_given(self.space, loc, root), self._layers(rng, x))


def context_of(context: Context | None, x: Data) -> Array | None:
    """What the networks see of `x`."""
    if context is None:
        return None
    found = jnp.asarray(context(x))
    if found.ndim != 1:
        raise ValueError(f"context must return an array [C], got shape {list(found.shape)}: flatten it, as with jnp.ravel.")
    return found


def draw(space: Space, params: Flow, rng: PRNGKey, forward: Map) -> tuple[Latent, Scalar]:
    """One draw and its log-density, the log-determinant taken on the way."""
    eps = jax.random.normal(rng, params.base.loc.shape, params.base.loc.dtype)
    u, log_moved = onto(params, eps, forward)
    z, log_det = space.constrain(u)
    return z, log_standard(eps) - log_moved - log_det


def log_density(space: Space, params: Flow, z: Latent, inverse: Map) -> Scalar:
    """log q(z), by the inverse of f and its log-determinant."""
    u, log_det = space.unconstrain(z)
    eps, log_moved = back(params, u, inverse)
    return log_standard(eps) + log_moved + log_det


def onto(params: Flow, eps: Array, forward: Map) -> tuple[Array, Scalar]:
    """Coordinates u = loc + L f(eps) [D], and log|du/deps|."""
    base, (bent, log_bent) = params.base, forward(eps)
    if isinstance(base, Dense):
        bent = bent + below(base.lower) @ bent
    return base.loc + jnp.exp(base.log_scale) * bent, log_bent + jnp.sum(base.log_scale)


def back(params: Flow, u: Array, inverse: Map) -> tuple[Array, Scalar]:
    """Noise [D] of coordinates, and log|deps/du|."""
    base = params.base
    bent = (u - base.loc) * jnp.exp(-base.log_scale)
    if isinstance(base, Dense):
        bent = solve_triangular(below(base.lower), bent, lower=True, unit_diagonal=True)
    eps, log_unbent = inverse(bent)
    return eps, log_unbent - jnp.sum(base.log_scale)


def affine(output: Array) -> tuple[Array, Array]:
    """A network's output [2 n] as the log-scales and the shifts of n coordinates."""
    raw, shift = jnp.split(output, 2)
    return MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE), shift


def _base(space: Space, init_scale: float) -> Diagonal | Dense:
    """A Gaussian that has seen nothing."""
    loc, log_scale = start(space, init_scale)
    return Dense(loc, log_scale, jnp.zeros((space.size, space.size))) if space.size <= MAX_DENSE else Diagonal(loc, log_scale)


def _given(space: Space, loc: Array, root: Array) -> Diagonal | Dense:
    """N(loc, root root'); of a diagonal base, with its marginal variances."""
    size = space.size
    if np.shape(loc) != (size,) or np.shape(root) != (size, size):
        raise ValueError(
            f"loc must have shape [{size}] and root [{size}, {size}], one entry for every coordinate of {space}; got "
            f"{list(np.shape(loc))} and {list(np.shape(root))}."
        )
    loc, root = jnp.asarray(loc, float), jnp.asarray(root, float)
    if size <= MAX_DENSE:
        return dense(loc, root)
    return Diagonal(loc, 0.5 * jnp.log(jnp.sum(root**2, 1)))
