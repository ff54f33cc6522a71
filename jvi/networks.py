"""Flax networks, Linen and NNX alike, as specs with `init` and `apply`."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen
import jax

from jvi import _tree
from jvi._spec import Recipe, spec
from jvi._typing import Params, PRNGKey, PyTree
from jvi.precision import Policy

__all__ = ["Network", "Variables", "network"]


class Variables(NamedTuple):
    """Parameters of a network that also keeps state, such as the running statistics of BatchNorm.

    Attributes:
      params: what an optimizer changes.
      state: collections by name, which only training passes change; no gradient flows into them.
    """

    params: Params
    state: PyTree


@spec
class Network:
    """A network as a pure pair: `init(rng, *inputs) -> params` and `apply(params, *inputs) -> output`. Made by `network`."""

    source: Any  # a Linen module, or the recipe of an NNX module
    training: Any = None  # the same Linen module as it is trained, with dropout, or with a batch's own statistics
    precision: Policy | None = None  # what it computes in; the default type if None

    def init(self, rng: PRNGKey, *inputs: Any) -> Params:
        """Draw the initial parameters for inputs of these shapes; `Variables` if the network keeps state.

        Raises:
          TypeError: if a network that was given no `training` keeps other state than parameters (batch statistics, dropout keys).
        """
        if isinstance(self.source, flax.linen.Module):
            variables = dict(self.source.init(rng, *inputs))
            params = variables.pop("params", {})
            if self.training is None:
                _refuse_state(self.source, list(variables))
            return Variables(params, variables) if variables else params
        from flax import nnx

        parts = nnx.split(_build(self.source, rng), nnx.Param, ...)
        _refuse_state(self.source.function, [name for name, _ in _tree.named_leaves(parts[2])])
        return nnx.to_pure_dict(parts[1])

    def train(self, params: Params, rng: PRNGKey, *inputs: Any) -> tuple[PyTree, Params]:
        """The output in training, and the parameters with the state as of the next step.

        Args:
          params: as from `init`.
          rng: key of what is drawn, Linen's "dropout".
          inputs: as of `apply`.

        Raises:
          ValueError: if the network was given no `training`.
        """
        if self.training is None:
            raise ValueError(
                "the network has no training mode: make it with network(Encoder(), training=Encoder(training=True))."
            )
        own, state = _parts(params)
        own, inputs = self._lowered((own, inputs))
        output, new = self.training.apply({"params": own, **state}, *inputs, rngs={"dropout": rng}, mutable=list(state))
        new = jax.lax.stop_gradient(dict(new))
        return self._lifted(output), params._replace(state=new) if isinstance(params, Variables) else params

    def apply(self, params: Params, *inputs: Any) -> PyTree:
        """The network's output; of one with a training mode, that outside of training."""
        if isinstance(self.source, flax.linen.Module):
            own, state = _parts(params)
            own, inputs = self._lowered((own, inputs))
            return self._lifted(self.source.apply({"params": own, **state}, *inputs))
        from flax import nnx

        graphdef, state = _nnx_structure(self.source)
        params, inputs = self._lowered((params, inputs))
        nnx.replace_by_pure_dict(state, params)
        return self._lifted(nnx.merge(graphdef, state)(*inputs))

    def _lowered(self, tree: PyTree) -> PyTree:
        return tree if self.precision is None else self.precision.lower(tree)

    def _lifted(self, tree: PyTree) -> PyTree:
        return tree if self.precision is None else self.precision.lift(tree)


def network(source: Any, *args: Any, training: Any = None, precision: Policy | None = None, **kwargs: Any) -> Network:
    """Make a network spec of a Flax module.

    Args:
      source: a Linen module (`Encoder(64)`); or, for NNX, whose modules hold their own arrays, what builds one: a module
        class or a function that takes `rngs` as a keyword, with its other arguments in `args` and `kwargs`.
      training: for dropout and BatchNorm, the Linen module as it is to be trained; `source` is then the module as it is used
        afterwards, with no dropout and running averages. The two differ in a field. `jvi.objectives.training` makes the difference.
      precision: what it computes in, such as `jvi.precision.bfloat16`; parameters, state and output keep the default type.

    Raises:
      TypeError: for an NNX module that is built already, what is no network, or a precision that is none.

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
        return source if precision is None else dataclasses.replace(source, precision=_check_precision(precision))
    precision = _check_precision(precision)
    if training is not None:
        if not isinstance(source, flax.linen.Module) or type(training) is not type(source):
            raise TypeError(
                f"training must be a Linen module of the kind of source, {type(source).__name__}; got {training!r}."
            )
        return Network(source, training, precision)
    if isinstance(source, flax.linen.Module):
        return Network(source, None, precision)
    if callable(source) and not _is_nnx_module(source):
        return Network(Recipe(source, args, tuple(sorted(kwargs.items()))), None, precision)
    raise TypeError(
        "a network must be a Linen module such as Encoder(64), or what builds an NNX module: network(Encoder, 64), where "
        f"Encoder takes `rngs`; got {type(source).__name__}. (A built NNX module holds arrays; a spec holds none.)"
    )


def _check_precision(precision: Any) -> Policy | None:
    if precision is not None and not isinstance(precision, Policy):
        raise TypeError(f"precision must be one of jvi.precision, such as jvi.precision.bfloat16; got {precision!r}.")
    return precision


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


def _parts(params: Params) -> tuple[Params, PyTree]:
    if isinstance(params, Variables):
        return params.params, jax.lax.stop_gradient(params.state)
    return params, {}


def _refuse_state(source: Any, names: list[str]) -> None:
    if names:
        raise TypeError(
            f"the network {source} keeps state other than parameters ({', '.join(names)}); jvi takes networks that are "
            "functions of their parameters and inputs. Use LayerNorm or GroupNorm in place of BatchNorm, and no dropout; or, with "
            "Linen, network(Encoder(), training=Encoder(training=True)) and jvi.objectives.training."
        )
