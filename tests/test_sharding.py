"""Meshes: the same numbers on any of them, one sum over devices a step, and parameters where they should be."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from cases_meshes import OBJECTIVES, run

from jvi import sharding


def close(a, b, ulps=64):
    """Equal but for rounding: a hundred steps add up what differs in the last place of their sums."""
    eps = np.finfo(np.float32).eps
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=ulps * eps, atol=ulps * eps)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_gives_the_same_numbers_on_any_number_of_devices(name):
    state, info = run(OBJECTIVES[name])
    for count in (1, 2, 8):
        other, there = run(OBJECTIVES[name], sharding.data_mesh(count))
        close((state.params, info.bound, info.ess), (other.params, there.bound, there.ess))
