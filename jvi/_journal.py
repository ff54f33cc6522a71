"""What the stages of `jvi.infer` found, and the report and the posterior made of it."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from jvi._bridge import MIXED, Bridge, grouped_ess
from jvi._frames import Affine, Frame
from jvi._mixtures import Mixture
from jvi._progress import Stages
from jvi._targets import Density
from jvi._typing import Estimate
from jvi.gaussian_fits._weigh import ESS, Weighed, posterior_of
from jvi.posterior import Posterior
from jvi.report import Report, Stage

AGREE = 0.1  # sds
_UNEVEN = 100.0  # effective draws below which weights do more harm than good
_HARD = "Reparameterize the model (non-centred, other supports), or allow a larger budget."


class Journal:
    """Keeps what every stage found, and judges what comes of it.

    Attributes:
      stages: the stages so far.
      doubts: advice by reason: what speaks against the answer whatever its weights say.
      num_starts, num_optima: ascents, and the distinct optima they ended in.
      gaussian: the best Gaussian.
      elbo: its ELBO, or that of the frame in use.
    """

    gaussian: Affine
    elbo: Estimate

    def __init__(self, density: Density, began: float, progress: Stages) -> None:
        self._density, self._began, self._progress = density, began, progress
        self.stages: list[Stage] = []
        self.doubts: dict[str, str] = {}
        self.num_starts = self.num_optima = 0

    def begin(self, name: str) -> None:
        """A stage begins."""
        self._progress.show(name)
        self.stages.append(Stage(name, "", perf_counter()))

    def end(self, finding: str) -> None:
        """The stage has ended, with this finding."""
        last = self.stages[-1]
        self.stages[-1] = Stage(last.name, finding, perf_counter() - last.seconds)

    def weighted(self, weighed: Weighed, mixture: Mixture, drift: float) -> Posterior:
        """The posterior of weighted draws, which moves shifted by `drift` sds."""
        reasons, advice = list(self.doubts), list(self.doubts.values())
        if not weighed.good:
            why = f"k-hat {weighed.khat:.2f} ± {weighed.khat_se:.2f} with {weighed.ess:,.0f} effective of {len(weighed.u):,} draws"
            reasons.append(f"{why}: the proposal misses part of the posterior")
            advice.append(_HARD)
        if drift >= AGREE:
            reasons.append(f"Hamiltonian moves shift the draws by {drift:.2f} sd")
        uneven = weighed.ess < _UNEVEN
        if uneven:  # a handful of draws would stand for all
            weighed = weighed._replace(smoothed=np.full(len(weighed.u), -np.log(len(weighed.u))))
        count = len(mixture.loc)
        method = "a Student-t at the fit" if count == 1 else f"a mixture of {count} Student-t components"
        passed = f"k-hat {weighed.khat:.2f} and {weighed.ess:,.0f} effective draws"
        method = f"{method}, {'unweighted' if uneven else 'Pareto-smoothed'}"
        report = self._report(
            reasons, advice, passed, method, khat=weighed.khat, khat_se=weighed.khat_se,
            log_evidence=weighed.log_evidence, log_evidence_se=weighed.log_evidence_se, ess=weighed.ess, num_draws=len(weighed.u),
        )  # fmt: skip
        return posterior_of(self._density, self.gaussian.loc, self.gaussian.chol, report, weighed.u, weighed.smoothed)

    def bridged(self, first: Bridge, last: Bridge, frame: Frame) -> Posterior:
        """The posterior of the particles of two bridges, or of one that is both."""
        every, ess = _pooled(first, last)
        gap, evidence_gap, error = _gap(first, last, frame), *_evidence_gap(first, last)
        reasons = [*self.doubts, *self.apart(first, last, frame)]
        advice = [*self.doubts.values(), *([_HARD] if reasons else [])]
        report = self._report(
            reasons, advice, f"two tempered bridges, well mixed, agree to {gap:.2f} sd and {evidence_gap:.2f} nats",
            "tempered bridges with Hamiltonian moves", log_evidence=0.5 * (first.log_evidence + last.log_evidence),
            log_evidence_se=0.5 * error, ess=ess, num_draws=every.shape[0] * every.shape[1], bridge_gap=gap,
        )  # fmt: skip
        v = every.reshape(-1, every.shape[-1])
        log_w = np.full(len(v), -np.log(len(v)))
        return posterior_of(self._density, self.gaussian.loc, self.gaussian.chol, report, frame.out(v), log_w, len(every))

    def apart(self, first: Bridge, last: Bridge, frame: Frame) -> list[str]:
        """What speaks against two bridges, if anything; a false alarm is the lesser fault."""
        (_, ess), reasons = _pooled(first, last), []
        gap, evidence_gap, error = _gap(first, last, frame), *_evidence_gap(first, last)
        if gap > 0.4 * AGREE + 2.0 * np.sqrt(1.0 / ess):
            reasons.append(f"two bridges differ by {gap:.2f} sd")
        if evidence_gap > 0.1 + 3.0 * error:
            reasons.append(f"the log evidences of two bridges differ by {evidence_gap:.2f} nats")
        if min(first.mixing, last.mixing) < MIXED:
            worst = self._density.target.space.names[min(first, last, key=lambda one: one.mixing).slowest]
            reasons.append(f"Hamiltonian moves have not carried {worst} through its range")
        if ess < ESS:
            reasons.append(f"only {ess:.0f} effective draws")
        return reasons

    def _report(self, reasons: list[str], advice: list[str], passed: str, method: str, **values: Any) -> Report:
        return Report(
            trusted=not reasons, reasons=tuple(reasons) or (passed,), advice=tuple(advice), method=method,
            elbo=float(self.elbo.value), elbo_se=float(self.elbo.standard_error),
            num_starts=self.num_starts, num_optima=self.num_optima,
            num_grads=self._density.num_grads, num_densities=self._density.num_values,
            seconds=perf_counter() - self._began, stages=tuple(self.stages), **values,
        )  # fmt: skip


def _pooled(first: Bridge, last: Bridge) -> tuple[np.ndarray, float]:
    """The particles of two bridges, or of one that is both, [G, N, D], and how many independent draws they are worth."""
    generations = min(len(first.v), len(last.v))  # fewer of one that the budget ended
    every = np.concatenate([one.v[-generations:] for one in ((first, last) if last is not first else (first,))], 1)
    return every, float(np.min(grouped_ess(every)))


def _gap(first: Bridge, last: Bridge, frame: Frame) -> float:
    """The largest difference of a mean, in sds, or of the log of an sd, of coordinates: a frame can make tails light that are heavy."""
    a, b = (frame.out(one.v.reshape(-1, one.v.shape[-1])) for one in (first, last))
    return float(max(np.max(np.abs(a.mean(0) - b.mean(0)) / b.std(0)), np.max(np.abs(np.log(a.std(0) / b.std(0))))))


def _evidence_gap(first: Bridge, last: Bridge) -> tuple[float, float]:
    """How far the log evidences of two bridges lie apart, nats, and the standard error of that."""
    return abs(first.log_evidence - last.log_evidence), float(np.hypot(first.log_evidence_se, last.log_evidence_se))
