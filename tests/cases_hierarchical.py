"""Rows of the table of laws: guides by way of auxiliary variables."""

from __future__ import annotations

import math

import distrax
import jax.numpy as jnp
import numpy as np
from cases_core import CASES as CORE
from cases_core import LOC, LOG_EVIDENCE, LOWER, MIXED, SCALE, Case, _mixed, dense
from jax.scipy.stats import norm

import jvi
from jvi.guides import annealed, auxiliary, gaussian, semi_implicit

CAUSE = {"loc": np.array([0.3, -0.6]), "scale": 0.8, "weight": 1.5, "drift": 0.4, "noise": 0.5}
MARGINAL_SCALE = math.hypot(CAUSE["weight"] * CAUSE["scale"], CAUSE["noise"])
GAIN = CAUSE["weight"] * CAUSE["scale"] ** 2 / MARGINAL_SCALE**2
CAUSE_SCALE = CAUSE["scale"] * CAUSE["noise"] / MARGINAL_SCALE


def _effect(params, x):
    loc = params["weight"] * x[1]["a"] + params["drift"] * x[0]
    return distrax.MultivariateNormalDiag(loc, jnp.full(2, params["noise"]))


def _cause(params, x):
    """a given (x, z), of which the marginal mean of z is linear in x."""
    x, z = x
    return distrax.MultivariateNormalDiag(
        params["loc"] + params["gain"] * (z - params["drift"] * x), jnp.full(2, params["scale"])
    )


def _linear_effect(rng, x):
    return {"weight": jnp.ones(()), "drift": jnp.zeros(()), "noise": jnp.ones(())}


def _linear_cause(rng, x):
    return {"loc": jnp.zeros(2), "gain": jnp.zeros(()), "drift": jnp.zeros(()), "scale": jnp.ones(())}


def auxiliary_case():
    """The exact reverse model, and the marginal as the posterior."""
    pair = jvi.guides.sequence(
        a=jvi.guides.MeanField(jvi.space(jvi.real(2))), z=jvi.guides.from_distribution(_linear_effect, _effect)
    )
    forward = {"a": gaussian.Diagonal(CAUSE["loc"], np.full(2, math.log(CAUSE["scale"])))}
    forward["z"] = {name: np.asarray(CAUSE[name]) for name in ("weight", "drift", "noise")}
    reverse = {"loc": CAUSE["loc"] * (1.0 - GAIN * CAUSE["weight"]), "gain": np.asarray(GAIN)}
    reverse |= {"drift": np.asarray(CAUSE["drift"]), "scale": np.asarray(CAUSE_SCALE)}
    guide = jvi.guides.Auxiliary(pair, jvi.guides.from_distribution(_linear_cause, _cause))
    return Case(guide, auxiliary.Reversed(forward, reverse), _marginal, 0.9)


def _marginal(x, z):
    loc = CAUSE["weight"] * CAUSE["loc"] + CAUSE["drift"] * x
    return norm.logpdf(z, loc, MARGINAL_SCALE).sum() + LOG_EVIDENCE


def around(params, x):
    return distrax.MultivariateNormalDiag(params["loc"] + params["weight"] * x[1], jnp.full(2, params["scale"]))


def around_init(rng, x):
    return {"loc": jnp.zeros(2), "weight": jnp.ones(()), "scale": jnp.ones(())}


def _semi_implicit_case():
    """Exact at a finite K only where the draws do not depend on what is mixed over."""
    guide = jvi.guides.SemiImplicit(
        jvi.guides.MeanField(jvi.space(jvi.real(2))), jvi.guides.from_distribution(around_init, around), num_auxiliary=3
    )
    params = semi_implicit.Mixed(
        gaussian.Diagonal(LOC[:2], np.log(SCALE[:2])), {"loc": LOC[1:], "weight": np.zeros(()), "scale": np.asarray(0.7)}
    )
    return Case(guide, params, lambda x, z: norm.logpdf(z, LOC[1:], 0.7).sum() + LOG_EVIDENCE)


def _annealed_case():
    """Between equal densities the energy is kept up to the square of the step."""
    base = jvi.guides.FullRank(jvi.space(MIXED))
    guide = jvi.guides.Annealed(base, jvi.model(_mixed), num_steps=3, init_step=1e-3)
    path = annealed.Path(dense(LOC, LOWER), np.log([1e-3, 3e-3, 2e-3]), np.array([0.3, -0.5, 1.0]), np.asarray(0.8))
    return Case(guide, path, _mixed)


def _hierarchical_beside():
    inner, moved = auxiliary_case(), _annealed_case()
    return Case(
        jvi.guides.product(a=inner.guide, b=jvi.guides.product(c=moved.guide)),
        {"a": inner.params, "b": {"c": moved.params}},
        lambda x, z: _marginal(x, z["a"]) + _mixed(None, z["b"]["c"]) - LOG_EVIDENCE,
        0.9,
    )


CASES = {
    "auxiliary": auxiliary_case(),
    "semi_implicit": _semi_implicit_case(),
    "annealed": _annealed_case(),
    "importance_weighted": Case(
        jvi.guides.ImportanceWeighted(CORE["mean_field"].guide, jvi.model(CORE["mean_field"].log_joint), num_samples=4),
        CORE["mean_field"].params,
        CORE["mean_field"].log_joint,
    ),
    "auxiliary_beside_annealed": _hierarchical_beside(),
}
