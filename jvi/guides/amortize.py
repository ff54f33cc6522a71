"""Any guide amortized: a network emits its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Array, Data, Params, PRNGKey, PyTree
from jvi.guides._places import check_guide
from jvi.guides._through import Through, WithNetwork, seen, trained
from jvi.guides.functions import Guide
from jvi.networks import Network, Variables, network


@spec
class Added:
    """The parameters of the guide inside are what a network emits, added to their own values."""

    net: Network
    inputs: Callable[[Data], Any] | None

    @property
    def trains(self) -> bool:
        """Whether the network is another in training."""
        return self.net.training is not None

    def init(self, guide: Any, rng: PRNGKey, x: Data) -> WithNetwork:
        """Initial parameters of both."""
        of_net, of_guide = jax.random.split(rng)
        params = WithNetwork(self.net.init(of_net, seen(self.inputs, x)), guide.init(of_guide, x))
        jax.eval_shape(lambda params: self.open(guide, params, x), params)  # what does not fit says so now
        return params

    def open(self, guide: Any, params: WithNetwork, x: Data) -> tuple[Params, Data]:
        """The guide's parameters at `x`."""
        return add(params.guide, self.net.apply(params.network, seen(self.inputs, x))), x

    def train(self, guide: Any, params: WithNetwork, rng: PRNGKey, x: Data) -> tuple[Any, WithNetwork]:
        """The distribution in training, and the parameters with their new state."""
        net, inputs = params.network, seen(self.inputs, x)
        output, net = self.net.train(net, rng, inputs) if self.trains else (self.net.apply(net, inputs), net)
        distribution, _ = trained(guide, add(params.guide, output), rng, x)
        return distribution, WithNetwork(net, params.guide)


def amortize(guide: Guide, network: Any, *, inputs: Callable[[Data], Any] | None = None) -> Guide:
    """Any guide amortized: its parameters are their own values plus what a network emits, params.guide + network(params.network, x).

    The guide's own values start where `guide.init` puts them and are trained along, so that its sensible start is kept; exactly so
    where the network's last layer starts at zero, as `nn.Dense(n, kernel_init=nn.initializers.zeros)`, and nearly so of `jvi.encoders`.
    A flow should have one of these: moved by numbers of the order of 1, as a plain `nn.Dense(n)` emits, a `NeuralSpline` is so flat in
    places that in float32 `log_prob` of its own draws has no correct digit. Numbers come in the order of
    `jax.tree.leaves(params.guide)`, row by row; they take the type of the parameter that they are added to.

    Args:
      guide: a family, or a composition of guides.
      network: a Linen module, what builds an NNX module, or `jvi.networks.network(...)`; emits one vector, of
        `jvi.guides.num_params(guide, x)` numbers. Applied to one datum.
      inputs: `(x) -> what the network sees`; all of `x` by default. As a part of a `sequence`, `x` is `(x, earlier)`.

    Raises:
      TypeError: if `guide` is no guide, or `network` no network; by `init`, if a network inside the guide keeps state.
      ValueError: by `init`, or while traced, if the network emits another number of parameters.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.FullRank(jvi.space(jvi.real(2)))
      >>> amortized = jvi.guides.amortize(guide, nn.Dense(jvi.guides.num_params(guide)))
      >>> params = amortized.init(jax.random.key(0), jnp.ones(5))
      >>> params.network["kernel"].shape, params.guide.lower.shape
      ((5, 8), (2, 2))

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes; Rezende and Mohamed (2015), Variational Inference with Normalizing
      Flows, whose flows' parameters a network emits.
    """
    return Through(check_guide(guide), Added(_network(network), inputs))


def num_params(guide: Guide, x: Data = None) -> int:
    """How many real numbers the guide's parameters hold, for `amortize`'s network to emit; no array is made.

    Args:
      guide: any.
      x: one datum, or its shapes; needed where the parameters depend on it (networks, a `sequence` that looks at it).

    Example:
      >>> import jvi
      >>> jvi.guides.num_params(jvi.guides.MeanField(jvi.space(jvi.real(3))))
      6
    """
    shapes = jax.eval_shape(lambda x: check_guide(guide).init(jax.random.key(0), x), x)
    return _count(shapes)


def add(own: Params, output: PyTree) -> Params:
    """`own` with the flat vector `output` [n] added to its real numbers, which are n."""
    if any(isinstance(node, Variables) for node in jax.tree.leaves(own, is_leaf=lambda node: isinstance(node, Variables))):
        raise TypeError("a guide whose own network keeps state cannot be amortized: nothing but training changes that state.")
    count, shape = _count(own), jnp.shape(output) if jax.tree_util.all_leaves([output]) else None
    if shape != (count,):
        emitted = _tree.shapes(output)
        raise ValueError(
            f"the network that amortizes this guide must emit one vector of {count} numbers, its parameters ({_tree.shapes(own)}); it "
            f"emits {emitted}. jvi.guides.num_params(guide, x) counts them."
        )
    leaves, start = [], 0
    for leaf in jax.tree.leaves(own):
        size = math.prod(jnp.shape(leaf)) if _is_real(leaf) else 0
        leaves.append(_plus(leaf, output[start : start + size]) if _is_real(leaf) else leaf)
        start += size
    return jax.tree.unflatten(jax.tree.structure(own), leaves)


def _plus(leaf: Array, more: Array) -> Array:
    return leaf + more.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf))


def _count(params: Params) -> int:
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params) if _is_real(leaf))


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


_network = network  # which the argument of that name hides
