"""Data drawn anew at every step: laws of the draws, what bounds of them bound, and that every objective takes them."""

from __future__ import annotations

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.scipy.stats import norm
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jvi
from jvi import augment
from jvi.objectives import augmented

pytestmark = pytest.mark.quick

KEY = jax.random.key(0)
SPACE = jvi.space(jvi.real(2))
GUIDE = jvi.guides.MeanField(SPACE)
MODEL = jvi.models.with_prior(
    lambda: distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)), lambda x, z: norm.logpdf(x, z.sum()).sum()
)
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 3)), jnp.uint8)
WHOLE = augment.Dequantized()
ONE_KEY = 0xFFFFFFFC  # what is folded into a key for its datum


def params():
    guide = jax.eval_shape(GUIDE.init, KEY, None)
    return jvi.objectives.Params((), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), guide))


def seen(transform, rng, x=IMAGES[0]):
    """What an objective of one datum sees."""
    return transform(jax.random.fold_in(rng, ONE_KEY), x)


def test_binarized_pixels_are_on_as_often_as_they_are_bright():
    """256 z-tests of 20,000 draws, 1e-5 each."""
    x, count = jnp.arange(256).astype(jnp.uint8), 20_000
    found = jax.jit(jax.vmap(lambda key: augment.binarized(key, x)))(jax.random.split(KEY, count))
    assert found.dtype == jnp.float32
    assert set(np.unique(found)) == {0.0, 1.0}
    mean, p = np.asarray(found, float).mean(0), np.arange(256) / 255
    error = np.sqrt(p * (1 - p) / count)
    assert (mean[[0, 255]] == [0.0, 1.0]).all()
    z = (mean - p)[1:-1] / error[1:-1]
    assert (np.abs(z) < scipy.stats.norm.isf(0.5e-5)).all()
    assert abs(np.corrcoef(np.asarray(found)[:, 100], np.asarray(found)[:, 101])[0, 1]) < 4.4 / np.sqrt(count)


