"""A shared encoder: a guide that sees features in place of the data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax

from jvi._spec import Recipe, spec
from jvi._typing import Data, Params, PRNGKey, PyTree
from jvi.guides._places import check_guide
from jvi.guides._through import Through, WithNetwork, seen, trained
from jvi.guides.functions import Guide
from jvi.networks import Network, network


@spec
class Plain:
    """A function of the data as a network without parameters."""

    function: Callable[[Any], PyTree]
    training: Any = None

    def init(self, rng: PRNGKey, x: Any) -> Params:
        """No parameters."""
        return ()

    def apply(self, params: Params, x: Any) -> PyTree:
        """The function's value."""
        return self.function(x)


@spec
class Features:
    """The guide inside sees what a network makes of the data."""

    net: Any
    inputs: Callable[[Data], Any] | None

    @property
    def trains(self) -> bool:
        """Whether the network is another in training."""
        return self.net.training is not None

    def init(self, guide: Any, rng: PRNGKey, x: Data) -> WithNetwork:
        """Initial parameters of both."""
        of_net, of_guide = jax.random.split(rng)
        params = self.net.init(of_net, seen(self.inputs, x))
        return WithNetwork(params, guide.init(of_guide, self.net.apply(params, seen(self.inputs, x))))

    def open(self, guide: Any, params: WithNetwork, x: Data) -> tuple[Params, Data]:
        """The guide's parameters, and the features."""
        return params.guide, self.net.apply(params.network, seen(self.inputs, x))

    def train(self, guide: Any, params: WithNetwork, rng: PRNGKey, x: Data) -> tuple[Any, WithNetwork]:
        """The distribution in training, and the parameters with their new state."""
        net, inputs = params.network, seen(self.inputs, x)
        features, net = self.net.train(net, rng, inputs) if self.trains else (self.net.apply(net, inputs), net)
        distribution, inner = trained(guide, params.guide, rng, features)
        return distribution, WithNetwork(net, inner)


def given(network: Any, guide: Guide, *, inputs: Callable[[Data], Any] | None = None) -> Guide:
    """A guide that sees features, `network(x)`, in place of `x`: one encoder for all of its parts.

    Its parameters are a pair, `network` and `guide`. By `gradients.by_group` the parts are parts still; the features that they see
    are then not held fixed by `gradients.stl`, which is unbiased, and noisier where q is exact.

    Args:
      network: a Linen module, what builds an NNX module, `jvi.networks.network(...)`; or a function `(x) -> features` without
        parameters, which compares by identity. Applied to one datum.
      guide: sees the features.
      inputs: `(x) -> what the network sees`; all of `x` by default. As a part of a `sequence`, `x` is `(x, earlier)`.

    Raises:
      TypeError: if `network` is neither a network nor a function, or `guide` is no guide.

    Example:
      >>> import distrax, flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> part = jvi.guides.from_distribution(
      ...     lambda rng, x: jnp.zeros(2), lambda params, features: distrax.MultivariateNormalDiag(params + features))
      >>> guide = jvi.guides.given(nn.Dense(2), jvi.guides.product(a=part, b=part))
      >>> params = guide.init(jax.random.key(0), jnp.ones(5))
      >>> params.network["kernel"].shape, sorted(params.guide)
      ((5, 2), ['a', 'b'])
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), jnp.ones(5))
      >>> z["b"].shape, log_q.shape
      ((2,), ())
    """
    return Through(check_guide(guide), Features(encoder(network), inputs))


def encoder(source: Any) -> Network | Plain:
    """A network; or, of a function that takes no `rngs`, that function without parameters."""
    net = network(source)
    if not isinstance(net.source, Recipe) or isinstance(source, Network) or inspect.isclass(source):
        return net
    try:
        builds = "rngs" in inspect.signature(source).parameters
    except ValueError:  # some built-in functions tell no signature
        builds = False
    return net if builds else Plain(source)
