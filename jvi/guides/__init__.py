"""Guides: q(z | x), one family a file."""

from __future__ import annotations

from jvi.guides.amortize import amortize, num_params
from jvi.guides.annealed import Annealed
from jvi.guides.auto import auto
from jvi.guides.autoregressive import AutoregressiveSequence, Gated
from jvi.guides.autoregressive_flows import InverseAutoregressive, MaskedAutoregressive
from jvi.guides.auxiliary import Auxiliary
from jvi.guides.block_diagonal import BlockDiagonal
from jvi.guides.compose import product, sequence
from jvi.guides.conditional import conditional
from jvi.guides.delta import Delta
from jvi.guides.functions import Guide, from_distribution, from_functions
from jvi.guides.gaussian import FullRank, MeanField
from jvi.guides.given import given
from jvi.guides.hold import freeze, partial
from jvi.guides.importance_weighted import ImportanceWeighted
from jvi.guides.low_rank import LowRank
from jvi.guides.markov import Markov
from jvi.guides.mixture import Mixture
from jvi.guides.neural_spline import NeuralSpline
from jvi.guides.parameterize import parameterize
from jvi.guides.plate import plate
from jvi.guides.precision import Precision
from jvi.guides.real_nvp import RealNVP
from jvi.guides.semi_implicit import SemiImplicit
from jvi.guides.sinh_arcsinh import DenseSinhArcsinh, SinhArcsinh
from jvi.guides.student_t import StudentT
from jvi.guides.transform import transform
from jvi.guides.tree import Tree

__all__ = [
    "Annealed",
    "AutoregressiveSequence",
    "Auxiliary",
    "BlockDiagonal",
    "Delta",
    "DenseSinhArcsinh",
    "FullRank",
    "Gated",
    "Guide",
    "ImportanceWeighted",
    "InverseAutoregressive",
    "LowRank",
    "Markov",
    "MaskedAutoregressive",
    "MeanField",
    "Mixture",
    "NeuralSpline",
    "Precision",
    "RealNVP",
    "SemiImplicit",
    "SinhArcsinh",
    "StudentT",
    "Tree",
    "amortize",
    "auto",
    "conditional",
    "freeze",
    "from_distribution",
    "from_functions",
    "given",
    "num_params",
    "parameterize",
    "partial",
    "plate",
    "product",
    "sequence",
    "transform",
]
