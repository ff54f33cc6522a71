"""Guides: q(z | x), one family a file."""

from __future__ import annotations

from jvi.guides.autoregressive import AutoregressiveSequence, Gated
from jvi.guides.compose import product, sequence
from jvi.guides.conditional import conditional
from jvi.guides.functions import Guide, from_distribution, from_functions
from jvi.guides.gaussian import FullRank, MeanField
from jvi.guides.low_rank import LowRank
from jvi.guides.markov import Markov
from jvi.guides.tree import Tree

__all__ = [
    "AutoregressiveSequence",
    "FullRank",
    "Gated",
    "Guide",
    "LowRank",
    "Markov",
    "MeanField",
    "Tree",
    "conditional",
    "from_distribution",
    "from_functions",
    "product",
    "sequence",
]
