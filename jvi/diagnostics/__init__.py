"""Diagnostics: how far a fit can be trusted."""

from __future__ import annotations

from jvi._typing import Estimate
from jvi.bounds import ess
from jvi.diagnostics.collapse import ActiveUnits, active_units
from jvi.diagnostics.gradient import GradientReport, GradientRow, gradient_report
from jvi.diagnostics.psis import khat_threshold, pareto_khat, psis
from jvi.diagnostics.verdict import Verdict, diagnose, elbo_estimate, mean_of, verdict

__all__ = [
    "ActiveUnits",
    "Estimate",
    "GradientReport",
    "GradientRow",
    "Verdict",
    "active_units",
    "diagnose",
    "elbo_estimate",
    "ess",
    "gradient_report",
    "khat_threshold",
    "mean_of",
    "pareto_khat",
    "psis",
    "verdict",
]
