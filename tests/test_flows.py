"""Flows: where they start, that they invert, what depends on what, contexts, far draws, one coordinate, a fit, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from cases_core import LOG_EVIDENCE, assert_z_test
from flow_maps import filled
from jax.scipy.stats import multivariate_normal

import jvi
from jvi.guides import _splines

pytestmark = pytest.mark.quick
FAMILIES = [
    jvi.guides.RealNVP,
    jvi.guides.NeuralSpline,
    jvi.guides.InverseAutoregressive,
    jvi.guides.MaskedAutoregressive,
]
ALONE = [name for name in CASES if "spline" in name or "nvp" in name or name.startswith(("inverse_", "masked_"))]
KEY = jax.random.key(6)
LOC, ROOT = np.array([0.3, -1.2, 0.7]), np.array([[0.5, 0.0, 0.0], [0.6, 1.5, 0.0], [-0.3, 0.2, 0.8]])


def build(family, size, **kwargs):
    return family(jvi.space(jvi.real(size)), **{"num_layers": 4, "hidden": (8,), "activation": jnp.tanh, **kwargs})


@pytest.fixture
def noise(monkeypatch):
    """In place of a key, the noise itself: a guide's draw is then its sampling map."""
    normal = jax.random.normal

    def given(rng, *args):
        return rng if jnp.issubdtype(rng.dtype, jnp.floating) else normal(rng, *args)

    monkeypatch.setattr(jax.random, "normal", given)


@pytest.mark.long
@pytest.mark.parametrize("name", ALONE)
def test_densities_are_exact_in_float64(name, float64):
    case = CASES[name]
    params = jax.tree.map(jnp.asarray, case.params)

    def one(key):
        z, log_q = case.guide.sample_and_log_prob(params, key, case.x)
        return case.log_joint(case.x, z) - log_q, case.guide.log_prob(params, case.x, z) - log_q

    log_w, off = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 50))
    assert log_w.dtype == jnp.float64
    np.testing.assert_allclose(log_w, LOG_EVIDENCE, atol=1e-8)
    np.testing.assert_allclose(off, 0.0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_flows_start_at_the_given_gaussian(family, float64):
    guide, key = build(family, 3), jax.random.key(2)
    params = guide.around(jax.random.key(0), None, LOC, ROOT)
    z, log_q = jax.jit(lambda key: guide.sample_and_log_prob(params, key, None))(key)
    eps = jax.random.normal(key, (3,))
    np.testing.assert_allclose(z, LOC + ROOT @ eps, atol=1e-13)
    np.testing.assert_allclose(log_q, multivariate_normal.logpdf(z, LOC, ROOT @ ROOT.T), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_coordinate_depends_on_every_other(family, noise, float64):
    guide = build(family, 5, num_layers=6)
    jacobian = jax.jit(jax.jacfwd(lambda eps, params: guide.sample_and_log_prob(params, eps, None)[0]))
    params = filled(guide, 1, 0.3)
    # L alone would do for what lies below the diagonal.
    params = params._replace(base=params.base._replace(lower=np.zeros((5, 5))))
    assert np.abs(jacobian(jnp.linspace(-1.0, 1.0, 5), params)).min() > 1e-9


@pytest.mark.parametrize("family", FAMILIES[2:])
def test_one_autoregressive_layer_is_triangular(family, noise, float64):
    guide = build(family, 5, num_layers=1, hidden=(7, 9))
    params = filled(guide, 1, 0.3)
    params = params._replace(base=params.base._replace(lower=np.zeros((5, 5))))
    jacobian = jax.jacfwd(lambda eps: guide.sample_and_log_prob(params, eps, None)[0])(jnp.linspace(-1.0, 1.0, 5))
    assert np.all(np.triu(jacobian, 1) == 0.0)
    assert np.abs(jacobian[np.tril_indices(5)]).min() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_reaches_every_coordinate(family, noise, float64):
    guide, x = build(family, 3, context=jnp.ravel), jnp.array([[0.5, -1.0]])
    params = filled(guide, 2, 0.3, x)
    jacobian = jax.jit(jax.jacfwd(lambda x: guide.sample_and_log_prob(params, jnp.array([0.4, -0.1, 0.7]), x)[0]))(x)
    assert np.abs(jacobian).min() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_far_draws_are_finite(family, noise):
    guide = build(family, 3, num_layers=2, activation=jax.nn.relu)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), filled(guide, 3, 1.0))

    def total(params, u):
        z, log_q = guide.sample_and_log_prob(params, u, None)
        return z.sum() + log_q + guide.log_prob(params, None, u)

    value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(total, (0, 1)), (None, 0)))
    found = value_and_grad(params, jnp.array([[1e4, -1e4, 3e3], [5.0, -5.0, 0.0], [-30.0, 1e-30, 40.0]]))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


