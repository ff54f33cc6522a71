"""Coordinates of a space with a skew and tails of their own, independent or on top of a dense Gaussian."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import below, check, log_standard, start
from jvi.spaces import Space


class Skewed(NamedTuple):
    """Parameters of `SinhArcsinh`.

    Attributes:
      loc: where a draw of bent noise 0 lies [D].
      log_scale: log scales [D].
      skew: positive for a longer upper tail [D].
      log_tail: positive for tails heavier than a Gaussian's, negative for lighter ones [D].
    """

    loc: Array
    log_scale: Array
    skew: Array
    log_tail: Array


class DenseSkewed(NamedTuple):
    """Parameters of `DenseSinhArcsinh`: L = diag(exp(log_scale)) (I + tril(lower, -1) / sqrt(D)).

    Attributes:
      loc, log_scale, skew, log_tail: as of `SinhArcsinh`, [D] each.
      lower: [D, D], of which only what lies below the diagonal is used; the rest stays zero.
    """

    loc: Array
    log_scale: Array
    skew: Array
    log_tail: Array
    lower: Array


@spec
class SinhArcsinh:
    """Independent coordinates with skew and tail weight: u = loc + exp(log_scale) * sinh((arcsinh(eps) + skew) * exp(log_tail)).

    Four numbers a coordinate: what `MeanField` is for symmetric posteriors, this is for skewed and heavy- or light-tailed ones. Starts
    as `MeanField` does: with skew and log_tail zero the bend is the identity.

    Attributes:
      space: where the draws live.
      init_scale: initial standard deviation of every coordinate.

    Raises:
      TypeError: if `space` is not a Space.
      ValueError: if `init_scale` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.SinhArcsinh(jvi.space(jvi.real()))
      >>> params = guide.init(jax.random.key(0), None)._replace(skew=jnp.ones(1))
      >>> draws = jax.vmap(lambda key: guide.sample_and_log_prob(params, key, None)[0])(jax.random.split(jax.random.key(1), 1_000))
      >>> bool(draws.mean() > jnp.median(draws))  # a longer upper tail
      True

    References:
      Jones and Pewsey (2009), Sinh-Arcsinh Distributions, whose epsilon is `skew`, and delta exp(-log_tail).
    """

    space: Space
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> Skewed:
        """Parameters of independent Gaussians at the origin; `rng` and `x` are not used."""
        flat = jnp.zeros(self.space.size)
        return Skewed(*start(self.space, self.init_scale), flat, flat)

    def sample_and_log_prob(self, params: Skewed, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        bent, log_slope = _bent(eps, params.skew, params.log_tail)
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * bent)
        return z, log_standard(eps) - log_slope - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: Skewed, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        eps, log_slope = _unbent((u - params.loc) * jnp.exp(-params.log_scale), params.skew, params.log_tail)
        return log_standard(eps) - log_slope - jnp.sum(params.log_scale) + log_det


@spec
class DenseSinhArcsinh:
    """Correlated coordinates with skew and tail weight: u = loc + L sinh((arcsinh(eps) + skew) * exp(log_tail)).

    `FullRank` whose noise is bent before it is mixed. Starts as `FullRank` does.

    Attributes:
      space: where the draws live.
      init_scale: initial standard deviation of every coordinate.

    Raises:
      TypeError: if `space` is not a Space.
      ValueError: if `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.DenseSinhArcsinh(jvi.space({"a": jvi.real(2), "b": jvi.positive()}))
      >>> guide.init(jax.random.key(0), None).lower.shape
      (3, 3)

    References:
      Jones and Pewsey (2009), Sinh-Arcsinh Distributions.
    """

    space: Space
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> DenseSkewed:
        """Parameters of independent Gaussians at the origin; `rng` and `x` are not used."""
        flat = jnp.zeros(self.space.size)
        return DenseSkewed(*start(self.space, self.init_scale), flat, flat, jnp.zeros((self.space.size, self.space.size)))

    def sample_and_log_prob(self, params: DenseSkewed, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        bent, log_slope = _bent(eps, params.skew, params.log_tail)
        mixed = bent + below(params.lower) @ bent
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * mixed)
        return z, log_standard(eps) - log_slope - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: DenseSkewed, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        mixed = (u - params.loc) * jnp.exp(-params.log_scale)
        bent = solve_triangular(below(params.lower), mixed, lower=True, unit_diagonal=True)
        eps, log_slope = _unbent(bent, params.skew, params.log_tail)
        return log_standard(eps) - log_slope - jnp.sum(params.log_scale) + log_det


def _bent(eps: Array, skew: Array, log_tail: Array) -> tuple[Array, Scalar]:
    """The bent noise [D], and the sum of the logs of its slopes by `eps`."""
    angle = (jnp.arcsinh(eps) + skew) * jnp.exp(log_tail)
    return jnp.sinh(angle), _log_slope(eps, angle, log_tail)


def _unbent(bent: Array, skew: Array, log_tail: Array) -> tuple[Array, Scalar]:
    """The noise [D] that bends to this, and the same sum."""
    angle = jnp.arcsinh(bent)
    eps = jnp.sinh(angle * jnp.exp(-log_tail) - skew)
    return eps, _log_slope(eps, angle, log_tail)


def _log_slope(eps: Array, angle: Array, log_tail: Array) -> Scalar:
    log_cosh = jnp.logaddexp(angle, -angle) - jnp.log(2.0)
    return jnp.sum(log_cosh + log_tail - 0.5 * jnp.log1p(eps**2))
