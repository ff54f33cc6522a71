"""What a posterior does with one draw, as functions and specs that compile once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jvi._spec import spec
from jvi._typing import Latent, PRNGKey, PyTree, Scalar


def draw(rng: PRNGKey, posterior: Any) -> Latent:
    """z from the guide."""
    return posterior.guide.sample_and_log_prob(posterior.params.guide, rng, posterior.x)[0]


def log_weight(rng: PRNGKey, posterior: Any) -> Scalar:
    """log p(x, z) - log q(z | x) of one, nats."""
    z, log_q = posterior.guide.sample_and_log_prob(posterior.params.guide, rng, posterior.x)
    return posterior.model.log_joint(posterior.params.model, posterior.x, z) - log_q


@spec
class Predict:
    """A prediction from a draw of the guide."""

    function: Callable[..., PyTree]

    def __call__(self, rng: PRNGKey, posterior: Any) -> PyTree:
        latent, predictive = jax.random.split(rng)
        z = draw(latent, posterior)
        if jax.tree.leaves(posterior.params.model):
            return self.function(posterior.params.model, predictive, z)
        return self.function(predictive, z)


@spec
class PredictEach:
    """Predictions from draws that are there, some at once."""

    function: Callable[..., PyTree]
    at_once: int

    def __call__(self, keys: PRNGKey, z: Latent) -> PyTree:
        return jax.lax.map(lambda one: self.function(*one), (keys, z), batch_size=self.at_once)


@spec
class Each:
    """A function of every draw."""

    function: Callable[..., PyTree]

    def __call__(self, z: Latent) -> PyTree:
        return jax.lax.map(self.function, z, batch_size=512)
