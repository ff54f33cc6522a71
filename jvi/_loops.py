"""What runs compiled. This is the only file that jits.

How many steps a loop takes is an argument and not a shape, so that any number of steps, on any data of the same shapes, runs the
same program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvi import sharding
from jvi._ahead import convolved, draw_ahead
from jvi._checks import check_count, check_key
from jvi._chunked import chunked
from jvi._typing import Array, Data, PRNGKey, PyTree
from jvi.svi import SVI, State

# Steps that are drawn for at once, and bytes that a step may draw. On a CPU, drawing more than a little costs what it costs, and
# drawing ahead would only add to what is compiled; on an accelerator every kernel that leaves the loop is a gain.
_AHEAD, _AHEAD_MASKED = (256, 2**10), (32, 2**21)

# Products of a step's convolutions from which a CPU takes steps outside of the loop: inside, XLA takes ten times as long for them.
_CONVOLVED = 10**6

FAR = 2**30  # the step with whose keys and minibatches parameters are judged


# It runs once, so that what counts is the time to compile it.
@partial(jax.jit, static_argnums=(3,), compiler_options={"xla_backend_optimization_level": 1})
def init(svi: SVI, rng: PRNGKey, x: Data, batch_size: int | None = None) -> State:
    """The state before the first step, for minibatches of `batch_size` or all of `x`."""
    state = svi.init(rng, jax.tree.map(lambda leaf: leaf[:batch_size], x) if batch_size else x)
    return state._replace(params=sharding.as_stored(state.params), opt_state=sharding.as_stored(state.opt_state))


class SlowInsideError(Exception):
    """A step that had better be called from outside of a loop."""


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=(5,))
def loop(
    svi: SVI,
    feed: Any,
    size: int,
    masked: bool,
    schedule: Callable[[Array], Any] | None,
    state: State,
    data: Data,
    beta: Any,
    length: int,
) -> tuple[State, Array]:
    """Up to `length` steps, fewer if too many in a row are not finite; and what they reported, [size + 1, 4].

    With `masked`, blocks of steps are run through, and those past the end do nothing: an accelerator waits for the host wherever a
    loop asks whether to go on.

    Raises:
      SlowInsideError: once traced, if `by_steps` would be faster, and not `masked`.
    """
    start = state.step

    def look(jaxpr: Any) -> None:
        if not masked and convolved(jaxpr) >= _CONVOLVED:
            raise SlowInsideError

    def step(key: PRNGKey, carry: Any, places: Any) -> Any:
        i, params, opt_state, in_a_row, log = carry
        running = go_on(carry) if masked else True
        x = feed.take(places, data, i)
        beta_now = beta_at(schedule, beta, start + i)
        params, opt_state, in_a_row, row = _advance(svi, params, opt_state, in_a_row, key, x, beta_now, running)
        log = jax.lax.dynamic_update_index_in_dim(log, row, i, 0, allow_negative_indices=False)
        return i + running, params, opt_state, in_a_row, log

    def places_of(i: Array) -> Any:
        return feed.places(held, start + i, data)

    def go_on(carry: Any) -> Array:
        i, _, _, in_a_row, *_ = carry
        return (i < length) & (in_a_row < svi.max_skipped)

    held, zero = feed.start(state.rng), jnp.zeros((), jnp.int32)
    carry = (zero, state.params, state.opt_state, state.skipped_in_a_row, jnp.zeros((size + 1, 4)))
    steps, most = _AHEAD_MASKED if masked else _AHEAD
    draw, rest = draw_ahead(step, state.rng, carry, places_of(zero), most=most, look=look)
    block = min(size, steps)

    def some(carry: Any) -> Any:
        first = carry[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(state.rng, start + first + i))(jnp.arange(block))
        draws = jax.vmap(draw)(keys)
        if masked:  # a search for places asks whether to go on, too
            ahead = draws, jax.vmap(places_of)(first + jnp.arange(block))
            return jax.lax.scan(lambda carry, now: (rest(now[0], carry, now[1]), None), carry, ahead, length=block)[0]

        def one(carry: Any) -> Any:
            return rest([_row(leaf, carry[0] - first) for leaf in draws], carry, places_of(carry[0]))

        return jax.lax.while_loop(lambda carry: go_on(carry) & (carry[0] - first < block), one, carry)

    i, params, opt_state, in_a_row, log = jax.lax.while_loop(go_on, some, carry)
    missed = (log[:, 3] == 0.0) & (jnp.arange(size + 1) < i)
    skipped = state.skipped + jnp.sum(missed, dtype=jnp.int32)
    # The key passes as it came, so that its buffer, which is the caller's, is not donated.
    params, opt_state, i, skipped, in_a_row = sharding.as_stored((params, opt_state, i, skipped, in_a_row))
    return State(params, opt_state, state.rng, start + i, skipped, in_a_row), sharding.everywhere(log)


def by_steps(
    svi: SVI, feed: Any, schedule: Callable[[Array], Any] | None, state: State, data: Data, beta: Any, length: int
) -> tuple[State, list[Array]]:
    """What `loop` does, by steps that are called one by one; rows behind those that were taken say nothing."""
    held, log = _start(feed, state.rng), []
    for i in range(length):
        state, row = _step(svi, feed, schedule, state, held, data, beta, i)
        log.append(row)
    return state, log


@jax.jit
def _start(feed: Any, rng: PRNGKey) -> Any:
    return feed.start(rng)


@partial(jax.jit, static_argnums=(2,), donate_argnums=(3,))
def _step(
    svi: SVI, feed: Any, schedule: Callable[[Array], Any] | None, state: State, held: Any, data: Data, beta: Any, i: int
) -> tuple[State, Array]:
    params, opt_state, rng, step, skipped, in_a_row = state
    running = in_a_row < svi.max_skipped
    x = feed.take(feed.places(held, step, data), data, i)
    key, beta_now = jax.random.fold_in(rng, step), beta_at(schedule, beta, step)
    params, opt_state, in_a_row, row = _advance(svi, params, opt_state, in_a_row, key, x, beta_now, running)
    skipped = skipped + (running & (row[3] == 0.0))
    params, opt_state, step, skipped, in_a_row = sharding.as_stored((params, opt_state, step + running, skipped, in_a_row))
    return State(params, opt_state, rng, step, skipped, in_a_row), sharding.everywhere(row)


def _advance(
    svi: SVI, params: PyTree, opt_state: PyTree, in_a_row: Array, key: PRNGKey, x: Data, beta: Any, running: Any
) -> tuple[PyTree, PyTree, Array, Array]:
    params, opt_state, in_a_row, info = svi.advance(params, opt_state, in_a_row, key, x, beta=beta, allowed=running)
    params, opt_state = sharding.as_stored((params, opt_state))
    return params, opt_state, in_a_row, jnp.stack([value.astype(float) for value in info])


@partial(jax.jit, static_argnums=(2, 3))
def independent(
    svi: SVI,
    feed: Any,
    num: int,
    schedule: Callable[[Array], Any] | None,
    params: PyTree,
    rng: PRNGKey,
    data: Data,
    beta: Any,
    count: int,
) -> Array:
    """The objective at `params` [num], with keys and minibatches that no step of the run of key `rng` uses; a stack has `count`."""
    held = feed.start(rng)

    def one(i: Array) -> Array:
        step = FAR + i
        x = feed.take(feed.places(held, jnp.asarray(step, jnp.int32), data), data, i % count)
        return svi.objective(params, jax.random.fold_in(rng, step), x, beta=beta_at(schedule, beta, step))[0]

    return jax.lax.map(one, jnp.arange(num))


def _row(array: Array, i: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(array, i, keepdims=False, allow_negative_indices=False)


def beta_at(schedule: Callable[[Array], Any] | None, beta: Any, step: Array) -> Any:
    """The weight of the KL term at a step."""
    if schedule is not None:
        return schedule(step)
    return beta(step) if callable(beta) else 1.0 if beta is None else beta


def monte_carlo(
    function: Callable[..., PyTree], rng: PRNGKey, *args: Any, num_samples: int, chunk_size: int | None = None, mesh: Any = None
) -> PyTree:
    """Evaluate `function(rng, *args)` for `num_samples` keys, compiled, and stack the results.

    Args:
      function: a spec or a function, compared by value or identity; its compiled form is kept.
      rng: key; `num_samples` keys are split from it, the same ones whatever `chunk_size` is.
      args: pytrees of arrays and specs.
      num_samples: S.
      chunk_size: how many are evaluated at once, to bound memory; all by default.
      mesh: of devices to split them over.

    Returns:
      The results, each leaf [S, ...].

    Raises:
      TypeError: if `rng` is no typed key.
      ValueError: if a count is less than 1.

    Example:
      >>> import jax, jvi
      >>> from jvi._loops import monte_carlo
      >>> monte_carlo(jax.random.normal, jax.random.key(0), num_samples=10, chunk_size=4).shape
      (10,)
    """
    rng, num_samples = check_key(rng), check_count(num_samples, "num_samples")
    chunk_size = num_samples if chunk_size is None else check_count(chunk_size, "chunk_size")
    with sharding.entered(mesh):
        return _monte_carlo(function, num_samples, min(chunk_size, num_samples), *sharding.put(mesh, (rng, args)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _monte_carlo(function: Callable[..., Any], num_samples: int, chunk_size: int, rng: PRNGKey, args: Any) -> Any:
    each = jax.vmap(lambda key: function(key, *args))
    keys = jax.random.split(rng, num_samples)
    return chunked(lambda some: sharding.everywhere(each(sharding.by_device(some))), keys, chunk_size)


@partial(jax.jit, static_argnums=(0,))
def call(function: Callable[..., PyTree], *args: Any) -> PyTree:
    """`function(*args)`, compiled; a spec compiles once for all that equal it."""
    return function(*args)


@partial(jax.jit, static_argnums=(0, 1))
def rows(function: Callable[..., PyTree], lanes: int, x: Data, u: Array, count: int) -> PyTree:
    """`function(x, row)` of the first `count` rows of u [S, ...], `lanes` at a time; what lies behind them is arbitrary.

    How many rows there are is an argument, so that a few and a few hundred run the same program at their own cost.
    """

    def some(carry: Any) -> Any:
        i, out = carry
        start = jnp.minimum(i, u.shape[0] - lanes)
        found = jax.vmap(lambda row: function(x, row))(sharding.by_device(jax.lax.dynamic_slice_in_dim(u, start, lanes)))
        found = sharding.everywhere(found)
        return i + lanes, jax.tree.map(lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, start, 0), out, found)

    shape = jax.eval_shape(function, x, u[0])
    out = jax.tree.map(lambda leaf: jnp.zeros((u.shape[0], *leaf.shape), leaf.dtype), shape)
    return jax.lax.while_loop(lambda carry: carry[0] < count, some, (jnp.zeros((), jnp.int32), out))[1]
