"""The laws that every guide in the table obeys."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from cases_nested import FAMILIES, nested

import jvi

pytestmark = pytest.mark.quick
KEY = jax.random.key(7)
# Without a density: by way of other draws, or a point.
INTRACTABLE = {"auxiliary", "semi_implicit", "annealed", "importance_weighted", "auxiliary_beside_annealed", "delta"}
# Leapfrog steps keep the energy up to the square of their size.
APPROXIMATE = {"annealed", "auxiliary_beside_annealed"}
ROWS = [
    *(pytest.param((name, False, False), id=name) for name in CASES),
    *(pytest.param((name, True, False), id=f"{name}-float64", marks=pytest.mark.long) for name in CASES),
    *(pytest.param((name, False, True), id=f"{name}-nested", marks=pytest.mark.long) for name in FAMILIES),
    *(pytest.param((name, True, True), id=f"{name}-nested-float64", marks=pytest.mark.long) for name in FAMILIES),
]


# Each program runs once.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def close(a, b, tol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), a, b)


@pytest.fixture(params=ROWS, scope="module")
def drawn(request):
    """One case: 200 draws by a compiled vmap, with their densities (None where intractable) and log-joints; and one of them eagerly."""
    name, double, inside = request.param
    with jax.enable_x64(double):
        case = nested(name) if inside else CASES[name]
        params = jax.tree.map(jnp.asarray, case.params)

        @compiled
        @jax.vmap
        def draw(key):
            z, log_q = case.guide.sample_and_log_prob(params, key, case.x)
            log_prob = case.guide.log_prob(params, case.x, z) if hasattr(case.guide, "log_prob") else None
            return z, log_q, log_prob, case.log_joint(case.x, z)

        keys = jax.random.split(KEY, 200)
        z, log_q, log_prob, log_joint = draw(keys)
        eager = case.guide.sample_and_log_prob(params, keys[3], case.x)
        yield SimpleNamespace(
            name=name,
            case=case,
            params=params,
            z=z,
            log_q=log_q,
            log_prob=log_prob,
            log_joint=log_joint,
            eager=eager,
            tol=1e-9 if double else None,
        )


def test_log_prob_agrees_with_sample_and_log_prob(drawn):
    assert (drawn.log_prob is None) == (drawn.name in INTRACTABLE)
    if drawn.log_prob is not None:
        close(drawn.log_prob, drawn.log_q, drawn.tol or 1e-4)


def test_log_q_is_a_finite_scalar(drawn):
    assert jnp.shape(drawn.eager[1]) == ()
    assert bool(jnp.isfinite(drawn.log_q).all())
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(drawn.z))
    assert {leaf.dtype for leaf in jax.tree.leaves((drawn.z, drawn.log_q))} == {jnp.zeros(()).dtype}


def test_eager_is_compiled_and_mapped(drawn):
    close(drawn.eager, jax.tree.map(lambda leaf: leaf[3], (drawn.z, drawn.log_q)), drawn.tol or 2e-5)


def test_every_log_weight_is_the_log_evidence_at_the_exact_posterior(drawn):
    """Of a point, the maximum of the log-joint."""
    tol = 1e-4 if drawn.name in APPROXIMATE else drawn.tol or 1e-4
    close(drawn.log_joint - drawn.log_q, jnp.full(200, drawn.case.log_evidence), tol)


def test_init_gives_parameters_of_the_same_kind(drawn):
    params = drawn.case.guide.init(KEY, drawn.case.x)
    assert [jnp.shape(leaf) for leaf in jax.tree.leaves(params)] == [jnp.shape(leaf) for leaf in jax.tree.leaves(drawn.params)]
    z, log_q = drawn.case.guide.sample_and_log_prob(params, KEY, drawn.case.x)
    assert bool(jnp.isfinite(log_q))
    assert jax.tree.structure(z) == jax.tree.structure(drawn.z)


def test_every_family_has_a_row():
    """Families are the classes of `jvi.guides` that are guides; `_Distribution` and `_Functions` are made by functions."""
    public = [getattr(jvi.guides, name) for name in jvi.guides.__all__]
    families = {one for one in public if isinstance(one, type) and hasattr(one, "sample_and_log_prob")} - {jvi.guides.Guide}
    assert families <= {type(CASES[name].guide) for name in FAMILIES}


def test_gaussian_guides_are_equal_when_rebuilt():
    def build():
        space = jvi.space({"a": jvi.real(2), "b": jvi.positive()})
        return [jvi.guides.MeanField(space), jvi.guides.FullRank(space), jvi.guides.LowRank(space, rank=2)]

    assert build() == build()
    assert [hash(guide) for guide in build()] == [hash(guide) for guide in build()]
    assert len(set(build())) == 3


def test_functions_and_networks_are_equal_when_rebuilt():
    import distrax
    import flax.linen
    from cases_core import HalfNNX, _halved

    assert jvi.guides.conditional(flax.linen.Dense(1), _halved) == jvi.guides.conditional(flax.linen.Dense(1), _halved)
    assert jvi.guides.conditional(flax.linen.Dense(1), _halved) != jvi.guides.conditional(flax.linen.Dense(2), _halved)
    assert jvi.guides.conditional(HalfNNX, _halved) == jvi.guides.conditional(HalfNNX, _halved)
    assert jvi.guides.from_distribution(max, distrax.Normal) == jvi.guides.from_distribution(max, distrax.Normal)


def test_a_guide_without_log_prob_has_none():
    guide = jvi.guides.from_functions(lambda rng, x: 0.0, lambda params, rng, x: (params, 0.0))
    assert not hasattr(guide, "log_prob")


def test_guides_follow_the_default_precision(float64):
    space = jvi.space({"w": jvi.real(2), "s": jvi.positive()})
    for guide in (jvi.guides.MeanField(space), jvi.guides.FullRank(space), jvi.guides.LowRank(space, rank=1)):
        params = guide.init(KEY, None)
        z, log_q = guide.sample_and_log_prob(params, KEY, None)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, z, log_q))} == {jnp.dtype("float64")}
        np.testing.assert_allclose(guide.log_prob(params, None, z), log_q, atol=1e-12)
