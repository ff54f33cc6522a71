"""A Gaussian of independent coordinates as a distribution of every latent."""

from __future__ import annotations

from typing import Any

import distrax
import jax
import jax.numpy as jnp
from tensorflow_probability.substrates import jax as tfp

from jvi._typing import Array, PyTree
from jvi.spaces import Space
from jvi.supports import Support

tfb, tfd = tfp.bijectors, tfp.distributions


def factors(space: Space, loc: Array, scale: Array) -> PyTree:
    """A distribution for every latent of `space`, where its coordinates are N(loc, scale^2); a `distrax.Joint` if there are several."""
    found, start = [], 0
    for support in space.supports:
        part = slice(start, start + support.size)
        shape = support.unconstrained_shape
        found.append(_factor(support, loc[part].reshape(shape), scale[part].reshape(shape)))
        start += support.size
    if len(found) == 1 and space.treedef == jax.tree.structure(0):
        return found[0]
    return distrax.Joint(jax.tree.unflatten(space.treedef, found))


def _factor(support: Support, loc: Array, scale: Array) -> Any:
    dims = len(support.unconstrained_shape)
    if support.bijector is None:
        normal = distrax.Normal(loc, scale)
        return distrax.Independent(normal, dims) if dims else normal
    bijector = support.bijector()
    if (support.loc, support.scale) != (0.0, 1.0):
        bijector = tfb.Chain([tfb.Shift(jnp.asarray(support.loc)), tfb.Scale(jnp.asarray(support.scale)), bijector])
    normal = tfd.Normal(loc, scale)
    if bijector.forward_min_event_ndims == 0:
        each = tfd.TransformedDistribution(normal, bijector)
        return tfd.Independent(each, dims) if dims else each
    return tfd.TransformedDistribution(tfd.Independent(normal, dims), bijector)
