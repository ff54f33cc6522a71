"""The stages of `jvi.infer`: what each finds, and what to do about it."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from jvi._bridge import Bridge, Mover, bridge
from jvi._frames import Affine, Frame
from jvi._journal import AGREE, Journal
from jvi._mixtures import Mixture
from jvi._progress import Stages
from jvi._proposals import drift, enriched, proposal
from jvi._search import DENSE, Search
from jvi._targets import BudgetSpentError, Density
from jvi._typing import Estimate
from jvi.gaussian_fits._bends import best_bent
from jvi.gaussian_fits._climb import LOG_2PI, Gaussian
from jvi.gaussian_fits._weigh import DRAWS, KHAT, Weighed, weigh
from jvi.posterior import Posterior

_PARTICLES = 1_024  # of each of two bridges
_WIDER = 1.5  # times, that every second bridge begins wider: what two agree on does not hang on where they began
_FEW = 40  # coordinates up to which mixtures adapt: their covariances are learned from some thousand draws
_VALLEYS = 10  # coordinates up to which many components trace a curved valley
_BEND = 128  # coordinates up to which frames bend
_MORE = 40_000  # draws of a proposal, where 10,000 are worth too few
_LAST = 2_000  # draws of what the budget left unfinished


class Run:
    """One inference: what the stages found so far, and what to do about it."""

    def __init__(
        self, density: Density, rng: np.random.Generator, seconds: float, grads: float, began: float, progress: Stages
    ) -> None:
        self.density, self.rng, self.began, self.journal = density, rng, began, Journal(density, began, progress)
        self.size, self.opening = density.target.space.size, Search(density, rng, self.journal)
        self.best: tuple[Weighed, Mixture] | None = None
        density.deadline, density.most_grads = began + seconds, grads
        self.bridges: list[Bridge] = []

    def all(self) -> Posterior:
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is looked at, not feared
                return self.search()
        except BudgetSpentError:
            if not self.journal.stages[-1].finding:
                self.journal.end("left off: the budget is spent")
            spent = f"the budget is spent, {perf_counter() - self.began:.0f} s and {self.density.num_grads:,} gradients"
            self.journal.doubts[spent] = "Allow more by budget=jvi.Budget(...)."
            self.density.deadline = self.density.most_grads = float("inf")
            fits = self.opening.fits
            if self.best is None and not fits:
                raise TimeoutError(f"{spent}, before there was a fit: allow more by budget=jvi.Budget(...).") from None
            best = self.best
            if best is None:
                self.frame = self.journal.gaussian = Affine(fits[0].loc, fits[0].chol)
                self.journal.elbo = self.fresh_elbo(self.frame)
                mixture = proposal(self.frame, fits[:1])
                best = self.weigh(mixture, _LAST), mixture
            if self.bridges:
                return self.journal.bridged(self.bridges[-2:][0], self.bridges[-1], self.frame)
            return self.journal.weighted(*best, drift=0.0)

    def search(self) -> Posterior:
        opening = self.opening
        points = opening.look()
        grown = opening.grow(points[0])
        fits = opening.settle(grown or opening.refine(opening.explore(points)))
        if found := self.passed(fits):
            return found
        if grown and self.size <= DENSE:
            fits = opening.refine([*fits, *opening.explore(points)])
            if found := self.passed(fits):
                return found
        weighed, mixture = self.weighed
        before = self.journal.elbo
        if bent := self.bend(fits):
            again = self.weigh(bent)
            if again.quality > weighed.quality:
                weighed, mixture = again, bent
            else:
                self.frame, self.journal.elbo = self.journal.gaussian, before
        if found := self.settled(weighed, mixture):
            return found
        for count in (8, 32) if self.size <= _VALLEYS else (8,) if self.size <= _FEW else ():
            better = self.adapt(mixture, count)
            again = self.weigh(better)
            if found := self.settled(again, better):
                return found
            if again.quality > weighed.quality:
                weighed, mixture = again, better
        return self.bridge(mixture)

    def passed(self, fits: list[Gaussian]) -> Posterior | None:
        """The posterior, where the weights of the Gaussians' draws are even."""
        self.frame = self.journal.gaussian = Affine(fits[0].loc, fits[0].chol)
        self.journal.elbo = self.fresh_elbo(self.frame)
        mixture = proposal(self.frame, fits)
        self.weighed = weighed, _ = self.weigh(mixture), mixture
        return self.journal.weighted(weighed, mixture, 0.0) if weighed.good and weighed.ess >= 0.5 * len(weighed.u) else None

    def settled(self, weighed: Weighed, mixture: Mixture) -> Posterior | None:
        """The posterior, where the weights pass and Hamiltonian moves leave the draws where they are."""
        if weighed.khat + weighed.khat_se < KHAT and weighed.ess < 0.5 * len(weighed.u):
            weighed = self.weigh(mixture, _MORE)
        if not weighed.good:
            return None
        shift = self.stir(weighed)
        return self.journal.weighted(weighed, mixture, shift) if shift < AGREE else None

    # -- stages ------------------------------------------------------------------------------------------------------------

    def bend(self, fits: list[Gaussian]) -> Mixture | None:
        """Let coordinates set the scale of others, if that gains more than chance: the weights of fresh draws will tell.

        The fresh ELBO alone does not: a single draw far out takes nats off it, and nothing off the weights.
        """
        if self.size > _BEND:
            return None
        self.journal.begin("bend")
        frame, elbo = best_bent(self.density, self.journal.gaussian, self.rng)
        fresh, gain = self.fresh_elbo(frame), elbo - self.journal.elbo.value
        mixture = None
        if gain > 0.05 + 2.0 * self.journal.elbo.standard_error:
            try:
                self.frame = frame
                mixture, self.journal.elbo = proposal(self.frame, fits), fresh
            except np.linalg.LinAlgError:  # another optimum lies where the map folds up
                self.frame = self.journal.gaussian
        self.journal.end(
            f"triangular map, sample-average ELBO {elbo:.2f}, fresh {fresh}: " + ("tried" if mixture else "no gain")
        )
        return mixture

    def fresh_elbo(self, frame: Frame) -> Estimate:
        v = self.rng.normal(size=(2_048, self.size))
        values = self.density.values(frame.out(v)) + frame.log_det(v) + 0.5 * np.sum(v**2, 1) + 0.5 * self.size * LOG_2PI
        finite = values[np.isfinite(values)]
        return Estimate(
            float(np.mean(values)) if len(finite) == len(values) else -np.inf, float(np.std(finite) / np.sqrt(len(values)))
        )

    def weigh(self, mixture: Mixture, num_samples: int = DRAWS) -> Weighed:
        self.journal.begin("weigh")
        found = weigh(self.density, self.frame, mixture, self.rng, num_samples)
        self.journal.end(f"k-hat {found.khat:.2f} ± {found.khat_se:.2f}, ESS {found.ess:,.0f} of {num_samples:,}")
        if self.best is None or found.quality > self.best[0].quality:
            self.best = found, mixture
        return found

    def adapt(self, mixture: Mixture, num_components: int = 8) -> Mixture:
        self.journal.begin("adapt")
        found = enriched(self.density, self.frame, mixture, self.rng, num_components)
        self.journal.end(f"{len(found.loc)} Student-t components with {found.df:.0f} degrees of freedom")
        return found

    def stir(self, weighed: Weighed, num_particles: int = 512, num_moves: int = 8) -> float:
        """How far Hamiltonian moves carry the weighed draws, in sds beyond what chance explains: 0 where they are right."""
        self.journal.begin("stir")
        before = self.frame.into(weighed.u[self.rng.choice(len(weighed.u), num_particles, p=np.exp(weighed.smoothed))])
        mover = Mover(self.rng, self.size)
        shift = drift(before, mover.move(self.score, before, num_moves))
        self.journal.end(f"Hamiltonian moves, {mover.accept:.0%} accepted, shift moments by {shift:.2f} sd beyond chance")
        return shift

    def bridge(self, mixture: Mixture) -> Posterior:
        """Two tempered bridges; where they leave a doubt, more of them with ever more moves, while there is time: the last two tell."""
        moves, keep, longer = 4, 0.5, 4.0
        while len(self.bridges) < 2 or (longer >= 1.0 and self.wanting()):
            self.journal.begin("bridge")
            begin = mixture if len(self.bridges) % 2 == 0 else mixture._replace(chol=_WIDER * mixture.chol)
            one = bridge(self.score, begin, self.rng, keep=keep, num_particles=_PARTICLES, moves_between=moves)
            self.bridges.append(one)
            self.journal.end(
                f"{one.num_temperatures} temperatures, {one.accept:.0%} accepted, log evidence {one.log_evidence:.2f}, mixing "
                f"{one.mixing:.1f} with {one.moves} moves"
            )
            if len(self.bridges) > 1:
                longer = min(4.0, 0.8 * self.density.left(self.began) / self.journal.stages[-1].seconds)
            # What has not settled after one's moves differs after the next one's.
            moves, keep = max(int(longer * moves), one.moves), 0.8
        return self.journal.bridged(self.bridges[-2], self.bridges[-1], self.frame)

    def wanting(self) -> bool:
        """Whether the last two bridges leave a doubt, and there is none that no bridge could dispel."""
        return not self.journal.doubts and bool(self.journal.apart(self.bridges[-2], self.bridges[-1], self.frame))

    def score(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The target and its gradient in the frame."""
        values, grads = self.density.grads(self.frame.out(v))
        return values + self.frame.log_det(v), self.frame.pull(v, grads)
