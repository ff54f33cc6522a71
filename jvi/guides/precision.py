"""A Gaussian on the coordinates of a space whose parameter is the root of its precision."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import below, check, gaussian_entropy, log_standard, start
from jvi.spaces import Space


class PrecisionRoot(NamedTuple):
    """Parameters of `Precision`: the precision is C C', where C = diag(exp(-log_scale)) (I + tril(lower, -1) / sqrt(D)).

    Attributes:
      loc: mean of the coordinates [D].
      log_scale: minus the log of C's diagonal [D]: that of each coordinate's standard deviation given those after it.
      lower: [D, D], of which only what lies below the diagonal is used; the rest stays zero.
    """

    loc: Array
    log_scale: Array
    lower: Array


@spec
class Precision:
    """A Gaussian on a space's coordinates by the Cholesky factor C of its precision: u = loc + C^-T eps.

    The same distributions as `FullRank`, in coordinates in which what is independent given the rest is a zero: the posterior of a
    regression with few shared predictors, or of a field in which neighbours interact. `log_prob` and the entropy solve nothing; a draw
    solves one triangular system.

    Attributes:
      space: where the draws live.
      init_scale: initial standard deviation of every coordinate.

    Raises:
      TypeError: if `space` is not a Space.
      ValueError: if `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.Precision(jvi.space(jvi.real(3)))
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z.shape, bool(abs(guide.log_prob(params, None, z) - log_q) < 1e-4)
      ((3,), True)

    References:
      Tan and Nott (2018), Gaussian Variational Approximation with Sparse Precision Matrices.
    """

    space: Space
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, self.init_scale)

    def init(self, rng: PRNGKey, x: Data) -> PrecisionRoot:
        """Parameters at the origin with covariance init_scale^2 I; `rng` and `x` are not used."""
        return PrecisionRoot(*start(self.space, self.init_scale), jnp.zeros((self.space.size, self.space.size)))

    def sample_and_log_prob(self, params: PrecisionRoot, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        mixed = solve_triangular(below(params.lower), eps, trans="T", lower=True, unit_diagonal=True)
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * mixed)
        return z, log_standard(eps) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: PrecisionRoot, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        white = (u - params.loc) * jnp.exp(-params.log_scale)
        return log_standard(white + white @ below(params.lower)) - jnp.sum(params.log_scale) + log_det

    def entropy(self, params: PrecisionRoot, x: Data, z: Latent) -> Scalar:
        """The coordinates' entropy plus log|det dz/du| at the draw `z`: q's entropy, exact in a real space; nats."""
        return gaussian_entropy(self.space, jnp.sum(params.log_scale), z)
