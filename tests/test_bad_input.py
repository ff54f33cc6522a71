"""Bad input: every row ends in an error, before any long work, that names the argument, what came and what to do."""

from __future__ import annotations

import distrax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.scipy.stats import norm

import jvi
from jvi.diagnostics import pareto_khat

pytestmark = pytest.mark.quick
KEY = jax.random.key(0)
SPACE = jvi.space({"w": jvi.real(2)})
GUIDE = jvi.guides.MeanField(SPACE)
ADAM = jvi.optimizer(optax.adam, 1e-2)
X = jnp.ones((5, 2))


def log_joint(x, z):
    return norm.logpdf(z["w"]).sum() + norm.logpdf(x @ z["w"]).sum()


MODEL = jvi.model(log_joint)
SVI = jvi.SVI(jvi.elbo(MODEL, GUIDE), ADAM)
BATCHED = jvi.SVI(jvi.per_example(jvi.elbo(MODEL, GUIDE)), ADAM)
PARAMS = jvi.objectives.Params((), GUIDE.init(KEY, None))
POSTERIOR = jvi.Posterior(MODEL, GUIDE, PARAMS, X)


def fit(svi=SVI, rng=KEY, x=X, **kwargs):
    return jvi.fit(svi, rng, x, **{"num_steps": 10, **kwargs})


def fit_guide(guide, log_joint=log_joint):
    return fit(jvi.SVI(jvi.elbo(jvi.model(log_joint), guide, gradient=jvi.gradients.pathwise), ADAM))


def normal(params, x):
    return distrax.Normal(params, 1.0)


def integer(params, rng, x):
    return {"w": jnp.ones(2, int)}, jnp.zeros(())


def from_functions(sampler, **kwargs):
    return jvi.guides.from_functions(lambda rng, x: jnp.zeros(2), sampler, **kwargs)


