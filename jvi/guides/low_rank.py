"""A Gaussian on the coordinates of a space whose covariance is diagonal plus low rank."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import LOG_2PI, check, gaussian_entropy, start
from jvi.spaces import Space


class Factored(NamedTuple):
    """Parameters of `LowRank`: the covariance is diag(exp(2 log_scale)) + factor factor'.

    Attributes:
      loc: mean of the coordinates [D].
      log_scale: log of the diagonal part's standard deviations [D].
      factor: [D, R].
    """

    loc: Array
    log_scale: Array
    factor: Array


@spec
class LowRank:
    """A Gaussian with covariance diagonal plus rank R: u = loc + exp(log_scale) * eps + factor @ eta.

    For hundreds or thousands of coordinates with a few directions of strong correlation: D (R + 2) numbers to fit.

    Attributes:
      space: where the draws live.
      rank: R, at least 1.
      init_scale: initial standard deviation of every coordinate.

    Raises:
      TypeError: if `space` is not a Space or `rank` not a whole number.
      ValueError: if `rank` is less than 1 or `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.LowRank(jvi.space(jvi.real(30)), rank=2)
      >>> guide.init(jax.random.key(0), None).factor.shape
      (30, 2)

    References:
      Ong, Nott and Smith (2018), Gaussian Variational Approximation with a Factor Covariance Structure.
    """

    space: Space
    rank: int
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, self.init_scale)
        check_count(self.rank, "rank")

    def init(self, rng: PRNGKey, x: Data) -> Factored:
        """Parameters at the origin; the factor starts small and random, because at zero its gradient vanishes."""
        loc, log_scale = start(self.space, self.init_scale)
        factor = jax.random.normal(rng, (self.space.size, self.rank))
        return Factored(loc, log_scale, 0.1 * self.init_scale * factor / math.sqrt(self.rank))

    def sample_and_log_prob(self, params: Factored, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        size, rank = params.factor.shape
        noise = jax.random.normal(rng, (size + rank,), params.loc.dtype)
        centred = jnp.exp(params.log_scale) * noise[:size] + params.factor @ noise[size:]
        z, log_det = self.space.constrain(params.loc + centred)
        return z, _log_factored(params, centred) - log_det

    def log_prob(self, params: Factored, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        return _log_factored(params, u - params.loc) + log_det

    def entropy(self, params: Factored, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return gaussian_entropy(self.space, _log_root(params)[1], z)


def _log_factored(params: Factored, centred: Array) -> Scalar:
    # Woodbury: everything dense is [R, R].
    root, log_det = _log_root(params)
    white = centred * jnp.exp(-params.log_scale)
    inner = (params.factor * jnp.exp(-params.log_scale)[:, None]).T @ white
    square = white @ white - inner @ cho_solve((root, True), inner)
    return -0.5 * (square + centred.shape[0] * LOG_2PI) - log_det


def _log_root(params: Factored) -> tuple[Array, Scalar]:
    """The Cholesky factor [R, R] of Woodbury's inner matrix, and half the log-determinant of the covariance."""
    scaled = params.factor * jnp.exp(-params.log_scale)[:, None]
    root = jnp.linalg.cholesky(jnp.eye(scaled.shape[1], dtype=scaled.dtype) + scaled.T @ scaled)
    return root, jnp.sum(params.log_scale) + jnp.sum(jnp.log(jnp.diag(root)))