@pytest.mark.parametrize("bits", [8, 5])
def test_dequantized_levels_are_uniform_over_their_bins(bits):
    levels, transform = 2**bits, augment.Dequantized(bits)
    x = jnp.arange(levels).astype(jnp.uint8)
    found = np.asarray(jax.jit(jax.vmap(lambda key: transform(key, x)))(jax.random.split(KEY, 4_000)), np.float64)
    bins = found * levels
    assert ((bins > np.arange(levels)) & (bins < np.arange(levels) + 1)).all()
    assert (np.float32(found) > 0.0).all()
    assert (np.float32(found) < 1.0).all()
    u = (bins - np.arange(levels))[:, [0, 1, levels // 2, levels - 1]]
    assert all(scipy.stats.kstest(one, "uniform").pvalue > 1e-4 for one in u.T)
    mean = (bins - np.arange(levels)).mean()
    assert abs(mean - 0.5) < 4.4 * np.sqrt(1 / 12 / bins.size)
    np.testing.assert_allclose(transform.log_volume(x), -levels * np.log(levels), rtol=1e-6)


def test_the_bound_of_dequantized_data_bounds_their_log_probability():
    """Of a density whose bins have known masses: equal where it is even over each bin, below where it is not."""
    masses = np.random.default_rng(0).dirichlet(np.ones(256))
    stairs = jnp.asarray(np.log(256 * masses), jnp.float32)
    even = jvi.model(lambda x, z: norm.logpdf(z).sum() + stairs[jnp.floor(256 * x).astype(int)].sum())
    a, b = 3.0, 40.0  # of a Beta density, steep at zero
    steep = jvi.model(lambda x, z: norm.logpdf(z).sum() + jax.scipy.stats.beta.logpdf(x, a, b).sum())
    x = jnp.array([[0, 1, 2], [3, 10, 255]], jnp.uint8)
    keys = jax.random.split(KEY, 4_000)
    for model, log_prob, slack in (
        (even, np.log(masses)[np.asarray(x)], 0.0),
        (steep, np.log(np.diff(scipy.stats.beta.cdf(np.arange(257) / 256, a, b)) + 1e-300)[np.asarray(x)], 1.0),
    ):
        x_now = x if slack == 0.0 else x[:, :2]
        log_prob = log_prob if slack == 0.0 else log_prob[:, :2]
        objective = augmented(jvi.per_example(jvi.elbo(model, GUIDE)), WHOLE)
        values, aux = jax.jit(jax.vmap(lambda key, o=objective, x=x_now: o(params(), key, x)))(keys)
        truth, mean, error = log_prob.sum(1).mean(), float(values.mean()), float(values.std()) / np.sqrt(len(keys))
        np.testing.assert_allclose(aux.log_w.mean((1, 2)), values, rtol=1e-5)
        if slack == 0.0:
            np.testing.assert_allclose(values, truth, rtol=1e-5)
        else:
            assert mean < truth - 4.0 * error
            assert mean > truth - slack


def test_the_particles_of_a_datum_see_one_draw_and_data_and_steps_others():
    plain = jvi.model(lambda x, z: 0.0 * z.sum() + x.sum())
    objective = jvi.per_example(augmented(jvi.iwae(plain, GUIDE, num_samples=5), augment.binarized))
    x = jnp.full((16, 200), 128, jnp.uint8)
    run = jax.jit(lambda key: objective.terms(params(), key, x)["log joint"])
    terms = [run(jax.random.key(step)) for step in (0, 1)]
    assert terms[0].shape == (16, 5)
    assert (terms[0] == terms[0][:, :1]).all()
    on = np.stack([term[:, 0] for term in terms])
    assert len(np.unique(on)) > 10
    np.testing.assert_array_equal(
        terms[0][3, 0], seen(augment.binarized, jax.random.split(jax.random.key(0), 16)[3], x[3]).sum()
    )


OBJECTIVES = {
    "free bits": jvi.elbo(MODEL, GUIDE, num_samples=2, free_bits=5.0),
    "moving average": jvi.objectives.score(MODEL, GUIDE, num_samples=2, control=jvi.controls.moving_average()),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_of_augmented_data_is_the_objective_of_what_it_sees(name):
    """Values, gradients, parts, absorbed updates, terms; of many data and of one."""
    inner = OBJECTIVES[name]
    objective, plain = augmented(jvi.per_example(inner), WHOLE), jvi.per_example(inner)

    @jax.jit
    def run(objective, x):
        start = objective.init(KEY, x)
        (value, aux), slope = jax.value_and_grad(lambda p: objective(p, KEY, x, beta=0.7), has_aux=True)(start)
        return value, aux.log_w, aux.elbo, slope, objective.absorb(start, aux), objective.terms(start, KEY, x)

    volume = -3 * np.log(256)
    drawn = jax.vmap(lambda key, x: seen(WHOLE, key, x))(jax.random.split(KEY, 16), IMAGES)
    found, expected = run(objective, IMAGES), run(plain, drawn)
    shifted = jax.tree.map(lambda value: value + volume, expected[:3])  # free bits: one floor, under the mean
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[:3], shifted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[3:], expected[3:])
    one = augmented(inner, WHOLE)
    assert hasattr(one, "parts") == hasattr(inner, "parts") == hasattr(one, "combine")
    if hasattr(inner, "parts"):
        value = jax.jit(lambda p: one(p, KEY, IMAGES[0])[0] - inner(p, KEY, seen(WHOLE, KEY))[0])(params())
        np.testing.assert_allclose(value, volume, rtol=1e-5)


def both(rng, x):
    return augment.binarized(rng, x), WHOLE(rng, x)


def test_a_mesh_changes_nothing():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    of_data = jvi.model(lambda x, z: 0.0 * z.sum() + sum(part.sum() for part in x))
    objective = jvi.per_example(augmented(jvi.elbo(of_data, GUIDE), both))
    run = jax.jit(lambda x: objective(params(), KEY, x)[1].log_w)
    found = run(spread)
    np.testing.assert_allclose(found, run(IMAGES), rtol=1e-5)
    assert len(found.sharding.device_set) == 8


def test_whole_data_sets_count_the_volume_of_all_data():
    split = jvi.split(lambda z: norm.logpdf(z).sum(), lambda x, z: norm.logpdf(x, z.sum()).sum())
    outer = jvi.elbo(jvi.model(lambda x, z: norm.logpdf(z).sum()), GUIDE)
    local = jvi.model(lambda x, z: norm.logpdf(z, x[1]).sum() + norm.logpdf(x[0], z.sum()).sum())
    for plain in (
        jvi.objectives.subsampled(jvi.elbo(split, GUIDE), num_data=1_000),
        jvi.objectives.global_local(outer, jvi.elbo(local, GUIDE), num_data=1_000),
    ):
        objective = augmented(plain, WHOLE)
        start = jax.jit(objective.init)(KEY, IMAGES)
        keys = jax.random.split(jax.random.fold_in(KEY, ONE_KEY), 16)
        value, aux = jax.jit(objective)(start, KEY, IMAGES)
        expected, of_inner = jax.jit(plain)(start, KEY, jax.vmap(WHOLE)(keys, IMAGES))
        volume = -1_000 * 3 * np.log(256)
        np.testing.assert_allclose(value, expected + volume, rtol=1e-5)
        np.testing.assert_allclose(aux.log_w, of_inner.log_w + volume, rtol=1e-5)


class Normed(nn.Module):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        normed = nn.BatchNorm(use_running_average=not self.training, momentum=0.5, axis_name="examples")(x)
        return nn.Dense(2)(normed)


@pytest.mark.long
def test_networks_in_training_see_the_same_draws_as_the_bound():
    encoder = jvi.networks.network(Normed(), training=Normed(True))
    guide = jvi.guides.conditional(encoder, lambda mean: distrax.MultivariateNormalDiag(mean, jnp.ones(2)))
    plain = jvi.objectives.training(jvi.per_example(jvi.elbo(MODEL, guide)))
    objective = augmented(plain, WHOLE)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2))
    state = jax.jit(svi.init)(KEY, IMAGES)
    rng = jax.random.fold_in(KEY, 0)
    drawn = jax.vmap(WHOLE)(jax.random.split(jax.random.fold_in(rng, ONE_KEY), 16), IMAGES)
    value, aux = jax.jit(objective)(state.params, rng, IMAGES)
    expected, of_inner = jax.jit(plain)(state.params, rng, drawn)
    np.testing.assert_allclose(value, expected - 3 * np.log(256), rtol=1e-5)
    np.testing.assert_allclose(aux.log_w, of_inner.log_w - 3 * np.log(256), rtol=1e-5)
    after, _ = jax.jit(svi.step)(state, IMAGES)
    mean = after.params.guide.state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * drawn.mean(0), rtol=1e-5)


