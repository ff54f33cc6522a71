"""Flows written a second time: maps by named coordinates, inverses by brute force, log-determinants of whole Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jvi.guides import _conditioners


class Layer(NamedTuple):
    """One layer: the places that it moves, in the order in which they can be solved for, and the map of one of them."""

    moved: tuple[int, ...]
    move: Callable  # (all coordinates, place) -> a monotone function of a scalar
    inverse: Callable  # (such a function, value) -> where it has that value


def filled(guide, seed, scale, x=None):
    """Random parameters: what starts at zero gets the standard deviation `scale`, and the rest one of 0.5."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(guide.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
    last = params.layers.weights[-1]
    weights = (*params.layers.weights[:-1], last * 2.0 * scale)
    return params._replace(layers=params.layers._replace(weights=weights))


def mlp(layers, n, activation, seen, context, masks=None):
    for i, (weight, bias) in enumerate(zip(layers.weights, layers.biases, strict=True)):
        weight = weight[n] if masks is None else weight[n] * masks[i][n]
        seen = (activation(seen) if i else seen) @ weight + bias[n]
        if i == 0 and layers.context is not None:
            seen = seen + context @ layers.context[n]
    return seen


def affine(output, k, count):
    log_scale = 3.0 * jnp.tanh(output[k] / 3.0)
    return lambda value: value * jnp.exp(log_scale) + output[count + k]


def spline(output, k, count, bound=5.0, least=1e-2):
    """The spline through the knots, as Durkan et al. (2019) write it."""
    knots = output.reshape(count, -1)[k]
    bins = (knots.shape[0] - 1) // 3
    widths, heights = (
        2 * bound * (least + (1 - bins * least) * jax.nn.softmax(knots[i * bins : (i + 1) * bins])) for i in (0, 1)
    )
    x, y = (jnp.concatenate([jnp.full(1, -bound), jnp.cumsum(sizes) - bound]) for sizes in (widths, heights))
    d = jnp.exp(3.0 * jnp.tanh(knots[2 * bins :] / 3.0))

    def bend(value):
        i = jnp.clip(jnp.searchsorted(x, value, side="right") - 1, 0, bins - 1)
        s, xi = heights[i] / widths[i], (value - x[i]) / widths[i]
        top = heights[i] * (s * xi**2 + d[i] * xi * (1 - xi))
        inside = y[i] + top / (s + (d[i + 1] + d[i] - 2 * s) * xi * (1 - xi))
        below, above = -bound + d[0] * (value + bound), bound + d[-1] * (value - bound)
        return jnp.where(value < -bound, below, jnp.where(value > bound, above, inside))

    return bend


def coupling_layers(guide, params, context, kind):
    """Layers of a coupling flow, with the places as the noise has them."""
    size, num = guide.space.size, params.layers.biases[0].shape[0]
    half, places, all_places = size // 2, list(range(size)), []
    for n in range(num):
        if n and size > 1:
            places = places[half:] + places[:half] if n % 2 else places[1::2] + places[::2]
        all_places.append(places)
    # Coordinates come out in the order in which they went in.
    names = {place: name for name, place in enumerate(all_places[-1])}

    def layer(n):
        seen, moved = ([names[p] for p in part] for part in (all_places[n][:half], all_places[n][half:]))

        def move(u, place):
            output = mlp(params.layers, n, guide.activation, u[np.array(seen, int)], context)
            return kind(output, moved.index(place), len(moved))

        return Layer(tuple(moved), move, on_a_line if kind is affine else bisected)

    return [layer(n) for n in range(num)]


def autoregressive_layers(guide, params, context):
    size, num = guide.space.size, params.layers.biases[0].shape[0]
    masks = _conditioners.masks(size, guide.hidden, num, outputs=2, conditional=context is not None)

    def layer(n):
        def move(u, place):
            return affine(mlp(params.layers, n, guide.activation, u, context, masks), place, size)

        return Layer(tuple(range(size))[:: -1 if n % 2 else 1], move, on_a_line)

    return [layer(n) for n in range(num)]


def run(layer, u):
    """A layer whose networks see what comes in."""
    return u.at[np.array(layer.moved)].set(jnp.stack([layer.move(u, place)(u[place]) for place in layer.moved]))


def solve(layer, y):
    """The inverse of `run`, place by place."""
    u = y.at[np.array(layer.moved)].set(0.0)
    for place in layer.moved:
        u = u.at[place].set(layer.inverse(layer.move(u, place), y[place]))
    return u


def on_a_line(function, value):
    """Where a function that is affine has this value."""
    return (value - function(0.0)) / (function(1.0) - function(0.0))


def bisected(function, value):
    low, high = jax.lax.fori_loop(0, 80, _halved(function, value), (value * 0.0 - 1e4, value * 0.0 + 1e4))
    return 0.5 * (low + high)


def _halved(function, value):
    def body(_, ends):
        middle = 0.5 * (ends[0] + ends[1])
        under = function(middle) < value
        return jnp.where(under, middle, ends[0]), jnp.where(under, ends[1], middle)

    return body


def log_density(guide, params, u, layers, *, reads_draws=False):
    """log q of coordinates u: log N(eps) - log|det du/deps|, with `reads_draws` for layers whose networks see what comes out."""
    base = params.base
    root = jnp.exp(base.log_scale)[:, None] * (jnp.eye(u.shape[0]) + jnp.tril(base.lower, -1) / np.sqrt(u.shape[0]))
    bent = jnp.linalg.solve(root, u - base.loc)

    def noise(y):
        for layer in reversed(layers):
            y = undo(layer, y) if reads_draws else solve(layer, y)
        return y

    def flow(eps):
        for layer in layers:
            eps = run(layer, eps)
        return eps

    eps = noise(bent)
    jacobian = jnp.linalg.inv(jax.jacfwd(noise)(bent)) if reads_draws else jax.jacfwd(flow)(eps)
    return norm.logpdf(eps).sum() - jnp.linalg.slogdet(root @ jacobian)[1]


def undo(layer, y):
    """Noise of a layer whose networks see the draw: what the map of each place takes to it."""
    return jnp.stack([layer.inverse(layer.move(y, place), y[place]) for place in sorted(layer.moved)])
