"""A frame bent by a flow, fitted to a target."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi._frames import Affine
from jvi._loops import rows
from jvi._precision import precise
from jvi._spec import spec
from jvi._targets import Density, Target
from jvi._typing import Array, Data, Params, Scalar
from jvi.fit import fit
from jvi.guides import RealNVP
from jvi.models import model
from jvi.objectives import elbo
from jvi.spaces import space
from jvi.supports import real
from jvi.svi import SVI, cosine_adam, optimizer

_LANES, _ROWS = 16, 512  # points taken together, and in one call
_CHUNK, _DRAWS = 500, 64


class Flowed:
    """u = base(f(v)), f a flow.

    Attributes:
      base: the frame it began as.
      guide, params: whose map f is.
    """

    def __init__(self, base: Affine, guide: RealNVP, params: Params) -> None:
        self.base, self.guide, self.params = base, guide, params

    def out(self, v: np.ndarray) -> np.ndarray:
        """Coordinates [S, D] of v [S, D]."""
        return self.base.out(self._each(_Forward(self.guide), v)[0])

    def into(self, u: np.ndarray) -> np.ndarray:
        """The inverse of `out`."""
        return self._each(_Inverse(self.guide), self.base.into(u))[0]

    def log_det(self, v: np.ndarray) -> np.ndarray:
        """log|du/dv| [S]."""
        return self.base.log_det(v) + self._each(_Forward(self.guide), v)[1]

    def pull(self, v: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """The gradient by v of f(u(v)) + log|du/dv|, from that of f by u."""
        return self._each(_Pull(self.guide), np.concatenate([v, self.base.pull(v, grads)], 1))

    def _each(self, function: Any, points: np.ndarray) -> Any:
        def one(part: np.ndarray) -> Any:
            padded = np.concatenate([part, np.repeat(part[-1:], _ROWS - len(part), 0)])
            with precise():
                found = jax.device_get(rows(function, _LANES, self.params, padded, len(part)))
            return jax.tree.map(lambda leaf: np.asarray(leaf[: len(part)], float), found)

        parts = np.array_split(points, -(-len(points) // _ROWS))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(one, parts))


def flowed(density: Density, base: Affine, rng: np.random.Generator, *, num_steps: int = 2_000) -> Flowed:
    """The flow over `base`, in which the target is about N(0, I), of largest ELBO; it starts as `base` itself.

    References:
      Dinh, Sohl-Dickstein and Bengio (2017), Density Estimation Using Real NVP; Agrawal, Sheldon and Domke (2020), Advances in
      Black-Box VI, for flows that start at a Gaussian.
    """
    size = len(base.loc)
    guide = RealNVP(space(real(size)), num_layers=6)
    with density.context():
        x = (density.x, jnp.asarray(base.loc), jnp.asarray(base.chol))
        key = jax.random.key(int(rng.integers(2**31)))
        svi = SVI(
            elbo(model(_Framed(density.target)), guide, num_samples=_DRAWS), optimizer(cosine_adam, 3e-3, num_steps=num_steps)
        )
        state = svi.init(key, x)
        identity = guide.around(key, x, jnp.zeros(size), jnp.eye(size))
        state = state._replace(params=state.params._replace(guide=identity), opt_state=svi.opt_init(state.params))
        for done in range(0, num_steps, _CHUNK):
            now = min(_CHUNK, num_steps - done)
            density.spend(now * _DRAWS)
            state, _ = fit(svi, key, x, num_steps=now, state=state, progress=False)
        return Flowed(base, guide, jax.tree.map(lambda leaf: np.asarray(leaf, float), state.params.guide))


@spec
class _Framed:
    """A target's log-density in an affine frame, but for a constant."""

    target: Target

    def __call__(self, x: Data, v: Array) -> Scalar:
        data, loc, chol = x
        return self.target.log_density(data, loc + chol @ v)


@spec
class _Forward:
    guide: RealNVP

    def __call__(self, params: Params, v: Array) -> tuple[Array, Scalar]:
        return self.guide.forward(params, None, v)


@spec
class _Inverse:
    guide: RealNVP

    def __call__(self, params: Params, u: Array) -> tuple[Array, Scalar]:
        return self.guide.inverse(params, None, u)


@spec
class _Pull:
    guide: RealNVP

    def __call__(self, params: Params, point: Array) -> Array:
        v, slope = jnp.split(point, 2)
        _, pullback = jax.vjp(lambda v: self.guide.forward(params, None, v), v)
        return pullback((slope, jnp.ones((), v.dtype)))[0]
