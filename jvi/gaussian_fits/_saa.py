"""Moment matching: Gaussian variational inference on fixed, whitened draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import numpy as np

from jvi._targets import Density
from jvi._typing import PyTree
from jvi.gaussian_fits._climb import Gaussian, entropy
from jvi.gaussian_fits._triangular import Triangular
from jvi.guides.functions import Guide
from jvi.spaces import Space


class Member(Protocol):
    """A Gaussian of some family: u(noise), affine in standard normal noise, and how it depends on parameters relative to it."""

    num_params: int
    num_noise: int

    @property
    def num_draws(self) -> int:
        """How many draws to begin with."""
        ...

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Noise [count, num_noise] whose sample moments are as exact as the family needs."""
        ...

    def out(self, noise: np.ndarray) -> np.ndarray:
        """Coordinates [N, D] of noise."""
        ...

    def entropy(self) -> float:
        """Nats."""
        ...

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """Log-density [N] of the coordinates of noise."""
        ...

    def moved(self, params: np.ndarray) -> Self:
        """The member at parameters [num_params] relative to this one, which is at zero."""
        ...

    def slope(self, params: np.ndarray, noise: np.ndarray, grads: np.ndarray) -> np.ndarray:
        """Gradient [num_params] of the ELBO of `moved(params)`, from the target's gradients [N, D] at its draws."""
        ...

    def guide(self, space: Space) -> tuple[Guide, PyTree]:
        """jvi's guide of this Gaussian, and its parameters."""
        ...


M = TypeVar("M", bound=Member)


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
    where = np.arange(len(start.loc))[None]
    member, elbo = fitted(density, Triangular(start.loc, (where,), (start.chol[None],)), draws, num_steps=num_steps)
    return Gaussian(member.loc, member.roots[0][0], elbo) if elbo > -np.inf else start


def fitted(density: Density, start: M, noise: np.ndarray, *, num_steps: int = 200) -> tuple[M, float]:
    """The member of a family of largest sample-average ELBO, by L-BFGS in the frame of `start`, which conditions it well.

    Args:
      density: the target.
      start: where to begin.
      noise: of `start.draws`; held fixed.
      num_steps: of L-BFGS, at most.

    Returns:
      The member, with its sample-average ELBO, which is somewhat too large; the start, with minus infinity, where nothing finite was
      found.
    """

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        member = start.moved(params)
        values, grads = density.grads(member.out(noise))
        if not np.isfinite(values).all():
            return 1e300, np.zeros_like(params)
        return -(float(values.mean()) + member.entropy()), -start.slope(params, noise, grads)

    params, best = _descended(loss, start.num_params, num_steps)
    return (start.moved(params), -best) if best < 1e299 else (start, -np.inf)


def diagonal(density: Density, start: Gaussian, draws: np.ndarray, *, num_steps: int = 500) -> Gaussian:
    """The same, of the Gaussians whose root is the start's with its columns scaled: mean-field where the start's is diagonal."""
    size = draws.shape[1]

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        shift, ratio = params[:size], np.exp(np.clip(params[size:], -50.0, 50.0))
        values, grads = density.grads(start.loc + (shift + ratio * draws) @ start.chol.T)
        if not np.isfinite(values).all():
            return 1e300, np.zeros_like(params)
        grads = grads @ start.chol
        slope = np.concatenate([grads.mean(0), np.mean(grads * draws, 0) * ratio + 1.0])
        return -(values.mean() + np.sum(params[size:]) + entropy(start.chol)), -slope

    params, best = _descended(loss, 2 * size, num_steps)
    if not best < 1e299:
        return start
    ratio = np.exp(np.clip(params[size:], -50.0, 50.0))
    return Gaussian(start.loc + start.chol @ params[:size], start.chol * ratio, -best)


def _descended(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], size: int, num_steps: int) -> tuple[np.ndarray, float]:
    options = {"maxcor": 20, "ftol": 1e-9, "gtol": 1e-5, "maxfun": num_steps, "maxiter": num_steps}
    from scipy.optimize import minimize  # a tenth of a second, which importing jvi need not take

    result = minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
    return result.x, float(result.fun)
