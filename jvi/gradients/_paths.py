"""Whether a draw depends differentiably on what it depends on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jvi import _distributions, _tree
from jvi._typing import Data, Latent, Params, PRNGKey

_ADVICE = (
    "Take an estimator that needs no path: gradients.score (jvi.objectives.score, vimco), gradients.enumerated for a finite "
    "latent, jvi.objectives.disarm or relax for a discrete one, gradients.stratified (jvi.objectives.stratified) "
    "for a jvi.guides.Mixture (but gradients.score, or a Mixture of plates, for a plate of mixtures, whose n copies have C^n strata); "
    "or sum the latent out inside the log-joint."
)


def check_path(guide: Any, params: Params, rng: PRNGKey, x: Data, z: Latent) -> None:
    """Refuse a draw `z` whose gradient by the guide's parameters would silently be wrong.

    Raises:
      TypeError: if a leaf is not a real number, or depends on parameters in a way that has no derivative.
    """
    _check_real(z)
    if getattr(guide, "reparameterized", False):
        return
    if hasattr(guide, "distribution"):
        distribution = guide.distribution(params, x)
        name = _distributions.without_path(distribution)
        if name is not None:
            raise TypeError(f"draws of the guide's {name} do not depend differentiably on its parameters. {_ADVICE}")
        if _distributions.known(distribution):
            return
    broken = _broken(lambda params: guide.sample_and_log_prob(params, rng, x)[0], params)
    if broken:
        raise TypeError(f"the guide's draws depend on {', '.join(broken)}, but not differentiably. {_ADVICE}")


def check_strata(guide: Any, params: Params, rng: PRNGKey, x: Data, z: Latent) -> None:
    """The same of one draw from every stratum, each leaf [C, ...]."""
    _check_real(z)
    broken = _broken(lambda params: guide.strata(params, rng, x)[0], params)
    if broken:
        raise TypeError(f"the draws of the guide's strata depend on {', '.join(broken)}, but not differentiably. {_ADVICE}")


def _check_real(z: Latent) -> None:
    for name, leaf in _tree.named_leaves(z, "z"):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name} is {jnp.result_type(leaf).name}: a draw that is not a real number has no pathwise gradient. {_ADVICE}"
            )


def _broken(sample: Any, params: Params) -> list[str]:
    """Names of the parameters that a leaf of the draw depends on without having a derivative by them."""
    leaves, tree = jax.tree.flatten(params)
    names = [name for name, _ in _tree.named_leaves(params, "params")]
    floating = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]

    def outputs(moving: list[Any]) -> list[Any]:
        filled = list(leaves)
        for i, leaf in zip(floating, moving, strict=True):
            filled[i] = leaf
        return jax.tree.leaves(sample(jax.tree.unflatten(tree, filled)))

    at = [jnp.asarray(leaves[i]) for i in floating]
    values, shapes = jax.make_jaxpr(outputs, return_shape=True)(at)
    try:
        slopes = jax.make_jaxpr(lambda at, given: jax.vjp(outputs, at)[1](given)[0])(at, shapes)
    except (TypeError, ValueError, NotImplementedError):
        return []  # what cannot be differentiated at all says so itself, once a gradient is asked for
    inputs = [frozenset({i}) for i in range(len(at))]
    depends = _sources(values.jaxpr, inputs)
    outs = [frozenset({j}) for j in range(len(depends))]
    moved = _sources(slopes.jaxpr, [frozenset()] * len(at) + outs)
    bad = {i for j, found in enumerate(depends) for i in found if j not in moved[i]}
    return [names[floating[i]] for i in sorted(bad)]


def _sources(jaxpr: Any, inputs: list[frozenset[int]]) -> list[frozenset[int]]:
    """For each output, the labels of the inputs that it depends on; `stop_gradient` is a user's word that it does not."""
    none: frozenset[int] = frozenset()
    reached = dict(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        into = [reached.get(var, none) if isinstance(var, Var) else none for var in eqn.invars]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        name = eqn.primitive.name
        if name == "stop_gradient":
            out = [none] * len(eqn.outvars)
        elif inner is not None and name != "scan" and len(inner.invars) == len(into):
            out = _sources(inner, into)
        else:
            out = [none.union(*into)] * len(eqn.outvars)
        reached.update(zip(eqn.outvars, out, strict=True))
    return [reached.get(var, none) if isinstance(var, Var) else none for var in jaxpr.outvars]
