"""The log-weight of a draw that is at hand."""

from __future__ import annotations

from typing import Any

import jax

from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi._vectors import vector_first
from jvi.models.densities import check_log_density
from jvi.schedules import is_one

NO_PRIOR = (
    "beta other than 1, or traced as an argument of jit is, needs a model whose prior is known apart: make it with jvi.split or "
    "jvi.models.with_prior."
)
MASKS, MODEL = 0xFFFFFFFD, 0xFFFFFFFF  # folded into a particle's key for a guide in training, and for a model that draws


def terms_of(model: Any, params: Params, rng: PRNGKey, x: Data, z: Latent, *, batched: bool = True) -> dict[str, Array]:
    """The model's log-densities at a draw, which is one of several where `batched`, by name, nats."""
    split = hasattr(model, "log_prior")
    density = model.log_likelihood if split else model.log_joint
    if getattr(model, "draws", False):
        value = density(params, x, z, jax.random.fold_in(rng, MODEL))
    else:
        value = (vector_first(density) if batched else density)(params, x, z)
    return {"log prior": model.log_prior(params, z), "log likelihood": value} if split else {"log joint": value}


def masked(guide: Any, params: Params, rng: PRNGKey) -> Params:
    """The guide's parameters as the particle of this key has them: of a guide in training, with the key of its masks."""
    if hasattr(guide, "masked"):
        return guide.masked(params, jax.random.fold_in(rng, MASKS))
    if not (isinstance(params, dict) and hasattr(guide, "parts")):
        return params
    parts = dict(guide.parts)
    keys = {name: jax.random.fold_in(rng, i) for i, name in enumerate(parts)}
    return {name: masked(parts[name], own, keys[name]) if name in parts else own for name, own in params.items()}


def log_weight(terms: dict[str, Array], log_q: Scalar, beta: Any) -> Scalar:
    """log p(x, z) - log q(z | x), the prior and q weighed by beta; nats."""
    if is_one(beta):
        value = sum(terms.values()) - log_q
    elif "log prior" in terms:
        value = terms["log likelihood"] + beta * (terms["log prior"] - log_q)
    else:
        raise ValueError(NO_PRIOR)
    return check_log_density(value, "the log-weight")
