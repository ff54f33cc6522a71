"""A continuous mixture: a density given noise of any kind, with the noise averaged out by further draws of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.guides.functions import Guide


class Mixed(NamedTuple):
    """Parameters of `SemiImplicit`.

    Attributes:
      mixing: of q(eps | x).
      conditional: of q(z | x, eps).
    """

    mixing: Params
    conditional: Params


@spec
class SemiImplicit:
    """q(z | x) = E[q(z | x, eps)] over eps ~ q(eps | x), which need have no density.

    A draw is z ~ q(z | x, eps_0), and log_q the log of the mean of q(z | x, eps_k) over k = 0..K: eps_0 and K further draws. That
    keeps every bound a bound, for any K: the ELBO of this guide is below that of the marginal, rises with K, and tends to it. The
    densities of K + 1 draws are evaluated for each particle. There is no `log_prob`.

    `jvi.gradients.uivi` has the gradient of the marginal's own ELBO for any K, by Markov chains over eps given z.

    Attributes:
      mixing: q(eps | x), a guide; a `log_prob` is not needed.
      conditional: q(z | x, eps), a guide with a `log_prob` that sees `(x, eps)`.
      num_auxiliary: K; with 0 the draws are judged by the conditional that made them.

    Raises:
      TypeError: if `mixing` is no guide, `conditional` no guide with a `log_prob`, or `num_auxiliary` no whole number.
      ValueError: if `num_auxiliary` is negative.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> mixing = jvi.guides.MeanField(jvi.space(jvi.real(2)), init_scale=1.0)
      >>> around = jvi.guides.from_distribution(
      ...     lambda rng, x: jnp.ones(()), lambda w, x: distrax.MultivariateNormalDiag(w * jnp.sin(x[1]), jnp.full(2, 0.3))
      ... )
      >>> guide = jvi.guides.SemiImplicit(mixing, around, num_auxiliary=20)
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> z.shape, log_q.shape
      ((2,), ())

    References:
      Yin and Zhou (2018), Semi-Implicit Variational Inference; Titsias and Ruiz (2019), Unbiased Implicit Variational Inference.
    """

    mixing: Any
    conditional: Any
    num_auxiliary: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.mixing, Guide):
            raise TypeError(f"mixing must be a guide, with the methods init and sample_and_log_prob, got {self.mixing!r}.")
        if not isinstance(self.conditional, Guide) or not hasattr(self.conditional, "log_prob"):
            raise TypeError(
                "conditional must be a guide with a log_prob, given (x, eps), because its densities are averaged; "
                f"got {self.conditional!r}. For one without, jvi.guides.Auxiliary needs only a reverse model."
            )
        check_count(self.num_auxiliary, "num_auxiliary", least=0)

    @property
    def reparameterized(self) -> bool:
        """Whether both parts are known to have a path."""
        return all(getattr(part, "reparameterized", False) for part in (self.mixing, self.conditional))

    def init(self, rng: PRNGKey, x: Data) -> Mixed:
        """Initial parameters of both."""
        mixing, draw, conditional = jax.random.split(rng, 3)
        params = self.mixing.init(mixing, x)
        eps, _ = self.mixing.sample_and_log_prob(params, draw, x)
        return Mixed(params, self.conditional.init(conditional, (x, eps)))

    def sample_and_log_prob(self, params: Mixed, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, and the log of the mean of K + 1 conditional densities of it, nats."""
        _, z, log_q = self.with_noise(params, rng, x)
        return z, log_q

    def with_noise(self, params: Mixed, rng: PRNGKey, x: Data) -> tuple[Latent, Latent, Scalar]:
        """The same, after the eps_0 that the draw was made of."""
        draw, own, others = jax.random.split(rng, 3)
        eps, _ = self.mixing.sample_and_log_prob(params.mixing, own, x)
        z, log_q = self.conditional.sample_and_log_prob(params.conditional, draw, (x, eps))
        if not self.num_auxiliary:
            return eps, z, log_q

        def other(key: PRNGKey) -> Scalar:
            eps, _ = self.mixing.sample_and_log_prob(params.mixing, key, x)
            return self.conditional.log_prob(params.conditional, (x, eps), z)

        log_qs = jax.vmap(other)(jax.random.split(others, self.num_auxiliary))
        return eps, z, logsumexp(jnp.append(log_qs, log_q)) - math.log(self.num_auxiliary + 1)
