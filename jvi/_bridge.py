"""A tempered bridge from a proposal to a target: sequential Monte Carlo with Hamiltonian moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from jvi._mixtures import Mixture
from jvi._targets import BudgetSpentError

Score = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # [S, D] -> log-densities [S], gradients [S, D]
_LEAPS = 10  # gradients of one Hamiltonian move
_ACCEPT = 0.8
_SETTLED = 2.0  # independent draws that five generations of a particle must be worth for a bridge to end
MIXED = 4.0  # and for it to be trusted: where the proposal does not reach, all there is came there by moves


class Bridge(NamedTuple):
    """Where a bridge arrived.

    Attributes:
      v: particles, several generations of them [G, N, D], all of the target's distribution where the bridge holds.
      log_evidence, log_evidence_se: log of the target's normalizing constant, nats, with the standard error that the weights of each
        temperature imply.
      num_temperatures: how many there were.
      accept: mean acceptance of the last moves.
      moves: how many lie between two generations.
      mixing: how many independent draws G generations of a particle are worth, between 1 and G or so, for the slowest coordinate
        or its square. A particle that has not forgotten where the bridge set it down has not mended what the bridge got wrong.
      slowest: which coordinate that is.
    """

    v: np.ndarray
    log_evidence: float
    log_evidence_se: float
    num_temperatures: int
    accept: float
    moves: int
    mixing: float
    slowest: int


class Mover:
    """Hamiltonian moves of many particles, which leave a density invariant; the step size follows the acceptance.

    Attributes:
      step_size: of the leapfrog; each particle's own is up to e^2 times shorter, to reach into narrow places.
      accept: mean acceptance of the last move.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.step_size, self.accept = rng, 0.9 * size**-0.25, 0.0

    def move(self, score: Score, v: np.ndarray, num_moves: int) -> np.ndarray:
        """Particles [N, D] after `num_moves` moves."""
        value, grad = score(v)
        for _ in range(num_moves):
            p = self.rng.normal(size=v.shape)
            step = (self.step_size * np.exp(-2.0 * self.rng.uniform(size=len(v)) ** 2))[:, None]
            new, value_new, slope, energy = v, value, grad, value - 0.5 * np.sum(p**2, 1)
            with np.errstate(over="ignore", invalid="ignore"):  # what flies off is not taken
                for _ in range(_LEAPS):
                    p = p + 0.5 * step * slope
                    new = new + step * p
                    value_new, slope = score(new)
                    p = p + 0.5 * step * slope
                gain = value_new - 0.5 * np.sum(p**2, 1) - energy
                chance = np.where(np.isfinite(gain), np.exp(np.minimum(gain, 0.0)), 0.0)
            taken = self.rng.uniform(size=len(v)) < chance
            v = np.where(taken[:, None], new, v)
            value, grad = np.where(taken, value_new, value), np.where(taken[:, None], slope, grad)
            self.accept = float(np.mean(chance))
            self.step_size *= np.exp(0.5 * (self.accept - _ACCEPT))
        return v


def bridge(
    score: Score,
    mixture: Mixture,
    rng: np.random.Generator,
    *,
    num_particles: int = 2_048,
    keep: float = 0.5,
    num_moves: int = 2,
    generations: int = 5,
    moves_between: int = 4,
    max_moves: int = 64,
    max_temperatures: int = 60,
) -> Bridge:
    """Carry draws of a proposal to a target along proposal^(1 - t) target^t.

    Each temperature is the longest step that leaves an effective share `keep` of the particles; then they are resampled and moved.

    Args:
      score: log-densities and gradients of the target, in a frame where it is about N(0, I).
      mixture: the proposal, in that frame.
      rng: of the draws and moves.
      num_particles: N.
      keep: share of the particles that a temperature must leave.
      num_moves: Hamiltonian moves at each temperature.
      generations: how many times the particles are handed out, once the target is reached.
      moves_between: moves before each of these; twice as many, anew, until the particles mix.
      max_moves: where that ends.
      max_temperatures: after which the last step to the target is taken at once.

    Where the budget ends at the target, what there is comes back.

    References:
      Neal (2001), Annealed Importance Sampling; Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo Samplers.
    """
    v, t, log_z, variance, count = mixture.sample(rng, num_particles), 0.0, 0.0, 0.0, 0
    mover = Mover(rng, v.shape[1])
    while t < 1.0:
        count += 1
        ratio = score(v)[0] - mixture.log_prob(v)
        step = 1.0 - t if count == max_temperatures else _next_step(ratio, 1.0 - t, keep)
        log_w = step * ratio
        log_z += float(logsumexp(log_w)) - np.log(num_particles)
        variance += float(np.exp(logsumexp(2.0 * log_w) - 2.0 * logsumexp(log_w))) - 1.0 / num_particles
        levels = (np.arange(num_particles) + rng.uniform()) / num_particles
        total = np.cumsum(np.exp(log_w - logsumexp(log_w)))
        v = v[np.minimum(np.searchsorted(total, levels * total[-1]), num_particles - 1)]
        t = min(t + step, 1.0)

        def between(v: np.ndarray, t: float = t) -> tuple[np.ndarray, np.ndarray]:
            (value, grad), (log_q, grad_q) = score(v), mixture.score(v)
            return t * value + (1.0 - t) * log_q, t * grad + (1.0 - t) * grad_q

        v = mover.move(between if t < 1.0 else score, v, num_moves)
    error = float(np.sqrt(variance))
    last: list[np.ndarray] = [v]
    while True:
        found: list[np.ndarray] = []
        try:
            for _ in range(generations):
                v = mover.move(score, v, moves_between)
                found.append(v)
        except BudgetSpentError:
            found, moves_between = found if len(found) > 1 else last, max_moves
        last, stack = found, np.stack(found)
        apart = (stack - stack.mean((0, 1))) / stack.std((0, 1))
        worth, inner = (
            np.minimum(grouped_ess(part), grouped_ess(part**2)) / num_particles for part in (apart, np.clip(apart, -3.0, 3.0))
        )
        # A few particles far out do not prolong the run; but where they have not mixed, the report says so.
        if np.min(inner) >= _SETTLED or moves_between >= max_moves:
            return Bridge(stack, log_z, error, count, mover.accept, moves_between, float(np.min(worth)), int(np.argmin(worth)))
        moves_between *= 2


def grouped_ess(v: np.ndarray) -> np.ndarray:
    """Effective number of draws [D] in generations [G, N, D] of independent particles."""
    return v.shape[1] * v.reshape(-1, v.shape[-1]).var(0) / v.mean(0).var(0)


def _next_step(ratio: np.ndarray, most: float, keep: float) -> float:
    def share(step: float) -> float:
        log_w = np.where(np.isfinite(ratio), step * ratio, -np.inf)
        return float(np.exp(2.0 * logsumexp(log_w) - logsumexp(2.0 * log_w))) / len(ratio)

    low, high = 0.0, most
    if share(most) >= keep:
        return most
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= keep else (low, middle)
    return max(low, 1e-6)
