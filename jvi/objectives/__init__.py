"""Objectives: a model, a guide, a bound and a gradient put together into `(params, rng, x) -> (bound, aux)`.

The value is the bound itself, in nats, and its `jax.grad` is the estimator that the objective is named for.
"""

from __future__ import annotations

from jvi.objectives._base import Aux, Objective, Params
from jvi.objectives.analytic import elbo_entropy, elbo_kl
from jvi.objectives.augmented import augmented
from jvi.objectives.data import per_example, subsampled
from jvi.objectives.disarm import disarm
from jvi.objectives.divergences import cubo, f_divergence, tail_adaptive
from jvi.objectives.doubly import dreg
from jvi.objectives.fivo import fivo
from jvi.objectives.floors import free_bits
from jvi.objectives.grouped import miwae, piwae
from jvi.objectives.hierarchical import global_local
from jvi.objectives.monte_carlo import MonteCarlo
from jvi.objectives.rao_blackwell import rao_blackwell
from jvi.objectives.relax import rebar, relax
from jvi.objectives.reweighted import forward_kl, wake_sleep
from jvi.objectives.scored import enumerate_elbo, score, vimco
from jvi.objectives.stratified import stratified
from jvi.objectives.thermodynamic import covariance, tvo
from jvi.objectives.training import training
from jvi.objectives.weighted import elbo, iwae, renyi

__all__ = [
    "Aux",
    "MonteCarlo",
    "Objective",
    "Params",
    "augmented",
    "covariance",
    "cubo",
    "disarm",
    "dreg",
    "elbo",
    "elbo_entropy",
    "elbo_kl",
    "enumerate_elbo",
    "f_divergence",
    "fivo",
    "forward_kl",
    "free_bits",
    "global_local",
    "iwae",
    "miwae",
    "per_example",
    "piwae",
    "rao_blackwell",
    "rebar",
    "relax",
    "renyi",
    "score",
    "stratified",
    "subsampled",
    "tail_adaptive",
    "training",
    "tvo",
    "vimco",
    "wake_sleep",
]
