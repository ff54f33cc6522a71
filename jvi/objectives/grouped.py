"""Importance-weighted bounds of particles in groups: M bounds of K draws each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jvi import bounds, gradients
from jvi import noise as noises
from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Scalar
from jvi.controls import Control
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._parted import Parted
from jvi.objectives.monte_carlo import MonteCarlo, default_control, refuse_biased
from jvi.objectives.weighted import Noise


@spec
class MiwaeBound:
    """`bounds.miwae` of one number of groups."""

    num_groups: int

    def __call__(self, log_w: Array) -> Scalar:
        """The bound of log-weights [M * K]."""
        return bounds.miwae(log_w, self.num_groups)


def miwae(
    model: Model,
    guide: Guide,
    *,
    num_groups: int,
    num_samples: int,
    gradient: Callable[..., Any] = gradients.pathwise,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """The mean of M = `num_groups` importance-weighted bounds of K = `num_samples` draws each; nats.

    Its expectation is that of `iwae` with K draws; the draws of all groups bring the noise of the guide's gradient down, where more
    draws in one group would drown it.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_groups: M.
      num_samples: K, draws of each group; M * K log-weights in all.
      gradient, control, noise, chunk_size: as in `iwae`.

    Raises:
      ValueError: if a count is less than 1; for `gradients.stl` and `enumerated` unless K = 1, which is `jvi.elbo`.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.objectives.miwae(model, guide, num_groups=4, num_samples=8)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> value.shape, aux.log_w.shape
      ((), (32,))

    References:
      Rainforth et al. (2018), Tighter Variational Bounds are Not Necessarily Better.
    """
    bound, total = _grouped(num_groups, num_samples), num_groups * num_samples
    control = default_control(gradient, total, control)
    return MonteCarlo(model, guide, bound, total, gradient, control, noise, chunk_size)


def piwae(
    model: Model,
    guide: Guide,
    *,
    num_groups: int,
    num_samples: int,
    gradient: Callable[..., Any] = gradients.pathwise,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> Parted:
    """The importance-weighted bound of all M * K draws for the model, `miwae` of M groups of K for the guide; nats.

    The value is the bound of all draws, and its gradient by the model's parameters is that bound's; the gradient by the guide's
    parameters is that of `miwae` with the same draws, which has less noise. Compiled, the log-weights are
    evaluated once, and passed backwards by both bounds.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_groups: M.
      num_samples: K, draws of each group.
      gradient, control, noise, chunk_size: as in `iwae`.

    Raises:
      ValueError: if a count is less than 1; for `gradients.stl` and `enumerated`, which are biased here.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.objectives.piwae(model, guide, num_groups=4, num_samples=8)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> float(value) == float(jvi.bounds.iwae(aux.log_w))
      True

    References:
      Rainforth et al. (2018), Tighter Variational Bounds are Not Necessarily Better.
    """
    guide_bound, total = _grouped(num_groups, num_samples), num_groups * num_samples
    refuse_biased(guide_bound, gradient, guide, total)
    control = default_control(gradient, total, control)
    return Parted(MonteCarlo(model, guide, bounds.iwae, total, gradient, control, noise, chunk_size), guide_bound)


def _grouped(num_groups: int, num_samples: int) -> Callable[[Array], Scalar]:
    num_groups, num_samples = check_count(num_groups, "num_groups"), check_count(num_samples, "num_samples")
    if num_samples == 1:
        return bounds.elbo
    return bounds.iwae if num_groups == 1 else MiwaeBound(num_groups)
