"""Estimators of parts, mixtures and minibatches by hand, each beside jvi's: rows of `python -m benchmarks.estimator_time`."""

from __future__ import annotations

import math
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

import jvi
from benchmarks.estimators_by_hand import (
    COEFFICIENTS,
    LATENTS,
    PIXELS,
    ROWS,
    Case,
    K,
    apply,
    constant,
    elbo_kl,
    logistic,
    network,
    stop,
    vae,
)

NUM_DATA, COMPONENTS, CLASSES, GLOBALS = 10_000, 4, 10, 5
FLOOR = 0.5


def minibatch() -> Case:
    """The logistic regression's weights of 1,000 data out of 10,000."""
    case = logistic()

    def log_likelihood(x, z):
        features, label = x
        logit = features @ z
        return label * logit - jax.nn.softplus(logit)

    def by_hand(theta, x, z):
        features, label = x
        logits = z @ features.T
        fit = jnp.sum(label * logits - jax.nn.softplus(logits), -1)
        return -0.5 * jnp.sum(z**2, -1) - constant(COEFFICIENTS) + NUM_DATA / len(label) * fit

    model = jvi.split(lambda z: -0.5 * (z @ z) - constant(COEFFICIENTS), log_likelihood)
    return case._replace(model=model, wrap=lambda one: jvi.objectives.subsampled(one, num_data=NUM_DATA), log_joint=by_hand)


def mixture() -> Case:
    """The same regression with four mean-field components."""
    case = logistic()
    return case._replace(guide=jvi.guides.Mixture((case.guide,) * COMPONENTS))


def classes() -> Case:
    """A VAE with one of ten classes, summed out, and a Gaussian code."""
    case = vae()
    theta, of_class = network(jax.random.key(0), LATENTS + CLASSES, PIXELS), network(jax.random.key(2), PIXELS, CLASSES)

    def log_joint(theta, x, z):
        logits = apply(theta, jnp.concatenate([z["code"], z["kind"].astype(jnp.float32)]))
        prior = -0.5 * (z["code"] @ z["code"]) - constant(LATENTS) - math.log(CLASSES)
        return prior + jnp.sum(x * logits - jax.nn.softplus(logits))

    def by_hand(theta, x, z):
        logits = apply(theta, z)
        prior = -0.5 * jnp.sum(z[..., :LATENTS] ** 2, -1) - constant(LATENTS) - math.log(CLASSES)
        return prior + jnp.sum(x[:, None, None] * logits - jax.nn.softplus(logits), -1)

    kind = jvi.guides.from_distribution(lambda rng, x: of_class, lambda phi, x: distrax.OneHotCategorical(apply(phi, x)))
    guide = jvi.guides.product(kind=kind, code=case.guide)
    return case._replace(model=jvi.learned(lambda rng, x: theta, log_joint), guide=guide, log_joint=by_hand)


def levels() -> Case:
    """The VAE whose decoder also sees five numbers that all data share."""
    case = vae()
    theta = network(jax.random.key(0), LATENTS + GLOBALS, PIXELS)

    def log_joint(theta, x, z):
        image, shared = x
        logits = apply(theta, jnp.concatenate([z, shared]))
        return -0.5 * (z @ z) - constant(LATENTS) + jnp.sum(image * logits - jax.nn.softplus(logits))

    local = jvi.guides.from_functions(case.guide.init, lambda phi, rng, x: case.guide.sample_and_log_prob(phi, rng, x[0]))
    inner = jvi.elbo(jvi.learned(lambda rng, x: theta, log_joint), local, gradient=jvi.gradients.pathwise)
    prior = jvi.model(lambda x, z: -0.5 * (z @ z) - constant(GLOBALS))
    guide = jvi.guides.MeanField(jvi.space(jvi.real(GLOBALS)))

    def wrap(outer):
        return jvi.objectives.global_local(outer, inner, num_data=NUM_DATA)

    return case._replace(model=prior, guide=guide, wrap=wrap)


