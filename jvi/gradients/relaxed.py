"""Gradients through relaxed draws of Bernoulli and one-hot latents."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import numpy as np

from jvi import _concrete
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar


@spec
class Concrete:
    """Relaxed draws with their own density. Made by `concrete`."""

    temperature: float

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One relaxed draw, and its log-density."""
        found = _concrete.logits_of(guide, params, x)
        total: Any = 0.0
        leaves: list[Array] = []
        for logits, one_hot, key in zip(found.values, found.one_hot, _concrete.split(rng, found), strict=True):
            score = _concrete.scores(logits, one_hot, key)
            leaves.append(_concrete.soft(score, one_hot, self.temperature))
            total = total + _concrete.log_density(score, logits, one_hot, self.temperature)
        return found.latent(leaves, as_drawn=False), total

    def check(self, guide: Any) -> None:
        """Refuse a guide whose distribution is not known."""
        _concrete.check("gradients.concrete", guide)


@spec
class StraightThrough:
    """Straight-through: draws that are 0 or 1, differentiated as though they were relaxed. BIASED.

    The value is right: draws are exact, and log q is the discrete log-probability. The gradient by the guide's parameters is that of
    the relaxed draw, times the model's slope at the exact one. Where the log-joint is linear in each latent it is the gradient of
    slope x E[relaxed latent], so that the bias is what E[relaxed latent] lacks of the probability: it goes with the temperature,
    while the variance grows. Where the log-joint is curved there is a bias at every temperature. The model's own gradient is right.
    For an unbiased one take `jvi.objectives.score`, `disarm` or `relax`.

    The model sees floats, and must be a smooth function of them: one that looks values up (`table[z]`, `z == 1`) has no slope. For
    the ELBO only. As an estimator it is `gradients.straight_through`, at temperature 0.5; others by its `at`.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: z * jnp.log(0.9) + (1 - z) * jnp.log(0.1))
      >>> objective = jvi.elbo(model, guide, gradient=jvi.gradients.straight_through.at(0.3))
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> round(float(value), 3) in (0.588, -1.609)  # log(0.9 / 0.5), log(0.1 / 0.5)
      True

    References:
      Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons; Jang, Gu and Poole (2017),
      Categorical Reparameterization with Gumbel-Softmax.
    """

    temperature: float = 0.5
    elbo_only: ClassVar[str] = (
        "gradients.straight_through is for the ELBO: it drops a score whose mean is zero there only. Use jvi.objectives.vimco"
    )

    def at(self, temperature: float) -> StraightThrough:
        """The same at another temperature, greater than 0."""
        return StraightThrough(_check_temperature(temperature))

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, and its log-probability."""
        found = _concrete.logits_of(guide, params, x)
        total: Any = 0.0
        leaves: list[Array] = []
        for logits, one_hot, key in zip(found.values, found.one_hot, _concrete.split(rng, found), strict=True):
            score = _concrete.scores(logits, one_hot, key)
            soft = _concrete.soft(score, one_hot, self.temperature)
            leaves.append(_concrete.hard(score, one_hot) + (soft - jax.lax.stop_gradient(soft)))
            total = total + _concrete.log_mass(leaves[-1], jax.lax.stop_gradient(logits), one_hot)
        return found.latent(leaves, as_drawn=False), total

    def check(self, guide: Any) -> None:
        """Refuse a guide whose distribution is not known."""
        _concrete.check("gradients.straight_through", guide)


def concrete(temperature: float) -> Concrete:
    """Concrete (Gumbel-softmax) draws: the latent relaxed into (0, 1), or into the simplex, with the relaxation's own density as log q.

    Pathwise, and unbiased for every bound OF THE RELAXED MODEL: the log-joint is evaluated at relaxed latents, which are floats. It
    bounds log p(x) of a model whose prior is a density there, such as `tfd.RelaxedBernoulli`, and what it bounds is not the evidence
    of the discrete model: compare fits by the bound of exact draws, `jvi.objectives.score` or `vimco` of the same parameters. Draws
    that floats would round to the edge are kept off it.

    Args:
      temperature: greater than 0. Small ones are close to the discrete latent, with large variance. Up to 1 for Bernoulli and up to
        1 / (V - 1) for one-hot vectors of V the density has no mode inside.

    Raises:
      ValueError: if `temperature` is not positive; when the objective is built, if the guide was not made of a distribution.
      TypeError: once traced, if that is neither Bernoulli nor OneHotCategorical, alone, in an Independent or in a `distrax.Joint`.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda params, x: distrax.OneHotCategorical(params))
      >>> z, log_q = jvi.gradients.concrete(0.5)(guide, jnp.zeros(3), jax.random.key(0), None)
      >>> z.shape, round(float(z.sum()), 4), log_q.shape
      ((3,), 1.0, ())

    References:
      Maddison, Mnih and Teh (2017), The Concrete Distribution; Jang, Gu and Poole (2017).
    """
    return Concrete(_check_temperature(temperature))


def _check_temperature(temperature: Any) -> float:
    number = isinstance(temperature, (int, float, np.number)) and not isinstance(temperature, bool)
    if not number or not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number greater than 0, got {temperature!r}.")
    return float(temperature)


straight_through = StraightThrough()
