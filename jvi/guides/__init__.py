"""Guides: q(z | x), one family a file."""

from __future__ import annotations

from jvi.guides.compose import product, sequence
from jvi.guides.conditional import conditional
from jvi.guides.functions import Guide, from_distribution, from_functions
from jvi.guides.gaussian import FullRank, MeanField
from jvi.guides.low_rank import LowRank

__all__ = [
    "FullRank",
    "Guide",
    "LowRank",
    "MeanField",
    "conditional",
    "from_distribution",
    "from_functions",
    "product",
    "sequence",
]
