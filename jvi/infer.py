"""`infer`: a posterior from a log-joint, with nothing to tune."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import jax
import numpy as np

from jvi import _hosts as hosts
from jvi import sharding
from jvi._checks import check_data, check_key
from jvi._pipeline import Run
from jvi._progress import Stages
from jvi._targets import Density, target_of
from jvi._typing import Data, PRNGKey, Scalar
from jvi.posterior import Posterior
from jvi.spaces import Space

__all__ = ["Budget", "infer"]


class Budget(NamedTuple):
    """What a fit may spend: when it is spent, the best so far is returned, distrusted.

    Attributes:
      seconds: wall time, compilation included.
      grads: gradients of the log-joint.
    """

    seconds: float = 60.0
    grads: int = 20_000_000


def infer(
    rng: PRNGKey,
    log_joint: Callable[..., Scalar],
    space: Space,
    x: Data = None,
    *,
    budget: Budget | None = None,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Posterior:
    """The posterior of a log-joint, with a report that says how far to trust it.

    Ascents from eight starts find the optima and a Gaussian at each; these are fitted to the posterior on moment-matched draws; the
    mixture of them, with Student-t tails, is an importance-sampling proposal, which adapts where its weights are poor; where that
    fails too, a tempered bridge with Hamiltonian moves carries its draws to the posterior.

    Args:
      rng: key.
      log_joint: log p(x, z), nats: `(x, z) -> scalar`, or `(z) -> scalar` when `x` is None. One defined once, at module level,
        compiles once for all data of the same shapes.
      space: where the latent lives.
      x: data, a pytree of arrays.
      budget: when to stop trying; a minute by default.
      progress: show the stages on a terminal. Elsewhere nothing is shown.
      mesh: devices of one process to share the points at which the log-joint is evaluated, made by `jvi.sharding`.

    Returns:
      The posterior, with weighted draws, summaries and a report.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if `x` holds a NaN, the log-joint does not return one number or is finite nowhere, or several processes take part.

    Example:
      >>> import jax, jvi
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):
      ...     return norm.logpdf(z["mean"], 0.0, 1.0) + norm.logpdf(x, z["mean"], 1.0).sum()
      >>> posterior = jvi.infer(jax.random.key(0), log_joint, jvi.space({"mean": jvi.real()}), jax.numpy.ones(3))
      >>> posterior.report.trusted, round(float(posterior.summary()["mean"].mean), 1)
      (True, 0.8)
    """
    began = perf_counter()
    rng, mesh = check_key(rng), sharding.check_mesh(mesh)
    if hosts.several(mesh):
        raise ValueError(
            "infer looks at the clock, and those of several processes differ: let one process infer, without mesh=."
        )
    density = Density(target_of(log_joint, space, with_data=x is not None), check_data(x), mesh)
    with Stages(progress) as stages:
        generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)))
        return Run(density, generator, *(budget or Budget()), began, stages).all()
