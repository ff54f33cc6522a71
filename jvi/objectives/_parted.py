"""The log-weights, differentiated by the model's parameters for one bound and by the guide's for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, PyTree, Scalar
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params
from jvi.objectives.monte_carlo import MonteCarlo, differentiable
from jvi.schedules import is_one


def two_views(
    function: Callable[..., PyTree], model: PyTree, guide: PyTree, rest: PyTree, rng: PRNGKey
) -> tuple[PyTree, PyTree]:
    """`function(model, guide, rest, rng)` twice, of which a compiler keeps one evaluation.

    The gradient of the first is by `model` and `rest`, that of the second by `guide`. A derivative rule of its own would evaluate it
    once for certain, but under `jax.vmap` over examples it makes the model's gradient for every example, to be summed afterwards: a
    VAE's step takes twice as long.

    Example:
      >>> import jax
      >>> from jvi.objectives._parted import two_views
      >>> def loss(model, guide):
      ...     a, b = two_views(lambda model, guide, rest, rng: model * guide, model, guide, (), jax.random.key(0))
      ...     return 10.0 * a + 100.0 * b
      >>> [float(slope) for slope in jax.grad(loss, (0, 1))(2.0, 3.0)]  # 10 * guide, 100 * model
      [30.0, 200.0]
    """
    stop = jax.lax.stop_gradient
    return function(model, stop(guide), rest, rng), function(stop(model), guide, stop(rest), rng)


@spec
class Parted:
    """A bound whose model follows its gradient, and whose guide follows that of another. Made by `piwae` and `tail_adaptive`.

    Attributes:
      particles: the model, the guide, their particles and the bound that is the value.
      guide_bound: log-weights [K] -> the scalar whose gradient is the guide's.
    """

    particles: MonteCarlo
    guide_bound: Callable[[Array], Scalar]

    @property
    def model(self) -> Model:
        """p(x, z)."""
        return self.particles.model

    @property
    def guide(self) -> Guide:
        """q(z | x)."""
        return self.particles.guide

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model, the guide and the control variate."""
        return self.particles.init(rng, x)

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound, nats, and its log-weights [K]."""
        # A weight that is known to be 1 stays so, for models that are not split.
        known, moving = ({"beta": 1.0}, {}) if is_one(beta) else ({}, {"beta": beta})

        def weights(model: PyTree, guide: PyTree, rest: PyTree, rng: PRNGKey) -> PyTree:
            datum, moving = rest
            return self.particles.particles(Params(model, guide), rng, datum, **known, **moving)

        of_model, of_guide = two_views(weights, params.model, params.guide, (x, moving), rng)
        value = self.particles.bound(of_model.log_w)
        guided, updates = differentiable(self.guide_bound, self.particles.control, params.control, x, of_guide)
        return value + (guided - jax.lax.stop_gradient(guided)), Aux(jax.lax.stop_gradient(of_model.log_w), updates)

    def absorb(self, params: Params, aux: Aux) -> Params:
        """The parameters after a step, with what the optimizer does not change."""
        return self.particles.absorb(params, aux)

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K]."""
        return self.particles.terms(params, rng, x)
