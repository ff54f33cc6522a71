"""Guides chosen from what depends on what."""

from __future__ import annotations

import distrax
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


@pytest.mark.long
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


def decode(params, z):
    """A network whose last layer starts at zero, of the first two latents; the third has its own."""
    return jnp.tanh(z["a"] @ params["in"]) @ params["out"] + params["own"] * z["b"]


def decoder_init(rng, x):
    return {"in": jax.random.normal(rng, (2, 4)), "out": jnp.zeros((4, 3)), "own": jnp.array([0.0, 0.0, 1.0])}


def decoded(params, x, z):
    return norm.logpdf(z["a"]).sum() + norm.logpdf(z["b"]) + norm.logpdf(x, decode(params, z)).sum()


@pytest.mark.parametrize("kind", ["learned", "generative"])
def test_learned_models_are_looked_at_where_their_networks_are_not_zero(kind):
    space = jvi.space({"a": jvi.real(2), "b": jvi.real()})
    if kind == "learned":
        model = jvi.learned(decoder_init, decoded)
    else:
        prior = {"a": distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)), "b": distrax.Normal(0.0, 1.0)}
        model = jvi.models.generative(
            lambda params: prior,
            lambda params, z: distrax.MultivariateNormalDiag(decode(params, z), jnp.ones(3)),
            init=decoder_init,
        )
    guide, lines = said(model, space, jnp.ones(3))
    assert guide == FullRank(space)  # at zero, all would be apart
    assert lines == ["3 coordinates, which depend on each other: FullRank"]


@pytest.mark.long
def test_what_it_chooses_can_be_amortized_whatever_it_is():
    model = jvi.learned(lambda rng, x: jnp.zeros(()), lambda shift, x, z: walk(z) + norm.logpdf(x, z["path"] + shift).sum())
    data = jnp.ones((4, 9))
    chosen, lines = said(model, SPACE, data[0])
    assert len(lines) == 2
    guide = jvi.guides.amortize(chosen, jvi.encoders.MLP(jvi.guides.num_params(chosen, data[0]), hidden=(8,)))
    objective = jvi.per_example(jvi.elbo(model, guide))
    params = jax.jit(objective.init)(KEY, data)
    grads, _ = jax.eval_shape(jax.grad(objective, has_aux=True), params, KEY, data)
    assert jax.tree.structure(grads) == jax.tree.structure(params)

    def densities(params):
        z, log_q = guide.sample_and_log_prob(params, KEY, data[0])
        return log_q, guide.log_prob(params, data[0], z)

    np.testing.assert_allclose(*jax.jit(densities)(params.guide), rtol=1e-4)


def test_what_does_not_fit_says_what_came_and_what_to_do():
    space = jvi.space({"a": jvi.real(2), "b": jvi.real()})
    with pytest.raises(ValueError, match=r"data of .*\[5,3\].*one datum in place of a batch"):
        auto(jvi.learned(decoder_init, lambda params, x, z: norm.logpdf(x, decode(params, z)).sum(-1)), space, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"KeyError: 'b'"):
        auto(jvi.learned(decoder_init, decoded), jvi.space({"a": jvi.real(2)}), jnp.ones(3))
    with pytest.raises(ValueError, match=r"jvi\.learned\(init, log_joint\)"):
        auto(decoded, space, jnp.ones(3))
    with pytest.raises(ValueError, match="the x that its init looks at"):
        auto(jvi.learned(lambda rng, x: jnp.zeros(x.shape), decoded), space)
    with pytest.raises(TypeError, match="must be a model or a function"):
        auto(jvi.elbo(jvi.model(lambda x, z: -z), FullRank(space)), space)
    with pytest.raises(ValueError, match="KeyError"):  # of any size
        auto(lambda z: z["c"].sum(), jvi.space({"a": jvi.real(2_000)}))


def test_what_is_no_model_or_no_space_is_refused():
    with pytest.raises(TypeError, match="log_joint must be a model or a function; got 3"):
        auto(3, jvi.space(jvi.real()))
    with pytest.raises(TypeError, match=r"space must be made by jvi\.space"):
        auto(walk, jvi.real(3))
