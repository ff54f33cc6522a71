"""DisARM: pairs of antithetic draws of Bernoulli latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jvi import _concrete, bounds
from jvi._checks import check_count
from jvi._distributions import Logits
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._terms import log_weight, terms_of


@spec
class Disarm:
    """The ELBO of Bernoulli latents by antithetic pairs. Made by `disarm`."""

    model: Model
    guide: Guide
    num_samples: int

    def __post_init__(self) -> None:
        check_parts(self.model, self.guide)
        if check_count(self.num_samples, "num_samples") % 2:
            raise ValueError(f"disarm draws in pairs: num_samples must be even, got {self.num_samples}.")
        _concrete.check("jvi.objectives.disarm", self.guide)

    @property
    def bound(self) -> Callable[[Array], Scalar]:
        """The ELBO."""
        return bounds.elbo

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model and the guide."""
        model, guide = jax.random.split(rng)
        return Params(self.model.init(model, x), self.guide.init(guide, x))

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The ELBO, nats, and its log-weights [K]."""
        found, bits, keys = self._draws(params, rng, x)

        def weigh(key: PRNGKey, bits: list[Array]) -> Scalar:
            terms = terms_of(self.model, params.model, key, x, found.latent(bits, as_drawn=True))
            return log_weight(terms, _log_q(bits, found), beta)

        log_w = jax.vmap(weigh)(keys, bits)
        value = jnp.mean(log_w)
        one, other = jnp.split(stop_gradient(log_w), 2)
        score = jnp.zeros(())
        for logits, draws in zip(found.values, bits, strict=True):
            first, second = jnp.split(draws, 2)
            gap = (0.5 * (one - other)).reshape(-1, *[1] * logits.ndim)
            signal = jnp.mean(gap * (first - second), 0) * jax.nn.sigmoid(jnp.abs(logits))
            score = score + jnp.sum(stop_gradient(signal) * logits)
        return value + (score - stop_gradient(score)), Aux(stop_gradient(log_w))

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        found, bits, keys = self._draws(params, rng, x)

        def one(key: PRNGKey, bits: list[Array]) -> dict[str, Array]:
            terms = terms_of(self.model, params.model, key, x, found.latent(bits, as_drawn=True))
            return {**terms, "log q": _log_q(bits, found)}

        return jax.vmap(one)(keys, bits)

    def _draws(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Logits, list[Array], PRNGKey]:
        """Bits [K, ...] for each latent, the second half the opposite numbers of the first, and keys [K]."""
        found = _concrete.logits_of(self.guide, params.guide, x)
        if any(found.one_hot):
            raise TypeError("disarm is for Bernoulli latents, and the guide has a OneHotCategorical: use jvi.objectives.relax.")
        bits = []
        for logits, key in zip(found.values, _concrete.split(rng, found), strict=True):
            noise = jax.random.logistic(key, (self.num_samples // 2, *logits.shape), logits.dtype)
            held = stop_gradient(logits)[None]
            bits.append(jnp.concatenate([held + noise > 0.0, held - noise > 0.0]).astype(logits.dtype))
        return found, bits, jax.random.split(rng, self.num_samples)


def disarm(model: Model, guide: Guide, *, num_samples: int = 2) -> Disarm:
    """The ELBO of Bernoulli latents with the gradient of antithetic pairs: what two opposite draws differ in, bit by bit.

    Each pair (b, b') takes one uniform number for each bit and its complement. The gradient by the logits is
    (f(b) - f(b')) (b - b') sigmoid(|logits|) / 2: augment-REINFORCE-merge (ARM) with its uniform numbers integrated out. Unbiased, and
    needs neither a baseline nor a model that is defined between 0 and 1. The model's parameters get their plain gradient.

    Args:
      model: p(x, z).
      guide: q(z | x), made by `jvi.guides.from_distribution` or `conditional` of Bernoulli distributions, alone, in an `Independent`
        or in a `distrax.Joint`.
      num_samples: draws per evaluation, K, in K / 2 pairs.

    Raises:
      ValueError: if `num_samples` is odd, or the guide was not made of a distribution.
      TypeError: once traced, if that is not Bernoulli.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: jnp.where(z == 1, jnp.log(0.9), jnp.log(0.1)))
      >>> objective = jvi.objectives.disarm(model, guide)
      >>> params = objective.init(jax.random.key(0), None)
      >>> grads, aux = jax.grad(objective, has_aux=True)(params, jax.random.key(1), None)
      >>> aux.log_w.shape, round(float(grads.guide), 3)  # at logit 0 a pair is always opposite: log(9) / 4, without noise
      ((2,), 0.549)

    References:
      Dong, Mnih and Tucker (2020), DisARM; Yin, Ho, Yan, Qian and Zhou (2020), Probabilistic Best Subset Selection via Gradient-Based
      Optimization (the same estimator, as U2G).
    """
    return Disarm(model, guide, num_samples)


def _log_q(bits: list[Array], found: Logits) -> Scalar:
    # Of its gradient by the logits the mean is zero, and the score takes its place.
    pairs = zip(bits, found.values, strict=True)
    return sum((_concrete.log_mass(one, stop_gradient(logits), False) for one, logits in pairs), jnp.zeros(()))
