"""Chains from their precision: a backward sweep factors it into links to the step before."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array
from jvi.guides._linked import Linked
from jvi.guides._sweeps import Chain, on_vectors, sweep, times, transposed


def of_information(pull: Array, precision: Array, coupling: Array) -> Linked:
    """The parameters of the chain whose log-density is -u' J u / 2 + pull' u, but for a constant.

    Args:
      pull: [T, D].
      precision: J's blocks on the diagonal [T, D, D].
      coupling: J's blocks below it, of step t + 1 by row with step t by column [T - 1, D, D].
    """
    size, dim = pull.shape
    inverse = jnp.reciprocal if dim == 1 else jnp.linalg.inv

    def backward(
        later: tuple[Array, Array], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        own, pull, below = now
        gain = times(transposed(below), inverse(later[0]))
        left = own - times(gain, below), pull - on_vectors(gain, later[1])
        return left, left

    end = precision[-1], pull[-1]
    _, before = jax.lax.scan(backward, end, (precision[:-1], pull[:-1], coupling), reverse=True)
    left, pulled = (jnp.concatenate([rest, last[None]]) for rest, last in zip(before, end, strict=True))
    cov = inverse(left)
    link = -times(cov[1:], coupling)
    loc = sweep(Chain(False), on_vectors, link, on_vectors(cov, pulled))
    if dim == 1:
        return Linked(loc, link, -0.5 * jnp.log(left[:, :, 0]), jnp.zeros((size, 0), loc.dtype))
    root = jnp.linalg.cholesky(cov)
    scale = jnp.diagonal(root, axis1=1, axis2=2)
    rows, columns = np.tril_indices(dim, -1)
    return Linked(loc, link, jnp.log(scale), (root / scale[:, :, None])[:, rows, columns] * math.sqrt(dim))
