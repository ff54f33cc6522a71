"""Estimators of continuous latents written by hand, each beside jvi's: rows of `python -m benchmarks.estimator_time`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

import jvi

K = 16
COEFFICIENTS, PIXELS, HIDDEN, LATENTS = 25, 196, 100, 16
stop = jax.lax.stop_gradient
Rows = dict[str, tuple[Callable[[Any, Any], Any], Callable[..., Any]]]


class Case(NamedTuple):
    """A problem, for jvi and by hand.

    Attributes:
      model, guide, wrap: jvi's, and what makes an objective of one datum one of the data.
      x: data.
      calls: evaluations a round.
      log_joint: `(theta, x, z [..., K, D]) -> [..., K]`.
      moments: `(phi, x) -> (loc, log_scale)`, each [..., D]; of bits their logits.
      scored: `(case, params, key, x)` -> log-weights of fixed draws, that move with the model alone, and log q, that moves with the
        guide.
    """

    model: Any
    guide: Any
    wrap: Callable[[Any], Any]
    x: Any
    calls: int
    log_joint: Any = None
    moments: Any = None
    scored: Any = None


def standard(dim: int) -> Any:
    return distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim))


def logistic(prior_known: bool = False) -> Case:
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(1_000, COEFFICIENTS)), jnp.float32)
    label = jnp.asarray(rng.uniform(size=1_000) < 0.5, jnp.float32)

    def log_likelihood(x, z):
        features, label = x
        logits = features @ z
        return jnp.sum(label * logits - jax.nn.softplus(logits))

    def log_joint(x, z):
        return -0.5 * (z @ z) - constant(COEFFICIENTS) + log_likelihood(x, z)

    def by_hand(theta, x, z):
        features, label = x
        logits = z @ features.T
        return -0.5 * jnp.sum(z**2, -1) - constant(COEFFICIENTS) + jnp.sum(label * logits - jax.nn.softplus(logits), -1)

    guide = jvi.guides.MeanField(jvi.space(jvi.real(COEFFICIENTS)))
    model = jvi.models.with_prior(lambda: standard(COEFFICIENTS), log_likelihood) if prior_known else jvi.model(log_joint)

    def moments(phi, x):
        return phi.loc, phi.log_scale

    return Case(model, guide, lambda one: one, (features, label), 20, by_hand, moments, _scored)


def vae(distribution: bool = False, prior_known: bool = False) -> Case:
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(64, PIXELS)) < 0.3, jnp.float32)
    theta, phi = (network(jax.random.key(i), *sizes) for i, sizes in enumerate(((LATENTS, PIXELS), (PIXELS, 2 * LATENTS))))

    def log_likelihood(theta, x, z):
        logits = apply(theta, z)
        return jnp.sum(x * logits - jax.nn.softplus(logits))

    def log_joint(theta, x, z):
        return -0.5 * (z @ z) - constant(LATENTS) + log_likelihood(theta, x, z)

    def by_hand(theta, x, z):
        logits = apply(theta, z)
        return -0.5 * jnp.sum(z**2, -1) - constant(LATENTS) + jnp.sum(x[:, None] * logits - jax.nn.softplus(logits), -1)

    def moments(phi, x):
        return jnp.split(apply(phi, x), 2, -1)

    def dist(phi, x):
        loc, log_scale = moments(phi, x)
        return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))

    def log_prob(phi, x, z):
        loc, log_scale = moments(phi, x)
        return -0.5 * jnp.sum(((z - loc) * jnp.exp(-log_scale)) ** 2) - jnp.sum(log_scale) - constant(LATENTS)

    def sample_and_log_prob(phi, rng, x):
        loc, log_scale = moments(phi, x)
        eps = jax.random.normal(rng, loc.shape)
        return loc + jnp.exp(log_scale) * eps, -0.5 * jnp.sum(eps**2) - jnp.sum(log_scale) - constant(LATENTS)

    if prior_known:
        model = jvi.models.with_prior(lambda theta: standard(LATENTS), log_likelihood, init=lambda rng, x: theta)
    else:
        model = jvi.learned(lambda rng, x: theta, log_joint)
    if distribution:
        guide = jvi.guides.from_distribution(lambda rng, x: phi, dist)
    else:
        guide = jvi.guides.from_functions(lambda rng, x: phi, sample_and_log_prob, log_prob)
    return Case(model, guide, jvi.per_example, x, 1, by_hand, moments, _scored)


def constant(dim: int) -> float:
    return 0.5 * dim * math.log(2 * math.pi)


def network(key: Any, inputs: int, outputs: int) -> Any:
    first, second = jax.random.split(key)
    return (
        jax.random.normal(first, (inputs, HIDDEN)) / math.sqrt(inputs),
        jnp.zeros(HIDDEN),
        jax.random.normal(second, (HIDDEN, outputs)) / math.sqrt(HIDDEN),
        jnp.zeros(outputs),
    )


def apply(params: Any, inputs: Any) -> Any:
    with jax.numpy_rank_promotion("allow"):
        return jnp.tanh(inputs @ params[0] + params[1]) @ params[2] + params[3]


# -- by hand: `(case, params, key, x) -> value`, whose gradient is the estimator ---------------------------------------------


def _draws(case: Case, phi: Any, key: Any, x: Any) -> tuple[Any, Any]:
    """Draws [..., K, D], and their log-density of given moments."""
    loc, log_scale = case.moments(phi, x)
    eps = jax.random.normal(key, (*loc.shape[:-1], K, loc.shape[-1]))
    return loc[..., None, :] + jnp.exp(log_scale)[..., None, :] * eps, eps


def _log_q(case: Case, phi: Any, x: Any, z: Any) -> Any:
    loc, log_scale = case.moments(phi, x)
    square = ((z - loc[..., None, :]) * jnp.exp(-log_scale)[..., None, :]) ** 2
    return -0.5 * jnp.sum(square, -1) - jnp.sum(log_scale, -1)[..., None] - constant(z.shape[-1])


def _pathwise(case: Case, params: Any, key: Any, x: Any) -> Any:
    z, eps = _draws(case, params.guide, key, x)
    log_scale = case.moments(params.guide, x)[1]
    log_q = -0.5 * jnp.sum(eps**2, -1) - jnp.sum(log_scale, -1)[..., None] - constant(z.shape[-1])
    return case.log_joint(params.model, x, z) - log_q


def iwae_of(log_w: Any) -> Any:
    return logsumexp(log_w, -1) - math.log(K)


def elbo_pathwise(case, params, key, x):
    return jnp.mean(_pathwise(case, params, key, x))


def elbo_stl(case, params, key, x):
    z, _ = _draws(case, params.guide, key, x)
    return jnp.mean(case.log_joint(params.model, x, z) - _log_q(case, stop(params.guide), x, z))


def iwae_pathwise(case, params, key, x):
    return jnp.mean(iwae_of(_pathwise(case, params, key, x)))


def renyi(case, params, key, x):
    return jnp.mean(2.0 * iwae_of(0.5 * _pathwise(case, params, key, x)))


def miwae(case, params, key, x):
    log_w = _pathwise(case, params, key, x)
    return jnp.mean(logsumexp(log_w.reshape(*log_w.shape[:-1], 4, K // 4), -1) - math.log(K // 4))


def cubo(case, params, key, x):
    return jnp.mean(0.5 * iwae_of(2.0 * _pathwise(case, params, key, x)))


def tvo(case, params, key, x):
    log_w, betas = _pathwise(case, params, key, x)[..., None, :], np.asarray(jvi.bounds.log_spaced(5), np.float32)
    with jax.numpy_rank_promotion("allow"):
        means = jnp.sum(jax.nn.softmax(betas[:-1, None] * log_w, -1) * log_w, -1)
        return jnp.mean(jnp.sum(np.diff(betas) * means, -1))


def squared_log(log_u):
    """An f that stays finite wherever the densities' ratio lies."""
    return 0.5 * log_u**2


