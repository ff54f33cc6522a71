"""What the trace of a step tells: random numbers that can be drawn ahead, and how much it convolves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun


def draw_ahead(
    function: Callable[..., Any], key: Any, *args: Any, most: float = float("inf"), look: Callable[[Any], None] | None = None
) -> tuple[Callable[[Any], list[Any]], Callable[..., Any]]:
    """Part `function(key, *args)` in two: `rest(draw(key), *args)`, with all that only the key decides in `draw`.

    A loop can then draw for many steps at once under `jax.vmap`, the very same numbers. Drawing a few at a time costs a CPU
    mostly overhead: an eighth of a step of a small model.

    Parted off is what takes keys, to split them or to draw from them, and what makes something no larger of the draws.

    Args:
      function: traced once.
      key: typed key.
      args: what it will be called with, or the shapes of it.
      most: bytes that one draw may take; where it would take more, nothing but the key is drawn.
      look: called with the jaxpr of `function`; what it raises ends the trace.

    Returns:
      `draw(key)`, a list of arrays, and `rest(draws, *args)`.

    Example:
      >>> import jax
      >>> from jvi._ahead import draw_ahead
      >>> key = jax.random.key(0)
      >>> draw, rest = draw_ahead(lambda key, scale: scale * jax.random.normal(key), key, 2.0)
      >>> float(rest(draw(key), 2.0)) == float(2.0 * jax.random.normal(key))
      True
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(key, *args)
    jaxpr = closed.jaxpr
    if look is not None:
        look(jaxpr)
    known: list[Any] = [jaxpr.invars[0]]
    head: list[Any] = []
    tail: list[Any] = []
    for eqn in jaxpr.eqns:
        inputs = _variables(eqn.invars)
        if inputs and set(known).issuperset(inputs) and not eqn.effects and _is_parted(inputs, eqn.outvars):
            known += eqn.outvars
            head.append(eqn)
        else:
            tail.append(eqn)
    used = {var for eqn in tail for var in _variables(eqn.invars)} | set(_variables(jaxpr.outvars))
    handed = [var for var in known if var in used]

    if sum(var.aval.size * var.aval.dtype.itemsize for var in handed if not _is_key(var)) > most:
        head, tail, handed = [], jaxpr.eqns, jaxpr.invars[:1]

    def part(inputs: list[Var], eqns: list[Any], out: list[Any]) -> Callable[..., list[Any]]:
        return jaxpr_as_fun(closed.replace(jaxpr=jaxpr.replace(invars=inputs, eqns=eqns, outvars=out)))

    draw = part(jaxpr.invars[:1], head, handed)
    rest = part([*handed, *jaxpr.invars[1:]], tail, jaxpr.outvars)
    return draw, lambda draws, *args: jax.tree.unflatten(jax.tree.structure(shape), rest(*draws, *jax.tree.leaves(args)))


def convolved(jaxpr: Any) -> int:
    """How many products the convolutions of a jaxpr take, those of the jaxprs inside of it included, each counted once."""
    products = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel, channels = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
            products += eqn.outvars[0].aval.size * kernel.size // kernel.shape[channels]
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            products += convolved(getattr(inner, "jaxpr", inner)) if _is_jaxpr(inner) else 0
    return products


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _variables(atoms: list[Any]) -> list[Any]:
    return [atom for atom in atoms if isinstance(atom, Var)]


def _is_parted(inputs: list[Any], out: list[Any]) -> bool:
    return any(map(_is_key, inputs)) or sum(var.aval.size for var in out) <= sum(var.aval.size for var in inputs)


def _is_key(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jax.dtypes.prng_key)
