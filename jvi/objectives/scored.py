"""Latents without a path: the score-function gradient and enumeration."""

from __future__ import annotations

from typing import Any

from jvi import bounds, gradients
from jvi import noise as noises
from jvi.controls import Control
from jvi.gradients.finite import where_finite
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives.monte_carlo import MonteCarlo
from jvi.objectives.weighted import Noise, elbo, iwae


def score(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 2,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """The ELBO with the score-function gradient, for any guide with a `log_prob`: discrete latents, mixtures.

    The same as `elbo(..., gradient=gradients.score)`. With its default control, the mean of the other particles, it is REINFORCE with
    leave-one-out (RLOO), and the gradient of the log-variance loss (VarGrad).

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: draws per evaluation, K; two or more for the default control.
      control: of `jvi.controls`; by default `leave_one_out`, and `none` for a single draw.
      noise, chunk_size: as in `elbo`.

    Raises:
      ValueError: if the guide has no `log_prob`, or `leave_one_out` is asked for with one draw.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: jnp.where(z == 1, jnp.log(0.9), jnp.log(0.1)))
      >>> objective = jvi.objectives.score(model, guide, num_samples=4)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> aux.log_w.shape
      (4,)

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference; Kool, van Hoof and Welling (2019); Richter et al. (2020).
    """
    return elbo(
        model, guide, num_samples=num_samples, gradient=gradients.score, control=control, noise=noise, chunk_size=chunk_size
    )


def vimco(
    model: Model, guide: Guide, *, num_samples: int, noise: Noise = noises.independent, chunk_size: int | None = None
) -> MonteCarlo:
    """The importance-weighted bound with the score-function gradient, each particle judged by what the bound is without it.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: K, two or more.
      noise, chunk_size: as in `elbo`.

    Raises:
      ValueError: if `num_samples` is less than 2, or the guide has no `log_prob`.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: jnp.where(z == 1, jnp.log(0.9), jnp.log(0.1)))
      >>> objective = jvi.objectives.vimco(model, guide, num_samples=5)
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> value.shape
      ()

    References:
      Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives.
    """
    if num_samples < 2:
        raise ValueError(f"vimco needs num_samples of 2 or more, because particles judge one another; got {num_samples}.")
    return iwae(model, guide, num_samples=num_samples, gradient=gradients.score, noise=noise, chunk_size=chunk_size)


def enumerate_elbo(
    model: Model, guide: Any, *, num_samples: int = 1, noise: Noise = noises.independent, chunk_size: int | None = None
) -> MonteCarlo:
    """The ELBO with its finite latents summed out exactly, alone or inside a larger guide, whose rest is reparameterized.

    Args:
      model: p(x, z).
      guide: q(z | x): of a finite latent, or `jvi.guides.product` or `sequence` of parts, of which those that have a finite support
        are enumerated.
      num_samples: draws of what is not enumerated, K; where all is, one says it exactly.
      noise, chunk_size: as in `elbo`.

    Raises:
      ValueError: if nothing of the guide can be enumerated.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda params, x: distrax.Categorical(params))
      >>> model = jvi.model(lambda x, z: jnp.log(jnp.array([0.2, 0.3, 0.5]))[z])
      >>> objective = jvi.objectives.enumerate_elbo(model, guide)
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> round(float(value), 3)  # (log 0.2 + log 0.3 + log 0.5) / 3 + log 3
      -0.07

    References:
      Titsias and Lázaro-Gredilla (2015), Local Expectation Gradients.
    """
    if hasattr(guide, "support"):
        gradient = gradients.enumerated
    elif any(hasattr(part, "support") for _, part in getattr(guide, "parts", ())):
        gradient = gradients.by_group(**{name: where_finite for name, _ in guide.parts})
    else:
        raise ValueError(
            f"nothing of {guide!r} can be enumerated: it takes guides of Bernoulli or categorical distributions, made by "
            "jvi.guides.from_distribution or conditional, alone or as parts of jvi.guides.product or sequence."
        )
    return MonteCarlo(model, guide, bounds.elbo, num_samples, gradient, noise=noise, chunk_size=chunk_size)
