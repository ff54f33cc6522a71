"""Base noise: how the keys of K particles are made of one key."""

from __future__ import annotations

import jax

from jvi._typing import PRNGKey

__all__ = ["independent"]


def independent(rng: PRNGKey, num_samples: int) -> PRNGKey:
    """Independent particles.

    Args:
      rng: key, consumed.
      num_samples: K.

    Returns:
      Keys [K].

    Example:
      >>> import jax, jvi
      >>> jvi.noise.independent(jax.random.key(0), 4).shape
      (4,)
    """
    return jax.random.split(rng, num_samples)
