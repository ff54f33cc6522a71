"""Other divergences than KL: chi-square, from above; any f-divergence; and one that adapts to the weights' tail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jvi import bounds, gradients
from jvi import noise as noises
from jvi._spec import spec
from jvi._typing import Array, Scalar
from jvi.controls import Control
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._parted import Parted
from jvi.objectives.monte_carlo import MonteCarlo, default_control, estimators
from jvi.objectives.weighted import Noise

_PAIRS = 256  # draws up to which ranks are counted by comparing all pairs, which is faster than sorting


@spec
class CuboBound:
    """`bounds.cubo` of one order."""

    order: float

    def __call__(self, log_w: Array) -> Scalar:
        """The bound of log-weights [K]."""
        return bounds.cubo(log_w, self.order)


@spec
class FBound:
    """Minus the mean of a function of log-weights."""

    f: Callable[[Array], Array]
    bounds_evidence: ClassVar[bool] = False

    def __call__(self, log_w: Array) -> Scalar:
        """The bound of log-weights [K]."""
        values = self.f(log_w)
        if jnp.shape(values) != jnp.shape(log_w):
            raise ValueError(
                f"f must map log u to f(u) entry by entry: of shape {list(log_w.shape)} it made {list(jnp.shape(values))}."
            )
        return -jnp.mean(values)


@spec
class TailBound:
    """The log-weights averaged with weights that their ranks give them."""

    power: float

    def __call__(self, log_w: Array) -> Scalar:
        """The average of log-weights [K]."""
        return jnp.sum(jax.lax.stop_gradient(rank_weights(log_w, self.power)) * log_w)


def cubo(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    order: float = 2.0,
    gradient: Callable[..., Any] = gradients.pathwise,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """The chi-square upper bound log(E_q[(p(x, z) / q(z | x))^n]) / n, by `num_samples` draws; nats. A fit lowers it.

    It makes q wide, where the ELBO makes it narrow. Only its limit in K is an upper bound: the logarithm of a finite mean lies below
    that of its expectation on average, and far below where q is narrow and the mean hangs on draws that have not come. With one draw
    it would be the ELBO, and is refused. A model's parameters are lowered with it: hold them fixed, or fit them by another bound.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: K, two or more.
      order: n, greater than 1.
      gradient, control, noise, chunk_size: as in `iwae`.

    Raises:
      ValueError: if `num_samples` is less than 2 or `order` not greater than 1; for `gradients.stl` and `enumerated`, biased here.

    Example:
      >>> import jax, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> model = jvi.model(lambda x, z: log_normal(z) + log_normal(x, z))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()), init_scale=1.0)
      >>> upper, lower = (build(model, guide, num_samples=10_000) for build in (jvi.objectives.cubo, jvi.iwae))
      >>> params = upper.init(jax.random.key(0), 2.0)
      >>> values = [float(objective(params, jax.random.key(1), 2.0)[0]) for objective in (upper, lower)]
      >>> values[0] > float(log_normal(2.0, 0.0, 2**0.5)) > values[1] - 0.05, upper.upper
      (True, True)

    References:
      Dieng et al. (2017), Variational Inference via chi Upper Bound Minimization.
    """
    if num_samples < 2:
        raise ValueError(f"cubo needs num_samples of 2 or more, because with one draw it is the ELBO; got {num_samples}.")
    bounds.check_order(order)
    control = default_control(gradient, num_samples, control)
    return MonteCarlo(model, guide, CuboBound(float(order)), num_samples, gradient, control, noise, chunk_size, upper=True)


def f_divergence(
    model: Model,
    guide: Guide,
    f: Callable[[Array], Array],
    *,
    num_samples: int,
    gradient: Callable[..., Any] = gradients.pathwise,
    control: Control | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> MonteCarlo:
    """Minus a Csiszár divergence: -E_q[f(u)], u = p(x, z) / q(z | x), by the mean of `num_samples` draws; in the unit of f.

    `f` is called with log u, as the fourteen of `tfp.vi` are: `kl_reverse`, -log u, makes it the ELBO. u is not normalized: p(x, z) is
    p(x) times the posterior, so that for every other f than `kl_reverse` the optimum depends on p(x), and what grows like u may
    overflow or vanish. Where p(x) is far from 1, take `lambda log_u: f(log_u - c)` with c about log p(x).

    Args:
      model: p(x, z).
      guide: q(z | x).
      f: log u [K] -> f(u) [K], f convex. Specs compare functions by identity: define it once.
      num_samples: K.
      gradient, control, noise, chunk_size: as in `iwae`.

    Raises:
      TypeError: if `f` is no function.
      ValueError: for `gradients.stl` and `enumerated`, which are right for the ELBO only; once traced, if f changes the shape.

    Example:
      >>> import jax, jvi
      >>> from tensorflow_probability.substrates import jax as tfp
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.objectives.f_divergence(model, guide, tfp.vi.kl_reverse, num_samples=4)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> float(value) == float(jvi.bounds.elbo(aux.log_w))
      True

    References:
      Ali and Silvey (1966), A General Class of Coefficients of Divergence; Wan, Li and Hovakimyan (2020), f-Divergence Variational
      Inference.
    """
    if not callable(f):
        raise TypeError(f"f must be a function of log u, such as tfp.vi.pearson; got {f!r}.")
    if any(one is gradients.stl or hasattr(one, "elbo_only") for one in estimators(gradient, guide)):
        name = getattr(gradient, "__name__", gradient)
        raise ValueError(f"{name} is biased for any divergence but KL(q | p): use gradients.pathwise, or jvi.elbo.")
    control = default_control(gradient, num_samples, control)
    return MonteCarlo(model, guide, FBound(f), num_samples, gradient, control, noise, chunk_size)


def tail_adaptive(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    power: float = -1.0,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> Parted:
    """The ELBO, whose guide follows the tail-adaptive f-divergence of its draws; nats.

    The value, and the gradient by the model's parameters, are the ELBO's. The gradient by the guide's parameters weighs each draw's
    path by a power of its rank: (share of the draws whose weight is no less)^power, normalized. So it covers mass as a power of the
    weights would, and stays bounded where the weights' variance is infinite; it is the gradient of no fixed function. Compiled, the
    log-weights are evaluated once, and passed backwards by both.

    Args:
      model: p(x, z).
      guide: q(z | x), reparameterized, with a `log_prob`.
      num_samples: K, two or more.
      power: at most 0; 0 is the ELBO with `gradients.stl`, -1 the authors' choice.
      noise, chunk_size: as in `elbo`.

    Raises:
      TypeError: once traced, if the draws have no path.
      ValueError: if `num_samples` is less than 2, `power` is positive, or the guide has no `log_prob`.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.objectives.tail_adaptive(model, guide, num_samples=4)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> float(value) == float(jvi.bounds.elbo(aux.log_w))
      True

    References:
      Wang, Liu and Liu (2018), Variational Inference with Tail-adaptive f-Divergence.
    """
    if num_samples < 2:
        raise ValueError(f"tail_adaptive needs num_samples of 2 or more, because one draw has no rank; got {num_samples}.")
    if not -math.inf < power <= 0.0:
        raise ValueError(f"power must be finite and at most 0, such as -1; got {power!r}.")
    particles = MonteCarlo(model, guide, bounds.elbo, num_samples, gradients.stl, noise=noise, chunk_size=chunk_size)
    return Parted(particles, TailBound(float(power)))


def rank_weights(log_w: Array, power: float) -> Array:
    """Weights [K], of sum 1, proportional to (share of the log-weights that are no less)^power."""
    count = log_w.shape[0]
    if count <= _PAIRS:
        no_less = jnp.sum(log_w[None] >= log_w[:, None], 1)
    else:
        no_less = count - jnp.searchsorted(jnp.sort(log_w), log_w, side="left")
    weights = (no_less / count) ** power
    return weights / jnp.sum(weights)
