"""The range of `u` in which a support's map is exact: (low, high), each a number or an array of the unconstrained shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jvi import _bijectors


def exp(support: Any, info: np.finfo) -> tuple[float, float]:
    """Of exp(u)."""
    room = math.log(max(support.size, 1)) + 1.0  # so that sums over entries do not overflow either
    return math.log(info.tiny) + 1.0, math.log(info.max) - room


def sigmoid(support: Any, info: np.finfo) -> tuple[float, float]:
    """Of a sigmoid between two ends."""
    # Next to an end that is not zero, floating-point numbers lie `eps` times the end apart.
    lower, upper = support.loc, support.loc + support.scale

    def reach(end: float) -> float:
        return -math.log(float(info.eps) * max(abs(end) / support.scale, 1.0)) if end else -math.log(info.tiny) - 1.0

    return -reach(lower), reach(upper)


def sticks(support: Any, info: np.finfo) -> tuple[float, float]:
    """Of broken sticks."""
    return math.log(info.tiny), -math.log(info.tiny)


def ordered(support: Any, info: np.finfo) -> tuple[Any, Any]:
    """Of a first entry and the logs of the steps from it."""
    low, high = exp(support, info)
    steps = np.arange(support.unconstrained_shape[-1]) > 0  # the first entry is free
    return np.where(steps, low, -np.inf), np.where(steps, high, np.inf)


def wide(support: Any, info: np.finfo) -> tuple[float, float]:
    """Of maps that take squares."""
    reach = float(info.max) ** 0.25  # squares are taken, and their products
    return -reach, reach


def triangle(support: Any, info: np.finfo) -> tuple[Any, Any]:
    """Of a triangle whose diagonal is exp(u)."""
    low, high = exp(support, info)
    diagonal = _bijectors.triangle_diagonal(support.size)
    return np.where(diagonal, low, -np.inf), np.where(diagonal, high, np.inf)