class WithState(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.BatchNorm(use_running_average=False)(x)


class Dropped(nnx.Module):
    def __init__(self, *, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x)


# name: (what is called, the error, words that its message must hold)
TABLE = {
    "log-joint returns a vector": (
        lambda: fit_guide(GUIDE, lambda x, z: norm.logpdf(z["w"])), ValueError, ["log-joint", "scalar", "[2]", "Sum"]),
    "log-joint returns nothing": (
        lambda: fit_guide(GUIDE, lambda x, z: None), TypeError, ["log-joint", "scalar", "NoneType"]),
    "log-joint returns an integer": (
        lambda: fit_guide(GUIDE, lambda x, z: jnp.ones((), int)), TypeError, ["log-joint", "int32", "floating"]),
    "log-likelihood returns a vector": (
        lambda: fit(jvi.SVI(jvi.elbo(jvi.split(lambda z: 0.0 * z["w"].sum(), lambda x, z: z["w"]), GUIDE), ADAM)),
        ValueError, ["log-likelihood", "[2]"]),
    "log-joint is no function": (lambda: jvi.model(3.0), TypeError, ["log_joint", "3.0"]),
    "model is a bare function": (lambda: jvi.elbo(log_joint, GUIDE), TypeError, ["model", "jvi.model(log_joint)"]),
    "guide is a space": (lambda: jvi.elbo(MODEL, SPACE), TypeError, ["guide", "sample_and_log_prob"]),
    "space is a dict": (lambda: jvi.guides.MeanField({"w": jvi.real(2)}), TypeError, ["space", "jvi.space"]),
    "a support is a number": (lambda: jvi.space({"w": 3}), TypeError, ["support", "jvi.real(3)", "3"]),
    "no support": (lambda: jvi.space({}), TypeError, ["at least one"]),
    "shape is a float": (lambda: jvi.real(2.5), TypeError, ["shape", "2.5"]),
    "interval is empty": (lambda: jvi.interval(1.0, 1.0), ValueError, ["lower", "upper", "1.0"]),
    "bound is infinite": (lambda: jvi.lower_bounded(-jnp.inf), ValueError, ["lower", "finite"]),
    "simplex of one": (lambda: jvi.simplex(1), ValueError, ["jvi.simplex", "2"]),
    "ordered without size": (lambda: jvi.ordered(), ValueError, ["jvi.ordered(3)"]),
    "point of a wrong size": (lambda: SPACE.constrain(jnp.zeros(3)), ValueError, ["u", "[2]", "[3]"]),
    "latent of a wrong shape": (lambda: SPACE.unconstrain({"w": jnp.zeros(3)}), ValueError, ["w", "[2]", "[3]"]),
    "latent of a wrong structure": (lambda: SPACE.unconstrain({"v": jnp.zeros(2)}), ValueError, ["w: real[2]", "'v'"]),
    "init_scale is zero": (lambda: jvi.guides.FullRank(SPACE, init_scale=0.0), ValueError, ["init_scale", "positive"]),
    "rank is zero": (lambda: jvi.guides.LowRank(SPACE, rank=0), ValueError, ["rank", "1 or more", "0"]),
    "guide's draws do not match the space": (
        lambda: fit_guide(from_functions(lambda params, rng, x: ({"w": jnp.zeros(3)}, 0.0), space=SPACE)),
        ValueError, ["the guide's draw", "'w'", "[2]", "[3]"]),
    "guide's draws have another structure than the space": (
        lambda: fit_guide(from_functions(lambda params, rng, x: (jnp.zeros(2), 0.0), space=SPACE)),
        ValueError, ["the guide's draw", "w: real[2]", "float32[2]"]),
    "distribution with a batch shape": (
        lambda: fit_guide(jvi.guides.from_distribution(lambda rng, x: jnp.zeros(2), normal)),
        ValueError, ["log-density", "[2]", "distrax.Independent"]),
    "dist returns no distribution": (
        lambda: fit_guide(jvi.guides.from_distribution(lambda rng, x: jnp.zeros(2), lambda params, x: params)),
        TypeError, ["dist", "distribution"]),
    "integer latent under a pathwise gradient": (
        lambda: fit_guide(from_functions(integer)), TypeError, ["z['w']", "int32", "pathwise", "log-joint"]),
    "integer latent under stl": (
        lambda: fit(jvi.SVI(jvi.elbo(MODEL, from_functions(integer, log_prob=lambda params, x, z: jnp.zeros(()))), ADAM)),
        TypeError, ["z['w']", "int32"]),
    "stl without log_prob": (
        lambda: jvi.elbo(MODEL, from_functions(integer), gradient=jvi.gradients.stl), ValueError, ["stl", "log_prob", "pathwise"]),
    "stl with iwae": (
        lambda: jvi.iwae(MODEL, GUIDE, num_samples=5, gradient=jvi.gradients.stl), ValueError, ["stl", "biased", "pathwise"]),
    "stl with renyi": (
        lambda: jvi.renyi(MODEL, GUIDE, alpha=0.5, num_samples=5, gradient=jvi.gradients.stl), ValueError, ["stl", "biased"]),
    "zero samples": (lambda: jvi.elbo(MODEL, GUIDE, num_samples=0), ValueError, ["num_samples", "1 or more", "0"]),
    "negative samples": (lambda: jvi.iwae(MODEL, GUIDE, num_samples=-3), ValueError, ["num_samples", "-3"]),
    "half a sample": (lambda: jvi.elbo(MODEL, GUIDE, num_samples=2.5), TypeError, ["num_samples", "2.5"]),
    "alpha is not a number": (lambda: jvi.renyi(MODEL, GUIDE, alpha=np.nan, num_samples=2), ValueError, ["alpha", "nan"]),
    "objective is a function": (lambda: jvi.SVI(log_joint, ADAM), TypeError, ["objective", "jvi.elbo"]),
    "optimizer is a rate": (lambda: jvi.SVI(SVI.objective, 1e-3), TypeError, ["optimizer", "jvi.optimizer(optax.adam, 1e-3)"]),
    "recipe of a ready optimizer": (lambda: jvi.optimizer(optax.adam(1e-3)), TypeError, ["factory", "optax.adam"]),
    "recipe with an array": (lambda: jvi.optimizer(optax.adam, jnp.ones(2)), TypeError, ["args", "hashable"]),
    "svi is an objective": (lambda: fit(svi=SVI.objective), TypeError, ["svi", "jvi.SVI"]),
    "no tolerance": (lambda: jvi.adapt(SVI, KEY, X, tolerance=0.0), ValueError, ["tolerance", "positive", "0.0"]),
    "no time": (lambda: jvi.adapt(SVI, KEY, X, seconds=-1.0), ValueError, ["seconds", "positive", "-1.0"]),
    "no budget": (lambda: jvi.adapt(SVI, KEY, X, max_steps=0), ValueError, ["max_steps", "1 or more"]),
    "a schedule without num_steps": (
        lambda: jvi.adapt(SVI, KEY, X, beta=jnp.sqrt), ValueError, ["beta", "num_steps"]),
    "a callback without num_steps": (
        lambda: jvi.fit(SVI, KEY, X, callback=print), ValueError, ["callback", "num_steps"]),
    "batch_size above the data of adapt": (
        lambda: jvi.adapt(BATCHED, KEY, X, batch_size=6), ValueError, ["batch_size", "5", "6"]),
    "no steps": (lambda: fit(num_steps=0), ValueError, ["num_steps", "1 or more", "0"]),
    "steps by half": (lambda: fit(num_steps=10.5), TypeError, ["num_steps", "10.5"]),
    "callback_every is zero": (lambda: fit(callback_every=0), ValueError, ["callback_every", "0"]),
    "old-style key": (lambda: fit(rng=jnp.zeros(2, jnp.uint32)), TypeError, ["rng", "jax.random.key", "uint32[2]"]),
    "seed in place of a key": (lambda: fit(rng=0), TypeError, ["rng", "jax.random.key", "0"]),
    "many keys": (lambda: fit(rng=jax.random.split(KEY, 3)), TypeError, ["rng", "one key", "(3,)"]),
    "NaN data": (lambda: fit(x=X.at[1, 1].set(jnp.nan)), ValueError, ["x", "1 of 10", "NaN", "mask"]),
    "NaN in a NumPy leaf": (
        lambda: fit(x={"a": np.array([1.0, np.nan])}), ValueError, ["x['a']", "1 of 2", "NaN"]),
    "data are words": (lambda: fit(x=["a", "b"]), TypeError, ["x[0]", "numbers"]),
    "data of a wrong shape": (lambda: fit(x=jnp.ones((5, 3))), TypeError, ["dot_general", "3", "2"]),
    "batch leaves of unequal length": (
        lambda: jvi.fit_batches(BATCHED, KEY, (jnp.ones(5), jnp.ones(4)), num_steps=3, batch_size=2),
        ValueError, ["batches", "leading axis", "[5]", "[4]"]),
    "per_example of a scalar": (lambda: fit(svi=BATCHED, x=1.0), ValueError, ["x", "leading axis"]),
    "batch_size above the data": (
        lambda: jvi.fit_batches(BATCHED, KEY, X, num_steps=3, batch_size=6), ValueError, ["batch_size", "5", "6"]),
    "batch_size is zero": (
        lambda: jvi.fit_batches(BATCHED, KEY, X, num_steps=3, batch_size=0), ValueError, ["batch_size", "0"]),
    "data set without batch_size": (
        lambda: jvi.fit_batches(BATCHED, KEY, X, num_steps=3), TypeError, ["batches", "batch_size", "[5,2]"]),
    "batches are no iterable": (lambda: jvi.fit_batches(BATCHED, KEY, 3, num_steps=3), TypeError, ["batches", "int"]),
    "empty iterator": (lambda: jvi.fit_batches(BATCHED, KEY, iter([]), num_steps=3), ValueError, ["batches", "empty"]),
    "a minibatch of another shape": (
        lambda: jvi.fit_batches(BATCHED, KEY, iter([X[:3], X]), num_steps=3), ValueError, ["minibatch", "[5,2]", "[3,2]"]),
    "NaN in a minibatch": (
        lambda: jvi.fit_batches(BATCHED, KEY, iter([X, X * jnp.nan]), num_steps=3), ValueError, ["batch 1", "NaN"]),
    "beta without a split model": (lambda: fit(beta=0.5), ValueError, ["beta", "jvi.split"]),
    "no draws": (lambda: POSTERIOR.sample(KEY, 0), ValueError, ["num_samples", "0"]),
    "draws with an old-style key": (
        lambda: POSTERIOR.sample(jnp.zeros(2, jnp.uint32), 3), TypeError, ["rng", "jax.random.key"]),
    "chunks of none": (lambda: POSTERIOR.sample(KEY, 3, chunk_size=0), ValueError, ["chunk_size", "0"]),
    "evidence from one draw": (lambda: POSTERIOR.log_evidence(KEY, 1), ValueError, ["num_samples", "2"]),
    "log_prob of an intractable guide": (
        lambda: jvi.Posterior(MODEL, from_functions(integer), PARAMS, X).log_prob({"w": jnp.zeros(2)}), TypeError, ["log_prob"]),
    "posterior of another objective": (
        lambda: jvi.Posterior.of(jvi.SVI(lambda_objective()), None, X), TypeError, ["model", "guide"]),
    "k-hat of too few": (lambda: pareto_khat(jnp.ones(10)), ValueError, ["log_w", "20", "[10]"]),
    "a bound of a matrix": (lambda: jvi.bounds.iwae(jnp.ones((2, 2))), ValueError, ["log_w", "[2, 2]", "vmap"]),
    "a bound of nothing": (lambda: jvi.bounds.elbo(jnp.ones(0)), ValueError, ["log_w", "K >= 1"]),
    "a built NNX module": (
        lambda: jvi.guides.conditional(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), normal), TypeError, ["NNX", "rngs"]),
    "a network that is a number": (lambda: jvi.networks.network(3), TypeError, ["network", "int"]),
    "a Linen network with state": (
        lambda: jvi.networks.network(WithState()).init(KEY, jnp.ones(3)), TypeError, ["batch_stats", "LayerNorm"]),
    "an NNX network with state": (
        lambda: jvi.networks.network(Dropped).init(KEY, jnp.ones(3)), TypeError, ["dropout", "parameters"]),
}  # fmt: skip


def lambda_objective():
    class Custom:
        def init(self, rng, x):
            return jnp.zeros(())

        def __call__(self, params, rng, x, *, beta=1.0):
            return params, jvi.objectives.Aux(jnp.zeros(1))

    return Custom()


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused(name):
    call, error, words = TABLE[name]
    with pytest.raises(error) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
