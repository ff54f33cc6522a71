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
from jvi._targets import BudgetSpentError, Density
from jvi._typing import Estimate
from jvi.gaussian_fits._bends import best_bent
from jvi.gaussian_fits._climb import LOG_2PI, Climb, Gaussian, climb
from jvi.gaussian_fits._draws import whitened
from jvi.gaussian_fits._optima import MASS, distinct, others
from jvi.gaussian_fits._pattern import declared
from jvi.gaussian_fits._saa import diagonal, full_rank
from jvi.gaussian_fits._trees import tree_fit
from jvi.gaussian_fits._weigh import DRAWS, KHAT, Weighed, weigh
from jvi.posterior import Posterior

_STARTS = 8
_PARTICLES = 1_024  # of each of two bridges
_WIDER = 1.5  # times, that every second bridge begins wider: what two agree on does not hang on where they began
_ROUNDS = 12  # of ascents from afar
_FEW = 40  # coordinates up to which mixtures adapt: their covariances are learned from some thousand draws
_VALLEYS = 10  # coordinates up to which many components trace a curved valley
_DENSE = 600  # coordinates up to which every entry of a covariance is fitted
_LARGE_STEPS = 4  # of Newton's method in more coordinates than that, each a gradient a coordinate
_TREE = 100  # coordinates from which a declared chain or tree is fitted as such
_BEND = 128  # coordinates up to which frames bend
_UNBOUNDED = 1e50  # nats, where an ascent is taken to have no end
_MORE = 40_000  # draws of a proposal, where 10,000 are worth too few
_LAST = 2_000  # draws of what the budget left unfinished


