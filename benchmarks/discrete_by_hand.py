"""Estimators of bits, classes and sequences by hand, each beside jvi's: rows of `python -m benchmarks.estimator_time`."""

from __future__ import annotations

import math
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import jvi
from benchmarks.estimators_by_hand import LATENTS, PIXELS, Case, K, Rows, apply, network, rloo, stop, vimco
from jvi import resampling

CLASSES, STEPS, STATES = 10, 50, 4
TEMPERATURE = 0.5
NET = nn.Sequential((nn.Dense(32), nn.tanh, nn.Dense(1)))


def discrete_vae(latents: int = LATENTS, one_hot: bool = False) -> Case:
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(64, PIXELS)) < 0.3, jnp.float32)
    theta, phi = (network(jax.random.key(i), *sizes) for i, sizes in enumerate(((latents, PIXELS), (PIXELS, latents))))
    log_prior = -math.log(latents) if one_hot else -latents * math.log(2.0)

    def log_joint(theta, x, z):
        logits = apply(theta, z.astype(jnp.float32))
        return log_prior + jnp.sum(x * logits - jax.nn.softplus(logits))

    def by_hand(theta, x, z):
        logits = apply(theta, z)
        return log_prior + jnp.sum(x[:, None] * logits - jax.nn.softplus(logits), -1)

    def dist(phi, x):
        logits = apply(phi, x)
        return distrax.OneHotCategorical(logits) if one_hot else distrax.Independent(distrax.Bernoulli(logits), 1)

    guide = jvi.guides.from_distribution(lambda rng, x: phi, dist)
    return Case(jvi.learned(lambda rng, x: theta, log_joint), guide, jvi.per_example, x, 1, by_hand, apply, _scored)


def state_space() -> Case:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, STATES)), jnp.float32)
    theta, phi = jnp.asarray(0.9), (0.5 * jnp.eye(STATES), 0.5 * jnp.eye(STATES), jnp.zeros(STATES))

    def standard(z, loc=0.0):
        return -0.5 * jnp.sum((z - loc) ** 2) - 0.5 * STATES * math.log(2.0 * math.pi)

    model = jvi.models.state_space(
        lambda theta, z: standard(z),
        lambda theta, before, z: standard(z, theta * before),
        lambda theta, x_t, z: standard(x_t, z),
        init=lambda rng, x: theta,
    )

    def dist(phi, seen):
        x_t, before = seen
        loc = x_t @ phi[0] if before is None else x_t @ phi[0] + before @ phi[1]
        return distrax.MultivariateNormalDiag(loc, jnp.exp(phi[2]))

    guide = jvi.guides.from_distribution(lambda rng, x: phi, dist)
    return Case(model, guide, lambda one: one, x, 1)


# -- bits: `(case, params, key, x) -> value`, whose gradient is the estimator ------------------------------------------------


def _log_mass(z: Any, logits: Any) -> Any:
    return jnp.sum(z * logits - jax.nn.softplus(logits), -1)


def _scores(case: Case, params: Any, key: Any, x: Any, logits: Any) -> Any:
    return logits + jax.random.logistic(key, (len(x), K, logits.shape[-1]))


def _soft(score: Any, temperature: Any) -> Any:
    return jnp.clip(jax.nn.sigmoid(score / temperature), np.finfo(np.float32).tiny, 1.0 - np.finfo(np.float32).epsneg)


def _scored(case: Case, params: Any, key: Any, x: Any) -> tuple[Any, Any]:
    """Log-weights and log q of bits."""
    logits = case.moments(params.guide, x)[:, None]
    z = stop((_scores(case, params, key, x, logits) > 0.0).astype(logits.dtype))
    log_q = _log_mass(z, logits)
    return case.log_joint(params.model, x, z) - stop(log_q), log_q


