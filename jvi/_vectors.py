"""Matrix-vector products, turned so that `jax.vmap` over the vector puts its axis first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal, jaxpr_as_fun


def vector_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, every product `matrix @ vector` whose vector depends on the last argument taken as `vector @ matrix.T`.

    The numbers are the same. But the batching rule of `matrix @ vector` puts the mapped axis last, all else wants it first, and
    XLA's CPU loops then read with strides: a logistic regression with 16 particles takes 1.4 times as long.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jvi._vectors import vector_first
      >>> turned = vector_first(lambda matrix, z: matrix @ z["w"])
      >>> turned(jnp.ones((3, 2)), {"w": jnp.array([1.0, 2.0])})
      Array([3., 3., 3.], dtype=float32)
      >>> str(jax.make_jaxpr(turned)(jnp.ones((3, 2)), {"w": jnp.ones(2)}).out_avals)
      '[ShapedArray(float32[3])]'
    """

    def turned(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        moving = set(closed.jaxpr.invars[-len(jax.tree.leaves(args[-1])) or len(closed.jaxpr.invars) :])
        eqns = []
        for eqn in closed.jaxpr.eqns:
            moves = [not isinstance(var, Literal) and var in moving for var in eqn.invars]
            if any(moves):
                moving.update(eqn.outvars)
            eqns.append(_turn(eqn) if moves == [False, True] and _is_matrix_vector(eqn) else eqn)
        jaxpr = closed.jaxpr.replace(eqns=eqns)
        out = jaxpr_as_fun(closed.replace(jaxpr=jaxpr))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return turned


def _is_matrix_vector(eqn: Any) -> bool:
    if eqn.primitive.name != "dot_general" or eqn.invars[1].aval.ndim != 1:
        return False
    (_, contracted), (batch, _) = eqn.params["dimension_numbers"]
    return len(batch) == 0 and tuple(contracted) == (0,)


def _turn(eqn: Any) -> Any:
    contract, batch = eqn.params["dimension_numbers"]
    params = {**eqn.params, "dimension_numbers": (contract[::-1], batch[::-1])}
    return eqn.replace(invars=eqn.invars[::-1], params=params)
