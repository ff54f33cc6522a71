"""The table of laws: every guide with a posterior that it holds exactly, a row each."""

from __future__ import annotations

import cases_composed
import cases_core
import cases_families
import cases_flows
import cases_hierarchical
import cases_linked

CASES = (
    cases_core.CASES
    | cases_linked.CASES
    | cases_composed.CASES
    | cases_families.CASES
    | cases_flows.CASES
    | cases_hierarchical.CASES
)
