"""Lower bounds of log p(x): the ELBO, the importance-weighted bound and Rényi's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from jvi import bounds, gradients
from jvi import noise as noises
from jvi._spec import spec
from jvi._typing import Array, Scalar
from jvi.controls import Control
from jvi.gradients.reparameterized import default
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._particles import Noise
from jvi.objectives.analytic import Decomposed, elbo_kl
from jvi.objectives.floors import FreeBits
from jvi.objectives.monte_carlo import MonteCarlo, default_control


@spec
class RenyiBound:
    """`bounds.renyi` of one order."""

    alpha: float

    def __call__(self, log_w: Array) -> Scalar:
        """The bound of log-weights [K]."""
        return bounds.renyi(log_w, self.alpha)


@overload
def elbo(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    gradient: Callable[..., Any] | None = None,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo: ...
@overload
def elbo(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    gradient: Callable[..., Any] | None = None,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
    free_bits: float | FreeBits | None,
) -> MonteCarlo | Decomposed: ...
def elbo(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    gradient: Callable[..., Any] | None = None,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
    free_bits: float | FreeBits | None = None,
) -> MonteCarlo | Decomposed:
    """The evidence lower bound E_q[log p(x, z) - log q(z | x)], by the mean of `num_samples` draws; nats.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: draws per evaluation, K.
      gradient: by default `gradients.stl`, which has no variance left where q is exact, so that a fit settles on the exact mean
        and sd; `gradients.pathwise` where the guide has no `log_prob`; `gradients.score`, `enumerated` or `by_group` for latents
        that have no path.
      control: with `gradients.score`, what is subtracted from the signal: by default the other particles' mean, of a single particle
        nothing.
      noise: how the particles' keys are made, of `jvi.noise`: `antithetic` and `sobol` estimate the same with less noise. They go
        with `gradients.score` for the ELBO only, and without `controls.leave_one_out`.
      chunk_size: particles at a time, to bound memory: what lies between is computed again for the gradient.
      free_bits: nats of each latent's divergence from the prior that cost nothing, against posterior collapse; or
        `jvi.objectives.free_bits(nats, per_dimension=True)`. The objective is then `jvi.objectives.elbo_kl`, which says more.

    Raises:
      TypeError: if `model` or `guide` lacks a method; once traced, if a latent has no path and the estimator needs one.
      ValueError: if a count is less than 1, or `gradient` does not fit the guide; with `free_bits`, as `elbo_kl`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> model = jvi.model(lambda x, z: log_normal(z) + log_normal(x, z))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.elbo(model, guide)
      >>> start = objective.init(jax.random.key(0), 2.0)
      >>> exact = start._replace(guide=start.guide._replace(loc=jnp.ones(1), log_scale=jnp.full(1, 0.5 * jnp.log(0.5))))
      >>> value, _ = objective(exact, jax.random.key(1), 2.0)
      >>> round(float(value), 4), round(float(log_normal(2.0, 0.0, 2**0.5)), 4)  # at the exact posterior it is log p(x)
      (-2.2655, -2.2655)

    References:
      Jordan et al. (1999), An Introduction to Variational Methods for Graphical Models.
    """
    if free_bits is not None:
        options: Any = {"gradient": gradient, "control": control, "noise": noise, "chunk_size": chunk_size}
        return elbo_kl(model, guide, num_samples=num_samples, free_bits=free_bits, **options)
    if gradient is None:
        gradient = default(guide)
    control = default_control(gradient, num_samples, control)
    return MonteCarlo(model, guide, bounds.elbo, num_samples, gradient, control, noise, chunk_size)


def iwae(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    gradient: Callable[..., Any] = gradients.pathwise,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """The importance-weighted bound E[log(mean_k p(x, z_k) / q(z_k | x))] of K = `num_samples` draws; nats.

    With `noise.antithetic` or `noise.sobol` it is another lower bound of log p(x), because the mean weight is still unbiased.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: K.
      gradient: `gradients.pathwise`; `gradients.score` for latents that have no path (with the default control that is
        `jvi.objectives.vimco`).
      control, noise, chunk_size: as in `elbo`.

    Raises:
      ValueError: for `gradients.stl` with more than one sample, which is biased here; use `jvi.objectives.dreg`.

    Example:
      >>> import jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> jvi.iwae(model, jvi.guides.MeanField(jvi.space(jvi.real())), num_samples=5).num_samples
      5

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """
    refuse_stl("iwae", gradient, num_samples)
    control = default_control(gradient, num_samples, control)
    return MonteCarlo(model, guide, bounds.iwae, num_samples, gradient, control, noise, chunk_size)


def renyi(
    model: Model,
    guide: Guide,
    *,
    alpha: float,
    num_samples: int,
    gradient: Callable[..., Any] = gradients.pathwise,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """The variational Rényi bound of order `alpha`, by `num_samples` draws; nats.

    With finitely many draws it is biased towards the ELBO.

    Args:
      model: p(x, z).
      guide: q(z | x).
      alpha: order; 1 is the ELBO, 0 the importance-weighted bound, minus infinity VR-max.
      num_samples: K.
      gradient: `gradients.pathwise`; `gradients.stl` for alpha = 1 only.
      control, noise, chunk_size: as in `elbo`.

    Raises:
      ValueError: if `alpha` is NaN, or for `gradients.stl` where it is biased.

    Example:
      >>> import jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> jvi.renyi(model, jvi.guides.MeanField(jvi.space(jvi.real())), alpha=0.5, num_samples=5).num_samples
      5

    References:
      Li and Turner (2016), Rényi Divergence Variational Inference.
    """
    bounds.check_alpha(alpha)
    if alpha != 1.0:
        refuse_stl("renyi", gradient, num_samples)
    bound = bounds.elbo if alpha == 1.0 else RenyiBound(float(alpha))
    return MonteCarlo(
        model, guide, bound, num_samples, gradient, default_control(gradient, num_samples, control), noise, chunk_size
    )


def refuse_stl(name: str, gradient: Any, num_samples: int) -> None:
    """Refuse `gradients.stl` where its weights depend on what it holds fixed."""
    if gradient is gradients.stl and num_samples != 1:
        raise ValueError(
            f"gradients.stl is biased for {name} with num_samples={num_samples}: its weights depend on the parameters that it "
            "holds fixed. Use jvi.objectives.dreg, gradients.pathwise, or jvi.elbo with gradients.stl."
        )
