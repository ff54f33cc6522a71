"""Masked autoregressive flows, the way in which draws are fast and the way in which densities are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._autoregressions import layers_of, networks_of, read, solve
from jvi.guides._conditioners import Conditioners, Network
from jvi.guides._flows import Flow, at_gaussian, at_origin, check_flow, context_of, draw, log_density
from jvi.spaces import Space


@spec
class InverseAutoregressive:
    """A flow of autoregressive steps with fast draws: every layer scales and shifts each coordinate by a network of the coordinates
    before it, of the layer's input.

    A draw and its density cost one pass through every network. `log_prob` of any other point inverts the layers one coordinate after
    the other, D passes each, so prefer `gradients.pathwise` to `stl`, which calls it. It starts at the Gaussian u = loc + L eps. Of
    one coordinate it is a Gaussian: `NeuralSpline` bends that one too.

    Attributes:
      space: where the draws live.
      num_layers: steps; the order of the coordinates is reversed from each to the next.
      hidden: widths of the networks' hidden layers.
      init_scale: initial standard deviation of every coordinate.
      context: `(x) -> array [C]`, which every network sees beside the coordinates; nothing of `x` by default.
      activation: between the networks' layers.

    Raises:
      TypeError: if `space` is not a Space, a count no whole number, or `hidden` no tuple.
      ValueError: if a count is less than 1 or `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> space = jvi.space({"rate": jvi.positive(2), "slope": jvi.real()})
      >>> guide = jvi.guides.InverseAutoregressive(space, num_layers=4, hidden=(16,))
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z["rate"].shape, bool(abs(guide.log_prob(params, None, z) - log_q) < 1e-4)
      ((2,), True)

    References:
      Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved Variational Inference with Inverse Autoregressive
      Flow; Germain, Gregor, Murray and Larochelle (2015), MADE.
    """

    space: Space
    num_layers: int = 8
    hidden: tuple[int, ...] = (64,)
    init_scale: float = 0.1
    context: Callable[[Data], Array] | None = None
    activation: Callable[[Array], Array] = jax.nn.relu
    reparameterized: ClassVar[bool] = True
    slow_log_prob: ClassVar[bool] = True  # so that `elbo` takes `gradients.pathwise` by default

    __post_init__ = check_flow
    init = at_origin
    around = at_gaussian

    def sample_and_log_prob(self, params: Flow, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        return draw(self.space, params, rng, partial(read, self._networks(params, x), toward_noise=False))

    def log_prob(self, params: Flow, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        return log_density(self.space, params, z, partial(solve, self._networks(params, x), toward_noise=True))

    def _layers(self, rng: PRNGKey, x: Data) -> Conditioners:
        return layers_of(rng, self.space.size, self.num_layers, self.hidden, context_of(self.context, x))

    def _networks(self, params: Flow, x: Data) -> list[Network]:
        return networks_of(params, self.hidden, self.activation, context_of(self.context, x))


@spec
class MaskedAutoregressive:
    """A flow of autoregressive steps with fast densities: every layer scales and shifts each coordinate by a network of the coordinates
    before it, of the layer's output.

    `log_prob` costs one pass through every network. A draw is made one coordinate after the other, D passes through each, and its
    density comes along: for the ELBO, `InverseAutoregressive` is the faster one. It starts at the Gaussian u = loc + L eps. Of one
    coordinate it is a Gaussian: `NeuralSpline` bends that one too.

    Attributes:
      space: where the draws live.
      num_layers: steps; the order of the coordinates is reversed from each to the next.
      hidden: widths of the networks' hidden layers.
      init_scale: initial standard deviation of every coordinate.
      context: `(x) -> array [C]`, which every network sees beside the coordinates; nothing of `x` by default.
      activation: between the networks' layers.

    Raises:
      TypeError: if `space` is not a Space, a count no whole number, or `hidden` no tuple.
      ValueError: if a count is less than 1 or `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> space = jvi.space({"rate": jvi.positive(2), "slope": jvi.real()})
      >>> guide = jvi.guides.MaskedAutoregressive(space, num_layers=4, hidden=(16,))
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z["rate"].shape, bool(abs(guide.log_prob(params, None, z) - log_q) < 1e-4)
      ((2,), True)

    References:
      Papamakarios, Pavlakou and Murray (2017), Masked Autoregressive Flow for Density Estimation; Germain, Gregor, Murray and
      Larochelle (2015), MADE.
    """

    space: Space
    num_layers: int = 8
    hidden: tuple[int, ...] = (64,)
    init_scale: float = 0.1
    context: Callable[[Data], Array] | None = None
    activation: Callable[[Array], Array] = jax.nn.relu
    reparameterized: ClassVar[bool] = True

    __post_init__ = check_flow
    init = at_origin
    around = at_gaussian

    def sample_and_log_prob(self, params: Flow, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        return draw(self.space, params, rng, partial(solve, self._networks(params, x), toward_noise=False))

    def log_prob(self, params: Flow, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        return log_density(self.space, params, z, partial(read, self._networks(params, x), toward_noise=True))

    def _layers(self, rng: PRNGKey, x: Data) -> Conditioners:
        return layers_of(rng, self.space.size, self.num_layers, self.hidden, context_of(self.context, x))

    def _networks(self, params: Flow, x: Data) -> list[Network]:
        return networks_of(params, self.hidden, self.activation, context_of(self.context, x))
