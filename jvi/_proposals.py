"""Mixtures to propose from: made of Gaussian fits, or fitted to the weights of their own draws."""

from __future__ import annotations

import numpy as np

from jvi._frames import Frame
from jvi._mixtures import Mixture, adapted
from jvi._targets import Density
from jvi.gaussian_fits._climb import Gaussian


def proposal(frame: Frame, fits: list[Gaussian]) -> Mixture:
    """Student-t components at Gaussian fits, the first of which the frame was made of, by their shares of the evidence.

    Raises:
      LinAlgError: if the frame folds up at one of the others.
    """
    size = len(fits[0].loc)
    df = max(12.0, float(size))  # in many dimensions heavy tails cost more than they protect
    share = np.exp(np.array([fit.elbo for fit in fits]) - fits[0].elbo)
    log_mix = np.log(0.9 * share / share.sum() + 0.1 / len(fits))
    locs, chols = [np.zeros(size)], [np.eye(size)]
    for fit in fits[1:]:
        v = frame.into(fit.loc[None])[0]
        sides = frame.out(v + 1e-5 * np.concatenate([np.eye(size), -np.eye(size)]))
        slope = (sides[:size] - sides[size:]).T / 2e-5  # du/dv
        root = np.asarray(np.linalg.solve(slope, fit.chol), float)
        locs.append(v)
        chols.append(np.linalg.cholesky(root @ root.T))
    return Mixture(log_mix, np.stack(locs), np.stack(chols), df)


def enriched(density: Density, frame: Frame, mixture: Mixture, rng: np.random.Generator, num_components: int) -> Mixture:
    """The mixture with more components, fitted to the target; a tenth stays with what it was, for what the new ones miss."""
    few = num_components <= 8
    first, num_rounds, num_samples = mixture, 10 if few else 24, 3_000 if few else 250 * num_components
    for i in range(num_rounds):
        v = mixture.sample(rng, num_samples)
        log_w = density.values(frame.out(v)) + frame.log_det(v) - mixture.log_prob(v)
        log_w = np.where(np.isfinite(log_w), log_w, -1e300)
        mixture = adapted(mixture, v, log_w)
        if i % 4 == 0 and len(mixture.loc) < num_components:
            mixture = _spread(mixture, v, log_w, rng, min(2 * i + 8, num_components))
    log_mix = np.concatenate([np.log(0.9) + mixture.log_mix, np.log(0.1) + first.log_mix])
    loc, chol = np.concatenate([mixture.loc, first.loc]), np.concatenate([mixture.chol, first.chol])
    return Mixture(log_mix, loc, chol, mixture.df)


def drift(before: np.ndarray, after: np.ndarray) -> float:
    """Largest shift of a first or second moment of a coordinate, less three standard errors of it, in sds."""
    scale = before.std(0)
    first = (after - before) / scale
    second = 0.5 * ((after - before.mean(0)) ** 2 - (before - before.mean(0)) ** 2) / scale**2
    shifts = np.concatenate([first, second], axis=1)
    error = shifts.std(0, ddof=1) / np.sqrt(len(shifts))
    return float(np.max(np.maximum(np.abs(shifts.mean(0)) - 3.0 * error, 0.0)))


def _spread(mixture: Mixture, v: np.ndarray, log_w: np.ndarray, rng: np.random.Generator, count: int) -> Mixture:
    """Add components at draws that carry weight, each narrower than the one it came from."""
    weight = np.exp(0.5 * (log_w - log_w.max()))
    chosen = v[rng.choice(len(v), size=count, p=weight / weight.sum())]
    owner = np.argmax(mixture.log_mix + mixture.components(chosen)[0], axis=1)
    loc = np.concatenate([mixture.loc, chosen])[:count]
    chol = np.concatenate([mixture.chol, 0.7 * mixture.chol[owner]])[:count]
    return Mixture(np.full(len(loc), -np.log(len(loc))), loc, chol, mixture.df)
