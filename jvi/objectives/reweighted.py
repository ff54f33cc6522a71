"""Guides fitted to the posterior's own draws, by importance weights or by simulation: the inclusive divergence KL(p(z | x) || q)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jvi import _tree, bounds, gradients
from jvi import noise as noises
from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params
from jvi.objectives._particles import Noise, gradient_only
from jvi.objectives._posterior_draws import Weighted
from jvi.objectives._steered import steered
from jvi.objectives._terms import masked
from jvi.schedules import is_one

_SIMULATED = 0xFFFFFFFD  # folded into the key for what the model simulates


@spec
class ForwardKL:
    """The inclusive divergence, negated. Made by `forward_kl`."""

    weighted: Weighted
    bounds_evidence: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.weighted.check("forward_kl")

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model and the guide."""
        return _init(self.weighted, rng, x)

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The estimate of -KL(p(z | x) || q), nats, and the log-weights."""
        _check_beta("forward_kl", beta)
        fixed, seen = jax.lax.stop_gradient((params.model, x))
        found = self.weighted.particles(params._replace(model=fixed), rng, seen)
        log_w = jax.lax.stop_gradient(found.log_w)
        # A particle without weight adds nothing to the divergence, wherever its log-weight is.
        weights = jax.nn.softmax(log_w)
        value: Any = bounds.iwae(log_w) - jnp.sum(jnp.where(weights > 0.0, weights * log_w, 0.0))
        if self.weighted.gradient is gradients.stl:
            surrogate: Any = steered(bounds.iwae, found.log_w, found.handle, 0.0, 1.0)
            return value + gradient_only(surrogate), Aux(log_w)
        return value + self.weighted.fitted(found), Aux(log_w)

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        return self.weighted.terms(params, rng, x)


@spec
class WakeSleep:
    """The importance-weighted bound for the model, the inclusive divergence for the guide. Made by `wake_sleep`."""

    weighted: Weighted
    sleep: float = 0.0
    num_simulated: int = 1
    seen_through: ClassVar[bool] = False  # the guide's gradient is that of another value, and holds x fixed

    def __post_init__(self) -> None:
        self.weighted.check("wake_sleep")
        check_count(self.num_simulated, "num_simulated")
        if not 0.0 <= self.sleep <= 1.0:
            raise ValueError(f"sleep is the weight of the simulated data, between 0 and 1; got {self.sleep!r}.")
        if self.sleep > 0.0 and not hasattr(self.weighted.model, "sample"):
            raise ValueError(
                "wake_sleep with sleep > 0 needs a model that can be sampled, by sample(params, rng) -> (x, z): make it with "
                "jvi.models.generative(prior, likelihood), or leave sleep at 0."
            )

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model and the guide."""
        return _init(self.weighted, rng, x)

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The importance-weighted bound, nats, and its log-weights."""
        _check_beta("wake_sleep", beta)
        found = self.weighted.particles(params, rng, x)
        value: Any = steered(bounds.iwae, found.log_w, found.handle, 0.0, 1.0 - self.sleep)
        if self.weighted.gradient is not gradients.stl and self.sleep < 1.0:
            value = value + (1.0 - self.sleep) * self.weighted.fitted(found)
        if self.sleep > 0.0:
            value = value + self.sleep * gradient_only(self._simulated(params, jax.random.fold_in(rng, _SIMULATED), x))
        return value, Aux(jax.lax.stop_gradient(found.log_w))

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        return self.weighted.terms(params, rng, x)

    def _simulated(self, params: Params, rng: PRNGKey, like: Data) -> Scalar:
        """Mean log q(z | x) of latents and data that the model draws."""
        model: Any = self.weighted.model
        guide: Any = self.weighted.guide

        def one(key: PRNGKey) -> Scalar:
            x, z = jax.lax.stop_gradient(model.sample(params.model, key))
            if _layout(x) != _layout(like):
                raise ValueError(f"the model's sample draws x as {_tree.shapes(x)}, and the data are {_tree.shapes(like)}.")
            return guide.log_prob(masked(guide, params.guide, key), x, z)

        return jnp.mean(jax.vmap(one)(jax.random.split(rng, self.num_simulated)))


def forward_kl(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    gradient: Any = gradients.score,
    ess_target: float | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> ForwardKL:
    """The inclusive divergence -KL(p(z | x) || q), by self-normalized importance sampling with the guide's own draws; nats.

    With log_w[k] = log p(x, z_k) - log q(z_k | x) and v = softmax(log_w), the value is

        log(mean_k exp(log_w[k])) - sum_k v[k] log_w[k]

    at most 0, and 0 where all weights are equal. It is biased towards 0 by O(1 / K), and cannot say more than -log K. The guide's
    gradient is sum_k v[k] grad log q(z_k | x) of fixed draws, biased by O(1 / K) too. Such a guide covers the posterior rather than
    sits in one mode of it, and needs no path: latents may be discrete. The model is held fixed, its gradient zero: to learn both,
    take `wake_sleep`.

    Args:
      model: p(x, z).
      guide: q(z | x), with a `log_prob`.
      num_samples: K, 2 or more.
      gradient: `gradients.score` as above; `gradients.stl` for its doubly reparameterized form, the same in expectation, for draws
        with a path: sum_k v[k] (1 - v[k]) (d log_w[k] / d z_k) (d z_k / d phi).
      ess_target: a share of K. The gradient's weights are then those of t log_w with the largest t <= 1 whose effective sample size
        reaches it: less variance, and the divergence of a target between the guide and the posterior. The value is not tempered.
      noise, chunk_size: as in `jvi.elbo`.

    Raises:
      ValueError: if the guide has no `log_prob`, a count or `ess_target` is out of range, or the gradient is another, or does not go
        with `ess_target` or the noise; when called, for a `beta` other than 1.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: jnp.where(z == 1, jnp.log(0.9), jnp.log(0.1)))
      >>> objective = jvi.objectives.forward_kl(model, guide, num_samples=10_000)
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> round(float(value), 1)  # -(0.9 log 1.8 + 0.1 log 0.2) = -0.37
      -0.4

    References:
      Bornschein and Bengio (2015), Reweighted Wake-Sleep; Tucker et al. (2019), Doubly Reparameterized Gradient Estimators for Monte
      Carlo Objectives; Jerfel et al. (2021), Variational Refinement for Importance Sampling Using the Forward Kullback-Leibler
      Divergence.
    """
    return ForwardKL(Weighted(model, guide, num_samples, gradient, ess_target, noise, chunk_size))


def wake_sleep(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    sleep: float = 0.0,
    num_simulated: int = 1,
    gradient: Any = gradients.score,
    ess_target: float | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> WakeSleep:
    """Reweighted wake-sleep: the importance-weighted bound for the model, the inclusive divergence for the guide; nats.

    The value is the bound log(mean_k exp(log_w[k])) of K draws. With v = softmax(log_w), the gradient is

        model:  sum_k v[k] d log p(x, z_k) / d theta                       (wake-theta: that of the bound)
        guide:  (1 - sleep) sum_k v[k] d log q(z_k | x) / d phi            (wake-phi: as `forward_kl`)
                + sleep d log q(z | x) / d phi at (x, z) from the model    (sleep-phi: unbiased)

    Draws are held fixed: latents may be discrete. wake-phi is biased by O(1 / K); sleep-phi is not, but fits the guide to data as the
    model has them, and is for guides that see `x`.

    Args:
      model: p(x, z); for sleep-phi one with a `sample(params, rng) -> (x, z)`, such as `jvi.models.generative` makes.
      guide: q(z | x), with a `log_prob`.
      num_samples: K, 2 or more.
      sleep: weight of sleep-phi, between 0 and 1.
      num_simulated: pairs (x, z) that the model draws for each datum.
      gradient, ess_target: of wake-phi, as in `forward_kl`.
      noise, chunk_size: as in `jvi.elbo`.

    Raises:
      ValueError: as `forward_kl`; if `sleep` is out of range, or the model cannot be sampled; once traced, if what it draws does not
        look like the data.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> model = jvi.models.generative(lambda: distrax.Bernoulli(0.0), lambda z: distrax.Normal(2.0 * z, 1.0))
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(2), lambda p, x: distrax.Bernoulli(p[0] + p[1] * x))
      >>> objective = jvi.objectives.wake_sleep(model, guide, num_samples=4, sleep=0.5)
      >>> value, aux = objective(objective.init(jax.random.key(0), 1.5), jax.random.key(1), 1.5)
      >>> aux.log_w.shape
      (4,)

    References:
      Bornschein and Bengio (2015), Reweighted Wake-Sleep; Le, Kosiorek, Siddharth, Teh and Wood (2019), Revisiting Reweighted
      Wake-Sleep for Models with Stochastic Control Flow.
    """
    return WakeSleep(Weighted(model, guide, num_samples, gradient, ess_target, noise, chunk_size), sleep, num_simulated)


def _init(weighted: Weighted, rng: PRNGKey, x: Data) -> Params:
    model, guide = jax.random.split(rng)
    return Params(weighted.model.init(model, x), weighted.guide.init(guide, x))


def _check_beta(name: str, beta: Any) -> None:
    if not is_one(beta):
        raise ValueError(
            f"{name} weighs draws towards the posterior, for which beta must be 1; to soften the weights, give it an ess_target; to "
            "anneal, use jvi.elbo or jvi.objectives.dreg."
        )


def _layout(x: Data) -> Any:
    return jax.tree.map(jnp.shape, x)
