"""Rows of the table of laws: every family as a part, four combinators deep."""

from __future__ import annotations

import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from cases import CASES
from cases_composed import SCALAR, _sum_init
from cases_core import Case
from distrax import Normal
from jax.scipy.stats import norm
from tensorflow_probability.substrates.jax import bijectors as tfb

import jvi
from jvi.guides import gaussian
from jvi.guides._through import WithNetwork

# A row of every family; other rows are of the same families, constrained, conditional or composed.
FAMILIES = (
    "mean_field",
    "full_rank",
    "low_rank",
    "block_diagonal",
    "precision",
    "student_t",
    "sinh_arcsinh",
    "dense_sinh_arcsinh",
    "delta",
    "neural_spline",
    "real_nvp_constrained_conditional",
    "inverse_autoregressive_conditional",
    "masked_autoregressive",
    "mixture",
    "auxiliary",
    "semi_implicit",
    "annealed",
    "importance_weighted",
    "markov",
    "tree",
    "autoregressive",
    "distrax_gamma",
    "functions",
    "conditional_linen",
    "conditional_nnx",
)
OWN = {"loc": 0.2, "log_scale": -0.4}


def nested(name):
    """The family f in transform(amortize(sequence(a=product(f, v), b=N(mean of f + v, .)))), its draws moved by nothing but b's.

    In a sequence a part sees `(x, earlier)`: `given` hands the product what the family sees. All parameters are what a network emits
    of x added to own values, such that the family's are those of its row.
    """
    case = CASES[name]
    parts = jvi.guides.product(f=case.guide, v=SCALAR)
    inner = jvi.guides.sequence(a=jvi.guides.given(_first, parts), b=jvi.guides.from_distribution(_sum_init, _about_mean))
    beside = gaussian.Diagonal(np.array([0.3]), np.array([-0.2]))
    target = {"a": WithNetwork((), {"f": case.params, "v": beside}), "b": OWN}
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), target))
    count = sum(leaf.size for leaf in leaves)
    network, rng = flax.linen.Dense(count), np.random.default_rng(8)
    seen = np.asarray(_seen(case.x))
    kernel, bias = 0.3 * rng.normal(size=(len(seen), count)), 0.3 * rng.normal(size=count)
    starts = np.split(seen @ kernel + bias, np.cumsum([leaf.size for leaf in leaves])[:-1])
    own = tree.unflatten([leaf - start.reshape(leaf.shape) for leaf, start in zip(leaves, starts, strict=True)])
    guide = jvi.guides.transform(jvi.guides.amortize(inner, network, inputs=_seen), {"b": tfb.Exp})

    def log_joint(x, z):
        u, scale = jnp.log(z["b"]), math.exp(OWN["log_scale"])
        log_b = norm.logpdf(u, _mean(z["a"]["f"]) + z["a"]["v"] + OWN["loc"], scale) - u
        return case.log_joint(x, z["a"]["f"]) + norm.logpdf(z["a"]["v"], 0.3, math.exp(-0.2)) + log_b

    return Case(guide, WithNetwork({"kernel": kernel, "bias": bias}, own), log_joint, case.x, case.log_evidence)


def _first(x):
    return x[0]


def _seen(x):
    """What the network sees of any x, or of none."""
    return jnp.ones(1) if x is None else jnp.ravel(jnp.asarray(x, float))[:2]


def _mean(z):
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(z)]
    return jnp.mean(jnp.concatenate(leaves))


def _about_mean(params, x):
    before = x[1]["a"]
    return Normal(_mean(before["f"]) + before["v"] + params["loc"], jnp.exp(params["log_scale"]))
