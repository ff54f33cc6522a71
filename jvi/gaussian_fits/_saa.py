"""Moment matching: Gaussian variational inference on fixed, whitened draws."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from jvi._frames import Affine, Bent, entries, rounded
from jvi._targets import Density
from jvi.gaussian_fits._climb import LOG_2PI, Gaussian, entropy


def whitened(rng: np.random.Generator, num_draws: int, size: int, *, dense: bool = True) -> np.ndarray:
    """Normal draws [num_draws, size] in antithetic pairs, their sample covariance exactly I; of each column alone if not `dense`.

    A sample average over them is exact for every quadratic.
    """
    half = rng.normal(size=(num_draws // 2, size))
    draws = np.concatenate([half, -half])
    if not dense:
        return draws / np.sqrt(np.mean(draws**2, 0))
    root = np.linalg.cholesky(draws.T @ draws / num_draws)
    return solve_triangular(root, draws.T, lower=True).T


def full_rank(density: Density, start: Gaussian, draws: np.ndarray, *, num_steps: int = 200) -> Gaussian:
    """The Gaussian of largest sample-average ELBO, by L-BFGS in the frame of `start`, which conditions it well.

    Args:
      density: the target.
      start: where to begin.
      draws: standard normal [N, D], N > D, better `whitened`; held fixed.
      num_steps: of L-BFGS, at most.

    Returns:
      The Gaussian, with its sample-average ELBO, which is somewhat too large; the start where nothing finite was found.

    References:
      Burroni, Domke and Sheldon (2024), Sample Average Approximation for Black-Box VI; Giordano, Ingram and Broderick (2024), DADVI.
    """
    count, size = draws.shape
    below = np.tril_indices(size, -1)

    def unpack(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        root = np.diag(np.exp(np.clip(params[size : 2 * size], -50.0, 50.0)))
        root[below] = params[2 * size :]
        return params[:size], root

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        shift, root = unpack(params)
        values, grads = density.grads(start.loc + (shift + draws @ root.T) @ start.chol.T)
        if not np.isfinite(values).all():
            return 1e300, np.zeros_like(params)
        grads = grads @ start.chol
        outer = grads.T @ draws / count
        slope = np.concatenate([grads.mean(0), np.diag(outer) * np.diag(root) + 1.0, outer[below]])
        return -(values.mean() + np.sum(params[size : 2 * size]) + entropy(start.chol)), -slope

    return _found(loss, unpack, start, 2 * size + len(below[0]), num_steps)


def diagonal(density: Density, start: Gaussian, draws: np.ndarray, *, num_steps: int = 500) -> Gaussian:
    """The same, of the Gaussians whose root is the start's with its columns scaled: mean-field where the start's is diagonal."""
    size = draws.shape[1]

    def unpack(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return params[:size], np.diag(np.exp(np.clip(params[size:], -50.0, 50.0)))

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        shift, ratio = params[:size], np.exp(np.clip(params[size:], -50.0, 50.0))
        values, grads = density.grads(start.loc + (shift + ratio * draws) @ start.chol.T)
        if not np.isfinite(values).all():
            return 1e300, np.zeros_like(params)
        grads = grads @ start.chol
        slope = np.concatenate([grads.mean(0), np.mean(grads * draws, 0) * ratio + 1.0])
        return -(values.mean() + np.sum(params[size:]) + entropy(start.chol)), -slope

    return _found(loss, unpack, start, 2 * size, num_steps)


def bent(density: Density, base: Affine, draws: np.ndarray, *, led: bool = False, num_steps: int = 150) -> tuple[Bent, float]:
    """The bent frame over `base` of largest sample-average ELBO, with that ELBO.

    Coordinates that change the scale of others come first; how much one does is read off the gradients at `draws`: of a Gaussian
    target, v_k times the gradient by v_k has no trend in any v_j.

    Args:
      density: the target.
      base: a frame in which the target is about N(0, I).
      draws: standard normal [N, D]; held fixed.
      led: put first those whose scale others change: a curved ridge looks like that from where it bends.
      num_steps: of L-BFGS, at most.
    """
    count, size = draws.shape
    _, grads = density.grads(base.out(draws))
    product = base.pull(draws, grads) * draws
    strength = np.abs(np.corrcoef(product.T, draws.T)[:size, size:])  # [k, j]
    np.fill_diagonal(strength, 0.0)
    order = np.argsort(-np.nan_to_num(strength).sum(1 if led else 0), kind="stable")
    below, few = entries(size)

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        frame = Bent(base, order, params)
        values, grads = density.grads(frame.out(draws))
        if not np.isfinite(values).all():
            return 1e300, np.zeros_like(params)
        g = base.pull(draws, grads)[:, order]
        scale, t = frame.parts(draws)
        stretch = g * scale * np.sinh(t) + 1.0
        own = g * scale * np.cosh(t) + np.tanh(t)
        pairs = (g, draws), (stretch, draws), (g, draws**2 - 1.0), (stretch, rounded(draws))
        matrices = [(left.T @ right / count)[where] for (left, right), where in zip(pairs, (below, few, few, few), strict=True)]
        each = g.mean(0), stretch.mean(0), np.mean(own, 0) * np.exp(frame.log_tail), np.mean(own * t, 0) + 1.0
        slope = np.concatenate([*each, *matrices])
        return -(np.mean(values + frame.log_det(draws)) + 0.5 * size * (1.0 + LOG_2PI)), -slope

    params = np.zeros(4 * size + len(below[0]) + 3 * len(few[0]))
    options = {"maxcor": 20, "ftol": 1e-8, "gtol": 1e-4, "maxfun": num_steps, "maxiter": num_steps}
    from scipy.optimize import minimize  # a tenth of a second, which importing jvi need not take

    result = minimize(loss, params, jac=True, method="L-BFGS-B", options=options)
    return Bent(base, order, result.x), -float(result.fun)


def _found(loss, unpack, start: Gaussian, size: int, num_steps: int) -> Gaussian:
    options = {"maxcor": 20, "ftol": 1e-9, "gtol": 1e-5, "maxfun": num_steps, "maxiter": num_steps}
    from scipy.optimize import minimize  # a tenth of a second, which importing jvi need not take

    result = minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
    if not result.fun < 1e299:
        return start
    shift, root = unpack(result.x)
    return Gaussian(start.loc + start.chol @ shift, start.chol @ root, -float(result.fun))