class Run:
    """One inference: what the stages found so far, and what to do about it."""

    def __init__(
        self, density: Density, rng: np.random.Generator, seconds: float, grads: float, began: float, progress: Stages
    ) -> None:
        self.density, self.rng, self.began, self.journal = density, rng, began, Journal(density, began, progress)
        self.size = density.target.space.size
        self.names = density.target.space.names
        self.fits: list[Gaussian] = []
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
            if self.best is None and not self.fits:
                raise TimeoutError(f"{spent}, before there was a fit: allow more by budget=jvi.Budget(...).") from None
            best = self.best
            if best is None:
                self.frame = self.journal.gaussian = Affine(self.fits[0].loc, self.fits[0].chol)
                self.journal.elbo = self.fresh_elbo(self.frame)
                mixture = proposal(self.frame, self.fits[:1])
                best = self.weigh(mixture, _LAST), mixture
            if self.bridges:
                return self.journal.bridged(self.bridges[-2:][0], self.bridges[-1], self.frame)
            return self.journal.weighted(*best, drift=0.0)

    def search(self) -> Posterior:
        points = self.look()
        grown = self.grow(points[0])
        fits = grown or self.refine(self.explore(points))
        empty = 0
        for _ in range(_ROUNDS):
            before, fits = fits, self.scatter(fits)
            empty = empty + 1 if len(fits) == len(before) else 0
            if empty == min(len(fits), 3):  # one search for a single optimum, three in vain where there are several
                break
        else:
            self.journal.doubts[f"{_ROUNDS} searches for optima had no end"] = (
                "Look for a symmetry that makes optima alike, and break it."
            )
        if found := self.passed(fits):
            return found
        if grown and self.size <= _DENSE:
            fits = self.refine([*fits, *self.explore(points)])
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

    def look(self) -> np.ndarray:
        """Points [S, D] where the target is finite, the best to begin from first."""
        self.journal.begin("look")
        # In order of preference: the origin, Stan's box, a small box, a wide cloud.
        box = self.rng.uniform(-2.0, 2.0, size=(191, self.size)) * np.where(np.arange(191) < 127, 1.0, 0.2)[:, None]
        points = np.concatenate([np.zeros((1, self.size)), box, 5.0 * self.rng.normal(size=(64, self.size))])
        values, grads = self.density.grads(points)
        finite = np.isfinite(values)
        if not finite.any():
            raise ValueError(
                f"the log-joint and its gradient are finite at none of {len(points)} points around the origin of the coordinates "
                f"of {self.density.target.space}. Look for a log or a division of something that can be zero or negative, or a "
                "support that is wider than where the log-joint is defined."
            )
        flat = [self.names[i] for i in np.flatnonzero(np.all(grads[finite] == 0.0, axis=0))]
        if flat:
            raise ValueError(
                f"the log-joint has no slope in {', '.join(flat[:5])} at any of {int(finite.sum())} points: the posterior is improper "
                "there, or the log-joint is a step function. Give it a prior, sum a discrete latent out, or take it out of the space."
            )
        self.journal.end(f"finite at {int(finite.sum())} of {len(points)} points")
        return points[finite]

    def grow(self, begin: np.ndarray) -> list[Gaussian]:
        """The Gaussian of a chain or tree that the space declares."""
        pattern = declared(self.density.target.space)
        if pattern is None or self.size < _TREE:
            return []
        self.rough = self.size > _DENSE
        self.journal.begin("grow")
        self.journal.num_starts = self.journal.num_optima = 1
        found = tree_fit(self.density, pattern, begin, self.rng)
        self.fits = [found] if np.isfinite(found.elbo) else []
        self.journal.end(
            f"Gaussian of a tree of {len(pattern.parents):,} nodes and {pattern.num_free} free coordinates, sample-average ELBO "
            f"{found.elbo:.2f}"
        )
        return self.fits

    def explore(self, points: np.ndarray) -> list[Gaussian]:
        self.journal.begin("explore")
        self.journal.num_starts = starts = _STARTS if self.size <= 100 else 2 if self.size <= _DENSE else 1
        begin, large = points[:starts], self.size > _DENSE
        if large:  # the highest point of many coordinates may lie far from where the mass is
            narrow = Gaussian(begin[0], 0.1 * np.eye(self.size), -np.inf)
            draws = whitened(self.rng, 64, self.size, dense=False)
            self.fits = [diagonal(self.density, narrow, draws, num_steps=200)]
            begin = self.fits[0].loc[None]
        climbs = climb(self.density, begin, self.rng, num_steps=_LARGE_STEPS if large else 80)
        fits = self.fits + [one.best for one in climbs if np.isfinite(one.best.elbo)]
        self.rough = large and not climbs[0].converged
        fits.sort(key=lambda fit: -fit.elbo)
        top = max(climbs, key=lambda one: one.log_density)
        if not fits or top.log_density > _UNBOUNDED:
            raise ValueError(self._broken(top))
        kept = [fit for fit in distinct(fits) if fit.elbo > fits[0].elbo - 30.0][:4]
        self.fits = kept
        ended = sum(one.converged for one in climbs)
        self.journal.end(
            f"{ended} of {len(climbs)} ascents ended in an optimum, {len(kept)} distinct; best ELBO {fits[0].elbo:.2f}"
        )
        return kept

    def _broken(self, top: Climb) -> str:
        """Why there is no Gaussian around the highest point that an ascent reached."""
        sds = np.sqrt(np.sum(top.chol**2, 1))
        sides = np.concatenate([top.mode + 2.0 * np.diag(sds), top.mode - 2.0 * np.diag(sds)])
        outside = np.isneginf(self.density.values(sides)).reshape(2, -1).any(0)
        if np.max(np.abs(top.mode)) > 1e6 or not outside.any():
            far = int(np.argmax(np.abs(top.mode)))
            return f"ascents led to {self.names[far]} = {top.mode[far]:.3g} and had no end: the log-joint is unbounded above."
        named = ", ".join(self.names[i] for i in np.flatnonzero(outside))
        return (
            f"the log-joint is not finite on both sides of its highest point in {named}: it ends where the space goes on. Say so in "
            "the space, by jvi.positive, jvi.interval or the like."
        )

    def refine(self, fits: list[Gaussian]) -> list[Gaussian]:
        self.journal.begin("refine")
        if self.size <= _DENSE:
            draws = whitened(self.rng, 2 ** int(np.ceil(np.log2(max(64, 4 * self.size)))), self.size)
            found = [self._bounded(fit, full_rank(self.density, fit, draws)) for fit in fits]
        else:
            draws = whitened(self.rng, 64, self.size, dense=False)
            found = [self._bounded(fit, diagonal(self.density, fit, draws, num_steps=100)) for fit in fits]
        found.sort(key=lambda fit: -fit.elbo)
        kept = [fit for fit in distinct(found) if fit.elbo > found[0].elbo - MASS]
        self.fits, self.journal.num_optima = kept, len(kept)
        self.journal.end(
            f"full-rank Gaussian, sample-average ELBO {kept[0].elbo:.2f}" + (f"; {len(kept)} optima" if len(kept) > 1 else "")
        )
        return kept

    def _bounded(self, start: Gaussian, found: Gaussian) -> Gaussian:
        """`found`, or where its width ran away, which it does for what cannot be normalized, the start and a doubt."""
        wide, before = (np.sqrt(np.sum(fit.chol**2, 1)) for fit in (found, start))
        runaway = np.flatnonzero(~(wide < 1e8 * before))
        if np.isfinite(found.elbo) and not len(runaway):
            return found
        named = ", ".join(self.names[i] for i in runaway[:5]) or "some direction"
        reason = f"the ELBO has no maximum, it grows with the width of {named}: the posterior may be improper there"
        self.journal.doubts[reason] = "Give every latent a proper prior."
        return start

    def scatter(self, fits: list[Gaussian]) -> list[Gaussian]:
        if self.rough:
            return fits
        self.journal.begin("scatter")
        found = others(self.density, fits, self.rng)
        self.journal.end(f"ascents from afar found {len(found)} other optima")
        return self.refine([*fits, *found]) if found else fits

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
