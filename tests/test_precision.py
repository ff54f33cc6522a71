"""Networks in bfloat16: where it is used and where not, and what it costs in nats."""

from __future__ import annotations

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.scipy.stats import norm
from sklearn.datasets import load_digits

import jvi
from jvi.precision import bfloat16

KEY = jax.random.key(0)
X = (load_digits().data[:256] > 7.5).astype(np.float32)
LATENTS = 4
# What networks compute with; a log-density, a log-sum-exp or a draw would bring in more.
OF_NETWORKS = {
    "dot_general", "add", "add_any", "convert_element_type", "max", "mul", "select_n", "reduce_sum", "transpose", "gt", "eq",
    "reshape", "broadcast_in_dim", "jit", "pjit", "custom_jvp_call", "squeeze",
}  # fmt: skip


class MLP(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.num_outputs)(nn.relu(nn.Dense(64)(inputs)))


def gaussian(output):
    loc, raw = jnp.split(output, 2)
    return distrax.MultivariateNormalDiag(loc, jax.nn.softplus(raw) + 1e-4)


def vae(precision):
    """A network in the guide, and a module that the model calls itself."""
    module = MLP(64)

    def decode(params, z):
        return module.apply(params, z)

    decode = decode if precision is None else precision(decode)

    def log_joint(params, x, z):
        return jnp.sum(norm.logpdf(z)) + jnp.sum(distrax.Bernoulli(logits=decode(params, z)).log_prob(x))

    model = jvi.learned(lambda rng, x: module.init(rng, jnp.zeros(LATENTS)), log_joint)
    return model, jvi.guides.conditional(jvi.networks.network(MLP(2 * LATENTS), precision=precision), gaussian)


def equations(jaxpr):
    """All equations, at any depth."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda leaf: isinstance(leaf, (Jaxpr, ClosedJaxpr))):
            if isinstance(value, (Jaxpr, ClosedJaxpr)):
                yield from equations(getattr(value, "jaxpr", value))


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@pytest.mark.long
def test_bounds_are_those_of_float32():
    """A VAE trained in either precision, four times: bounds at the same parameters, and those that the runs end at.

    Runs drift apart by chance, either way: their difference is let be five standard errors (four runs, Student: 1.5 %) more.
    """
    objectives = [jvi.per_example(jvi.iwae(*vae(precision), num_samples=4)) for precision in (None, bfloat16)]
    ends = []
    with jax.numpy_rank_promotion("allow"):
        both = jax.jit(lambda params, key, x: [objective(params, key, x)[0] for objective in objectives])
        for seed in range(4):
            ends.append([])
            for own, objective in enumerate(objectives):
                svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 5e-3, num_steps=400))
                state, info = jvi.fit_batches(svi, jax.random.key(seed), X, num_steps=400, batch_size=64)
                assert info.finite.all()
                assert dtypes(state.params) == {np.dtype("float32")}
                bounds = np.mean([both(state.params, key, X) for key in jax.random.split(jax.random.key(9), 16)], 0)
                assert abs(bounds[0] - bounds[1]) < 0.01
                ends[-1].append(bounds[own])
    lost = np.subtract(*np.transpose(ends))
    assert abs(lost.mean()) < 0.05 + 5.0 * lost.std(ddof=1) / 2.0


@pytest.mark.quick
def test_only_networks_compute_in_bfloat16():
    objective = jvi.per_example(jvi.iwae(*vae(bfloat16), num_samples=4))
    with jax.numpy_rank_promotion("allow"):
        params = objective.init(KEY, X)
        step = jax.value_and_grad(objective, has_aux=True)
        eqns = list(equations(jax.make_jaxpr(step)(params, KEY, X).jaxpr))
        (_, aux), grads = jax.jit(step)(params, KEY, X)
    products = [eqn for eqn in eqns if eqn.primitive.name == "dot_general"]
    assert len(products) > 8
    assert all(var.aval.dtype == jnp.bfloat16 for eqn in products for var in eqn.invars)
    low = {eqn.primitive.name for eqn in eqns for var in (*eqn.invars, *eqn.outvars) if var.aval.dtype == jnp.bfloat16}
    assert low <= OF_NETWORKS, low - OF_NETWORKS
    assert dtypes((aux.log_w, grads)) == {np.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert dtypes(params) == {np.dtype("float32")}


class Normalized(nn.Module):
    still: bool

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(self.still, momentum=0.0, axis_name="examples", use_bias=False)(nn.Dense(3)(x))


SEEN = {
    "linen": (jvi.networks.network(nn.Dense(3), precision=bfloat16), X[0]),
    "nnx": (jvi.networks.network(nnx.Linear, 64, 3, precision=bfloat16), X[0]),
    "recurrent": (jvi.networks.network(jvi.encoders.Recurrent(3, hidden=4), precision=bfloat16), X[:5]),
    "convolutional": (jvi.networks.network(jvi.encoders.Convolutional(3, (4,), 8), precision=bfloat16), X[0].reshape(8, 8)),
    "set": (jvi.networks.network(jvi.encoders.SetTransformer(3, 8, 2, 1, 4), precision=bfloat16), (X[:5], np.arange(5) < 3)),
    "sequence": (jvi.networks.network(jvi.encoders.SequenceTransformer(3, 8, 2, 1), precision=bfloat16), X[:5]),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", SEEN)
def test_products_are_in_bfloat16_and_the_rest_is_not(name):
    network, x = SEEN[name]
    params = jax.eval_shape(network.init, KEY, x)
    assert dtypes(params) == {np.dtype("float32")}
    jaxpr, out = jax.make_jaxpr(network.apply, return_shape=True)(params, x)
    assert dtypes(out) == {np.dtype("float32")}
    products = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name in ("dot_general", "conv_general_dilated")]
    assert products
    assert all(var.aval.dtype == jnp.bfloat16 for eqn in products for var in eqn.invars)


@pytest.mark.quick
def test_running_statistics_stay_in_float32():
    network = jvi.networks.network(Normalized(True), training=Normalized(False), precision=bfloat16)
    params = jax.eval_shape(network.init, KEY, X[0])
    shapes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    out, new = jax.eval_shape(jax.vmap(lambda x: network.train(shapes, KEY, x), axis_name="examples"), X)
    assert dtypes((out, new)) == {np.dtype("float32")}


@pytest.mark.quick
def test_a_policy_compares_by_value_and_follows_the_default_type(float64):
    function = jnp.sin
    assert bfloat16(function) == jvi.precision.Policy("bfloat16")(function)
    assert hash(bfloat16(function)) == hash(jvi.precision.Policy(jnp.bfloat16)(function))
    assert jvi.networks.network(nn.Dense(3), precision=bfloat16) != jvi.networks.network(nn.Dense(3))
    assert bfloat16(function)(np.ones(3)).dtype == np.float64
    lowered = bfloat16.lower((KEY, np.arange(3), np.ones(2, bool)))
    assert [leaf.dtype for leaf in lowered] == [KEY.dtype, np.arange(3).dtype, np.dtype(bool)]


@pytest.mark.quick
def test_what_is_no_precision_is_refused():
    with pytest.raises(TypeError, match="floating-point type"):
        jvi.precision.Policy(jnp.int32)
    with pytest.raises(TypeError, match="floating-point type"):
        jvi.precision.Policy("narrow")
    with pytest.raises(TypeError, match="called with a function"):
        bfloat16(3.0)
    with pytest.raises(TypeError, match="precision must be one of"):
        jvi.networks.network(nn.Dense(3), precision=jnp.bfloat16)
