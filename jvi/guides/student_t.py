"""Independent Student-t coordinates of a space, with learned degrees of freedom."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates import jax as tfp

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import check, start
from jvi.spaces import Space


class HeavyTailed(NamedTuple):
    """Parameters of `StudentT`.

    Attributes:
      loc: median of the coordinates, which is their mean [D].
      log_scale: log scales [D]; the standard deviation is exp(log_scale) sqrt(df / (df - 2)).
      log_excess: log of the degrees of freedom beyond two, log(df - 2) [D].
    """

    loc: Array
    log_scale: Array
    log_excess: Array


@spec
class StudentT:
    """Independent Student-t coordinates: u = loc + exp(log_scale) * t, t of df = 2 + exp(log_excess) degrees of freedom.

    As robust as `MeanField` with tails of its own in every coordinate, so that weights stay bounded where the posterior's are heavier
    than a Gaussian's. df is learned, and more than two, so that variances exist. With two independent normal numbers e and f,

        t = e sqrt(expm1(r) / r),  r = (e^2 + f^2) / df

    is exactly Student-t: a smooth function of df, that needs no rejection and tends to e as df grows. So draws have an ordinary path,
    by df too. Below four degrees of freedom the gradient on a target with a Gaussian's tails has no finite variance.

    Attributes:
      space: where the draws live.
      init_df: initial degrees of freedom, more than 2.
      init_scale: initial scale of every coordinate.

    Raises:
      TypeError: if `space` is not a Space.
      ValueError: if `init_scale` is not positive, or `init_df` not more than 2 and finite.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.StudentT(jvi.space(jvi.real()), init_df=5.0, init_scale=1.0)
      >>> params = guide.init(jax.random.key(0), None)
      >>> round(float(jnp.exp(guide.log_prob(params, None, 0.0))), 4)  # the density of t with five degrees of freedom at its centre
      0.3796

    References:
      Bailey (1994), Polar Generation of Random Variates with the t-Distribution; Domke and Sheldon (2018), Importance Weighting and
      Variational Inference.
    """

    space: Space
    init_df: float = 10.0
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, self.init_scale)
        if not 2.0 < self.init_df < math.inf:
            raise ValueError(f"init_df must be more than 2, so that variances exist, and finite; got {self.init_df}.")

    def init(self, rng: PRNGKey, x: Data) -> HeavyTailed:
        """Parameters at the origin with scale `init_scale`; `rng` and `x` are not used."""
        return HeavyTailed(*start(self.space, self.init_scale), jnp.full(self.space.size, math.log(self.init_df - 2.0)))

    def sample_and_log_prob(self, params: HeavyTailed, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        noise = jax.random.normal(rng, (2, *params.loc.shape), params.loc.dtype)
        df = 2.0 + jnp.exp(params.log_excess)
        radius = jnp.sum(noise**2, 0) / df
        radius = jnp.maximum(radius, jnp.finfo(radius.dtype).tiny)  # both are zero once in a very long while
        white = noise[0] * jnp.sqrt(jnp.expm1(radius) / radius)
        z, log_det = self.space.constrain(params.loc + jnp.exp(params.log_scale) * white)
        return z, _log_student(white, df) - jnp.sum(params.log_scale) - log_det

    def log_prob(self, params: HeavyTailed, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        u, log_det = self.space.unconstrain(z)
        white = (u - params.loc) * jnp.exp(-params.log_scale)
        return _log_student(white, 2.0 + jnp.exp(params.log_excess)) - jnp.sum(params.log_scale) + log_det


def _log_student(white: Array, df: Array) -> Scalar:
    # The difference of two log-gammas would leave nothing of float32 where df is large, as it grows on a Gaussian target.
    log_norm = tfp.math.lbeta(jnp.full_like(df, 0.5), 0.5 * df) + 0.5 * jnp.log(df)
    return -jnp.sum(0.5 * (df + 1.0) * jnp.log1p(white**2 / df) + log_norm)
