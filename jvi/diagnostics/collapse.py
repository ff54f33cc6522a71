"""Posterior collapse: latents that q(z | x) leaves at the prior, whatever x is."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jvi._typing import Array

__all__ = ["ActiveUnits", "active_units"]


class ActiveUnits(NamedTuple):
    """How many entries of a latent say something of x.

    Attributes:
      number: entries whose variance is above the threshold, int32 [].
      variances: Var_x E[z | x], the entries' shape.
    """

    number: Array
    variances: Array


def active_units(means: Array, *, threshold: float = 0.01) -> ActiveUnits:
    """The entries of a latent whose posterior mean moves with x: Var_x E[z | x] > `threshold`.

    Args:
      means: E_q[z | x] of N data [N, ...].
      threshold: in units of z squared; for a prior of variance one.

    Raises:
      ValueError: if there are less than two data.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> means = jnp.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.1]])
      >>> int(jvi.diagnostics.active_units(means).number)
      1

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """
    if jnp.ndim(means) < 1 or jnp.shape(means)[0] < 2:
        raise ValueError(
            f"means must be [N, ...] with N of at least 2, the posterior means of N data; got {list(jnp.shape(means))}."
        )
    variances = jnp.var(means, 0)
    return ActiveUnits(jnp.sum(variances > threshold), variances)
