"""Gaussians on the coordinates of a space: diagonal and dense covariance."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, PyTree, Scalar
from jvi.guides._base import below, check, gaussian_entropy, log_standard, start
from jvi.guides._factors import factors
from jvi.spaces import Space


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
        check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> Diagonal:
        """Parameters at the origin with standard deviation `init_scale`; `rng` and `x` are not used."""
        return Diagonal(*start(self.space, self.init_scale))

    def sample_and_log_prob(self, params: Diagonal, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * eps)
        return z, log_standard(eps) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: Diagonal, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        eps = (u - params.loc) * jnp.exp(-params.log_scale)
        return log_standard(eps) - jnp.sum(params.log_scale) + log_det

    def distribution(self, params: Diagonal, x: Data) -> PyTree:
        """q as a distribution of every latent: Gaussians, transformed where a latent is constrained."""
        return factors(self.space, params.loc, jnp.exp(params.log_scale))

    def entropy(self, params: Diagonal, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return gaussian_entropy(self.space, jnp.sum(params.log_scale), z)


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
        check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> Dense:
        """Parameters at the origin with covariance init_scale^2 I; `rng` and `x` are not used."""
        loc, log_scale = start(self.space, self.init_scale)
        return Dense(loc, log_scale, jnp.zeros((self.space.size, self.space.size)))

    def sample_and_log_prob(self, params: Dense, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        u = params.loc + jnp.exp(params.log_scale) * (eps + below(params.lower) @ eps)
        z, log_det = self.space.constrain(u)
        return z, log_standard(eps) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: Dense, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        white = (u - params.loc) * jnp.exp(-params.log_scale)
        eps = solve_triangular(below(params.lower), white, lower=True, unit_diagonal=True)
        return log_standard(eps) - jnp.sum(params.log_scale) + log_det

    def distribution(self, params: Dense, x: Data) -> PyTree:
        """q as a distribution, where it is over one real vector; None elsewhere: its latents are not independent."""
        support = self.space.supports[0]
        alone = self.space.treedef == jax.tree.structure(0) and len(support.shape) == 1
        if not alone or support.bijector is not None:
            return None
        root = jnp.exp(params.log_scale)[:, None] * (jnp.eye(self.space.size) + below(params.lower))
        return distrax.MultivariateNormalTri(params.loc, root)

    def entropy(self, params: Dense, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return gaussian_entropy(self.space, jnp.sum(params.log_scale), z)


def dense(loc: Array, chol: Array) -> Dense:
    """`FullRank`'s parameters for N(loc, chol chol'), chol lower triangular [D, D]."""
    scale = jnp.diag(chol)
    return Dense(loc, jnp.log(scale), jnp.tril(chol / scale[:, None], -1) * math.sqrt(loc.shape[0]))
