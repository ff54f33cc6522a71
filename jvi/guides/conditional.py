"""Amortized guides: the distribution of z comes from a network that sees x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.guides.functions import Guide, from_distribution
from jvi.networks import Network, network
from jvi.spaces import Space


@spec
class _Init:
    net: Network
    inputs: Callable[[Data], Any] | None

    def __call__(self, rng: PRNGKey, x: Data) -> Params:
        return self.net.init(rng, x if self.inputs is None else self.inputs(x))


@spec
class _Output:
    net: Network
    inputs: Callable[[Data], Any] | None
    dist: Callable[[PyTree], Any]

    def __call__(self, params: Params, x: Data) -> Any:
        return self.dist(self.net.apply(params, x if self.inputs is None else self.inputs(x)))

    def train(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        output, params = self.net.train(params, rng, x if self.inputs is None else self.inputs(x))
        return self.dist(output), params


@spec
class Amortized:
    """An amortized guide whose network is another in training. Made by `conditional`."""

    guide: Any
    output: _Output

    @property
    def space(self) -> Space | None:
        """What draws are checked against."""
        return self.guide.space

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        return self.guide.init(rng, x)

    def distribution(self, params: Params, x: Data) -> Any:
        """q(z | x), outside of training."""
        return self.guide.distribution(params, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density, outside of training."""
        return self.guide.sample_and_log_prob(params, rng, x)

    def support(self, params: Params, x: Data) -> Latent:
        """All values of a finite latent."""
        return self.guide.support(params, x)

    def log_prob(self, params: Params, x: Data, z: Latent) -> Scalar:
        """The log-density of `z` outside of training, nats."""
        return self.guide.log_prob(params, x, z)

    def train(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        """q(z | x) in training, and the parameters with the state as of the next step."""
        return self.output.train(params, rng, x)


def conditional(
    encoder: Any,
    dist: Callable[[PyTree], Any],
    *,
    inputs: Callable[[Data], Any] | None = None,
    space: Space | None = None,
) -> Guide:
    """An amortized guide: `dist(encoder(x))`, one network for every datum.

    Args:
      encoder: a Linen module, what builds an NNX module, or `jvi.networks.network(...)`; it is applied to one datum.
      dist: `(output) -> distribution` over the latent, distrax or TFP, without batch shape.
      inputs: `(x) -> what the encoder sees`; all of `x` by default.
      space: if given, draws are checked against it.

    Raises:
      TypeError: if `encoder` is not a network.

    Example:
      >>> import distrax, flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> def gaussian(output):
      ...     loc, log_scale = jnp.split(output, 2)
      ...     return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))
      >>> guide = jvi.guides.conditional(nn.Dense(4), gaussian)
      >>> x = jnp.ones(7)
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> z.shape, log_q.shape
      ((2,), ())

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes.
    """
    net = network(encoder)
    output = _Output(net, inputs, dist)
    guide = from_distribution(_Init(net, inputs), output, space=space)
    return guide if net.training is None else Amortized(guide, output)
