"""The stages of `jvi.infer`: what each finds, and what to do about it."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from jvi._bridge import MIXED, Bridge, Mover, bridge, grouped_ess
from jvi._frames import Affine, Bent
from jvi._mixtures import Mixture, adapted
from jvi._progress import Stages
from jvi._targets import BudgetSpentError, Density
from jvi._typing import Estimate
from jvi.gaussian_fits._climb import LOG_2PI, Climb, Gaussian, climb
from jvi.gaussian_fits._draws import whitened
from jvi.gaussian_fits._optima import MASS, distinct, others
from jvi.gaussian_fits._saa import bent, diagonal, full_rank
from jvi.gaussian_fits._weigh import DRAWS, ESS, KHAT, Weighed, posterior_of, weigh
from jvi.posterior import Posterior
from jvi.report import Report, Stage

_AGREE = 0.1  # sds
_STARTS = 8
_PARTICLES = 1_024  # of each of two bridges
_ROUNDS = 12  # of ascents from afar
_FEW = 40  # coordinates up to which mixtures adapt: their covariances are learned from some thousand draws
_VALLEYS = 10  # coordinates up to which many components trace a curved valley
_DENSE = 600  # coordinates up to which every entry of a covariance is fitted
_LARGE_STEPS = 4  # of Newton's method in more coordinates than that, each a gradient a coordinate
_BEND = 128  # coordinates up to which frames bend
_UNBOUNDED = 1e50  # nats, where an ascent is taken to have no end
_UNEVEN = 100.0  # effective draws below which weights do more harm than good
_MORE = 40_000  # draws of a proposal, where 10,000 are worth too few
_LAST = 2_000  # draws of what the budget left unfinished


class Run:
    """One inference: what the stages found so far, and what to do about it."""

    def __init__(
        self, density: Density, rng: np.random.Generator, seconds: float, grads: float, began: float, progress: Stages
    ) -> None:
        self.density, self.rng, self.began, self.progress = density, rng, began, progress
        self.size = density.target.space.size
        self.names = density.target.space.names
        self.stages: list[Stage] = []
        self.num_starts = self.num_optima = 0
        self.fits: list[Gaussian] = []
        self.best: tuple[Weighed, Mixture] | None = None
        density.deadline, density.most_grads = began + seconds, grads
        self.bridges: list[Bridge] = []
        self.doubts: dict[str, str] = {}  # advice by reason

    def all(self) -> Posterior:
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is looked at, not feared
                return self.search()
        except BudgetSpentError:
            if not self.stages[-1].finding:
                self.end("left off: the budget is spent")
            spent = f"the budget is spent, {perf_counter() - self.began:.0f} s and {self.density.num_grads:,} gradients"
            self.doubts[spent] = "Allow more by budget=jvi.Budget(...)."
            self.density.deadline = self.density.most_grads = float("inf")
            if self.best is None and not self.fits:
                raise TimeoutError(f"{spent}, before there was a fit: allow more by budget=jvi.Budget(...).") from None
            best = self.best
            if best is None:
                self.frame = self.affine = Affine(self.fits[0].loc, self.fits[0].chol)
                self.elbo = self.fresh_elbo(self.frame)
                mixture = self.proposal(self.fits[:1])
                best = self.weigh(mixture, _LAST), mixture
            if self.bridges:
                return self.bridged(self.bridges[0], self.bridges[-1])
            return self.weighted(*best, drift=0.0)

    def search(self) -> Posterior:
        fits = self.refine(self.explore())
        empty = 0
        for _ in range(_ROUNDS):
            before, fits = fits, self.scatter(fits)
            empty = empty + 1 if len(fits) == len(before) else 0
            if empty == min(len(fits), 3):  # one search for a single optimum, three in vain where there are several
                break
        else:
            self.doubts[f"{_ROUNDS} searches for optima had no end"] = (
                "Look for a symmetry that makes optima alike, and break it."
            )
        self.frame = self.affine = Affine(fits[0].loc, fits[0].chol)
        self.elbo = self.fresh_elbo(self.frame)
        mixture = self.proposal(fits)
        weighed = self.weigh(mixture)
        if weighed.good and weighed.ess >= 0.5 * len(weighed.u):
            return self.weighted(weighed, mixture, 0.0)
        before = self.elbo
        if bent := self.bend(fits):
            again = self.weigh(bent)
            if again.quality > weighed.quality:
                weighed, mixture = again, bent
            else:
                self.frame, self.elbo = self.affine, before
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

    def settled(self, weighed: Weighed, mixture: Mixture) -> Posterior | None:
        """The posterior, where the weights pass and Hamiltonian moves leave the draws where they are."""
        if weighed.khat + weighed.khat_se < KHAT and weighed.ess < 0.5 * len(weighed.u):
            weighed = self.weigh(mixture, _MORE)
        if not weighed.good:
            return None
        drift = self.stir(weighed)
        return self.weighted(weighed, mixture, drift) if drift < _AGREE else None

    # -- stages ------------------------------------------------------------------------------------------------------------

    def explore(self) -> list[Gaussian]:
        self.begin("explore")
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
        self.num_starts = starts = _STARTS if self.size <= 100 else 2 if self.size <= _DENSE else 1
        begin, large = points[finite][:starts], self.size > _DENSE
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
        self.end(f"{ended} of {len(climbs)} ascents ended in an optimum, {len(kept)} distinct; best ELBO {fits[0].elbo:.2f}")
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
        self.begin("refine")
        if self.size <= _DENSE:
            draws = whitened(self.rng, 2 ** int(np.ceil(np.log2(max(64, 4 * self.size)))), self.size)
            found = [self._bounded(fit, full_rank(self.density, fit, draws)) for fit in fits]
        else:
            draws = whitened(self.rng, 64, self.size, dense=False)
            found = [self._bounded(fit, diagonal(self.density, fit, draws, num_steps=100)) for fit in fits]
        found.sort(key=lambda fit: -fit.elbo)
        kept = [fit for fit in distinct(found) if fit.elbo > found[0].elbo - MASS]
        self.fits, self.num_optima = kept, len(kept)
        self.end(
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
        self.doubts[reason] = "Give every latent a proper prior."
        return start

    def scatter(self, fits: list[Gaussian]) -> list[Gaussian]:
        if self.rough:
            return fits
        self.begin("scatter")
        found = others(self.density, fits, self.rng)
        self.end(f"ascents from afar found {len(found)} other optima")
        return self.refine([*fits, *found]) if found else fits

    def bend(self, fits: list[Gaussian]) -> Mixture | None:
        """Let coordinates set the scale of others, if that gains more than chance: the weights of fresh draws will tell.

        The fresh ELBO alone does not: a single draw far out takes nats off it, and nothing off the weights.
        """
        if self.size > _BEND:
            return None
        self.begin("bend")
        draws = whitened(self.rng, max(2_048, 16 * self.size), self.size)
        orders, num_steps = ((False, True), 150) if self.size <= 50 else ((False,), 60)
        tries = [bent(self.density, self.affine, draws, led=led, num_steps=num_steps) for led in orders]
        frame, elbo = max(tries, key=lambda found: found[1])
        fresh, gain = self.fresh_elbo(frame), elbo - self.elbo.value
        mixture = None
        if gain > 0.05 + 2.0 * self.elbo.standard_error:
            try:
                self.frame = frame
                mixture, self.elbo = self.proposal(fits), fresh
            except np.linalg.LinAlgError:  # another optimum lies where the map folds up
                self.frame = self.affine
        self.end(f"triangular map, sample-average ELBO {elbo:.2f}, fresh {fresh}: " + ("tried" if mixture else "no gain"))
        return mixture

    def fresh_elbo(self, frame: Affine | Bent) -> Estimate:
        v = self.rng.normal(size=(2_048, self.size))
        values = self.density.values(frame.out(v)) + frame.log_det(v) + 0.5 * np.sum(v**2, 1) + 0.5 * self.size * LOG_2PI
        finite = values[np.isfinite(values)]
        return Estimate(
            float(np.mean(values)) if len(finite) == len(values) else -np.inf, float(np.std(finite) / np.sqrt(len(values)))
        )

    def proposal(self, fits: list[Gaussian]) -> Mixture:
        df = max(12.0, float(self.size))  # in many dimensions heavy tails cost more than they protect
        share = np.exp(np.array([fit.elbo for fit in fits]) - fits[0].elbo)
        log_mix = np.log(0.9 * share / share.sum() + 0.1 / len(fits))
        locs, chols = [np.zeros(self.size)], [np.eye(self.size)]  # the first is what the frame was fitted to
        for fit in fits[1:]:
            v, root = self.frame.into(fit.loc[None])[0], fit.chol
            sides = self.frame.out(v + 1e-5 * np.concatenate([np.eye(self.size), -np.eye(self.size)]))
            slope = (sides[: self.size] - sides[self.size :]).T / 2e-5  # du/dv
            root = np.asarray(np.linalg.solve(slope, root), float)
            locs.append(v)
            chols.append(np.linalg.cholesky(root @ root.T))
        return Mixture(log_mix, np.stack(locs), np.stack(chols), df)

    def weigh(self, mixture: Mixture, num_samples: int = DRAWS) -> Weighed:
        self.begin("weigh")
        found = weigh(self.density, self.frame, mixture, self.rng, num_samples)
        self.end(f"k-hat {found.khat:.2f} ± {found.khat_se:.2f}, ESS {found.ess:,.0f} of {num_samples:,}")
        if self.best is None or found.quality > self.best[0].quality:
            self.best = found, mixture
        return found

    def adapt(self, mixture: Mixture, num_components: int = 8) -> Mixture:
        """The mixture with more components, fitted to the target; a tenth stays with what it was, for what the new ones miss."""
        self.begin("adapt")
        few = num_components <= 8
        first, num_rounds, num_samples = mixture, 10 if few else 24, 3_000 if few else 250 * num_components
        for i in range(num_rounds):
            v = mixture.sample(self.rng, num_samples)
            log_w = self.density.values(self.frame.out(v)) + self.frame.log_det(v) - mixture.log_prob(v)
            log_w = np.where(np.isfinite(log_w), log_w, -1e300)
            mixture = adapted(mixture, v, log_w)
            if i % 4 == 0 and len(mixture.loc) < num_components:
                mixture = self._spread(mixture, v, log_w, min(2 * i + 8, num_components))
        log_mix = np.concatenate([np.log(0.9) + mixture.log_mix, np.log(0.1) + first.log_mix])
        loc, chol = np.concatenate([mixture.loc, first.loc]), np.concatenate([mixture.chol, first.chol])
        self.end(f"{len(loc)} Student-t components with {mixture.df:.0f} degrees of freedom")
        return Mixture(log_mix, loc, chol, mixture.df)

    def _spread(self, mixture: Mixture, v: np.ndarray, log_w: np.ndarray, count: int) -> Mixture:
        """Add components at draws that carry weight, each narrower than the one it came from."""
        weight = np.exp(0.5 * (log_w - log_w.max()))
        chosen = v[self.rng.choice(len(v), size=count, p=weight / weight.sum())]
        owner = np.argmax(mixture.log_mix + mixture.components(chosen)[0], axis=1)
        loc = np.concatenate([mixture.loc, chosen])[:count]
        chol = np.concatenate([mixture.chol, 0.7 * mixture.chol[owner]])[:count]
        return Mixture(np.full(len(loc), -np.log(len(loc))), loc, chol, mixture.df)

    def stir(self, weighed: Weighed, num_particles: int = 512, num_moves: int = 8) -> float:
        """How far Hamiltonian moves carry the weighed draws, in sds beyond what chance explains: 0 where they are right."""
        self.begin("stir")
        before = self.frame.into(weighed.u[self.rng.choice(len(weighed.u), num_particles, p=np.exp(weighed.smoothed))])
        mover = Mover(self.rng, self.size)
        drift = _drift(before, mover.move(self.score, before, num_moves))
        self.end(f"Hamiltonian moves, {mover.accept:.0%} accepted, shift moments by {drift:.2f} sd beyond chance")
        return drift

    def bridge(self, mixture: Mixture) -> Posterior:
        for keep in (0.5, 0.8):
            self.begin("bridge")
            # What has not settled after the first one's moves differs after the second one's.
            moves = max(16, self.bridges[0].moves) if self.bridges else 4
            one = bridge(self.score, mixture, self.rng, keep=keep, num_particles=_PARTICLES, moves_between=moves)
            self.bridges.append(one)
            self.end(
                f"{one.num_temperatures} temperatures, {one.accept:.0%} accepted, log evidence {one.log_evidence:.2f}, mixing "
                f"{one.mixing:.1f} with {one.moves} moves"
            )
        return self.bridged(*self.bridges)

    # -- results -----------------------------------------------------------------------------------------------------------

    def weighted(self, weighed: Weighed, mixture: Mixture, drift: float) -> Posterior:
        reasons, advice = list(self.doubts), list(self.doubts.values())
        if not weighed.good:
            why = f"k-hat {weighed.khat:.2f} ± {weighed.khat_se:.2f} with {weighed.ess:,.0f} effective of {len(weighed.u):,} draws"
            reasons.append(f"{why}: the proposal misses part of the posterior")
            advice.append("Reparameterize the model (non-centred, other supports), or allow a larger budget.")
        if drift >= _AGREE:
            reasons.append(f"Hamiltonian moves shift the draws by {drift:.2f} sd")
        uneven = weighed.ess < _UNEVEN
        if uneven:  # a handful of draws would stand for all
            weighed = weighed._replace(smoothed=np.full(len(weighed.u), -np.log(len(weighed.u))))
        count = len(mixture.loc)
        method = "a Student-t at the fit" if count == 1 else f"a mixture of {count} Student-t components"
        passed = f"k-hat {weighed.khat:.2f} and {weighed.ess:,.0f} effective draws"
        method = f"{method}, {'unweighted' if uneven else 'Pareto-smoothed'}"
        report = self.report(
            reasons, advice, passed, method, khat=weighed.khat, khat_se=weighed.khat_se,
            log_evidence=weighed.log_evidence, log_evidence_se=weighed.log_evidence_se, ess=weighed.ess, num_draws=len(weighed.u),
        )  # fmt: skip
        return posterior_of(self.density, self.affine.loc, self.affine.chol, report, weighed.u, weighed.smoothed)

    def bridged(self, first: Bridge, last: Bridge) -> Posterior:
        reasons, advice = list(self.doubts), list(self.doubts.values())
        generations = min(len(first.v), len(last.v))  # fewer of one that the budget ended
        both = (first, last) if last is not first else (first,)
        every = np.concatenate([one.v[-generations:] for one in both], 1)
        a, b = (one.v.reshape(-1, self.size) for one in (first, last))
        ess = float(np.min(grouped_ess(every)))
        gap = float(max(np.max(np.abs(a.mean(0) - b.mean(0)) / b.std(0)), np.max(np.abs(np.log(a.std(0) / b.std(0))))))
        evidence_gap, error = abs(first.log_evidence - last.log_evidence), np.hypot(first.log_evidence_se, last.log_evidence_se)
        if gap > 0.4 * _AGREE + 2.0 * np.sqrt(1.0 / ess):  # a false alarm is the lesser fault
            reasons.append(f"two bridges differ by {gap:.2f} sd")
        if evidence_gap > 0.1 + 3.0 * error:
            reasons.append(f"the log evidences of two bridges differ by {evidence_gap:.2f} nats")
        if min(first.mixing, last.mixing) < MIXED:
            worst = self.names[min(first, last, key=lambda one: one.mixing).slowest]
            reasons.append(f"Hamiltonian moves have not carried {worst} through its range")
        if ess < ESS:
            reasons.append(f"only {ess:.0f} effective draws")
        if reasons:
            advice.append("Reparameterize the model (non-centred, other supports), or allow a larger budget.")
        report = self.report(
            reasons, advice, f"two tempered bridges, well mixed, agree to {gap:.2f} sd and {evidence_gap:.2f} nats",
            "tempered bridges with Hamiltonian moves", log_evidence=0.5 * (first.log_evidence + last.log_evidence),
            log_evidence_se=float(0.5 * error), ess=ess, num_draws=every.shape[0] * every.shape[1], bridge_gap=gap,
        )  # fmt: skip
        v = every.reshape(-1, self.size)
        log_w = np.full(len(v), -np.log(len(v)))
        return posterior_of(self.density, self.affine.loc, self.affine.chol, report, self.frame.out(v), log_w, generations)

    def report(self, reasons: list[str], advice: list[str], passed: str, method: str, **values: Any) -> Report:
        return Report(
            trusted=not reasons, reasons=tuple(reasons) or (passed,), advice=tuple(advice), method=method,
            elbo=float(self.elbo.value), elbo_se=float(self.elbo.standard_error),
            num_starts=self.num_starts, num_optima=self.num_optima,
            num_grads=self.density.num_grads, num_densities=self.density.num_values,
            seconds=perf_counter() - self.began, stages=tuple(self.stages), **values,
        )  # fmt: skip

    # -- small things ------------------------------------------------------------------------------------------------------

    def score(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The target and its gradient in the frame."""
        values, grads = self.density.grads(self.frame.out(v))
        return values + self.frame.log_det(v), self.frame.pull(v, grads)

    def begin(self, name: str) -> None:
        self.progress.show(name)
        self.stages.append(Stage(name, "", perf_counter()))

    def end(self, finding: str) -> None:
        last = self.stages[-1]
        self.stages[-1] = Stage(last.name, finding, perf_counter() - last.seconds)


def _drift(before: np.ndarray, after: np.ndarray) -> float:
    """Largest shift of a first or second moment of a coordinate, less three standard errors of it, in sds."""
    scale = before.std(0)
    first = (after - before) / scale
    second = 0.5 * ((after - before.mean(0)) ** 2 - (before - before.mean(0)) ** 2) / scale**2
    shifts = np.concatenate([first, second], axis=1)
    error = shifts.std(0, ddof=1) / np.sqrt(len(shifts))
    return float(np.max(np.maximum(np.abs(shifts.mean(0)) - 3.0 * error, 0.0)))