def f_divergence(case, params, key, x):
    return -jnp.mean(squared_log(_pathwise(case, params, key, x)))


def dreg(case, params, key, x):
    z, _ = _draws(case, params.guide, key, x)

    def weigh(theta, z):
        return case.log_joint(theta, x, z) - _log_q(case, stop(params.guide), x, z)

    log_w, pullback = jax.vjp(weigh, stop(params.model), stop(z))
    v = jax.nn.softmax(log_w, -1)
    by_theta, by_z = pullback(v / (log_w.size / K))
    parts = jax.tree.map(lambda g, p: jnp.sum(g * p), (by_theta, by_z * v[..., None]), (params.model, z))
    surrogate = sum(jax.tree.leaves(parts))
    return jnp.mean(iwae_of(log_w)) + surrogate - stop(surrogate)


def _scored(case: Case, params: Any, key: Any, x: Any) -> tuple[Any, Any]:
    """Of Gaussian draws."""
    z = stop(_draws(case, params.guide, key, x)[0])
    log_q = _log_q(case, params.guide, x, z)
    return case.log_joint(params.model, x, z) - stop(log_q), log_q


def rloo(case, params, key, x):
    log_w, log_q = case.scored(case, params, key, x)
    signal = log_w - (jnp.sum(log_w, -1, keepdims=True) - log_w) / (K - 1)
    surrogate = jnp.mean(stop(signal) * log_q)
    return jnp.mean(log_w) + surrogate - stop(surrogate)