def test_reports_and_posteriors_see_through():
    objective = augmented(jvi.per_example(jvi.elbo(MODEL, GUIDE)), WHOLE)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2))
    report = jvi.gradient_report(objective, params(), KEY, IMAGES[:4], num_samples=40)
    assert {row.leaf for row in report.rows} >= {"guide.loc", "guide.log_scale"}
    state = jvi.State(params(), (), KEY, *np.zeros((3, 1), np.int32))
    assert jvi.Posterior.of(svi, state, np.zeros(3)).guide == GUIDE


def test_what_would_not_be_what_it_says_is_refused():
    with pytest.raises(ValueError, match="goes with lower bounds"):
        augmented(jvi.per_example(jvi.objectives.cubo(MODEL, GUIDE, num_samples=2)), WHOLE)
    for none in (
        jvi.objectives.forward_kl(MODEL, GUIDE, num_samples=2),
        jvi.objectives.f_divergence(MODEL, GUIDE, jnp.negative, num_samples=2),
    ):
        with pytest.raises(ValueError, match="goes with lower bounds"):
            augmented(none, WHOLE)
        assert not augmented(none, augment.binarized).upper
    assert augmented(jvi.objectives.cubo(MODEL, GUIDE, num_samples=2), augment.binarized).upper
    with pytest.raises(TypeError, match="objective must be made by"):
        augmented(3, WHOLE)
    with pytest.raises(TypeError, match="transform must be a function"):
        augmented(jvi.elbo(MODEL, GUIDE), None)
    with pytest.raises(ValueError, match="bits must be from 1 to 8, got 16"):
        augment.Dequantized(16)
    for x in (IMAGES.astype(jnp.float32), {"image": IMAGES, "label": IMAGES}, np.zeros(3, np.int64)):
        with pytest.raises(TypeError, match="takes one array of bytes"):
            augment.binarized(KEY, x)