@pytest.mark.long
def test_a_spline_bends_one_coordinate():
    """KL to a Gumbel, from fresh draws: the best of Gaussians has 0.08."""
    guide = jvi.guides.NeuralSpline(jvi.space(jvi.real(1)), num_layers=1, hidden=(), init_scale=1.0)
    model = jvi.model(lambda x, z: -z[0] - jnp.exp(-z[0]))
    svi = jvi.SVI(jvi.elbo(model, guide, num_samples=32), jvi.optimizer(optax.adam, 0.02))
    state, _ = jvi.fit(svi, jax.random.key(0), (), num_steps=400, progress=False)
    draw = jax.jit(jax.vmap(lambda key: guide.sample_and_log_prob(state.params.guide, key, ())))
    z, log_q = draw(jax.random.split(jax.random.key(1), 5_000))
    kl = log_q + z[:, 0] + jnp.exp(-z[:, 0])
    assert kl.mean() + 4.0 * kl.std() / np.sqrt(len(kl)) < 0.02


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_one_coordinate_integrates_to_one(family):
    guide = build(family, 1, num_layers=2)
    params = filled(guide, 4, 0.2)
    grid = jnp.linspace(-60.0, 60.0, 20_001)
    density = jnp.exp(jax.jit(jax.vmap(lambda z: guide.log_prob(params, None, z)))(grid[:, None]))
    np.testing.assert_allclose(jnp.trapezoid(density, grid), 1.0, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_a_spline_is_undone_as_well_as_float32_allows(float64, scale):
    """Bent again without rounding, what a float32 inverse finds is y up to the rounding of y and, times the slope, of u itself.

    Where a spline is flat that is still far from u: to a slope of 1e-5, which wild knots reach, a rounded y tells little of u.
    """
    rng, bound = np.random.default_rng(0), 5.0
    knots = jnp.asarray(scale * rng.normal(size=(5_000, 25)), "float32")
    y = jnp.asarray(rng.uniform(-1.2 * bound, 1.2 * bound, 5_000), "float32")
    found = jax.jit(_splines.unbend, static_argnums=2)(knots, y, bound)[0]
    assert found.dtype == np.float32
    double = (jnp.asarray(one, "float64") for one in (knots, found))
    back, log_slope = jax.jit(_splines.bend, static_argnums=2)(*double, bound)
    rounding = np.finfo(np.float32).eps * bound * (1.0 + np.exp(log_slope))
    assert np.max(np.abs(back - y) / rounding) < 8.0  # measured: 5


@pytest.mark.long
def test_an_amortized_spline_flow_that_starts_near_its_start_keeps_its_digits():
    """Measured: 6e-6 nats. With an encoder whose last layer starts at Flax's own scale the flow is wild, and keeps none."""
    guide = jvi.guides.NeuralSpline(jvi.space(jvi.real(6)), num_layers=4, hidden=(16,))
    amortized = jvi.guides.amortize(guide, jvi.encoders.MLP(jvi.guides.num_params(guide), hidden=(8,)))
    x = jax.random.normal(KEY, (5,))
    params = amortized.init(KEY, x)

    @jax.jit
    @jax.vmap
    def gap(key):
        z, log_q = amortized.sample_and_log_prob(params, key, x)
        return amortized.log_prob(params, x, z) - log_q

    assert np.abs(gap(jax.random.split(KEY, 1_000))).max() < 5e-5


def test_scores_of_a_flow_have_mean_zero():
    """E grad log q = 0 at draws held fixed: the density that `log_prob` gives is that of the draws."""
    case = CASES["neural_spline"]
    params = jax.tree.map(jnp.asarray, case.params)

    def score(key):
        z = jax.lax.stop_gradient(case.guide.sample_and_log_prob(params, key, None)[0])
        return jax.grad(lambda params: case.guide.log_prob(params, None, z))(params).base

    scores = jax.jit(jax.vmap(score))(jax.random.split(jax.random.key(5), 1_000))
    rows, columns = np.tril_indices(3, -1)
    each = jnp.concatenate([scores.loc, scores.log_scale, scores.lower[:, rows, columns]], 1)
    assert_z_test(each, np.zeros(each.shape[1]))


def test_an_own_set_of_parameters_for_every_datum():
    """What an amortized flow needs: parameters that are batched."""
    guide = build(jvi.guides.InverseAutoregressive, 2)
    params = [filled(guide, seed, 0.3) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    z, log_q = jax.jit(jax.vmap(lambda params: guide.sample_and_log_prob(params, jax.random.key(1), None)))(stacked)
    alone = jax.jit(lambda params: guide.sample_and_log_prob(params, jax.random.key(1), None))(params[2])
    np.testing.assert_allclose(z[2], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_q[2], alone[1], rtol=1e-5)


def test_rebuilt_flows_are_equal():
    assert [build(family, 2, context=jnp.ravel) for family in FAMILIES] == [
        build(family, 2, context=jnp.ravel) for family in FAMILIES
    ]
    assert len({build(family, 2) for family in FAMILIES}) == len(FAMILIES)


def test_many_coordinates_have_a_diagonal_base():
    guide = build(jvi.guides.RealNVP, 101)
    root = jnp.tril(jnp.full((101, 101), 0.1)) + jnp.eye(101)
    params = guide.around(jax.random.key(0), None, jnp.zeros(101), root)
    np.testing.assert_allclose(2.0 * params.base.log_scale, jnp.log(jnp.diag(root @ root.T)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_input_is_named(family):
    space = jvi.space(jvi.real(2))
    with pytest.raises(TypeError, match="hidden must be a tuple"):
        family(space, hidden=64)
    with pytest.raises(ValueError, match=r"hidden\[1\] must be 1 or more"):
        family(space, hidden=(3, 0))
    with pytest.raises(ValueError, match="num_layers must be 1 or more"):
        family(space, num_layers=0)
    with pytest.raises(TypeError, match="context must be a function"):
        family(space, context=3)
    with pytest.raises(TypeError, match="space must be made by"):
        family(2)
    with pytest.raises(ValueError, match=r"loc must have shape \[2\].*got \[3\]"):
        family(space).around(jax.random.key(0), None, jnp.zeros(3), jnp.eye(2))
    with pytest.raises(ValueError, match="context must return an array"):
        family(space, context=jnp.asarray).init(jax.random.key(0), jnp.zeros((2, 2)))


def test_splines_refuse_pieces_that_cannot_be():
    space = jvi.space(jvi.real(2))
    with pytest.raises(ValueError, match="bound must be positive"):
        jvi.guides.NeuralSpline(space, bound=0.0)
    with pytest.raises(ValueError, match="num_bins must be 50 or fewer"):
        jvi.guides.NeuralSpline(space, num_bins=51)


def test_the_default_gradient_needs_no_slow_inverse():
    flow = jvi.guides.InverseAutoregressive(jvi.space(jvi.real(2)))
    coupled = jvi.guides.RealNVP(jvi.space(jvi.real(2)))
    model = jvi.model(lambda x, z: 0.0)
    for guide in (flow, jvi.guides.product(a=flow, b=coupled), jvi.guides.given(jnp.ravel, flow)):
        assert jvi.elbo(model, guide).gradient is jvi.gradients.pathwise
    for guide in (coupled, jvi.guides.MaskedAutoregressive(jvi.space(jvi.real(2)))):
        assert jvi.elbo(model, guide).gradient is jvi.gradients.stl
