"""Guides chosen from what depends on what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import jvi
from jvi.guides import BlockDiagonal, FullRank, LowRank, auto

pytestmark = pytest.mark.quick
KEY = jax.random.key(0)


def said(*args):
    lines = []
    return auto(*args, report=lines.append), lines


def walk(z):
    log_prior = norm.logpdf(z["scale"]) + norm.logpdf(z["path"][0]) + norm.logpdf(z["shift"])
    return log_prior + norm.logpdf(z["path"][1:], z["path"][:-1], jnp.exp(z["scale"])).sum() + z["shift"] * z["path"].sum()


SPACE = jvi.space({"path": jvi.real(9), "scale": jvi.real(), "shift": jvi.real()})


def test_a_series_is_found_and_its_guide_follows_the_others():
    guide, lines = said(walk, SPACE)
    assert lines == [
        "path: its 9 entries depend on their neighbours alone, given the others: Markov, linear in the other coordinates, 2",
        "scale, shift: FullRank of 2 coordinates",
    ]
    params = guide.init(KEY, None)
    z, log_q = guide.sample_and_log_prob(params, KEY, None)
    SPACE.check(z)
    np.testing.assert_allclose(guide.log_prob(params, None, z), log_q, rtol=1e-5)
    assert guide == said(walk, SPACE)[0]
    value, _ = jvi.elbo(jvi.model(lambda x, z: walk(z)), guide)(jvi.objectives.Params((), params), KEY, None)
    assert np.isfinite(value)


def test_declared_series_are_taken_at_their_word():
    guide, lines = said(lambda z: -(z["t"].sum() ** 2), jvi.space({"t": jvi.tree((-1, 0, 0), 2)}))
    assert lines == ["t: declared a tree of 3: Tree"]
    assert guide.sample_and_log_prob(guide.init(KEY, None), KEY, None)[0]["t"].shape == (3, 2)
    _, lines = said(lambda z: -(z["t"].sum() ** 2), jvi.space({"t": jvi.sequence(2_000), "m": jvi.real(30)}))
    assert lines[1:] == ["t: declared a sequence of 2,000: Markov", "m: FullRank of 30 coordinates"]


def test_blocks_are_what_does_not_depend_on_each_other():
    def log_joint(x, z):
        return norm.logpdf(z["a"]).sum() + norm.logpdf(x, z["b"].sum()) + norm.logpdf(z["b"]).sum()

    guide, lines = said(log_joint, jvi.space({"a": jvi.positive(2), "b": jvi.real(3)}), 2.0)
    assert guide == BlockDiagonal(jvi.space({"a": jvi.positive(2), "b": jvi.real(3)}), ((0,), (1,), (2, 3, 4)))
    assert lines == ["5 coordinates in 3 blocks that do not depend on each other: BlockDiagonal"]


@pytest.mark.parametrize(("size", "family"), [(3, FullRank), (400, LowRank), (1_200, LowRank)])
def test_size_decides_where_all_depends_on_all(size, family):
    guide, lines = said(lambda z: -(z.sum() ** 2) - z @ z, jvi.space(jvi.real(size)))
    assert isinstance(guide, family)
    assert family.__name__ in lines[-1]


def test_what_is_no_model_or_no_space_is_refused():
    with pytest.raises(TypeError, match="log_joint must be a model or a function; got 3"):
        auto(3, jvi.space(jvi.real()))
    with pytest.raises(TypeError, match=r"space must be made by jvi\.space"):
        auto(walk, jvi.real(3))
