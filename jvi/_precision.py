"""Double precision where the machine has it, for fits whose curvature spans many orders of magnitude."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp


def wide() -> bool:
    """Whether arrays are float64 here."""
    return jnp.result_type(float) == jnp.float64


def precise() -> AbstractContextManager[None]:
    """Within it arrays are float64 on CPUs; accelerators, slow in float64 or without it, keep the session's precision."""
    if jax.default_backend() != "cpu" or wide():
        return nullcontext()
    return jax.enable_x64(True)
