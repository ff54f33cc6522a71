"""One backward pass in which draws and parameters get weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvi import noise as noises
from jvi._typing import Array, Latent, Scalar


@jax.custom_vjp
def steerable(z: Latent) -> tuple[Latent, Scalar]:
    """`z`, and a handle, worth zero: what it gets as its cotangent is the factor by which that of `z` is multiplied."""
    # Made of the draw, and not of nothing: where jax.vmap maps the draw, the handle must be mapped with it, or the factors of all
    # particles would be added up.
    mapped = [jnp.where(jnp.isnan(jnp.ravel(leaf)[0]), 0.0, 0.0) for leaf in jax.tree.leaves(z)]
    return z, sum(mapped, jnp.zeros(()))


def _steerable_forward(z: Latent) -> tuple[tuple[Latent, Scalar], None]:
    return steerable(z), None


def _steerable_backward(_: None, cotangents: tuple[Latent, Scalar]) -> tuple[Latent]:
    z, factor = cotangents
    return (jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, z),)


steerable.defvjp(_steerable_forward, _steerable_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def steered(bound: Callable[[Array], Scalar], log_w: Array, handles: Array, level: Any, slope: Any) -> Scalar:
    """`bound(log_w)`; its gradient sends v[k] = d bound / d log_w[k] to log-weights, v[k] (level + slope (1 - v[k])) to draws.

    So the model is differentiated once, as by any other estimator. Two stop-gradients would have it differentiated twice, and a
    pullback inside the objective would hold one gradient of the model's parameters for every datum of a minibatch.

    Args:
      bound: log-weights [K] -> scalar.
      log_w: log-weights [K], of draws that went through `steerable`.
      handles: those draws' handles [K].
      level, slope: scalars.
    """
    return bound(log_w)


def _steered_forward(bound: Any, log_w: Array, handles: Array, level: Any, slope: Any) -> tuple[Scalar, Any]:
    value, pullback = jax.vjp(bound, log_w)
    return value, (*pullback(jnp.ones_like(value)), level, slope)


def _steered_backward(bound: Any, kept: Any, cotangent: Scalar) -> tuple[Array, Array, Any, Any]:
    v, level, slope = kept
    # The factor is not linear in the cotangent, which the draws get through their log-weights.
    factor = jnp.asarray(level + slope * (1.0 - v), jnp.result_type(float))
    return cotangent * v, factor, jnp.zeros_like(level), jnp.zeros_like(slope)


steered.defvjp(_steered_forward, _steered_backward)


def check_independent(name: str, noise: Any) -> None:
    """Refuse particles that depend on one another, for which the doubly reparameterized gradient does not hold."""
    if noises.are_joint(noise):
        raise ValueError(
            f"{name} is biased with noise.antithetic or noise.sobol, because what a draw does to its weight is reckoned with the other "
            "draws held fixed: use noise.independent, or gradients.pathwise with jvi.iwae or jvi.renyi."
        )
