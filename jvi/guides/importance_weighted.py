"""The distribution that importance-weighted bounds are the evidence bound of: a guide's draws, resampled by their weights."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.scipy.special import logsumexp

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.guides._fixed import check_fixed, check_model
from jvi.guides.functions import Guide
from jvi.models import Model


@spec
class ImportanceWeighted:
    """One of K draws of a guide, chosen by its importance weight w_k = p(x, z_k) / q(z_k | x).

    Draws for predictions from a guide that was trained by `jvi.iwae`, whose parameters are this guide's. With
    log_q = log p(x, z) - log mean_k w_k, the ELBO of this guide and the same model is the importance-weighted bound of the other one,
    draw by draw and gradient by gradient; with another model it is a bound still, but its gradient is biased. Draws have no path, and
    there is no `log_prob`.

    Attributes:
      guide: q(z | x).
      model: p(x, z), with nothing to learn.
      num_samples: K.

    Raises:
      TypeError: if `guide` is no guide, `model` no model, or `num_samples` no whole number.
      ValueError: if `num_samples` is less than 1, or, in `init`, if the model has parameters.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, 0.5, 0.2))
      >>> guide = jvi.guides.ImportanceWeighted(jvi.guides.MeanField(jvi.space(jvi.real()), init_scale=1.0), model, num_samples=100)
      >>> params = guide.init(jax.random.key(0), None)  # at mean 0 with standard deviation 1
      >>> draw = jax.vmap(lambda key: guide.sample_and_log_prob(params, key, None)[0])
      >>> bool(abs(draw(jax.random.split(jax.random.key(1), 1_000)).mean() - 0.5) < 0.05)
      True

    References:
      Cremer, Morris and Duvenaud (2017), Reinterpreting Importance-Weighted Autoencoders; Domke and Sheldon (2018), Importance
      Weighting and Variational Inference.
    """

    guide: Any
    model: Model
    num_samples: int

    def __post_init__(self) -> None:
        if not isinstance(self.guide, Guide):
            raise TypeError(f"guide must have the methods init and sample_and_log_prob, got {self.guide!r}.")
        check_model(self.model, "ImportanceWeighted")
        check_count(self.num_samples, "num_samples")

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the guide."""
        check_fixed(self.model, rng, x, "ImportanceWeighted")
        return self.guide.init(rng, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, and log p(x, z) less the log of the mean weight, nats."""
        choose, draw = jax.random.split(rng)

        def one(key: PRNGKey) -> tuple[Latent, Scalar, Scalar]:
            z, log_q = self.guide.sample_and_log_prob(params, key, x)
            log_joint = self.model.log_joint((), x, z)
            return z, log_joint, log_joint - log_q

        z, log_joint, log_w = jax.vmap(one)(jax.random.split(draw, self.num_samples))
        chosen = jax.random.categorical(choose, log_w)
        # The path through z would cancel between log_q and the objective's log-joint: it is cut in both.
        z, own = jax.lax.stop_gradient(jax.tree.map(lambda leaf: leaf[chosen], (z, log_joint)))
        return z, own - (logsumexp(log_w) - math.log(self.num_samples))
