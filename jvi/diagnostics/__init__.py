"""Diagnostics: how far a fit can be trusted."""

from __future__ import annotations

from jvi._typing import Estimate
from jvi.bounds import ess
from jvi.diagnostics.psis import khat_threshold, pareto_khat, psis
from jvi.diagnostics.verdict import Verdict, diagnose, elbo_estimate, mean_of, verdict

__all__ = [
    "Estimate",
    "Verdict",
    "diagnose",
    "elbo_estimate",
    "ess",
    "khat_threshold",
    "mean_of",
    "pareto_khat",
    "psis",
    "verdict",
]