def disarm(case, params, key, x):
    logits = case.moments(params.guide, x)
    held = stop(logits)[:, None]
    noise = jax.random.logistic(key, (len(x), K // 2, logits.shape[-1]))
    first, second = ((held + sign * noise > 0.0).astype(logits.dtype) for sign in (1.0, -1.0))
    bits = jnp.concatenate([first, second], 1)
    log_w = case.log_joint(params.model, x, bits) - _log_mass(bits, held)
    one, other = jnp.split(stop(log_w), 2, 1)
    signal = jnp.mean((0.5 * (one - other))[..., None] * (first - second), 1) * jax.nn.sigmoid(jnp.abs(logits))
    surrogate = jnp.sum(stop(signal) * logits) / len(x)
    return jnp.mean(log_w) + surrogate - stop(surrogate)


def concrete(case, params, key, x):
    logits = case.moments(params.guide, x)[:, None]
    noise = jax.random.logistic(key, (len(x), K, logits.shape[-1]))
    scaled = (logits + noise) / TEMPERATURE
    of_noise = jax.nn.log_sigmoid(noise) + jax.nn.log_sigmoid(-noise)
    log_q = math.log(TEMPERATURE) + of_noise - jax.nn.log_sigmoid(scaled) - jax.nn.log_sigmoid(-scaled)
    return jnp.mean(case.log_joint(params.model, x, _soft(scaled, 1.0)) - jnp.sum(log_q, -1))


def straight_through(case, params, key, x):
    logits = case.moments(params.guide, x)[:, None]
    score = _scores(case, params, key, x, logits)
    soft = _soft(score, TEMPERATURE)
    z = (score > 0.0).astype(soft.dtype) + soft - stop(soft)
    return jnp.mean(case.log_joint(params.model, x, z) - _log_mass(z, stop(logits)))


def relax(case, params, key, x):
    logits = case.moments(params.guide, x)
    held = stop(logits)[:, None]
    score = _scores(case, params, key, x, held)
    bits = (score > 0.0).astype(score.dtype)
    log_w = case.log_joint(params.model, x, bits) - _log_mass(bits, held)

    def surrogate(control, score):
        z = _soft(score, jnp.exp(control.log_temperature))
        value = control.scale * (case.log_joint(stop(params.model), x, z) - _log_mass(z, held))
        if control.network == ():
            return value
        seen = jnp.concatenate([jnp.broadcast_to(x[:, None], (*z.shape[:2], x.shape[-1])), _soft(score, 1.0)], -1)
        return value + jnp.asarray(NET.apply({"params": control.network}, seen))[..., 0]

    def signals(control):
        value, pullback = jax.vjp(lambda score: surrogate(control, score), score)
        slope = pullback(jnp.ones_like(value))[0]
        toward = jnp.where(score > 0.0, held, -held)
        left = slope * (1.0 + jnp.expm1(-jnp.abs(score)) * jax.nn.sigmoid(toward))
        return (stop(log_w) - value)[..., None] * (bits - jax.nn.sigmoid(held)) + left

    signal = signals(params.control)
    score = jnp.sum(stop(jnp.mean(signal, 1)) * logits) / len(x) - jnp.mean(jnp.sum(signal**2, -1))
    return jnp.mean(log_w) + score - stop(score)


def enumerated(case, params, key, x):
    log_mass = jax.nn.log_softmax(case.moments(params.guide, x))
    log_p = case.log_joint(params.model, x, jnp.eye(CLASSES)[None])
    return jnp.mean(jnp.sum(jnp.exp(log_mass) * (log_p - log_mass), -1))


# -- sequences ---------------------------------------------------------------------------------------------------------------


def fivo(case, params, key, x):
    theta, (of_x, of_before, log_scale) = params.model, params.guide
    constant = jnp.sum(log_scale) + 0.5 * STATES * math.log(2.0 * math.pi)

    def propose(key, x_t, before):
        eps = jax.random.normal(key, (K, STATES))
        z = (x_t @ of_x)[None] + (0.0 if before is None else before @ of_before) + jnp.exp(log_scale)[None] * eps
        log_q = -0.5 * jnp.sum(eps**2, -1) - constant
        log_p = jnp.sum(norm.logpdf(z if before is None else z - theta * before), -1)
        return z, jnp.sum(norm.logpdf(x_t[None] - z), -1) + log_p - log_q

    def step(carry, now):
        key, x_t = now
        before, log_w = carry
        of_resampling, of_proposal = jax.random.split(key)
        needed = -logsumexp(2.0 * log_w) < math.log(0.5 * K)  # normalized: the ESS is 1 / sum(w^2)
        chosen = jnp.where(needed, resampling.systematic(of_resampling, stop(log_w)), jnp.arange(K))
        log_w = jnp.where(needed, -math.log(K), log_w)
        z, log_alpha = propose(of_proposal, x_t, before[chosen])
        increment = logsumexp(log_w + log_alpha)
        return (z, log_w + log_alpha - increment), increment

    keys = jax.random.split(key, STEPS)
    z, log_alpha = propose(keys[0], x[0], None)
    first = logsumexp(log_alpha - math.log(K))
    _, increments = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), (z, log_alpha - math.log(K) - first), (keys[1:], x[1:])
    )
    return first + jnp.sum(increments)


BITS: Rows = {
    "score, leave-one-out": (lambda m, g: jvi.objectives.score(m, g, num_samples=K), rloo),
    "vimco": (lambda m, g: jvi.objectives.vimco(m, g, num_samples=K), vimco),
    "disarm": (lambda m, g: jvi.objectives.disarm(m, g, num_samples=K), disarm),
    "rebar": (lambda m, g: jvi.objectives.rebar(m, g, num_samples=K, temperature=TEMPERATURE), relax),
    "relax": (lambda m, g: jvi.objectives.relax(m, g, num_samples=K, network=NET, temperature=TEMPERATURE), relax),
    "concrete": (lambda m, g: jvi.elbo(m, g, num_samples=K, gradient=jvi.gradients.concrete(TEMPERATURE)), concrete),
    "straight_through": (
        lambda m, g: jvi.elbo(m, g, num_samples=K, gradient=jvi.gradients.straight_through.at(TEMPERATURE)),
        straight_through,
    ),
}
SUITES = (
    ({"VAE, 16 bits": discrete_vae}, BITS),
    (
        {"VAE, 10 classes": lambda: discrete_vae(CLASSES, one_hot=True)},
        {"enumerate_elbo": (jvi.objectives.enumerate_elbo, enumerated)},
    ),
    ({"50 states": state_space}, {"fivo": (lambda m, g: jvi.objectives.fivo(m, g, num_particles=K), fivo)}),
)
