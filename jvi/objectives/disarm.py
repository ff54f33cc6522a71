"""DisARM: pairs of antithetic draws of Bernoulli latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jvi import _concrete, bounds
from jvi import noise as noises
from jvi._distributions import Logits
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._particles import Noise, check_particles, each_particle
from jvi.objectives._terms import log_weight, masked, terms_of


@spec
class Disarm:
    """The ELBO of Bernoulli latents by antithetic pairs. Made by `disarm`."""

    model: Model
    guide: Guide
    num_samples: int
    noise: Noise = noises.independent
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_parts(self.model, self.guide)
        check_particles(self.num_samples, self.noise, self.chunk_size)
        for name, count in (("num_samples", self.num_samples), ("chunk_size", self.chunk_size or 0)):
            if count % 2:
                raise ValueError(f"disarm draws in pairs: {name} must be even, got {count}.")
        if self.noise is noises.antithetic:
            raise ValueError(
                "a pair of disarm is antithetic already, and noise.antithetic would draw every second pair like the one before it: "
                "use noise.independent or noise.sobol."
            )
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
        """The ELBO, nats, and its log-weights [K], the second half those of the first half's opposite numbers."""
        found = self._logits(params, rng, x)

        def one(key: PRNGKey) -> tuple[Array, list[Array]]:
            bits = _pair(found, key)
            terms = self._terms(params, key, x, found, bits)
            log_q = terms.pop("log q")
            log_w = jax.vmap(lambda terms, log_q: log_weight(terms, log_q, beta))(terms, log_q)
            half_gap = 0.5 * stop_gradient(log_w[0] - log_w[1])
            return log_w, [half_gap * (pair[0] - pair[1]) for pair in bits]

        log_w, gaps = self._each(one, rng)
        log_w, score = _halves(log_w), jnp.zeros(())
        for logits, gap in zip(found.values, gaps, strict=True):
            signal = jnp.mean(gap, 0) * jax.nn.sigmoid(jnp.abs(logits))
            score = score + jnp.sum(stop_gradient(signal) * logits)
        return jnp.mean(log_w) + (score - stop_gradient(score)), Aux(stop_gradient(log_w))

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        found = self._logits(params, rng, x)
        pairs = self._each(lambda key: self._terms(params, key, x, found, _pair(found, key)), rng)
        return jax.tree.map(_halves, pairs)

    def _terms(self, params: Params, rng: PRNGKey, x: Data, found: Logits, bits: list[Array]) -> dict[str, Array]:
        """The terms of a pair's log-weights [2]."""

        def one(bits: list[Array]) -> dict[str, Array]:
            # What the model draws is the same for both, so that they differ in their bits alone.
            terms = terms_of(self.model, params.model, rng, x, found.latent(bits, as_drawn=True))
            return {**terms, "log q": _log_q(bits, found)}

        return jax.vmap(one)(bits)

    def _each(self, one: Callable[[PRNGKey], Any], rng: PRNGKey) -> Any:
        """`one(key)` of every pair, each leaf [K / 2, ...]."""
        chunk_size = None if self.chunk_size is None else self.chunk_size // 2
        return each_particle(one, rng, self.num_samples // 2, self.noise, chunk_size)

    def _logits(self, params: Params, rng: PRNGKey, x: Data) -> Logits:
        found = _concrete.logits_of(self.guide, masked(self.guide, params.guide, rng), x)
        if any(found.one_hot):
            raise TypeError("disarm is for Bernoulli latents, and the guide has a OneHotCategorical: use jvi.objectives.relax.")
        return found


def disarm(
    model: Model, guide: Guide, *, num_samples: int = 2, noise: Noise = noises.independent, chunk_size: int | None = None
) -> Disarm:
    """The ELBO of Bernoulli latents with the gradient of antithetic pairs: what two opposite draws differ in, bit by bit.

    Each pair (b, b') takes one uniform number for each bit and its complement. The gradient by the logits is
    (f(b) - f(b')) (b - b') sigmoid(|logits|) / 2: augment-REINFORCE-merge (ARM) with its uniform numbers integrated out. Unbiased, and
    needs neither a baseline nor a model that is defined between 0 and 1. The model's parameters get their plain gradient.

    Args:
      model: p(x, z).
      guide: q(z | x), made by `jvi.guides.from_distribution` or `conditional` of Bernoulli distributions, alone, in an `Independent`
        or in a `distrax.Joint`.
      num_samples: draws per evaluation, K, in K / 2 pairs.
      noise: of the pairs, `jvi.noise.independent` or `sobol`.
      chunk_size: draws at a time, an even number; as in `jvi.elbo`.

    Raises:
      ValueError: if a count is odd, the noise is `antithetic`, as pairs are by themselves, or the guide was not made of a distribution.
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
    return Disarm(model, guide, num_samples, noise, chunk_size)


def _pair(found: Logits, rng: PRNGKey) -> list[Array]:
    """Bits [2, ...] for each latent, of a noise and of its mirror image."""
    bits = []
    for logits, key in zip(found.values, _concrete.split(rng, found), strict=True):
        noise, held = jax.random.logistic(key, logits.shape, logits.dtype), stop_gradient(logits)
        bits.append(jnp.stack([held + noise > 0.0, held - noise > 0.0]).astype(logits.dtype))
    return bits


def _halves(pairs: Array) -> Array:
    """[P, 2] -> [2 P], all first ones first."""
    return pairs.T.reshape(-1)


def _log_q(bits: list[Array], found: Logits) -> Scalar:
    # Of its gradient by the logits the mean is zero, and the score takes its place.
    pairs = zip(bits, found.values, strict=True)
    return sum((_concrete.log_mass(one, stop_gradient(logits), False) for one, logits in pairs), jnp.zeros(()))
