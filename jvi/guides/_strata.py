"""Strata: guides that are weighted sums of others are drawn from once in each of these."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jvi._typing import Array, Data, Latent, Params, PRNGKey
from jvi.guides._places import part


def strata_of(guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Array]:
    """A draw from each stratum of a guide, each leaf [C, ...], and the strata's log masses [C]; of a guide without any, one draw."""
    if hasattr(guide, "strata"):
        return guide.strata(params, rng, x)
    z, _ = guide.sample_and_log_prob(params, rng, x)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], z), jnp.zeros(1)


def strata_of_parts(guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Array]:
    """The strata of named parts: every choice of one stratum a part, the last part's running fastest."""
    keys = jax.random.split(rng, len(guide.parts))

    def onwards(i: int, before: dict[str, Latent]) -> tuple[dict[str, Latent], Array]:
        if i == len(guide.parts):
            return {}, jnp.zeros(1)
        name, one = guide.parts[i]
        with part(name):
            z, log_mass = strata_of(one, params[name], keys[i], guide.seen(x, before))
        rest, inner = jax.vmap(lambda drawn: onwards(i + 1, {**before, name: drawn}))(z)
        z = jax.tree.map(lambda leaf: jnp.repeat(leaf, inner.shape[1], 0), z)
        rest = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rest)
        return {name: z, **rest}, (log_mass[:, None] + inner).reshape(-1)

    return onwards(0, {})
