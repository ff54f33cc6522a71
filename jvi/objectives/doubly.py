"""The doubly reparameterized gradient of bounds of several log-weights."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jvi import bounds
from jvi import noise as noises
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.gradients._paths import check_path
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._particles import Noise, check_particles, each_particle
from jvi.objectives._steered import check_independent, steerable, steered
from jvi.objectives._terms import log_weight, masked, terms_of
from jvi.objectives.weighted import RenyiBound


@spec
class DReG:
    """A Rényi bound with the doubly reparameterized gradient. Made by `dreg`.

    Attributes:
      model, guide: what is fitted to what.
      num_samples: K.
      alpha: order of the bound.
      noise, chunk_size: as in `MonteCarlo`.
    """

    model: Model
    guide: Guide
    num_samples: int
    alpha: float = 0.0
    noise: Noise = noises.independent
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_parts(self.model, self.guide)
        check_particles(self.num_samples, self.noise, self.chunk_size)
        if np.isinf(self.alpha):
            raise ValueError(f"dreg needs a finite alpha, got {self.alpha}: the extreme log-weight is for jvi.renyi.")
        if not hasattr(self.guide, "log_prob"):
            raise ValueError(
                f"dreg needs a guide with a log_prob, and {self.guide!r} has none; use jvi.iwae or jvi.renyi with gradients.pathwise."
            )
        if self.alpha != 1.0:
            check_independent("dreg", self.noise)

    @property
    def bound(self) -> Any:
        """Log-weights [K] -> scalar."""
        return {0.0: bounds.iwae, 1.0: bounds.elbo}.get(self.alpha) or RenyiBound(self.alpha)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model and the guide."""
        model, guide = jax.random.split(rng)
        return Params(self.model.init(model, x), self.guide.init(guide, x))

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound and its log-weights.

        Args:
          params: of the model and the guide.
          rng: key, consumed.
          x: one datum, or all of the data.
          beta: weight of log p(z) - log q(z | x); other than 1 only with `jvi.split` models.
        """

        def one(key: PRNGKey) -> tuple[Array, Array]:
            terms, handle = self._terms(params, key, x)
            log_q = terms.pop("log q")
            return log_weight(terms, log_q, beta), handle

        log_w, handles = each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)
        value: Any = steered(self.bound, log_w, handles, 1.0, -beta * (1.0 - self.alpha))
        return value, Aux(jax.lax.stop_gradient(log_w))

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""

        def one(key: PRNGKey) -> dict[str, Array]:
            return self._terms(params, key, x)[0]

        return each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)

    def _terms(self, params: Params, rng: PRNGKey, x: Data) -> tuple[dict[str, Array], Array]:
        of_guide = masked(self.guide, params.guide, rng)
        z, _ = self.guide.sample_and_log_prob(of_guide, rng, x)
        check_path(self.guide, of_guide, rng, x, z)
        z, handle = steerable(z)
        # x too is held fixed in log q: whoever differentiates by it moves the draws, as the guide's parameters do.
        fixed, seen = jax.lax.stop_gradient((of_guide, x))
        guide: Any = self.guide
        terms = terms_of(self.model, params.model, rng, x, z, batched=self.num_samples > 1)
        return {**terms, "log q": guide.log_prob(fixed, seen, z)}, handle


def dreg(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    alpha: float = 0.0,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> DReG:
    """The importance-weighted bound, or Rényi's of order `alpha`, with the doubly reparameterized gradient; nats.

    The value is that of `jvi.iwae` and `jvi.renyi`. With log_w[k] = log p(x, z_k) - log q(z_k | x) and v = softmax((1 - alpha) log_w),
    their pathwise gradient holds the term - sum_k v[k] d log q(z_k) / d phi of fixed draws: noise that does not average out, and under
    which the guide's gradient drowns as K grows. Reparameterized once more it is what moving z_k does to v[k],
    (1 - alpha) v[k] (1 - v[k]) d log_w[k], and the gradient is, without bias,

        guide:  sum_k c[k] (d log_w[k] / d z_k) (d z_k / d phi),  c[k] = v[k] - beta (1 - alpha) v[k] (1 - v[k])
        model:  sum_k v[k] d log p(x, z_k) / d theta

    where c is v^2 for the importance-weighted bound, alpha v + (1 - alpha) v^2 for Rényi's, and 1 / K for alpha = 1: the ELBO
    with `gradients.stl`. The guide's gradient vanishes where q is the exact posterior. Costs what `gradients.stl` does.

    Args:
      model: p(x, z).
      guide: q(z | x), with a `log_prob`, its draws reparameterized.
      num_samples: K.
      alpha: order, finite; 0 is the importance-weighted bound.
      noise: `jvi.noise.independent`, unless alpha is 1.
      chunk_size: as in `jvi.elbo`.

    Raises:
      ValueError: if the guide has no `log_prob`, `alpha` is not finite, a count is less than 1, or the noise is not independent.
      TypeError: once traced, if the draws do not depend differentiably on the parameters: use `jvi.objectives.vimco`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> model = jvi.model(lambda x, z: log_normal(z) + log_normal(x, z))
      >>> objective = jvi.objectives.dreg(model, jvi.guides.MeanField(jvi.space(jvi.real())), num_samples=5)
      >>> start = objective.init(jax.random.key(0), 2.0)
      >>> exact = start._replace(guide=start.guide._replace(loc=jnp.ones(1), log_scale=jnp.full(1, 0.5 * jnp.log(0.5))))
      >>> grads = jax.grad(objective, has_aux=True)(exact, jax.random.key(1), 2.0)[0]
      >>> bool(jnp.abs(grads.guide.loc[0]) < 1e-5)
      True

    References:
      Tucker, Lawson, Gu and Maddison (2019), Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives; Li and Turner
      (2016), Rényi Divergence Variational Inference; Bauer and Mnih (2021), Generalized Doubly Reparameterized Gradient Estimators.
    """
    bounds.check_alpha(alpha)
    return DReG(model, guide, num_samples, float(alpha), noise, chunk_size)
