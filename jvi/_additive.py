"""Sums taken apart: the terms of a scalar, and what each depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal, jaxpr_as_fun

from jvi._typing import Latent, Scalar


def additive_terms(function: Callable[[Any], Scalar], z: dict[str, Latent]) -> list[tuple[frozenset[str], Scalar]]:
    """The terms that `function(z)` adds up, each with the names in `z` that it depends on.

    What is not a sum at the function's own level, such as a product or a call of something compiled, is one term. The terms add up to
    the function's value.

    Args:
      function: of a dict of pytrees, to a scalar.
      z: by name.

    Example:
      >>> import jax.numpy as jnp
      >>> from jvi._additive import additive_terms
      >>> found = additive_terms(lambda z: z["a"] ** 2 - z["a"] * z["b"], {"a": jnp.array(3.0), "b": jnp.array(2.0)})
      >>> [(sorted(names), float(value)) for names, value in found]
      [(['a'], 9.0), (['a', 'b'], -6.0)]
    """
    closed = jax.make_jaxpr(function)(z)
    jaxpr = closed.jaxpr
    owners = [name for name in sorted(z) for _ in jax.tree.leaves(z[name])]  # dicts are flattened by sorted keys
    names = {var: frozenset([name]) for var, name in zip(jaxpr.invars, owners, strict=True)}
    made = {}
    for eqn in jaxpr.eqns:
        union = frozenset().union(*(names.get(var, frozenset()) for var in eqn.invars if not isinstance(var, Literal)))
        names.update(dict.fromkeys(eqn.outvars, union))
        made.update(dict.fromkeys(eqn.outvars, eqn))
    leaves, waiting = [], [(jaxpr.outvars[0], 1.0)]
    while waiting:
        var, sign = waiting.pop(0)
        eqn = None if isinstance(var, Literal) else made.get(var)
        if eqn is not None and eqn.primitive.name in ("add", "add_any", "sub", "neg") and not getattr(var.aval, "shape", ()):
            signs = {"sub": (sign, -sign), "neg": (-sign,)}.get(eqn.primitive.name, (sign, sign))
            waiting += list(zip(eqn.invars, signs, strict=True))
        else:
            leaves.append((var, sign))
    values = jaxpr_as_fun(closed.replace(jaxpr=jaxpr.replace(outvars=[var for var, _ in leaves])))(*jax.tree.leaves(z))
    owned = [frozenset() if isinstance(var, Literal) else names.get(var, frozenset()) for var, _ in leaves]
    return [(owner, sign * value) for owner, (_, sign), value in zip(owned, leaves, values, strict=True)]
