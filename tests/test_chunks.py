"""Particles in chunks: the same numbers, in less memory."""

from __future__ import annotations

from functools import partial

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import jvi
from jvi import gradients

KEY = jax.random.key(0)
X = jnp.array([[0.3, -1.0], [1.2, 0.4], [-0.7, 2.0]])


def log_joint(log_scale, x, z):
    return norm.logpdf(z).sum() + norm.logpdf(x, jnp.tanh(z), jnp.exp(log_scale)).sum()


def gaussian(output):
    loc, log_scale = jnp.split(output, 2)
    return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))


MODEL = jvi.learned(lambda rng, x: jnp.asarray(-0.2), log_joint)
GUIDE = jvi.guides.conditional(nn.Dense(4), gaussian)
BUILDERS = {
    "elbo": lambda **options: jvi.elbo(MODEL, GUIDE, **options),
    "iwae": lambda **options: jvi.iwae(MODEL, GUIDE, **options),
    "renyi": lambda **options: jvi.renyi(MODEL, GUIDE, alpha=0.5, **options),
    "score": lambda **options: jvi.objectives.score(MODEL, GUIDE, **options),
    "averaged score": lambda **options: jvi.elbo(
        MODEL, GUIDE, gradient=gradients.score, control=jvi.controls.moving_average(), **options
    ),
    "vimco": lambda **options: jvi.objectives.vimco(MODEL, GUIDE, **options),
}


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in ("elbo", "iwae"))) for name in BUILDERS]
)
def test_chunks_change_no_number(name):
    """Value, gradient, log-weights and updates, with a chunk that divides K and one that does not."""
    objectives = [jvi.per_example(BUILDERS[name](num_samples=6, chunk_size=size)) for size in (None, 3, 4)]
    params = objectives[0].init(KEY, X)

    @jax.jit
    def all_of(params, key):
        return [jax.value_and_grad(objective, has_aux=True)(params, key, X) for objective in objectives]

    (whole, *parted) = (jax.tree.leaves(found) for found in all_of(params, jax.random.key(1)))
    for found in parted:
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_memory_is_that_of_a_chunk():
    """What XLA sets aside for value and gradient of 2,000 particles of three data, under per_example: nothing is run."""
    network = jvi.networks.network(nn.Dense(300))
    model = jvi.learned(
        lambda rng, x: network.init(rng, jnp.zeros(2)), lambda params, x, z: -jnp.sum(jnp.tanh(network.apply(params, z)) ** 2)
    )
    needed = {}
    for size in (None, 20):
        objective = jvi.per_example(jvi.iwae(model, GUIDE, num_samples=2_000, chunk_size=size))
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        needed[size] = step.lower(objective.init(KEY, X), KEY, X).compile().memory_analysis().temp_size_in_bytes
    assert needed[None] > 3 * 2_000 * 300 * 4
    assert needed[20] < needed[None] / 10


BATCH = jax.random.normal(jax.random.key(2), (8, 2))
PRIOR = jvi.models.with_prior(
    lambda log_scale: distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)),
    lambda log_scale, x, z: norm.logpdf(x, jnp.tanh(z), jnp.exp(log_scale)).sum(),
    init=lambda rng, x: jnp.asarray(-0.2),
)
OF_EXAMPLES = {
    "iwae in chunks": jvi.iwae(MODEL, GUIDE, num_samples=4, chunk_size=2),
    "dreg": jvi.objectives.dreg(MODEL, GUIDE, num_samples=4),
    "averaged score": BUILDERS["averaged score"](num_samples=4),
    "free bits": jvi.elbo(PRIOR, GUIDE, num_samples=2, free_bits=0.8),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_chunks_of_examples_change_no_number(name):
    """Three at a time and then two, value, gradient and terms; a floor is under the mean of all examples, not of a chunk's."""
    whole, parted = (jvi.per_example(OF_EXAMPLES[name], chunk_size=size) for size in (None, 3))
    params = whole.init(KEY, BATCH)
    beta = 0.7 if hasattr(OF_EXAMPLES[name], "parts") else 1.0

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(params, key):
        one, other = (jax.value_and_grad(each, has_aux=True)(params, key, BATCH, beta=beta) for each in (whole, parted))
        return (one, whole.terms(params, key, BATCH)), (other, parted.terms(params, key, BATCH))

    with jax.numpy_rank_promotion("allow"):
        found = both(params, jax.random.key(1))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_chunks_of_a_batch_split_over_devices_stay_there():
    """The compiled gradient moves no example: all that devices tell each other is sums."""
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.device_put(BATCH, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    whole, parted = (jvi.per_example(jvi.elbo(MODEL, GUIDE), chunk_size=size) for size in (None, 4))
    params = whole.init(KEY, BATCH)
    step = jax.jit(jax.grad(parted, has_aux=True)).lower(params, KEY, split).compile()
    text = step.as_text()
    assert "all-reduce" in text
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if f"{name}(" in text]
    expected, _ = jax.grad(whole, has_aux=True)(params, KEY, BATCH)
    for a, b in zip(jax.tree.leaves(step(params, KEY, split)[0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.quick
def test_chunks_bound_the_memory_of_a_batch():
    network = jvi.networks.network(nn.Dense(300))
    model = jvi.learned(
        lambda rng, x: network.init(rng, jnp.zeros(2)), lambda params, x, z: -jnp.sum(jnp.tanh(network.apply(params, z)) ** 2)
    )
    needed = {}
    for size in (None, 20):
        objective = jvi.per_example(jvi.elbo(model, GUIDE), chunk_size=size)
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        params, x = jax.eval_shape(objective.init, KEY, X), jax.ShapeDtypeStruct((4_000, 2), jnp.float32)
        needed[size] = step.lower(params, KEY, x).compile().memory_analysis().temp_size_in_bytes
    assert needed[None] > 4_000 * 300 * 4
    assert needed[20] < needed[None] / 10


def test_a_step_holds_parameters_moments_and_its_activations():
    """The state is donated: a loop of steps sets aside no second copy of it."""
    from jvi import _feeds, _loops

    network = jvi.networks.network(nn.Sequential((nn.Dense(1_000), nn.tanh, nn.Dense(1_000), nn.tanh, nn.Dense(2))))
    model = jvi.learned(
        lambda rng, x: network.init(rng, jnp.zeros(2)),
        lambda params, x, z: norm.logpdf(z).sum() + norm.logpdf(x, network.apply(params, z)).sum(),
    )
    svi = jvi.SVI(jvi.per_example(jvi.elbo(model, GUIDE)))
    data = jax.ShapeDtypeStruct((64, 2), jnp.float32)
    state = jax.eval_shape(svi.init, KEY, data)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))

    ascent = jax.jit(jax.value_and_grad(svi.objective, has_aux=True)).lower(state.params, KEY, data).compile().memory_analysis()
    activations = ascent.temp_size_in_bytes + ascent.output_size_in_bytes
    assert activations > held / 3  # the gradient is of the parameters' size
    loop = _loops.loop.lower(svi, _feeds.Whole(), 10, False, None, state, data, None, 10).compile().memory_analysis()
    peak = loop.argument_size_in_bytes + loop.output_size_in_bytes - loop.alias_size_in_bytes + loop.temp_size_in_bytes
    assert loop.alias_size_in_bytes >= held
    assert peak < 1.02 * (held + activations)
