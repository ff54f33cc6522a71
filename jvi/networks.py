"""Flax networks, Linen and NNX alike, as specs with `init` and `apply`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import flax.linen
import jax

from jvi import _tree
from jvi._spec import Recipe, spec
from jvi._typing import Params, PRNGKey, PyTree

__all__ = ["Network", "network"]


@spec
class Network:
    """A network as a pure pair: `init(rng, *inputs) -> params` and `apply(params, *inputs) -> output`. Made by `network`."""

    source: Any  # a Linen module, or the recipe of an NNX module

    def init(self, rng: PRNGKey, *inputs: Any) -> Params:
        """Draw the initial parameters for inputs of these shapes.

        Raises:
          TypeError: if the network keeps other state than parameters (batch statistics, dropout keys).
        """
        if isinstance(self.source, flax.linen.Module):
            variables = self.source.init(rng, *inputs)
            _refuse_state(self.source, [name for name in variables if name != "params"])
            return variables.get("params", {})
        from flax import nnx

        parts = nnx.split(_build(self.source, rng), nnx.Param, ...)
        _refuse_state(self.source.function, [name for name, _ in _tree.named_leaves(parts[2])])
        return nnx.to_pure_dict(parts[1])

    def apply(self, params: Params, *inputs: Any) -> PyTree:
        """The network's output."""
        if isinstance(self.source, flax.linen.Module):
            return self.source.apply({"params": params}, *inputs)
        from flax import nnx

        graphdef, state = _nnx_structure(self.source)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)(*inputs)


def network(source: Any, *args: Any, **kwargs: Any) -> Network:
    """Make a network spec of a Flax module.

    Args:
      source: a Linen module (`Encoder(64)`); or, for NNX, whose modules hold their own arrays, what builds one: a module
        class or a function that takes `rngs` as a keyword, with its other arguments in `args` and `kwargs`.

    Raises:
      TypeError: for an NNX module that is built already, or what is no network.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> net = jvi.networks.network(nn.Dense(2))
      >>> params = net.init(jax.random.key(0), jnp.ones(3))
      >>> net.apply(params, jnp.ones(3)).shape
      (2,)
      >>> from flax import nnx
      >>> net = jvi.networks.network(nnx.Linear, 3, 2)
      >>> net.apply(net.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3)).shape
      (2,)
    """
    if isinstance(source, Network):
        return source
    if isinstance(source, flax.linen.Module):
        return Network(source)
    if callable(source) and not _is_nnx_module(source):
        return Network(Recipe(source, args, tuple(sorted(kwargs.items()))))
    raise TypeError(
        "a network must be a Linen module such as Encoder(64), or what builds an NNX module: network(Encoder, 64), where "
        f"Encoder takes `rngs`; got {type(source).__name__}. (A built NNX module holds arrays; a spec holds none.)"
    )


def _build(recipe: Recipe, rng: PRNGKey) -> Any:
    from flax import nnx

    return Recipe(recipe.function, recipe.args, (*recipe.kwargs, ("rngs", nnx.Rngs(rng)))).build()


@lru_cache(maxsize=256)
def _nnx_structure_of(recipe: Recipe) -> Any:
    from flax import nnx

    return nnx.split(nnx.eval_shape(lambda: _build(recipe, jax.random.key(0))))


def _nnx_structure(recipe: Recipe) -> Any:
    graphdef, state = _nnx_structure_of(recipe)
    return graphdef, jax.tree.map(lambda leaf: leaf, state)  # a copy, which the caller may fill


def _is_nnx_module(source: Any) -> bool:
    from flax import nnx

    return isinstance(source, nnx.Module)


def _refuse_state(source: Any, names: list[str]) -> None:
    if names:
        raise TypeError(
            f"the network {source} keeps state other than parameters ({', '.join(names)}); jvi takes networks that are "
            "functions of their parameters and inputs. Use LayerNorm or GroupNorm in place of BatchNorm, and no dropout."
        )
