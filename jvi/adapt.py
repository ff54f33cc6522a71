"""Ascents that drive themselves: no learning rate and no number of steps to choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from jvi import _hosts as hosts
from jvi import sharding
from jvi._checks import check_batch_size, check_count, check_data, check_key
from jvi._drive import Adapted, Drive
from jvi._keeper import Keeper
from jvi._maps import Mapped, stay_on_host
from jvi._sources import Held, Source, Streamed
from jvi._typing import Data, PRNGKey
from jvi.schedules import Schedule, of_run
from jvi.svi import SVI, State

__all__ = ["Adapted", "adapt"]

ADVICE = {
    "budget spent": "the bound was still rising, or the iterator ended; allow more by jvi.adapt(..., max_steps=..., tolerance=...).",
    "diverged": "no learning rate led up; look at the log-joint where the run begins, and at the guide's initial scales.",
    "regressed": "a smaller learning rate led to a lower bound, and the parameters from before are returned; look for a bound "
    "whose estimates have no finite variance.",
}  # by status


def adapt(
    svi: SVI,
    rng: PRNGKey,
    x: Data | Iterator[Data] = None,
    *,
    batch_size: int | None = None,
    state: State | None = None,
    beta: float | Schedule | None = None,
    max_steps: int = 100_000,
    seconds: float = float("inf"),
    tolerance: float = 0.01,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Adapted:
    """Maximize an objective until it rises no more, at learning rates found on the way.

    A short race chooses the first rate. At each rate the ascent goes on until its bound gains no more than chance and its
    parameters have stopped drifting (split R-hat); then the parameters are averaged, and the next rate, a quarter, starts from the
    average. It ends when a smaller rate gains less than `tolerance`, by a comparison on the same keys and data.

    Args:
      svi: what to maximize. With the default optimizer Adam is driven, with any other its updates are, multiplied by a number.
      rng: key of the run; not used with `state`, which holds its own.
      x: data, or an iterator of minibatches, of which the first ones are kept to compare parameters on.
      batch_size: examples in a minibatch of `x`; all of it at every step by default.
      state: start from its parameters.
      beta: weight of the KL term: a number, or one of `jvi.schedules`, which comes to its end before anything but the race is judged.
      max_steps: gradients to take at most, those of the race and of comparisons included.
      seconds: time to take at most; looked at between chunks of steps.
      tolerance: a gain that is not worth going on for, in the unit of the objective.
      progress: show a bar on a terminal. Elsewhere nothing is shown.
      mesh: of devices, made by `jvi.sharding`; as in `fit` and `fit_batches`. With several processes `seconds` must be left out.

    Returns:
      The averaged parameters and how the ascent ended. What the budget cut short or non-finite steps broke off is returned too, and
      its status says so.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if a count is less than 1, `tolerance` or `seconds` not positive, or the data hold a NaN.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))))
      >>> adapted = jvi.adapt(svi, jax.random.key(0), 3.0)
      >>> adapted.status, round(float(adapted.state.params.guide.loc[0]), 2)
      ('converged', 3.0)

    References:
      Welandawe, Andersen, Vehtari and Huggins (2024), A Framework for Improving the Reliability of Black-Box Variational Inference.
    """
    mesh = sharding.check_mesh(mesh)
    if isinstance(x, Iterator):
        source = Streamed(hosts.stacks(x, mesh), mesh)
    elif batch_size is not None and stay_on_host(x):
        source = Streamed(hosts.stacks(Mapped.begun(x, batch_size, check_key(rng), state, "x", mesh), mesh), mesh)
    else:
        source = held(x, batch_size, mesh=mesh)
    return driven(svi, rng, source, state, beta, progress, max_steps, seconds, tolerance)


def held(x: Data, batch_size: int | None, name: str = "x", mesh: Any = None) -> Held:
    """Data on the device, checked."""
    hosts.check_same(mesh, x, name)
    data = sharding.put(mesh, check_data(x, name))
    if batch_size is not None:
        sharding.check_batch_size(mesh, check_batch_size(batch_size, data, name))
    return Held(data, batch_size, mesh)


def driven(
    svi: Any,
    rng: Any,
    source: Source,
    state: State | None,
    beta: Any,
    progress: bool,
    max_steps: Any = 100_000,
    seconds: float = float("inf"),
    tolerance: float = 0.01,
    keeper: Keeper | None = None,
) -> Adapted:
    """`adapt` on any source of data."""
    if not isinstance(svi, SVI):
        raise TypeError(f"svi must be made by jvi.SVI(objective), got {svi!r}.")
    if callable(beta) and not isinstance(beta, Schedule):
        raise ValueError(
            "beta must be a number or one of jvi.schedules where the run finds its own end, which must not come before the schedule's, "
            "and that of a function is not known: take a schedule, or say num_steps, as in jvi.fit(..., num_steps=10_000, beta=...)."
        )
    beta = of_run(beta)
    for name, value in {"tolerance": tolerance, "seconds": seconds}.items():
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if hosts.several(source.mesh) and seconds < float("inf"):
        raise ValueError("seconds cannot be said with several processes, whose clocks differ; say max_steps.")
    hosts.check_same(source.mesh, rng, "rng")
    drive = Drive(svi, source, beta, check_count(max_steps, "max_steps"), seconds, tolerance, keeper)
    with source:
        return drive.all(check_key(rng), state, progress)
