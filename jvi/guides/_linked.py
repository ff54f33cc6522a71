"""Gaussians in which every node is linked to its parent alone: what chains and trees share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from jvi._typing import Array, Scalar
from jvi.guides._base import log_standard
from jvi.guides._sweeps import on_covariances, on_vectors, sweep, times, transposed

_UNROLLED = 16  # rows of a triangle that are solved one by one, all nodes at once


class Linked(NamedTuple):
    """Parameters of `Markov` and `Tree`: u_i = loc_i + A_i (u_parent - loc_parent) + L_i eps_i.

    L_i is diag(exp(log_scale_i)) (I + below_i / sqrt(D)), where below_i is strictly lower triangular, by rows in `lower`. At D = 1 that
    is four numbers a node, less one: no scalar is kept in a matrix that needs no factor.

    Attributes:
      loc: means [n, D].
      link: A of all nodes but the first [n - 1, D, D].
      log_scale: log of L's diagonals [n, D]; of the first node, log standard deviations where D is 1.
      lower: [n, D (D - 1) / 2].
    """

    loc: Array
    link: Array
    log_scale: Array
    lower: Array


class Moments(NamedTuple):
    """First and second moments of `Markov` and `Tree`.

    Attributes:
      loc: means [n, D].
      cov: covariances [n, D, D].
      lag_one: covariances of all nodes but the first with their parents [n - 1, D, D]: of u_i by row and u_parent by column.
    """

    loc: Array
    cov: Array
    lag_one: Array


def initial(size: int, dim: int, init_scale: float) -> Linked:
    """No links, means at zero."""
    log_scale = jnp.full((size, dim), math.log(init_scale))
    return Linked(jnp.zeros((size, dim)), jnp.zeros((size - 1, dim, dim)), log_scale, jnp.zeros((size, dim * (dim - 1) // 2)))


def moved(structure: Any, params: Linked, eps: Array) -> Array:
    """Standard normal noise [n, D] -> u [n, D]."""
    noise = jnp.exp(params.log_scale) * (eps + on_vectors(_below(params), eps) if params.lower.shape[1] else eps)
    return params.loc + sweep(structure, on_vectors, params.link, noise)


def whitened(structure: Any, params: Linked, u: Array) -> Array:
    """u [n, D] -> standard normal noise [n, D]: no recurrence, every node at once."""
    centred = u - params.loc
    rest = centred[1:] - on_vectors(params.link, structure.of_parents(centred))
    white = jnp.concatenate([centred[:1], rest]) * jnp.exp(-params.log_scale)
    return _solved(params, white) if params.lower.shape[1] else white


def log_density(params: Linked, eps: Array) -> Scalar:
    """The log-density where the noise is `eps` [n, D], nats."""
    return log_standard(eps.reshape(-1)) - jnp.sum(params.log_scale)


def moments(structure: Any, params: Linked) -> Moments:
    """Means, covariances, and covariances with the parents, by one sweep."""
    dim = params.loc.shape[1]
    root = jnp.exp(params.log_scale)[:, :, None] * (jnp.eye(dim, dtype=params.loc.dtype)[None] + _below(params))
    cov = sweep(structure, on_covariances, params.link, times(root, transposed(root)))
    return Moments(params.loc, cov, times(params.link, structure.of_parents(cov)))


def of_moments(structure: Any, loc: Array, cov: Array, lag_one: Array) -> Linked:
    """The parameters with these moments."""
    loc, cov, lag_one = jnp.asarray(loc), jnp.asarray(cov), jnp.asarray(lag_one)
    size, dim = loc.shape
    link = transposed(jnp.linalg.solve(structure.of_parents(cov), transposed(lag_one)))
    rest = cov[1:] - times(link, transposed(lag_one))
    root = jnp.linalg.cholesky(jnp.concatenate([cov[:1], rest]))
    scale = jnp.diagonal(root, axis1=1, axis2=2)
    rows, columns = np.tril_indices(dim, -1)
    lower = (root / scale[:, :, None])[:, rows, columns] * math.sqrt(dim)
    return Linked(loc, link, jnp.log(scale), lower.reshape(size, -1))


def check_shape(name: str, value: Any, shape: tuple[int, ...], owner: str) -> None:
    """Raise for an array of another shape."""
    if np.shape(value) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, {owner}; got {list(np.shape(value))}.")


def check_moments(size: int, dim: int, loc: Any, cov: Any, lag_one: Any) -> None:
    """Raise for moments of other shapes."""
    check_shape("loc", loc, (size, dim), "the means")
    check_shape("cov", cov, (size, dim, dim), "the covariances")
    check_shape("lag_one", lag_one, (size - 1, dim, dim), "the covariances with the parents, or the steps before")


def _below(params: Linked) -> Array:
    """[n, D, D], zero but below the diagonal."""
    size, dim = params.loc.shape
    rows, columns = np.tril_indices(dim, -1)
    blank = jnp.zeros((size, dim, dim), params.lower.dtype)
    return blank.at[:, rows, columns].set(params.lower / math.sqrt(dim), unique_indices=True)


def _solved(params: Linked, white: Array) -> Array:
    """(I + below)^-1 white."""
    dim = white.shape[1]
    if dim > _UNROLLED:
        return solve_triangular(_below(params), white[..., None], lower=True, unit_diagonal=True)[..., 0]
    lower, rows = params.lower / math.sqrt(dim), [white[:, :1]]
    for j in range(1, dim):
        row = lower[:, j * (j - 1) // 2 : j * (j + 1) // 2]
        rows.append(white[:, j : j + 1] - jnp.sum(row * jnp.concatenate(rows, 1), 1, keepdims=True))
    return jnp.concatenate(rows, 1)