def vimco(case, params, key, x):
    log_w, log_q = case.scored(case, params, key, x)
    others = (jnp.sum(log_w, -1, keepdims=True) - log_w) / (K - 1)
    replaced = jnp.where(jnp.eye(K, dtype=bool), others[..., :, None], log_w[..., None, :])
    bound = iwae_of(log_w)
    signal = bound[..., None] - iwae_of(replaced) - jax.nn.softmax(log_w, -1)
    surrogate = jnp.mean(jnp.sum(stop(signal) * log_q, -1))
    return jnp.mean(bound) + surrogate - stop(surrogate)


def wake_sleep(case, params, key, x):
    log_w, log_q = case.scored(case, params, key, x)
    surrogate = jnp.mean(jnp.sum(stop(jax.nn.softmax(log_w, -1)) * log_q, -1))
    return jnp.mean(iwae_of(log_w)) + surrogate - stop(surrogate)


def forward_kl(case, params, key, x):
    log_w, log_q = case.scored(case, stop_model(params), key, x)
    v = stop(jax.nn.softmax(log_w, -1))
    surrogate = jnp.mean(jnp.sum(v * log_q, -1))
    return jnp.mean(iwae_of(log_w) - jnp.sum(v * log_w, -1)) + surrogate - stop(surrogate)


def stop_model(params):
    return params._replace(model=stop(params.model))


def elbo_kl(case, params, key, x):
    loc, log_scale = case.moments(params.guide, x)
    z, _ = _draws(case, params.guide, key, x)
    energy = case.log_joint(params.model, x, z) + 0.5 * jnp.sum(z**2, -1) + constant(z.shape[-1])
    kl = jnp.sum(0.5 * (jnp.exp(2.0 * log_scale) + loc**2 - 1.0) - log_scale, -1)
    return jnp.mean(energy) - jnp.mean(kl)


def elbo_entropy(case, params, key, x):
    z, _ = _draws(case, params.guide, key, x)
    log_scale = case.moments(params.guide, x)[1]
    entropy = jnp.sum(log_scale, -1) + 0.5 * z.shape[-1] * (1.0 + math.log(2.0 * math.pi))
    return jnp.mean(case.log_joint(params.model, x, z)) + jnp.mean(entropy)


