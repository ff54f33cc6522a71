"""Gaussians on the coordinates of a space: diagonal, dense and low-rank covariance."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, PyTree, Scalar
from jvi.guides._factors import factors
from jvi.spaces import Space

LOG_2PI = math.log(2.0 * math.pi)


class Diagonal(NamedTuple):
    """Parameters of `MeanField`.

    Attributes:
      loc: mean of the coordinates [D].
      log_scale: log standard deviations [D].
    """

    loc: Array
    log_scale: Array


class Dense(NamedTuple):
    """Parameters of `FullRank`: the covariance is L L', where L = diag(exp(log_scale)) (I + tril(lower, -1) / sqrt(D)).

    Relative to the diagonal and to sqrt(D), one learning rate fits every entry: with L's own entries as parameters, Adam's first
    steps make L so ill-conditioned that densities overflow (seen at D = 31 with a rate of 0.05).

    Attributes:
      loc: mean of the coordinates [D].
      log_scale: log of L's diagonal [D].
      lower: [D, D], of which only what lies below the diagonal is used; the rest stays zero.
    """

    loc: Array
    log_scale: Array
    lower: Array


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
class MeanField:
    """A Gaussian with diagonal covariance on a space's coordinates: u = loc + exp(log_scale) * eps.

    Cheap and robust, and too narrow wherever the posterior is correlated: its standard deviations are about the
    conditional ones.

    Attributes:
      space: where the draws live.
      init_scale: initial standard deviation of every coordinate; the initial mean is u = 0.

    Raises:
      TypeError: if `space` is not a Space.
      ValueError: if `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.MeanField(jvi.space({"rate": jvi.positive(2)}))
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z["rate"].shape, log_q.shape
      ((2,), ())

    References:
      Kucukelbir et al. (2017), Automatic Differentiation Variational Inference.
    """

    space: Space
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> Diagonal:
        """Parameters at the origin with standard deviation `init_scale`; `rng` and `x` are not used."""
        return Diagonal(*_start(self.space, self.init_scale))

    def sample_and_log_prob(self, params: Diagonal, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * eps)
        return z, _log_standard(eps) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: Diagonal, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        eps = (u - params.loc) * jnp.exp(-params.log_scale)
        return _log_standard(eps) - jnp.sum(params.log_scale) + log_det

    def distribution(self, params: Diagonal, x: Data) -> PyTree:
        """q as a distribution of every latent: Gaussians, transformed where a latent is constrained."""
        return factors(self.space, params.loc, jnp.exp(params.log_scale))

    def entropy(self, params: Diagonal, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return _entropy(self.space, jnp.sum(params.log_scale), z)


@spec
class FullRank:
    """A Gaussian with dense covariance on a space's coordinates: u = loc + L eps.

    Follows correlations; D (D + 3) / 2 numbers to fit, and D^2 work for a draw.

    Attributes:
      space: where the draws live.
      init_scale: initial standard deviation of every coordinate.

    Raises:
      TypeError: if `space` is not a Space.
      ValueError: if `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.FullRank(jvi.space(jvi.real(3)))
      >>> guide.init(jax.random.key(0), None).lower.shape
      (3, 3)

    References:
      Titsias and Lázaro-Gredilla (2014), Doubly Stochastic Variational Bayes for Non-Conjugate Inference.
    """

    space: Space
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> Dense:
        """Parameters at the origin with covariance init_scale^2 I; `rng` and `x` are not used."""
        loc, log_scale = _start(self.space, self.init_scale)
        return Dense(loc, log_scale, jnp.zeros((self.space.size, self.space.size)))

    def sample_and_log_prob(self, params: Dense, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        u = params.loc + jnp.exp(params.log_scale) * (eps + _below(params) @ eps)
        z, log_det = self.space.constrain(u)
        return z, _log_standard(eps) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: Dense, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        white = (u - params.loc) * jnp.exp(-params.log_scale)
        eps = solve_triangular(_below(params), white, lower=True, unit_diagonal=True)
        return _log_standard(eps) - jnp.sum(params.log_scale) + log_det

    def distribution(self, params: Dense, x: Data) -> PyTree:
        """q as a distribution, where it is over one real vector; None elsewhere: its latents are not independent."""
        support = self.space.supports[0]
        alone = self.space.treedef == jax.tree.structure(0) and len(support.shape) == 1
        if not alone or support.bijector is not None:
            return None
        root = jnp.exp(params.log_scale)[:, None] * (jnp.eye(self.space.size) + _below(params))
        return distrax.MultivariateNormalTri(params.loc, root)

    def entropy(self, params: Dense, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return _entropy(self.space, jnp.sum(params.log_scale), z)


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
        _check(self.space, self.init_scale)
        check_count(self.rank, "rank")

    def init(self, rng: PRNGKey, x: Data) -> Factored:
        """Parameters at the origin; the factor starts small and random, because at zero its gradient vanishes."""
        loc, log_scale = _start(self.space, self.init_scale)
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
        return _entropy(self.space, _log_root(params)[1], z)


def dense(loc: Array, chol: Array) -> Dense:
    """`FullRank`'s parameters for N(loc, chol chol'), chol lower triangular [D, D]."""
    scale = jnp.diag(chol)
    return Dense(loc, jnp.log(scale), jnp.tril(chol / scale[:, None], -1) * math.sqrt(loc.shape[0]))


def _start(space: Space, init_scale: float) -> tuple[Array, Array]:
    return jnp.zeros(space.size), jnp.full(space.size, math.log(init_scale))


def _below(params: Dense) -> Array:
    return jnp.tril(params.lower, -1) / math.sqrt(params.loc.shape[0])


def _log_standard(eps: Array) -> Scalar:
    return -0.5 * (jnp.sum(eps**2) + eps.shape[0] * LOG_2PI)


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


def _entropy(space: Space, log_root_det: Scalar, z: Latent) -> Scalar:
    gaussian = log_root_det + 0.5 * space.size * (1.0 + LOG_2PI)
    constrained = any(support.bijector is not None for support in space.supports)
    return gaussian - space.unconstrain(z)[1] if constrained else gaussian


def _check(space: Space, init_scale: float) -> None:
    if not isinstance(space, Space):
        raise TypeError(f"space must be made by jvi.space, as in jvi.space({{'w': jvi.real(3)}}); got {space!r}.")
    if not init_scale > 0.0:
        raise ValueError(f"init_scale must be positive, got {init_scale}.")
