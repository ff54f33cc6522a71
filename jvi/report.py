"""What is known about a fit: the report that every result carries."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Report", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One stage of a fit.

    Attributes:
      name: what was done.
      finding: what came of it, and what was decided.
      seconds: wall time, compilation included.
    """

    name: str
    finding: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """How far a posterior can be trusted, and why.

    Attributes:
      trusted: whether every check passed.
      reasons: what the verdict rests on; where it is not trusted, what failed.
      advice: what to do next; empty where nothing need be done.
      method: what the draws come from.
      elbo, elbo_se: of the best Gaussian, nats, from fresh draws, with its standard error.
      log_evidence, log_evidence_se: log p(x), nats, with its standard error.
      khat, khat_se: tail shape of the importance weights, the mean of four batches, and its standard error; NaN where the draws
        are not importance-weighted.
      ess: effective number of draws.
      num_draws: how many there are.
      num_starts, num_optima: ascents, and the distinct optima they ended in.
      bridge_gap: largest difference between two bridges of different lengths, in posterior sds; NaN where none was needed.
      num_grads, num_densities: gradients and log-densities evaluated.
      seconds: wall time, compilation included.
      stages: what each stage found and decided.

    Example:
      >>> import jvi
      >>> report = jvi.Report(trusted=False, reasons=("k-hat is 0.93",), advice=("Reparameterize.",), method="Gaussian")
      >>> print(str(report).splitlines()[0])
      NOT TRUSTED: k-hat is 0.93.
    """

    trusted: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    method: str
    elbo: float = float("nan")
    elbo_se: float = float("nan")
    log_evidence: float = float("nan")
    log_evidence_se: float = float("nan")
    khat: float = float("nan")
    khat_se: float = float("nan")
    ess: float = 0.0
    num_draws: int = 0
    num_starts: int = 0
    num_optima: int = 0
    bridge_gap: float = float("nan")
    num_grads: int = 0
    num_densities: int = 0
    seconds: float = 0.0
    stages: tuple[Stage, ...] = field(default=())

    def __str__(self) -> str:
        verdict = "TRUSTED" if self.trusted else "NOT TRUSTED"
        lines = [f"{verdict}: {'; '.join(self.reasons)}."]
        lines += [f"  next: {advice}" for advice in self.advice]
        facts = [f"draws from {self.method}"]
        facts += [f"ELBO {self.elbo:.3f} ± {self.elbo_se:.3f}"] if self.elbo == self.elbo else []
        if self.log_evidence == self.log_evidence:
            facts.append(f"log evidence {self.log_evidence:.3f} ± {self.log_evidence_se:.3f}")
        facts += [f"k-hat {self.khat:.2f} ± {self.khat_se:.2f}"] if self.khat == self.khat else []
        facts += [f"bridges agree to {self.bridge_gap:.2f} sd"] if self.bridge_gap == self.bridge_gap else []
        facts.append(f"ESS {self.ess:,.0f} of {self.num_draws:,}")
        facts.append(f"{self.num_optima} optimum" if self.num_optima == 1 else f"{self.num_optima} optima")
        facts.append(f"{self.num_grads:,} gradients, {self.num_densities:,} densities, {self.seconds:.1f} s")
        return "\n".join([*lines, "  " + ", ".join(facts)])
