"""Bounds of mixtures by stratified draws: the ELBO, and the importance-weighted one."""

from __future__ import annotations

from collections.abc import Callable

from jvi import bounds
from jvi import noise as noises
from jvi._typing import Array, Scalar
from jvi.gradients.strata import Stratified
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._particles import Noise
from jvi.objectives.monte_carlo import MonteCarlo, default_control


def stratified(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    bound: Callable[[Array], Scalar] = bounds.iwae,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """The stratified importance-weighted bound (SIWAE) of a mixture q = sum_c w_c q_c; nats.

        E[log(mean_k sum_c w_c p(x, z_kc) / q(z_kc | x))],  z_kc ~ q_c

    One draw from every component stands for a particle, so that weights and components both have unbiased gradients of low variance. It
    is no less than the ELBO, and no more than log p(x), which it approaches as K grows. A component that misses a mode costs the ELBO
    nats for every draw it wastes, and this bound little: it lets components part. Where components do not overlap it hardly depends on
    their weights, because a stratum's weight cancels against the density there: fit the weights by the ELBO at last.

    Args:
      model: p(x, z).
      guide: q(z | x), with strata: a `jvi.guides.Mixture`, alone, nested, or in a `product` or `sequence`; its draws reparameterized
        given the component.
      num_samples: K, draws from every component.
      bound: `jvi.bounds.iwae`; `jvi.bounds.elbo` makes it the stratified ELBO, `jvi.elbo(model, guide)`.
      noise, chunk_size: as in `jvi.elbo`.

    Raises:
      ValueError: if the guide has no strata, a count is less than 1, or the bound is another.
      TypeError: once traced, if a component's draws have no path.

    Example:
      >>> import jax, jvi
      >>> part = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z))
      >>> objective = jvi.objectives.stratified(model, jvi.guides.Mixture((part, part)), num_samples=4)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> value.shape, aux.log_w.shape
      ((), (4,))

    References:
      Morningstar et al. (2021), Automatic Differentiation Variational Inference with Mixtures.
    """
    if bound not in (bounds.iwae, bounds.elbo):
        raise ValueError(f"stratified takes jvi.bounds.iwae or jvi.bounds.elbo, got {bound!r}.")
    gradient = Stratified(held=bound is bounds.elbo)
    control = default_control(gradient, num_samples, None)
    return MonteCarlo(model, guide, bound, num_samples, gradient, control, noise, chunk_size)
