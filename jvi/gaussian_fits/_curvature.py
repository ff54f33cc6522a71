"""Curvature of a target along a pattern, told by differences of its gradients, and Newton's method on it."""

from __future__ import annotations

import numpy as np

from jvi._targets import Density
from jvi.gaussian_fits._sparse import Sparse


def probed(density: Density, start: Sparse, noise: np.ndarray | None = None) -> tuple[np.ndarray, Sparse | None]:
    """The mean gradient [D] at a member's draws, or at its mean, and the member whose precision is the mean curvature there.

    Curvature is told by differences of gradients, two for each colour and draw, however many coordinates there are. None where it is
    not positive.
    """
    pattern, size = start.pattern, len(start.loc)
    points = start.loc[None] if noise is None else start.out(noise)
    step = np.maximum(density.eps ** (1.0 / 3.0) * start.sds, 8.0 * density.eps * np.abs(start.loc[pattern.order]))
    heard = np.empty((pattern.colour.max() + 1, size))
    slope = np.zeros(size)
    for c in range(len(heard)):
        move = start.straight(np.where(pattern.colour == c, step, 0.0)[None])
        _, grads = density.grads(np.concatenate([points + move, points - move]))
        heard[c] = -0.5 * np.mean(grads[: len(points)] - grads[len(points) :], 0)[pattern.order]
        slope += np.mean(grads, 0) / len(heard)
    rows, columns = pattern.rows, pattern.columns
    own = heard[pattern.colour, np.arange(size)] / step
    below = heard[pattern.colour[columns], rows] / step[columns]
    # Entries among the free, and within a node, are told from both sides.
    sides = (rows < pattern.num_free) | (
        (rows - pattern.num_free) // pattern.width == (columns - pattern.num_free) // pattern.width
    )
    below[sides] = 0.5 * (below[sides] + heard[pattern.colour[rows[sides]], columns[sides]] / step[rows[sides]])
    return slope, Sparse.from_precision(start.loc, pattern, own, below)


def newton(density: Density, start: Sparse, noise: np.ndarray, *, num_steps: int = 40, least: float = 0.1) -> Sparse:
    """Steps towards where the mean gradient is zero and the precision is minus the mean curvature, the optimum of all Gaussians.

    A step goes as far as the ELBO of the same draws rises; they end where none gains more than `least` nats. Where the target depends
    otherwise than the pattern says, they gain nothing, and the start comes back.

    References:
      Opper and Archambeau (2009), The Variational Gaussian Approximation Revisited; Curtis, Powell and Reid (1974), for the colours.
    """
    here, elbo = start, _elbo(density, start, noise)
    for _ in range(num_steps):
        slope, curved = probed(density, here, noise)
        if curved is None:
            break
        (own, below), (own_new, below_new), step = here.precision(), curved.precision(), here.by_covariance(slope)
        for share in (1.0, 0.4, 0.16, 0.06):
            loc = here.loc + share * curved.by_covariance(slope) if share == 1.0 else here.loc + share * step
            trial = Sparse.from_precision(loc, here.pattern, own + share * (own_new - own), below + share * (below_new - below))
            found = -np.inf if trial is None else _elbo(density, trial, noise)
            if trial is not None and found > elbo:
                break
        else:
            break
        gain, here, elbo = found - elbo, trial, found
        if gain < least:
            break
    return here


def _elbo(density: Density, member: Sparse, noise: np.ndarray) -> float:
    return float(np.mean(density.values(member.out(noise)))) + member.entropy()
