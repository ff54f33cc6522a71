"""Control variates of the score-function gradient: what is subtracted from a particle's signal.

A control is a spec `(params, x, bound, log_w) -> Baseline`. What it subtracts from one particle's signal must not depend on that
particle's own draw: then the gradient stays unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvi import bounds
from jvi._spec import spec
from jvi._typing import Array, Data, Params, PRNGKey, Scalar
from jvi.networks import Network, network

__all__ = ["Baseline", "Control", "given", "learned", "leave_one_out", "moving_average", "none"]


class Baseline(NamedTuple):
    """What a control has to say.

    Attributes:
      value: baselines [K], nats, in the unit of `targets`.
      loss: what the control's own parameters are to minimize, nats squared.
      updates: the control's parameters from the next step on; None where only the optimizer changes them.
    """

    value: Array
    loss: Scalar | float = 0.0
    updates: Params = None


@runtime_checkable
class Control(Protocol):
    """Any spec with these two methods is a control variate.

    Example:
      >>> import jvi
      >>> isinstance(jvi.controls.leave_one_out, jvi.controls.Control)
      True
    """

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if there are none."""
        ...

    def __call__(self, params: Params, x: Data, bound: Callable[[Array], Scalar], log_w: Array) -> Baseline:
        """Baselines for the particles of one datum."""
        ...


def targets(bound: Callable[[Array], Scalar], log_w: Array) -> Array:
    """What each particle is credited with [K]: its own log-weight where the bound is their mean, else the bound."""
    return log_w if bound is bounds.elbo else jnp.broadcast_to(bound(log_w), log_w.shape)


@spec
class NoControl:
    """No baseline: the plain score-function gradient.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> jvi.controls.none((), None, jvi.bounds.elbo, jnp.array([1.0, 3.0])).value.tolist()
      [0.0, 0.0]
    """

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Nothing."""
        return ()

    def __call__(self, params: Params, x: Data, bound: Callable[[Array], Scalar], log_w: Array) -> Baseline:
        """Zero for every particle."""
        return Baseline(jnp.zeros_like(log_w))


@spec
class LeaveOneOut:
    """The other particles as baseline: the bound with a particle's log-weight replaced by the mean of the others'.

    For the ELBO that is the mean of the others (RLOO; its gradient is also that of the log-variance loss, VarGrad); for the
    importance-weighted bound it is VIMCO. Needs two particles or more.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> jvi.controls.leave_one_out((), None, jvi.bounds.elbo, jnp.array([1.0, 3.0, 5.0])).value.tolist()
      [4.0, 3.0, 2.0]

    References:
      Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples; Mnih and Rezende (2016), Variational Inference for Monte Carlo
      Objectives; Richter et al. (2020), VarGrad.
    """

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Nothing."""
        return ()

    def __call__(self, params: Params, x: Data, bound: Callable[[Array], Scalar], log_w: Array) -> Baseline:
        """The bound without each particle."""
        count = len(log_w)
        others = (jnp.sum(log_w) - log_w) / (count - 1)
        if bound is bounds.elbo:
            return Baseline(others)
        replaced = jnp.where(jnp.eye(count, dtype=bool), others[:, None], log_w[None, :])
        return Baseline(jax.vmap(bound)(replaced))


@spec
class MovingAverage:
    """The mean of past signals, forgotten at the rate `1 - decay`. Made by `moving_average`."""

    decay: float

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Weighted sum of signals and sum of weights: none yet."""
        return jnp.zeros(2)

    def __call__(self, params: Params, x: Data, bound: Callable[[Array], Scalar], log_w: Array) -> Baseline:
        """The average so far, and what it becomes."""
        total, weight = params[0], params[1]
        value = jnp.where(weight > 0.0, total / jnp.where(weight > 0.0, weight, 1.0), 0.0)
        signal = jnp.mean(targets(bound, log_w))
        updates = self.decay * params + (1.0 - self.decay) * jnp.stack([signal, jnp.ones_like(signal)])
        return Baseline(jnp.broadcast_to(value, log_w.shape), updates=updates)


@spec
class Learned:
    """A network of the datum, trained alongside to predict the signal. Made by `learned`."""

    net: Network
    inputs: Callable[[Data], Any] | None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """The network's initial parameters."""
        return self.net.init(rng, self._input(x))

    def __call__(self, params: Params, x: Data, bound: Callable[[Array], Scalar], log_w: Array) -> Baseline:
        """What the network predicts, and by how much it is off."""
        value = jnp.reshape(self.net.apply(params, self._input(x)), ())
        loss = jnp.mean((jax.lax.stop_gradient(targets(bound, log_w)) - value) ** 2)
        return Baseline(jnp.broadcast_to(value, log_w.shape), loss)

    def _input(self, x: Data) -> Any:
        return x if self.inputs is None else self.inputs(x)


@spec
class Given:
    """A baseline of the user's own. Made by `given`."""

    function: Callable[[Data], Scalar]

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Nothing."""
        return ()

    def __call__(self, params: Params, x: Data, bound: Callable[[Array], Scalar], log_w: Array) -> Baseline:
        """The function's value for every particle."""
        return Baseline(jnp.broadcast_to(self.function(x), log_w.shape))


none = NoControl()
leave_one_out = LeaveOneOut()


def moving_average(decay: float = 0.99) -> MovingAverage:
    """The mean of past signals as baseline; it lives in the parameters, and the optimizer leaves it alone.

    Args:
      decay: share of the past that a step keeps, at least 0 and less than 1.

    Raises:
      ValueError: if `decay` is out of range.

    Example:
      >>> import jvi
      >>> jvi.controls.moving_average(0.9).decay
      0.9

    References:
      Mnih and Gregor (2014), Neural Variational Inference and Learning.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must be at least 0 and less than 1, got {decay!r}.")
    return MovingAverage(float(decay))


def learned(net: Any, *, inputs: Callable[[Data], Any] | None = None) -> Learned:
    """A network that predicts the signal from the datum, trained alongside by least squares.

    Args:
      net: a Linen module, what builds an NNX module, or `jvi.networks.network(...)`, with one output; it sees one datum.
      inputs: `(x) -> what the network sees`; all of `x` by default.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> control = jvi.controls.learned(nn.Dense(1))
      >>> params = control.init(jax.random.key(0), jnp.ones(3))
      >>> control(params, jnp.ones(3), jvi.bounds.elbo, jnp.array([1.0, 2.0])).value.shape
      (2,)

    References:
      Mnih and Gregor (2014), Neural Variational Inference and Learning.
    """
    return Learned(network(net), inputs)


def given(function: Callable[[Data], Scalar]) -> Given:
    """A baseline of your own: `function(x) -> scalar`, nats.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> jvi.controls.given(lambda x: -2.0 * x)((), 3.0, jvi.bounds.elbo, jnp.zeros(2)).value.tolist()
      [-6.0, -6.0]
    """
    if not callable(function):
        raise TypeError(f"function must be a function of x, got {function!r}.")
    return Given(function)
