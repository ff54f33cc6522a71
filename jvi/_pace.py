"""An optimizer whose rate can be changed while it runs, and which remembers where it has been."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jvi._spec import Recipe
from jvi._typing import Array, PyTree

_WATCHED = 32  # entries of the parameters, about
ROWS = 1_024  # of the trace


class Pace(NamedTuple):
    """The state of `paced`.

    Attributes:
      inner: the optimizer's own.
      rate: what its updates are multiplied by, [].
      mean: of the parameters since `steps` was 0.
      steps: taken since then, int32 [].
      every: steps between two rows of `trace`, int32 [].
      trace: some entries of the parameters, [ROWS, P]; row `i` is that after step `(i + 1) * every`.
    """

    inner: PyTree
    rate: Array
    mean: PyTree
    steps: Array
    every: Array
    trace: Array


def paced(inner: Recipe | optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` with its updates multiplied by a rate that its state holds."""
    base = optax.with_extra_args_support(inner.build() if isinstance(inner, Recipe) else inner)

    def init(params: PyTree) -> Pace:
        trace = jnp.zeros((ROWS, _watched(params).size))
        mean = jax.tree.map(jnp.zeros_like, params)
        return Pace(base.init(params), jnp.ones(()), mean, jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32), trace)

    def update(updates: PyTree, state: Any, params: Any = None, **extra: Any) -> tuple[PyTree, Pace]:
        updates, moments = base.update(updates, state.inner, params, **extra)
        updates = jax.tree.map(lambda u: jnp.where(jnp.isfinite(u), state.rate.astype(u.dtype) * u, 0), updates)
        new, steps = optax.apply_updates(params, updates), state.steps + 1
        mean = jax.tree.map(lambda mean, leaf: mean + (leaf - mean) / steps.astype(leaf.dtype), state.mean, new)
        row = jnp.where(steps % state.every == 0, steps // state.every - 1, ROWS)
        trace = state.trace.at[row].set(_watched(new), mode="drop")
        return updates, Pace(moments, state.rate, mean, steps, state.every, trace)

    return optax.GradientTransformationExtraArgs(init, update)


def restarted(pace: Pace) -> Pace:
    """As it was, with nothing remembered."""
    return pace._replace(
        mean=jax.tree.map(jnp.zeros_like, pace.mean), steps=jnp.zeros((), jnp.int32), every=jnp.ones((), jnp.int32)
    )


def thinned(pace: Pace) -> Pace:
    """With every other row of the trace left out, which makes room for as many."""
    trace = jnp.concatenate([pace.trace[1::2], jnp.zeros_like(pace.trace[1::2])])
    return pace._replace(every=2 * pace.every, trace=trace)


def _watched(params: PyTree) -> Array:
    """Some entries of every leaf, the same ones each time."""
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    total = sum(leaf.size for leaf in leaves)
    parts = [leaf[:: max(1, leaf.size // max(1, _WATCHED * leaf.size // max(total, 1)))] for leaf in leaves]
    return jnp.concatenate(parts).astype(float) if parts else jnp.zeros(0)
