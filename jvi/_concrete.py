"""Bits and one-hot vectors as functions of continuous scores: exact by thresholds, relaxed by a temperature.

Scores are `logits + noise`, logistic noise for bits and Gumbel noise for one-hot vectors; the latent is 1 where the score is positive,
or the greatest. All functions are of one latent, and `one_hot` says of which kind it is.

References:
  Maddison, Mnih and Teh (2017), The Concrete Distribution; Jang, Gu and Poole (2017), Categorical Reparameterization with
  Gumbel-Softmax.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, log_softmax, sigmoid, softmax, softplus
from jax.scipy.special import logsumexp

from jvi import _distributions
from jvi._distributions import Logits
from jvi._typing import Array, Data, Params, PRNGKey, Scalar


def check(name: str, guide: Any) -> None:
    """Refuse a guide that cannot be of finite latents."""
    if not hasattr(guide, "distribution") or getattr(guide, "reparameterized", False):
        raise ValueError(
            f"{name} needs the logits of a guide made by jvi.guides.from_distribution or conditional of Bernoulli or "
            f"OneHotCategorical distributions, got {guide!r}; gradients.score takes any guide with a log_prob, and "
            "gradients.by_group an estimator for each part of a product or sequence."
        )


def logits_of(guide: Any, params: Params, x: Data) -> Logits:
    """The guide's logits at `x`.

    Raises:
      TypeError: if the guide's distribution is not made of Bernoulli and OneHotCategorical ones.
    """
    distribution = guide.distribution(params, x)
    with jax.numpy_rank_promotion("allow"):  # distrax and TFP rely on it
        return _distributions.logits_of(distribution)


def scores(logits: Array, one_hot: bool, rng: PRNGKey) -> Array:
    """A draw of the scores, with a path to the logits."""
    if one_hot:
        return log_softmax(logits) + jax.random.gumbel(rng, logits.shape, logits.dtype)
    return logits + jax.random.logistic(rng, logits.shape, logits.dtype)


def hard(score: Array, one_hot: bool) -> Array:
    """The latent of these scores, 0 and 1 as floats."""
    if one_hot:
        return jax.nn.one_hot(jnp.argmax(score, -1), score.shape[-1], dtype=score.dtype)
    return (score > 0.0).astype(score.dtype)


def soft(score: Array, one_hot: bool, temperature: Any) -> Array:
    """The relaxed latent, in the open unit interval or the simplex; tends to `hard` as the temperature goes to 0."""
    scaled = score / temperature
    value = softmax(scaled) if one_hot else sigmoid(scaled)
    limits = np.finfo(value.dtype)
    # A density's log is infinite where a draw is rounded to the edge. The slope there is next to nothing, and left as it is.
    return value + jax.lax.stop_gradient(jnp.clip(value, limits.tiny, 1.0 - limits.epsneg) - value)


def log_mass(z: Array, logits: Array, one_hot: bool) -> Scalar:
    """The log-probability of a latent; linear in it between 0 and 1."""
    if one_hot:
        return jnp.sum(z * log_softmax(logits))
    return jnp.sum(z * logits - softplus(logits))


def log_density(score: Array, logits: Array, one_hot: bool, temperature: float) -> Scalar:
    """The log-density of the relaxed latent of scores drawn at these logits: of V - 1 coordinates for a one-hot vector of V."""
    scaled, log_temperature = score / temperature, math.log(temperature)
    if not one_hot:
        noise = jax.lax.stop_gradient(score - logits)  # as it was drawn
        # log sigmoid(x) + log sigmoid(-x), by one exponential
        return jnp.sum(log_temperature + (2.0 * log_sigmoid(noise) - noise) - (2.0 * log_sigmoid(scaled) - scaled))
    size = logits.shape[-1]
    log_z = log_softmax(scaled)
    tilted = log_softmax(logits) - temperature * log_z
    constant = math.lgamma(size) + (size - 1) * log_temperature
    return jnp.sum(constant + jnp.sum(tilted - log_z, -1) - size * logsumexp(tilted, -1))


def log_score(z: Array, logits: Array, one_hot: bool) -> Array:
    """The gradient of `log_mass` by the logits, in their shape."""
    return z - (softmax(logits) if one_hot else sigmoid(logits))


def path_left(slope: Array, score: Array, logits: Array, one_hot: bool) -> Array:
    """What the path of the scores adds to a gradient by the logits, less that of the scores given their latent.

    Scores drawn anew given the latent have the same law; with the same underlying uniforms they are the very same numbers, and only
    their derivative by the logits differs.

    Args:
      slope: gradient of a function by the scores, in their shape.
      score, logits: where.

    References:
      Tucker et al. (2017), REBAR, whose tied noise this is, differentiated by hand; Grathwohl et al. (2018).
    """
    if one_hot:
        # z_i = -log(exp(-max) + e_i / p_i) given that the greatest is elsewhere, with e_i and max held: 1 - exp(z_i - max) is lost.
        left = slope * jnp.exp(score - jnp.max(score, -1, keepdims=True))
        return left - softmax(logits) * jnp.sum(left, -1, keepdims=True)
    # |z| = softplus(noise + softplus(±logits)), with the noise held.
    toward = jnp.where(score > 0.0, logits, -logits)
    return slope * (1.0 + jnp.expm1(-jnp.abs(score)) * sigmoid(toward))


def split(rng: PRNGKey, found: Logits) -> list[PRNGKey]:
    """A key for every latent."""
    return [rng] if len(found.values) == 1 else list(jax.random.split(rng, len(found.values)))
