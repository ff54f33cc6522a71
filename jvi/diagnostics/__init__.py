"""Diagnostics: how far a fit can be trusted."""

from __future__ import annotations

from jvi.bounds import ess
from jvi.diagnostics.psis import khat_threshold, pareto_khat, psis
from jvi.diagnostics.verdict import Verdict, elbo_estimate, verdict

__all__ = ["Verdict", "elbo_estimate", "ess", "khat_threshold", "pareto_khat", "psis", "verdict"]
