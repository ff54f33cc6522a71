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
    "latent, jvi.objectives.disarm or relax for a discrete one; or sum the latent out inside the log-joint."
)


def check_path(guide: Any, params: Params, rng: PRNGKey, x: Data, z: Latent) -> None:
    """Refuse a draw `z` whose gradient by the guide's parameters would silently be wrong.

    Raises:
      TypeError: if a leaf is not a real number, or depends on parameters in a way that has no derivative.
    """
    for name, leaf in _tree.named_leaves(z, "z"):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name} is {jnp.result_type(leaf).name}: a draw that is not a real number has no pathwise gradient. {_ADVICE}"
            )
    if getattr(guide, "reparameterized", False):
        return
    if hasattr(guide, "distribution"):
        name = _distributions.without_path(guide.distribution(params, x))
        if name is not None:
            raise TypeError(f"draws of the guide's {name} do not depend differentiably on its parameters. {_ADVICE}")
        return
    broken = _broken(lambda params: guide.sample_and_log_prob(params, rng, x)[0], params)
    if broken:
        raise TypeError(f"the guide's draws depend on {', '.join(broken)}, but not differentiably. {_ADVICE}")


def _broken(sample: Any, params: Params) -> list[str]:
    """Names of the parameters that the draws depend on without having a derivative by them."""
    leaves, tree = jax.tree.flatten(params)
    names = [name for name, _ in _tree.named_leaves(params, "params")]
    floating = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]

    def outputs(moving: list[Any]) -> list[Any]:
        filled = list(leaves)
        for i, leaf in zip(floating, moving, strict=True):
            filled[i] = leaf
        return jax.tree.leaves(sample(jax.tree.unflatten(tree, filled)))

    at = [jnp.asarray(leaves[i]) for i in floating]
    values = _dependent(jax.make_jaxpr(outputs)(at).jaxpr, range(len(at)))
    both = jax.make_jaxpr(lambda at, step: jax.jvp(outputs, (at,), (step,))[1])(at, at)
    slopes = _dependent(both.jaxpr, range(len(at), 2 * len(at)))
    return [names[i] for i, value, slope in zip(floating, values, slopes, strict=True) if value and not slope]


def _dependent(jaxpr: Any, inputs: range) -> list[bool]:
    """For each of these inputs, whether any output depends on it."""
    found = []
    for i in inputs:
        reached = {jaxpr.invars[i]}
        for eqn in jaxpr.eqns:
            if any(isinstance(var, Var) and var in reached for var in eqn.invars):
                reached.update(eqn.outvars)
        found.append(any(isinstance(var, Var) and var in reached for var in jaxpr.outvars))
    return found
