"""Encoders: Flax Linen networks from one datum to the numbers of a guide, for `guides.amortize`, `given` and `conditional`."""

from __future__ import annotations

from jvi.encoders.attention import SequenceTransformer, SetTransformer
from jvi.encoders.plain import MLP, Convolutional
from jvi.encoders.recurrent import Recurrent
from jvi.encoders.temporal import TemporalConvolution

__all__ = ["MLP", "Convolutional", "Recurrent", "SequenceTransformer", "SetTransformer", "TemporalConvolution"]
