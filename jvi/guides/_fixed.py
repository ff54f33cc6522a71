"""Models inside guides: what a guide that moves or weighs draws by a log-joint asks of it."""

from __future__ import annotations

from typing import Any

import jax

from jvi._typing import Data, PRNGKey
from jvi.models import Model


def check_model(model: Any, owner: str) -> None:
    """Refuse what is no model."""
    if not isinstance(model, Model):
        hint = "; wrap a function as jvi.model(log_joint)" if callable(model) else ""
        raise TypeError(f"{owner}.model must have the methods init and log_joint, got {model!r}{hint}.")


def check_fixed(model: Any, rng: PRNGKey, x: Data, owner: str) -> None:
    """Refuse a model that learns: a guide sees no parameters but its own."""
    learned = jax.eval_shape(model.init, rng, x)
    if jax.tree.leaves(learned):
        raise ValueError(
            f"{owner}.model must have nothing to learn, because a guide sees no model's parameters; this one has {learned}. Give the "
            "guide a fixed model nearby, as of parameters held at their last values; the objective's own model may be learned, and "
            "the bound is a bound whichever the guide's is."
        )
