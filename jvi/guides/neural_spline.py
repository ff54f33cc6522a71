"""A flow of spline couplings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._conditioners import Conditioners, Network, conditioners, networks
from jvi.guides._couplings import coupled, uncoupled
from jvi.guides._flows import Flow, at_gaussian, at_origin, check_flow, context_of, draw, log_density
from jvi.guides._splines import LEAST, bend, unbend
from jvi.spaces import Space


@spec
class NeuralSpline:
    """A flow of spline couplings: every layer bends each of half of the coordinates by a monotone rational-quadratic spline, whose
    knots come from a network of the other half.

    The most flexible layer here and the dearest; draws and densities cost alike. The splines act on [-bound, bound] of the noise,
    and are linear beyond. It starts at the Gaussian u = loc + L eps. Of one coordinate it is splines without a network.

    Attributes:
      space: where the draws live.
      num_layers: couplings; two move every coordinate once, and after six each depends on all.
      hidden: widths of the networks' hidden layers.
      init_scale: initial standard deviation of every coordinate.
      num_bins: pieces of a spline.
      bound: where the splines end, in standard deviations of the noise.
      context: `(x) -> array [C]`, which every network sees beside the coordinates; nothing of `x` by default.
      activation: between the networks' layers.

    Raises:
      TypeError: if `space` is not a Space, a count no whole number, or `hidden` no tuple.
      ValueError: if a count is less than 1 or `init_scale` or `bound` is not positive.

    Example:
      >>> import jax, jvi
      >>> space = jvi.space({"rate": jvi.positive(2), "slope": jvi.real()})
      >>> guide = jvi.guides.NeuralSpline(space, num_layers=4, hidden=(16,))
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z["rate"].shape, bool(abs(guide.log_prob(params, None, z) - log_q) < 1e-4)
      ((2,), True)

    References:
      Durkan, Bekasov, Murray and Papamakarios (2019), Neural Spline Flows.
    """

    space: Space
    num_layers: int = 6
    hidden: tuple[int, ...] = (64,)
    init_scale: float = 0.1
    num_bins: int = 8
    bound: float = 5.0
    context: Callable[[Data], Array] | None = None
    activation: Callable[[Array], Array] = jax.nn.relu
    reparameterized: ClassVar[bool] = True

    init = at_origin
    around = at_gaussian

    def __post_init__(self) -> None:
        check_flow(self)
        check_count(self.num_bins, "num_bins", least=2)
        if self.num_bins > 0.5 / LEAST:
            raise ValueError(f"num_bins must be {0.5 / LEAST:.0f} or fewer, got {self.num_bins}.")
        if not self.bound > 0.0:
            raise ValueError(f"bound must be positive, got {self.bound}.")

    def sample_and_log_prob(self, params: Flow, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density in nats."""
        return draw(self.space, params, rng, partial(coupled, self._networks(params, x), self._bent))

    def log_prob(self, params: Flow, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        return log_density(self.space, params, z, partial(uncoupled, self._networks(params, x), self._unbent))

    def _layers(self, rng: PRNGKey, x: Data) -> Conditioners:
        size = self.space.size
        widths = (size // 2, *self.hidden, (3 * self.num_bins + 1) * (size - size // 2))
        return conditioners(rng, self.num_layers, widths, context_of(self.context, x))

    def _networks(self, params: Flow, x: Data) -> list[Network]:
        return networks(params.layers, self.activation, context_of(self.context, x))

    def _bent(self, output: Array, u: Array) -> tuple[Array, Scalar]:
        u, log_slopes = bend(output.reshape(u.shape[0], -1), u, self.bound)
        return u, jnp.sum(log_slopes)

    def _unbent(self, output: Array, u: Array) -> tuple[Array, Scalar]:
        u, log_slopes = unbend(output.reshape(u.shape[0], -1), u, self.bound)
        return u, jnp.sum(log_slopes)
