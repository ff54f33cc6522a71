"""Gradient estimators: how one particle and its log q(z | x) depend on the guide's parameters.

Each is called as `(guide, params, rng, x) -> (z, log_q)`. The values are the same for all but `concrete`, which relaxes the latent;
what differs is the path that `jax.grad` takes through them.
"""

from __future__ import annotations

from jvi.gradients.finite import enumerated
from jvi.gradients.groups import by_group
from jvi.gradients.implicit import uivi
from jvi.gradients.relaxed import concrete, straight_through
from jvi.gradients.reparameterized import pathwise, stl
from jvi.gradients.scored import score
from jvi.gradients.strata import stratified

__all__ = ["by_group", "concrete", "enumerated", "pathwise", "score", "stl", "straight_through", "stratified", "uivi"]
