"""What objectives of K particles share: how they are drawn, and gradients that leave the value alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi import sharding
from jvi._checks import check_count
from jvi._chunked import chunked
from jvi._typing import PRNGKey, Scalar

Noise = Callable[[PRNGKey, int], PRNGKey]


def check_particles(num_samples: Any, noise: Any, chunk_size: Any, least: int = 1) -> None:
    """Refuse what is no number of particles, no noise, or no number of particles at a time."""
    check_count(num_samples, "num_samples", least)
    if not callable(noise):
        raise TypeError(f"noise must be one of jvi.noise, such as jvi.noise.sobol, or a (rng, K) -> keys [K]; got {noise!r}.")
    if chunk_size is not None:
        check_count(chunk_size, "chunk_size")


def each_particle(one: Callable[[PRNGKey], Any], rng: PRNGKey, num_samples: int, noise: Noise, chunk_size: int | None) -> Any:
    """`one(key)` of every particle, each leaf [K, ...]; `chunk_size` at a time."""
    if num_samples == 1:
        return jax.tree.map(lambda value: value[None], one(rng))
    keys = noise(rng, num_samples)
    if chunk_size is None or chunk_size >= num_samples:
        return jax.vmap(one, axis_name="particles")(sharding.by_particle(keys))
    each = jax.vmap(jax.checkpoint(one))
    return chunked(lambda some: each(sharding.by_particle(some)), keys, chunk_size)


@jax.custom_jvp
def gradient_only(surrogate: Scalar) -> Scalar:
    """Zero, with the gradient of `surrogate`.

    Where no gradient is taken, nothing of the surrogate is computed; where it is not finite, the value it is added to stays what it is.
    """
    return jnp.zeros_like(surrogate)


@gradient_only.defjvp
def _(primals: tuple[Scalar], tangents: tuple[Scalar]) -> tuple[Scalar, Scalar]:
    return jnp.zeros_like(primals[0]), tangents[0]
