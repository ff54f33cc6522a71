"""When a stochastic ascent has stopped rising: on traces, in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_RHAT = 1.1
_BATCHES = 8  # means of which a half's standard error is made


class Settled(NamedTuple):
    """What the second half of an ascent shows.

    Attributes:
      yes: whether it has stopped rising.
      flat: whether its bound has, as far as can be seen.
      rhat: largest split R-hat of a parameter, between the two quarters.
      gain, gain_se: by how much the bound of the last quarter is larger than that of the third, with its standard error.
    """

    yes: bool
    flat: bool
    rhat: float
    gain: float
    gain_se: float


class Watch:
    """Looks at an ascent now and then.

    Attributes:
      next: the number of steps at which to look again, half as many more each time.
      settled: whether two looks in a row say that it has settled.
      hidden: whether the bound looked flat four times in a row: if it rises, then below its noise, which a smaller rate lessens.
    """

    def __init__(self, tolerance: float) -> None:
        self.next, self._tolerance, self._agreed, self._flat = 256, tolerance, 0, 0
        self.settled = self.hidden = False

    def look(self, bounds: np.ndarray, trace: np.ndarray) -> None:
        """Take in what there is; the arguments are those of `settled`."""
        seen = settled(bounds, trace, self._tolerance)
        self._agreed, self._flat = self._agreed + 1 if seen.yes else 0, self._flat + 1 if seen.flat else 0
        self.next = int(1.5 * self.next)
        self.settled, self.hidden = self._agreed == 2, self._flat == 4


def settled(bounds: np.ndarray, trace: np.ndarray, tolerance: float) -> Settled:
    """Whether an ascent has stopped rising: its bound gains no more than chance, and its parameters do not drift.

    Parameters of networks drift for ever. Where they do, the bound alone decides, if it is known well enough: its gain must be
    less than `tolerance` even two standard errors higher.

    Args:
      bounds: estimates of the bound [N], one a step, since the last change of the learning rate.
      trace: some parameters [T, P] over the same steps, every so many.
      tolerance: a gain that is not worth waiting for, in the unit of the bound.

    References:
      Vehtari et al. (2021), Rank-Normalization, Folding, and Localization: An Improved R-hat; Welandawe, Andersen, Vehtari and
      Huggins (2024), A Framework for Improving the Reliability of Black-Box Variational Inference.
    """
    gain, gain_se = _gain(bounds[len(bounds) // 2 :])
    rhat = _rhat(trace[len(trace) // 2 :])
    flat = bool(gain < 2.0 * gain_se)
    return Settled(bool(flat and (rhat < _RHAT or gain + 2.0 * gain_se < tolerance)), flat, rhat, gain, gain_se)


def _gain(bounds: np.ndarray) -> tuple[float, float]:
    middle = np.median(bounds)
    width = 10.0 * np.median(np.abs(bounds - middle)) + 1e-300
    kept = np.clip(bounds, middle - width, middle + width)  # one draw far out must not hide what all others show
    length = len(kept) // (2 * _BATCHES)
    means = kept[len(kept) - 2 * _BATCHES * length :].reshape(2, _BATCHES, length).mean(2)
    first, last = means.mean(1)
    return float(last - first), float(np.sqrt(np.sum(means.var(1, ddof=1)) / _BATCHES))


def _rhat(trace: np.ndarray) -> float:
    length = len(trace) // 2
    halves = trace[len(trace) - 2 * length :].reshape(2, length, -1)
    within, between = halves.var(1, ddof=1).mean(0), halves.mean(1).var(0, ddof=1)
    moves = within > 1e-14 * (1.0 + halves.mean((0, 1)) ** 2)  # what stands still has no R-hat, nor needs one
    return float(np.sqrt(1.0 - 1.0 / length + np.max(between[moves] / within[moves], initial=0.0)))
