"""Schedules of `beta`, the weight of the KL term: functions of the step, from 0 on.

A schedule is a pytree: what it does is fixed when a run is compiled, its numbers are not. A run on other numbers of the same schedule
compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Scalar

__all__ = ["Schedule", "cyclical", "linear", "warm_up"]


class Schedule(NamedTuple):
    """A function of the step. Made by `linear`, `cyclical` and `warm_up`.

    Attributes:
      shape: what it does with its numbers, a spec `(step, start, end, *numbers) -> beta`.
      start, end: beta at first and at last.
      num_steps: steps after which it stays at `end`.
      numbers: more numbers of the shape.

    Example:
      >>> import jvi
      >>> schedule = jvi.schedules.linear(0.0, 1.0, 100)
      >>> float(schedule(50)), float(schedule(1_000))
      (0.5, 1.0)
    """

    shape: Callable[..., Scalar]
    start: Any
    end: Any
    num_steps: Any
    numbers: tuple[Any, ...] = ()

    def __call__(self, step: Array | int) -> Scalar:
        """Beta at this step."""
        return self.shape(jnp.asarray(step, float), self.start, self.end, self.num_steps, *self.numbers)


@spec
class _Ramp:
    """`start` for `wait` steps, a line from then on, `end` from `num_steps` on."""

    def __call__(self, step: Scalar, start: Any, end: Any, num_steps: Any, wait: Any) -> Scalar:
        return start + (end - start) * jnp.clip((step - wait) / (num_steps - wait), 0.0, 1.0)


@spec
class _Cycles:
    """Lines up over a share of every period, each followed by a plateau."""

    def __call__(self, step: Scalar, start: Any, end: Any, num_steps: Any, period: Any, ramp: Any) -> Scalar:
        up = jnp.minimum(jnp.mod(step, period) / (ramp * period), 1.0)
        return start + (end - start) * jnp.where(step < num_steps, up, 1.0)


def linear(start: float, end: float, num_steps: int) -> Schedule:
    """From `start` to `end` along a line, in either direction, and `end` from then on.

    Args:
      start: beta at step 0; no less than 0.
      end: beta from step `num_steps` on; no less than 0.
      num_steps: how many steps it takes; 1 or more.

    Raises:
      TypeError: if an argument is not a number, or `num_steps` no whole one.
      ValueError: if beta would be negative or not finite, or `num_steps` is less than 1.

    Example:
      >>> import jvi
      >>> [float(jvi.schedules.linear(1.0, 0.5, 4)(step)) for step in (0, 2, 4, 6)]
      [1.0, 0.75, 0.5, 0.5]

    References:
      Sønderby et al. (2016), Ladder Variational Autoencoders.
    """
    start, end = _check_ends(start, end)
    return Schedule(_Ramp(), start, end, check_count(num_steps, "num_steps"), (0,))


def warm_up(num_steps: int, *, wait: int = 0, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Up along a line over `num_steps` steps, once `wait` steps are over, and `end` from then on: never down.

    Args:
      num_steps: steps on the way up; 1 or more.
      wait: steps at `start` before.
      start: beta at first; no less than 0.
      end: beta at last; no less than `start`.

    Raises:
      TypeError: if an argument is not a number, or a count no whole one.
      ValueError: if a number is out of range.

    Example:
      >>> import jvi
      >>> [float(jvi.schedules.warm_up(4, wait=2)(step)) for step in (0, 2, 4, 6, 8)]
      [0.0, 0.0, 0.5, 1.0, 1.0]

    References:
      Bowman et al. (2016), Generating Sentences from a Continuous Space.
    """
    start, end = _check_rising("warm_up", start, end)
    wait = check_count(wait, "wait", least=0)
    return Schedule(_Ramp(), start, end, wait + check_count(num_steps, "num_steps"), (wait,))


def cyclical(period: int, num_cycles: int = 4, *, ramp: float = 0.5, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Up again and again: every period begins at `start`, goes up along a line and stays at `end`; after the last it stays there.

    Args:
      period: steps in a cycle; 2 or more.
      num_cycles: how many there are.
      ramp: share of a period on the way up, more than 0 and at most 1.
      start: beta at the beginning of a cycle; no less than 0.
      end: beta at its end; no less than `start`.

    Raises:
      TypeError: if an argument is not a number, or a count no whole one.
      ValueError: if a number is out of range.

    Example:
      >>> import jvi
      >>> [float(jvi.schedules.cyclical(8, 2)(step)) for step in (0, 2, 4, 7, 8, 10, 16, 18)]
      [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]

    References:
      Fu et al. (2019), Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing.
    """
    start, end = _check_rising("cyclical", start, end)
    period = check_count(period, "period", least=2)
    if not 0.0 < _check_number("ramp", ramp) <= 1.0:
        raise ValueError(f"ramp must be more than 0 and at most 1, the share of a period on the way up; got {ramp}.")
    return Schedule(_Cycles(), start, end, period * check_count(num_cycles, "num_cycles"), (period, float(ramp)))


def traced(beta: Any) -> bool:
    """Whether `beta` is made of numbers that a compiled run takes as arguments, rather than a function that it is compiled for."""
    return not (callable(beta) and jax.tree_util.all_leaves([beta]))


def is_one(beta: Any) -> bool:
    """Whether a weight of the KL term is known to be 1, as a traced one is not.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is no scalar, or known to be negative or not finite.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float | np.number | np.ndarray | jax.Array):
        where = "; a schedule goes to jvi.fit, jvi.fit_batches or jvi.adapt, and its value here" if callable(beta) else ""
        raise TypeError(f"beta must be a number, the weight of the KL term; got {beta!r}{where}.")
    if jnp.shape(beta) != ():
        raise ValueError(f"beta must be one number, the weight of the KL term; got shape {list(jnp.shape(beta))}.")
    try:
        value = float(beta)
    except jax.errors.ConcretizationTypeError:
        return False
    if not 0.0 <= value < math.inf:
        raise ValueError(f"beta must be a finite weight of the KL term, 0 or more; got {value}.")
    return value == 1.0


def of_run(beta: Any) -> Any:
    """The `beta` of a run, a number, a schedule or a function of the step; None where it is known to be 1.

    Raises:
      TypeError, ValueError: as `is_one`, if it is none of these.
    """
    return beta if beta is None or callable(beta) else None if is_one(beta) else beta


def _check_rising(name: str, start: Any, end: Any) -> tuple[float, float]:
    start, end = _check_ends(start, end)
    if start > end:
        raise ValueError(
            f"{name} goes up, from start to end; got start={start}, end={end}. Use jvi.schedules.linear to go down."
        )
    return start, end


def _check_ends(start: Any, end: Any) -> tuple[float, float]:
    for name, value in (("start", start), ("end", end)):
        if not 0.0 <= _check_number(name, value) < math.inf:
            raise ValueError(f"{name} must be a finite weight of the KL term, 0 or more; got {value}.")
    return float(start), float(end)


def _check_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    return float(value)
