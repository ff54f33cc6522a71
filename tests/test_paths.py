"""A latent without a path is an error where an estimator needs one, and what has a path is let through."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import pytest
from tensorflow_probability.substrates import jax as tfp

import jvi

tfd = tfp.distributions
START = {"a": jnp.asarray(0.3), "b": jnp.asarray([0.1, -0.4])}


def normals(params):
    return distrax.Normal(params["b"], jnp.exp(params["a"]) * jnp.ones(2))


def mixture(params):
    return distrax.MixtureSameFamily(distrax.Categorical(params["b"]), normals(params))


def tfp_mixture(params):
    return tfd.MixtureSameFamily(tfd.Categorical(params["b"]), tfd.Normal(params["b"], jnp.exp(params["a"])))


class Threshold(distrax.Distribution):
    """A distribution of a user's own, of which no library knows that its draws are steps."""

    def __init__(self, logit):
        self.logit = logit

    def _sample_n(self, key, n):
        return (jax.random.logistic(key, (n,)) < self.logit).astype(float)

    def log_prob(self, value):
        return value * self.logit - jax.nn.softplus(self.logit)

    @property
    def event_shape(self):
        return ()


class Shift(Threshold):
    """Another, whose draws do have a path."""

    def _sample_n(self, key, n):
        return self.logit + jax.random.logistic(key, (n,))

    def log_prob(self, value):
        return jax.scipy.stats.logistic.logpdf(value - self.logit)


@jax.custom_vjp
def doubled(a):
    return 2.0 * a


doubled.defvjp(lambda a: (doubled(a), None), lambda _, given: (2.0 * given,))


def below(params, key):
    return jnp.where(jax.random.logistic(key) < params["a"], 1.0, 0.0) + 0.0 * params["b"].sum()


# Functions `(params, key) -> z` of which some leaf depends on a parameter by a step, and that parameter.
STEPS = {
    "where": (below, "params['a']"),
    "argmax": (lambda p, k: jnp.eye(2)[jnp.argmax(p["b"] + jax.random.gumbel(k, (2,)))], "params['b']"),
    "floor": (lambda p, k: jnp.floor(p["a"] + jax.random.normal(k)), "params['a']"),
    "jitted": (jax.jit(lambda p, k: {"s": p["a"] + p["b"][0], "t": jnp.floor(p["a"])}), "params['a']"),
    "one leaf of two": (lambda p, k: {"s": p["a"] + p["b"], "t": jnp.round(p["b"])}, "params['b']"),
    "scale only": (lambda p, k: jnp.exp(p["a"]) * jnp.where(jax.random.uniform(k) < p["b"][0], 1.0, 2.0), "params['b']"),
    "mixture": (lambda p, k: p["b"][jax.random.categorical(k, p["a"] * p["b"])], "params['a']"),
    "scanned": (lambda p, k: jax.lax.scan(lambda c, _: (jnp.sign(c + p["a"]), None), p["b"], length=2)[0], "params['a']"),
}
# And some of which none does.
PATHS = {
    "shift": lambda p, k: p["a"] + p["b"] + jax.random.normal(k),
    "leaves apart": jax.jit(lambda p, k: {"s": p["a"] + jax.random.normal(k), "t": p["b"] * 2.0}),
    "gamma": lambda p, k: jax.random.gamma(k, jnp.exp(p["a"])) + p["b"],
    "clipped": lambda p, k: jnp.clip(p["a"] + jax.random.normal(k), -1.0, 1.0) + jnp.abs(p["b"]),
    "frozen": lambda p, k: jax.lax.stop_gradient(jnp.floor(p["b"])) + p["a"],
    "custom": lambda p, k: doubled(p["a"]) + p["b"],
    "looped": lambda p, k: jax.lax.fori_loop(0, 3, lambda i, z: z * p["a"], p["b"]),
    "unused": lambda p, k: p["a"] + jax.random.normal(k),
}
DISTRIBUTIONS_WITHOUT = {
    "Bernoulli": lambda p: distrax.Bernoulli(p["a"]),
    "OneHotCategorical": lambda p: distrax.OneHotCategorical(p["b"], dtype=jnp.float32),
    "int OneHotCategorical": lambda p: distrax.OneHotCategorical(p["b"]),
    "joint": lambda p: distrax.Joint({"s": distrax.Normal(p["a"], 1.0), "t": distrax.Bernoulli(p["a"], dtype=jnp.float32)}),
    "MixtureSameFamily": mixture,
    "tfp MixtureSameFamily": tfp_mixture,
    "MixtureOfTwo": lambda p: distrax.MixtureOfTwo(0.5, distrax.Normal(p["a"], 1.0), distrax.Normal(0.0, 1.0)),
    "transformed mixture": lambda p: distrax.Transformed(mixture(p), distrax.Lambda(jnp.exp)),
    "independent mixture": lambda p: distrax.Independent(tfp_mixture(p), 0),
    "Quantized": lambda p: distrax.Quantized(distrax.Normal(p["a"], 1.0)),
    "own": lambda p: Threshold(p["a"]),
}
DISTRIBUTIONS_WITH = {
    "Normal": lambda p: distrax.Independent(normals(p), 1),
    "Gamma": lambda p: distrax.Gamma(jnp.exp(p["a"]), 1.0),
    "tfp joint": lambda p: tfd.JointDistributionSequential([tfd.Normal(p["a"], 1.0), tfd.Gamma(jnp.exp(p["a"]), 1.0)]),
    "transformed": lambda p: distrax.Transformed(distrax.Normal(p["a"], 1.0), distrax.Lambda(jnp.exp)),
    "own": lambda p: Shift(p["a"]),
}


def start(rng, x):
    return START


def trace(guide):
    objective = jvi.elbo(jvi.model(lambda x, z: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(z)) * 1.0), guide)
    jax.eval_shape(objective, objective.init(jax.random.key(0), None), jax.random.key(1), None)


def of_functions(sample):
    return jvi.guides.from_functions(start, lambda p, k, x: (sample(p, k), p["a"]), lambda p, x, z: p["a"])


@pytest.mark.quick
@pytest.mark.parametrize("name", STEPS)
def test_functions_that_depend_on_a_parameter_by_a_step_are_refused(name):
    sample, parameter = STEPS[name]
    with pytest.raises(TypeError, match="differentiably") as found:
        trace(of_functions(sample))
    assert parameter in str(found.value)


@pytest.mark.quick
@pytest.mark.parametrize("name", PATHS)
def test_functions_with_a_path_are_let_through(name):
    trace(of_functions(PATHS[name]))


@pytest.mark.quick
@pytest.mark.parametrize("name", DISTRIBUTIONS_WITHOUT)
def test_distributions_without_a_path_are_refused_and_the_remedies_named(name):
    guide = jvi.guides.from_distribution(start, lambda p, x: DISTRIBUTIONS_WITHOUT[name](p))
    with pytest.raises(TypeError, match=r"gradients\.score.*enumerated.*disarm or relax"):
        trace(guide)


@pytest.mark.quick
@pytest.mark.parametrize("name", DISTRIBUTIONS_WITH)
def test_distributions_with_a_path_are_let_through(name):
    trace(jvi.guides.from_distribution(start, lambda p, x: DISTRIBUTIONS_WITH[name](p)))
