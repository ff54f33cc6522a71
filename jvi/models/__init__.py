"""Models: log p(x, z) of one datum and one draw, as a spec."""

from __future__ import annotations

from jvi.models.densities import Model, Split, learned, model, split
from jvi.models.distributions import Generative, WithPrior, generative, with_prior
from jvi.models.sequences import StateSpace, state_space
from jvi.models.training import Trained, trained

__all__ = [
    "Generative",
    "Model",
    "Split",
    "StateSpace",
    "Trained",
    "WithPrior",
    "generative",
    "learned",
    "model",
    "split",
    "state_space",
    "trained",
    "with_prior",
]