def halves() -> Case:
    """A VAE of two groups of bits, each of which says half of the pixels; so each is judged by its own half."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(64, PIXELS)) < 0.3, jnp.float32)
    theta = tuple(network(jax.random.key(i), LATENTS, PIXELS // 2) for i in range(2))
    phis = tuple(network(jax.random.key(2 + i), PIXELS, LATENTS) for i in range(2))

    def log_half(theta, x, z):
        logits = apply(theta, 1.0 * z)
        return jnp.sum(x * logits - jax.nn.softplus(logits), -1) - LATENTS * math.log(2.0)

    def log_joint(theta, x, z):
        upper, lower = jnp.split(x, 2)
        return log_half(theta[0], upper, z["a"]) + log_half(theta[1], lower, z["b"])

    def part(phi):
        return jvi.guides.from_distribution(
            lambda rng, x: phi, lambda phi, x: distrax.Independent(distrax.Bernoulli(apply(phi, x)), 1)
        )

    guide = jvi.guides.product(a=part(phis[0]), b=part(phis[1]))
    return Case(jvi.learned(lambda rng, x: theta, log_joint), guide, jvi.per_example, x, 1, log_half)


# -- by hand: `(case, params, key, x) -> value`, whose gradient is the estimator ---------------------------------------------


def stratified(case, params, key, x):
    loc, log_scale = (jnp.stack(leaves) for leaves in zip(*params.guide.components, strict=True))
    eps = jax.random.normal(key, (K, *loc.shape))
    z = loc[None] + jnp.exp(log_scale)[None] * eps
    square = (z[:, :, None] - stop(loc)[None, None]) * jnp.exp(-stop(log_scale))[None, None]
    each = -0.5 * jnp.sum(square**2, -1) - jnp.sum(stop(log_scale), -1)[None, None] - constant(loc.shape[-1])
    log_q = logsumexp(jax.nn.log_softmax(stop(params.guide.logits))[None, None] + each, -1)
    log_w = case.log_joint(params.model, x, z.reshape(-1, z.shape[-1])).reshape(log_q.shape) - log_q
    return jnp.mean(log_w @ jax.nn.softmax(params.guide.logits))


def one_summed(case, params, key, x):
    log_mass = jax.nn.log_softmax(apply(params.guide["kind"], x))
    loc, log_scale = jnp.split(apply(params.guide["code"], x), 2, -1)
    eps = jax.random.normal(key, (len(x), K, LATENTS))
    code = loc[:, None] + jnp.exp(log_scale)[:, None] * eps
    shape = (len(x), K, CLASSES)
    z = jnp.concatenate(
        [
            jnp.broadcast_to(code[:, :, None], (*shape, LATENTS)),
            jnp.broadcast_to(jnp.eye(CLASSES)[None, None], (*shape, CLASSES)),
        ],
        -1,
    )
    log_q = -0.5 * jnp.sum(eps**2, -1) - jnp.sum(log_scale, -1)[:, None] - constant(LATENTS)
    log_w = case.log_joint(params.model, x, z) - log_q[..., None] - log_mass[:, None]
    return jnp.mean(jnp.sum(jnp.exp(log_mass)[:, None] * log_w, -1))


def nested(case, params, key, x):
    outer, inner = params
    of_shared, of_local = jax.random.split(key)
    loc, log_scale = outer.guide
    eps = jax.random.normal(of_shared, (K, GLOBALS))
    shared = loc[None] + jnp.exp(log_scale)[None] * eps
    log_q = -0.5 * jnp.sum(eps**2, -1) - jnp.sum(log_scale) - constant(GLOBALS)
    prior = -0.5 * jnp.sum(shared**2, -1) - constant(GLOBALS)
    at, spread = jnp.split(apply(inner.guide, x), 2, -1)
    noise = jax.random.normal(of_local, (K, len(x), LATENTS))
    z = at[None] + jnp.exp(spread)[None] * noise
    of_z = -0.5 * jnp.sum(noise**2, -1) - jnp.sum(spread, -1)[None] - constant(LATENTS)
    seen = jnp.concatenate([z, jnp.broadcast_to(shared[:, None], (K, len(x), GLOBALS))], -1)
    logits = apply(inner.model, seen)
    fit = jnp.sum(x[None] * logits - jax.nn.softplus(logits), -1)
    local = fit - 0.5 * jnp.sum(z**2, -1) - constant(LATENTS) - of_z
    return jnp.mean(prior - log_q + NUM_DATA * jnp.mean(local, -1))


def free_bits(case, params, key, x):
    loc, log_scale = case.moments(params.guide, x)
    kl = jnp.mean(jnp.sum(0.5 * (jnp.exp(2.0 * log_scale) + loc**2 - 1.0) - log_scale, -1))
    return elbo_kl(case, params, key, x) + kl - jnp.maximum(kl, FLOOR)


def by_terms(case, params, key, x):
    value, surrogate = jnp.zeros(()), jnp.zeros(())
    for theta, name, of_half, half in zip(params.model, "ab", jax.random.split(key), jnp.split(x, 2, 1), strict=True):
        logits = apply(params.guide[name], x)[:, None]
        bits = stop(jax.random.uniform(of_half, (len(x), K, LATENTS)) < jax.nn.sigmoid(logits)).astype(jnp.float32)
        log_q = jnp.sum(bits * logits - jax.nn.softplus(logits), -1)
        log_w = case.log_joint(theta, half[:, None], bits) - stop(log_q)
        signal = log_w - (jnp.sum(log_w, -1, keepdims=True) - log_w) / (K - 1)
        value, surrogate = value + jnp.mean(log_w), surrogate + jnp.mean(stop(signal) * log_q)
    return value + surrogate - stop(surrogate)


def _by_group(model: Any, guide: Any) -> Any:
    gradient = jvi.gradients.by_group(kind=jvi.gradients.enumerated, code=jvi.gradients.pathwise)
    return jvi.elbo(model, guide, num_samples=K, gradient=gradient)


def _free_bits(model: Any, guide: Any) -> Any:
    return jvi.objectives.elbo_kl(model, guide, num_samples=K, gradient=jvi.gradients.pathwise, free_bits=FLOOR)


SUITES = (
    ({"logistic regression, minibatch": minibatch}, {"subsampled": ROWS["elbo, pathwise"]}),
    ({"VAE, shared numbers": levels}, {"global_local": (ROWS["elbo, pathwise"][0], nested)}),
    (
        {"logistic regression, 4 components": mixture},
        {"stratified": (lambda m, g: jvi.elbo(m, g, num_samples=K), stratified)},
    ),
    ({"VAE, 10 classes and a code": classes}, {"by_group": (_by_group, one_summed)}),
    ({"VAE, distrax": lambda: vae(True, True)}, {"free bits": (_free_bits, free_bits)}),
    (
        {"VAE, two groups of 16 bits": halves},
        {"rao_blackwell": (lambda m, g: jvi.objectives.rao_blackwell(m, g, num_samples=K), by_terms)},
    ),
)
