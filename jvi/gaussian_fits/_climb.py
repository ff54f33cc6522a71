"""Ascent of a log-density by Newton's method on gradients alone, from several starts at once, keeping the best Gaussian passed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from jvi._targets import Density

LOG_2PI = math.log(2.0 * math.pi)
_FLOOR = 1e-9  # least curvature, as a share of its diagonal


class Gaussian(NamedTuple):
    """N(loc, chol chol') on a space's coordinates, with an estimate of its ELBO.

    Attributes:
      loc: [D].
      chol: lower triangular [D, D].
      elbo: nats.
    """

    loc: np.ndarray
    chol: np.ndarray
    elbo: float


class Climb(NamedTuple):
    """What an ascent found.

    Attributes:
      best: of the Gaussians on the path the one with the largest ELBO.
      mode: where the ascent ended [D].
      chol: root of the inverse curvature there [D, D].
      log_density: there.
      converged: whether it ended because no ascent was left.
    """

    best: Gaussian
    mode: np.ndarray
    chol: np.ndarray
    log_density: float
    converged: bool


def entropy(chol: np.ndarray) -> float:
    """Entropy of N(., chol chol'), nats."""
    return float(np.sum(np.log(np.abs(np.diag(chol))))) + 0.5 * len(chol) * (1.0 + LOG_2PI)


def climb(
    density: Density, starts: np.ndarray, rng: np.random.Generator, *, num_steps: int = 80, num_draws: int = 16
) -> list[Climb]:
    """Maximize a log-density from several starts, and judge on the way the Gaussian that the curvature makes at each point.

    Where the curvature is negative its size is used, which turns saddles into slopes. Steps do not depend on the units of the
    coordinates, be they 1e-8 or 1e8 wide. Where the density has no mode, or a useless one, as in a funnel's neck, the best Gaussian
    lies on the way to it.

    Args:
      density: what to climb. Gradients only are taken, D + 1 and those of a line search for a step.
      starts: [R, D]; all take each step together.
      rng: of the draws that estimate ELBOs; the same draws at each point.
      num_steps: at most.
      num_draws: of each ELBO estimate.

    References:
      Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder, for the choice by ELBO; Dauphin et al. (2014) for the use of |H|.
    """
    size = starts.shape[1]
    eps = rng.normal(size=(num_draws // 2, size))
    eps = np.concatenate([eps, -eps])
    u = starts.copy()
    f, g = density.grads(u)
    scale = 1.0 / (1.0 + np.abs(g))
    damping = np.zeros(len(u))
    best = [Gaussian(u[i], 0.1 * np.eye(size), -np.inf) for i in range(len(u))]
    cov = _covariance(density, u, g, scale, damping)
    left = np.full(len(u), np.inf)
    active = np.isfinite(f)
    for _ in range(num_steps):
        on = np.flatnonzero(active)
        if not len(on):
            break
        p = np.einsum("rij,rj->ri", cov[on], g[on])
        moved, f_new, g_new = _line_search(density, u[on], f[on], g[on], p)
        fails = ~(f_new > f[on])
        damping[on] = np.where(fails, 100.0 * damping[on] + 1e-6, np.where(damping[on] > 1e-6, 0.1 * damping[on], 0.0))
        u[on], f[on], g[on] = moved, f_new, g_new
        scale = np.sqrt(np.einsum("rii->ri", cov[on]))
        cov[on] = _covariance(density, u[on], g[on], scale, damping[on])
        roots = [_root(matrix) for matrix in cov[on]]
        draws = np.concatenate([u[i] + eps @ root.T for i, root in zip(on, roots, strict=True)])
        means = density.values(draws).reshape(len(on), -1).mean(1)
        for i, root, mean in zip(on, roots, means, strict=True):
            elbo = mean + entropy(root)
            if elbo > best[i].elbo:
                best[i] = Gaussian(u[i].copy(), root, float(elbo))
        left[on] = np.einsum("ri,rij,rj->r", g[on], cov[on], g[on])  # twice the ascent that a quadratic has left
        active[on] = ~((left[on] < 1e-8 + 100.0 * density.eps * (1.0 + np.abs(f[on]))) & (damping[on] < 1e-3)) & (
            damping[on] < 1e3
        )
    return [Climb(best[i], u[i], _root(cov[i]), float(f[i]), bool(left[i] < 1e-2)) for i in range(len(u))]


def _covariance(density: Density, u: np.ndarray, g: np.ndarray, scale: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """(|Hessian| + damping)^-1 in units in which the Hessian's diagonal is 1, by differences of gradients: [R, D, D]."""
    count, size = u.shape
    # In widths of the coordinate, 6e-6 in double precision and 5e-3 in single: rounding and curvature then weigh the same.
    step = np.maximum(density.eps ** (1.0 / 3.0) * scale, 8.0 * density.eps * np.abs(u))
    near = u[:, None] + step[:, :, None] * np.eye(size)
    _, grads = density.grads(near.reshape(-1, size))
    hessian = -(grads.reshape(count, size, size) - g[:, None]) / step[:, :, None]
    hessian = 0.5 * (hessian + hessian.transpose(0, 2, 1))
    width = 1.0 / np.sqrt(np.maximum(np.abs(np.einsum("rii->ri", hessian)), 1e-20 / scale**2))
    scaled = np.nan_to_num(hessian * width[:, :, None] * width[:, None])
    roots = [_inverse_root(matrix, shift) for matrix, shift in zip(scaled, damping, strict=True)]
    root = width[:, :, None] * np.stack(roots)
    return root @ root.transpose(0, 2, 1)


def _inverse_root(matrix: np.ndarray, damping: float) -> np.ndarray:
    """R with R R' = (|matrix| + damping)^-1; by Cholesky, ten times faster, where the matrix is positive definite enough."""
    try:
        root = np.linalg.cholesky(matrix + damping * np.eye(len(matrix)))
        if np.min(np.diag(root)) ** 2 > _FLOOR:
            return solve_triangular(root, np.eye(len(matrix)), lower=True).T
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(matrix)
    return vectors / np.sqrt(np.maximum(np.abs(values), _FLOOR) + damping)


def _root(matrix: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.diag(np.sqrt(np.diag(matrix)))


def _line_search(
    density: Density, u: np.ndarray, f: np.ndarray, g: np.ndarray, p: np.ndarray, num_trials: int = 30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps from u [R, D] along p that ascend enough, and far enough, by bisection (Lewis and Overton 2013); or no step."""
    slope = np.einsum("ri,ri->r", g, p)
    t, low, high = np.ones(len(u)), np.zeros(len(u)), np.full(len(u), np.inf)
    done = np.zeros(len(u), bool)
    best_u, best_f, best_g = u.copy(), f.copy(), g.copy()
    for _ in range(num_trials):
        on = np.flatnonzero(~done)
        if not len(on):
            break
        trial = u[on] + t[on, None] * p[on]
        f_new, g_new = density.grads(trial)
        too_far = ~(f_new >= f[on] + 1e-4 * t[on] * slope[on])
        too_near = ~too_far & (np.einsum("ri,ri->r", g_new, p[on]) > 0.9 * slope[on])
        better = f_new > best_f[on]
        best_u[on[better]], best_f[on[better]], best_g[on[better]] = trial[better], f_new[better], g_new[better]
        high[on] = np.where(too_far, t[on], high[on])
        low[on] = np.where(too_near, t[on], low[on])
        done[on] = ~(too_far | too_near)
        t[on] = np.where(np.isfinite(high[on]), 0.5 * (low[on] + high[on]), 2.0 * low[on])
    return best_u, best_f, best_g
