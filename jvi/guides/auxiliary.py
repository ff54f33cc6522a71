"""A marginal: a latent drawn by way of auxiliary variables that a learned reverse model integrates out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.guides.functions import Guide


class Reversed(NamedTuple):
    """Parameters of `Auxiliary`.

    Attributes:
      guide: of the guide that draws (a, z).
      reverse: of r(a | x, z).
    """

    guide: Params
    reverse: Params


@spec
class Auxiliary:
    """z's marginal under q(a, z | x), with log_q = log q(a, z | x) - log r(a | x, z) in place of its own, intractable log-density.

    The marginal is richer than its parts: Gaussians given a are any mixture of Gaussians. E[exp(-log_q)] given z is 1 / q(z | x)
    whatever r is, so that every bound stays one: of z's model, but looser, the ELBO by E[KL(q(a | x, z) || r(a | x, z))], which
    training r closes. There is no `log_prob`.

    Attributes:
      guide: q(a, z | x), of two parts: `sequence(a=..., z=...)`. The first is the auxiliary variable, the second the latent; several
        auxiliary variables are a sequence themselves.
      reverse: r(a | x, z), with a `log_prob`: a guide of the first part's draws that sees `(x, z)`.

    Raises:
      TypeError: if `guide` is no guide of named parts, or `reverse` no guide with a `log_prob`.
      ValueError: if there are not two parts.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> space = jvi.space(jvi.real(2))
      >>> tied = jvi.guides.from_distribution(
      ...     lambda rng, x: jnp.ones(()), lambda w, x: distrax.MultivariateNormalDiag(w * x[1]["a"], jnp.ones(2))
      ... )
      >>> pair = jvi.guides.sequence(a=jvi.guides.MeanField(space), z=tied)
      >>> guide = jvi.guides.Auxiliary(pair, reverse=jvi.guides.MeanField(space))
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> z.shape, log_q.shape, hasattr(guide, "log_prob")
      ((2,), (), False)

    References:
      Agakov and Barber (2004), An Auxiliary Variational Method; Maaløe et al. (2016), Auxiliary Deep Generative Models; Ranganath, Tran
      and Blei (2016), Hierarchical Variational Models.
    """

    guide: Any
    reverse: Any

    def __post_init__(self) -> None:
        names = getattr(self.guide, "names", None)
        if not isinstance(self.guide, Guide) or names is None:
            raise TypeError(f"guide must be of two parts, as jvi.guides.sequence(a=..., z=...) is; got {self.guide!r}.")
        if len(names) != 2:
            raise ValueError(
                f"guide must have two parts, the auxiliary variable and the latent, got {', '.join(names)}; "
                "make several auxiliary variables one part, itself a sequence."
            )
        if not isinstance(self.reverse, Guide) or not hasattr(self.reverse, "log_prob"):
            raise TypeError(
                f"reverse must be a guide with a log_prob, of draws of {names[0]!r} given (x, z); got {self.reverse!r}."
            )

    @property
    def reparameterized(self) -> bool:
        """Whether the guide's parts are known to have a path; of the reverse model nothing is drawn."""
        return getattr(self.guide, "reparameterized", False)

    def init(self, rng: PRNGKey, x: Data) -> Reversed:
        """Initial parameters of both."""
        guide, draw, reverse = jax.random.split(rng, 3)
        params = self.guide.init(guide, x)
        (_, z), _ = self._pair(params, draw, x)
        return Reversed(params, self.reverse.init(reverse, (x, z)))

    def sample_and_log_prob(self, params: Reversed, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw of z, and log q(a, z | x) - log r(a | x, z) at the a that made it, nats."""
        (a, z), log_q = self._pair(params.guide, rng, x)
        return z, log_q - self.reverse.log_prob(params.reverse, (x, z), a)

    def _pair(self, params: Params, rng: PRNGKey, x: Data) -> tuple[tuple[Latent, Latent], Scalar]:
        drawn, log_q = self.guide.sample_and_log_prob(params, rng, x)
        first, second = self.guide.names
        return (drawn[first], drawn[second]), log_q