def _two_ways(log_w_of, params, of_value, of_guide):
    """The value and the model's gradient by one function of the log-weights, the guide's by another; one pass forward."""
    log_w, pullback = jax.vjp(log_w_of, stop(params))
    value, by_value = jax.value_and_grad(of_value)(log_w)
    model, guide = pullback(by_value)[0].model, pullback(of_guide(log_w))[0].guide
    pairs = zip(jax.tree.leaves((model, guide)), jax.tree.leaves((params.model, params.guide)), strict=True)
    surrogate = sum(jnp.sum(slope * leaf) for slope, leaf in pairs)
    return value + surrogate - stop(surrogate)


def piwae(case, params, key, x):
    def of_guide(log_w):
        groups = jax.nn.softmax(log_w.reshape(*log_w.shape[:-1], 4, K // 4), -1)
        return groups.reshape(log_w.shape) * (K / 4) / log_w.size

    return _two_ways(lambda params: _pathwise(case, params, key, x), params, lambda log_w: jnp.mean(iwae_of(log_w)), of_guide)


def tail_adaptive(case, params, key, x):
    def weigh(moving):
        z, _ = _draws(case, moving.guide, key, x)
        return case.log_joint(moving.model, x, z) - _log_q(case, stop(params.guide), x, z)

    def of_guide(log_w):
        ranks = jnp.sum(log_w[..., None, :] >= log_w[..., :, None], -1)
        weights = K / ranks
        return weights / jnp.sum(weights, -1, keepdims=True) * K / log_w.size

    return _two_ways(weigh, params, jnp.mean, of_guide)


ROWS: Rows = {
    "elbo, pathwise": (lambda m, g: jvi.elbo(m, g, num_samples=K, gradient=jvi.gradients.pathwise), elbo_pathwise),
    "elbo, stl": (lambda m, g: jvi.elbo(m, g, num_samples=K, gradient=jvi.gradients.stl), elbo_stl),
    "iwae, pathwise": (lambda m, g: jvi.iwae(m, g, num_samples=K), iwae_pathwise),
    "renyi, 0.5": (lambda m, g: jvi.renyi(m, g, alpha=0.5, num_samples=K), renyi),
    "miwae, 4 x 4": (lambda m, g: jvi.objectives.miwae(m, g, num_groups=4, num_samples=K // 4), miwae),
    "cubo": (lambda m, g: jvi.objectives.cubo(m, g, num_samples=K), cubo),
    "tvo": (lambda m, g: jvi.objectives.tvo(m, g, num_samples=K), tvo),
    "f_divergence": (lambda m, g: jvi.objectives.f_divergence(m, g, squared_log, num_samples=K), f_divergence),
    "dreg": (lambda m, g: jvi.objectives.dreg(m, g, num_samples=K), dreg),
    "score, leave-one-out": (lambda m, g: jvi.objectives.score(m, g, num_samples=K), rloo),
    "vimco": (lambda m, g: jvi.objectives.vimco(m, g, num_samples=K), vimco),
    "forward_kl": (lambda m, g: jvi.objectives.forward_kl(m, g, num_samples=K), forward_kl),
    "wake_sleep": (lambda m, g: jvi.objectives.wake_sleep(m, g, num_samples=K), wake_sleep),
    "piwae, 4 x 4": (lambda m, g: jvi.objectives.piwae(m, g, num_groups=4, num_samples=K // 4), piwae),
    "tail_adaptive": (lambda m, g: jvi.objectives.tail_adaptive(m, g, num_samples=K), tail_adaptive),
}
CLOSED: Rows = {
    "elbo_kl": (lambda m, g: jvi.objectives.elbo_kl(m, g, num_samples=K, gradient=jvi.gradients.pathwise), elbo_kl),
    "elbo_entropy": (
        lambda m, g: jvi.objectives.elbo_entropy(m, g, num_samples=K, gradient=jvi.gradients.pathwise),
        elbo_entropy,
    ),
}
SUITES = (
    ({"logistic regression": logistic, "VAE": vae, "VAE, distrax": lambda: vae(distribution=True)}, ROWS),
    ({"logistic regression": lambda: logistic(prior_known=True), "VAE, distrax": lambda: vae(True, True)}, CLOSED),
)
