"""Guides made of guides: what objectives see through them, what is refused, and where an error says it is."""

from __future__ import annotations

import math

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from cases_composed import COMPOSED
from cases_core import HalfNNX, assert_z_test
from flax import nnx
from jax.scipy.stats import norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi import gradients, guides, objectives
from jvi.guides._through import WithNetwork

pytestmark = pytest.mark.quick
tfb = tfp.bijectors
KEY = jax.random.key(3)
ONE = guides.MeanField(jvi.space(jvi.real()))
TWO = guides.MeanField(jvi.space(jvi.real(2)))
PAIR = guides.product(a=ONE, b=TWO)
X = np.array([0.4, -1.1, 0.9])


def zeros_init(rng, x):
    return jnp.zeros(())


def bernoulli(params, x):
    return distrax.Bernoulli(params)


def shifted(params, x):
    return distrax.Normal(params + x[0], 0.5)


def half(x):
    return 0.5 * x


def intractable(params, rng, x):
    return params + jax.random.normal(rng), jnp.zeros(())


BIT = guides.from_distribution(zeros_init, bernoulli)
DARK = guides.from_functions(zeros_init, intractable)


def log_likelihood(x, z):
    return norm.logpdf(x, z["b"].sum() + z["a"], 0.7).sum()


def prior():
    return distrax.Joint({"a": distrax.Normal(0.0, 1.0), "b": distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))})


MODEL = jvi.models.with_prior(prior, log_likelihood)


def close(a, b, tol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), a, b)


# Fits


def conjugate(x, z):
    return norm.logpdf(z) + norm.logpdf(x[0], z)


FITTED = {
    "elbo": (
        lambda guide: jvi.elbo(jvi.model(conjugate), guide, gradient=gradients.stl),
        guides.transform(guides.amortize(ONE, nn.Dense(2)), jvi.recipe(distrax.ScalarAffine, 0.3, 2.0)),
    ),
    "iwae": (
        lambda guide: jvi.iwae(jvi.model(conjugate), guide, num_samples=4),
        guides.given(nn.Dense(3), guides.amortize(ONE, nn.Dense(2))),
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_an_amortized_fit_reaches_the_evidence_of_a_conjugate_model(name):
    objective, guide = FITTED[name]
    x = jnp.linspace(-2.0, 2.0, 8)[:, None]
    svi = jvi.SVI(jvi.per_example(objective(guide)), jvi.optimizer(jvi.svi.cosine_adam, 0.02, num_steps=2_000))
    _, info = jvi.fit(svi, KEY, x, num_steps=2_000)
    evidence = norm.logpdf(x, 0.0, math.sqrt(2.0)).mean()
    # At the exact posterior every log-weight is the evidence: the last bounds are of all but settled parameters.
    np.testing.assert_allclose(np.mean(info.bound[-300:]), evidence, atol=1e-3)


# What objectives see


def test_objectives_see_through_combinators():
    """Values and gradients are those of the guide inside, at the parameters and the features that it gets."""
    net = {"kernel": jnp.linspace(-0.2, 0.3, 18).reshape(3, 6), "bias": jnp.linspace(0.1, 0.4, 6)}
    own = PAIR.init(KEY, X)
    added = guides.amortize(PAIR, nn.Dense(6))
    seeing = guides.given(half, PAIR)
    inner, _ = added.change.open(PAIR, WithNetwork(net, own), X)
    of_amortized = {
        "by_group": lambda guide: jvi.elbo(MODEL, guide, num_samples=2, gradient=gradients.by_group(a=gradients.score)),
        "elbo_kl": lambda guide: objectives.elbo_kl(MODEL, guide),
        "rao_blackwell": lambda guide: objectives.rao_blackwell(MODEL, guide),
    }
    of_features = {"by_group": of_amortized["by_group"], "elbo_entropy": lambda guide: objectives.elbo_entropy(MODEL, guide)}

    def graded(make, guide, params):
        def value(params):
            objective = make(guide)
            control = objective.init(KEY, X).control
            value, aux = objective(jvi.objectives.Params((), params, control), KEY, X)
            return value, aux.kl

        return jax.value_and_grad(value, has_aux=True)(params)

    @jax.jit
    def all_of_them(net, own, inner):
        amortized = [(graded(of, PAIR, inner), graded(of, added, WithNetwork(net, own))) for of in of_amortized.values()]
        return amortized, [(graded(of, PAIR, own), graded(of, seeing, WithNetwork((), own))) for of in of_features.values()]

    amortized, featured = all_of_them(net, own, inner)
    for (value, grads), (found, found_grads) in amortized:
        close(value, found)
        close(grads, found_grads.guide, 1e-4)
        slope = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
        close(found_grads.network["kernel"], np.outer(X, slope), 1e-4)
    for (value, grads), (found, found_grads) in featured:
        close((value, grads), (found, found_grads.guide), 1e-4)


def test_finite_latents_are_enumerated_through_combinators():
    model = jvi.model(lambda x, z: jnp.where(z["k"] == 1, math.log(0.3), math.log(0.1)))
    plain = objectives.enumerate_elbo(model, guides.product(k=BIT))
    for guide in (
        guides.given(half, guides.product(k=BIT)),
        guides.freeze(guides.product(k=BIT), "k"),
        guides.amortize(guides.product(k=BIT), nn.Dense(1, kernel_init=nn.initializers.zeros)),
    ):
        objective = objectives.enumerate_elbo(model, guide)
        value, _ = objective(objective.init(KEY, X), KEY, X)
        close(value, plain(plain.init(KEY, X), KEY, X)[0])


def test_parts_in_a_plate_have_no_estimator_of_their_own():
    with pytest.raises(ValueError, match="made of named parts"):
        jvi.elbo(MODEL, guides.plate(PAIR, 3), gradient=gradients.by_group(a=gradients.score))


WRAPPED = {
    "given": lambda guide: guides.given(half, guide),
    "transform": lambda guide: guides.transform(guide, tfb.Exp),
    "amortize": lambda guide: guides.amortize(guide, nn.Dense(guides.num_params(guide, X))),
    "plate": lambda guide: guides.plate(guide, 3),
    "plate_shared": lambda guide: guides.plate(guide, 3, shared=True),
    "freeze": lambda guide: guides.freeze(guide),
    "partial": lambda guide: guides.partial(guide, known=1.0),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_combinator_has_what_the_guide_inside_has(name):
    for inner in (ONE, guides.FullRank(jvi.space(jvi.real(2))), BIT, DARK, guides.LowRank(jvi.space(jvi.real(2)), 1)):
        wrapped = WRAPPED[name](inner)
        for attribute in ("log_prob", "entropy", "distribution"):
            assert hasattr(wrapped, attribute) == hasattr(inner, attribute), (inner, attribute)
        assert wrapped.reparameterized == getattr(inner, "reparameterized", False)
        assert wrapped == WRAPPED[name](inner)
        assert hash(wrapped) == hash(WRAPPED[name](inner))
        assert not hasattr(wrapped, "parts")


def test_a_network_of_either_kind_gives_features():
    for source in (nn.Dense(1), HalfNNX, jvi.networks.network(nnx.Linear, 1, 1)):
        guide = guides.given(source, guides.from_distribution(zeros_init, shifted))
        params = guide.init(KEY, jnp.ones(1))
        assert jax.tree.leaves(params.network)
        assert guide == guides.given(source, guides.from_distribution(zeros_init, shifted))
    assert guides.given(jnp.tanh, ONE).init(KEY, jnp.ones(1)).network == ()


def test_distributions_are_those_that_are_drawn_from():
    positive = guides.MeanField(jvi.space(jvi.positive(2)))
    named = guides.MeanField(jvi.space({"a": jvi.real(), "b": jvi.real(2)}))
    cases = [
        guides.transform(positive, tfb.Log),
        guides.transform(TWO, jvi.recipe(distrax.ScalarAffine, 0.3, 2.0)),
        guides.transform(guides.FullRank(jvi.space(jvi.real(3))), tfb.SoftmaxCentered),
        guides.transform(named, {"b": tfb.Exp}),
        guides.plate(ONE, 4),
        guides.plate(positive, 4),
        guides.plate(named, 4),
        guides.partial(named, c=(1.0, 2.0)),
    ]

    @jax.jit
    def densities(keys):
        found = []
        for guide, key in zip(cases, keys, strict=True):
            params = jax.tree.map(lambda leaf: leaf + 0.3, guide.init(key, X))
            z, log_q = guide.sample_and_log_prob(params, key, X)
            with jax.numpy_rank_promotion("allow"):
                found.append((guide.distribution(params, X).log_prob(z), log_q))
        return found

    for of_distribution, log_q in densities(jax.random.split(KEY, len(cases))):
        assert of_distribution.shape == ()
        close(of_distribution, log_q, 1e-4)


def test_entropies_are_the_mean_of_minus_log_q():
    """Of 2,000 draws; the entropy of a transformed guide is that inside plus the determinant's mean."""
    guide = guides.product(a=guides.transform(TWO, tfb.Softplus), b=guides.plate(ONE, 3))
    params = guide.init(KEY, X)

    def one(key):
        z, _ = guide.sample_and_log_prob(params, key, X)
        return [part.entropy(params[name], X, z[name]) + part.log_prob(params[name], X, z[name]) for name, part in guide.parts]

    samples = jax.jit(jax.vmap(one))(jax.random.split(KEY, 2_000))
    assert_z_test(jnp.stack(samples, 1), [0.0, 0.0])


class Normed(nn.Module):
    features: int
    still: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(self.still, momentum=0.0, use_bias=False, use_scale=False, axis_name="examples")(x)
        return nn.Dense(self.features)(x)


def test_networks_in_training_keep_their_state():
    x = jnp.array([[1.0], [3.0]])
    net = jvi.networks.network(Normed(2, still=True), training=Normed(2))
    diagonal = guides.from_distribution(zeros_init, lambda params, x: distrax.Normal(x[0] + params, jnp.exp(x[1])))
    for guide in (guides.given(net, diagonal), guides.amortize(ONE, net)):
        svi = jvi.SVI(objectives.training(jvi.per_example(jvi.elbo(jvi.model(conjugate), guide))))
        state, _ = jax.jit(svi.step)(svi.init(KEY, x), x)
        assert state.params.guide.network.state["batch_stats"]["BatchNorm_0"]["mean"].tolist() == [2.0]


# One by one


def test_num_params_counts_real_numbers_without_work():
    assert guides.num_params(PAIR) == 6
    assert guides.num_params(guides.plate(PAIR, 5)) == 30
    assert guides.num_params(guides.amortize(PAIR, nn.Dense(6)), X) == 6 + 3 * 6 + 6
    assert guides.num_params(guides.given(half, ONE), jax.ShapeDtypeStruct((3,), np.dtype("float32"))) == 2


def test_amortized_parameters_keep_their_types_and_their_start(float64):
    guide = guides.amortize(PAIR, nn.Dense(6, kernel_init=nn.initializers.zeros))
    params = guide.init(KEY, jnp.asarray(X))
    inner, _ = guide.change.open(PAIR, params, X)
    close(inner, PAIR.init(KEY, X), 1e-15)
    single = params._replace(guide=jax.tree.map(lambda leaf: leaf.astype("float32"), params.guide))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(guide.change.open(PAIR, single, X)[0])} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(inner)} == {"float64"}


def test_every_combinator_is_exact_in_double_precision(float64):
    cases = {name: CASES[name] for name in ("given_sequence", "plate_shared", "nested")}

    @jax.jit
    def densities(params):
        found = {}
        for name, case in cases.items():
            z, log_q = case.guide.sample_and_log_prob(params[name], KEY, case.x)
            found[name] = z, log_q, case.guide.log_prob(params[name], case.x, z), case.log_joint(case.x, z)
        return found

    found = densities({name: jax.tree.map(jnp.asarray, case.params) for name, case in cases.items()})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float64"}
    for name, (_, log_q, log_prob, log_joint) in found.items():
        close((log_prob, log_joint), (log_q, log_q + cases[name].log_evidence), 1e-11)


def test_a_plate_is_its_copies():
    guide = guides.plate(guides.amortize(ONE, nn.Dense(2)), 4, shared=True)
    x = jnp.linspace(0.0, 1.0, 12).reshape(4, 3)

    @jax.jit
    def both(key):
        params = guide.init(key, x)
        z, log_q = guide.sample_and_log_prob(params, key, x)
        own = guides.plate(guides.LowRank(jvi.space(jvi.real(2)), 1), 4).init(key, x)
        return params, log_q, sum(guide.guide.log_prob(params, x[i], z[i]) for i in range(4)), own

    params, log_q, each, own = both(KEY)
    close(log_q, each)
    assert [leaf.shape for leaf in jax.tree.leaves(params.guide)] == [(1,), (1,)]
    assert own.factor.shape == (4, 2, 1)
    assert len(np.unique(own.factor)) == 8


def test_a_plate_in_a_sequence_hands_what_is_shared_to_all_copies():
    def after(params, x):
        datum, before = x
        return distrax.Normal(params * datum[0] + before["g"], 1.0)

    local = guides.from_distribution(lambda rng, x: jnp.ones(()), after)
    guide = guides.sequence(g=ONE, z=guides.plate(local, 4, shared=True, axes=(0, None)))
    x = jnp.arange(4.0)[:, None]
    params = guide.init(KEY, x)
    z, log_q = guide.sample_and_log_prob(params, KEY, x)
    close(log_q, ONE.log_prob(params["g"], x, z["g"]) + norm.logpdf(z["z"], x[:, 0] + z["g"]).sum())


def test_frozen_parts_have_no_gradient_and_the_others_theirs():
    frozen = guides.freeze(COMPOSED, "a/u")
    case = CASES["nested"]
    params = jax.tree.map(jnp.asarray, case.params)

    def loss(params, guide):
        z, log_q = guide.sample_and_log_prob(params, KEY, case.x)
        return log_q + z["b"]

    graded = jax.value_and_grad(loss)
    (value, grads), (same, left), (_, none) = jax.jit(
        lambda params: [graded(params, guide) for guide in (COMPOSED, frozen, guides.freeze(COMPOSED))]
    )(params)
    close(value, same)
    close(left.guide["a"]["u"], jax.tree.map(jnp.zeros_like, left.guide["a"]["u"]))
    close(left.network["kernel"][:, :2], np.zeros((1, 2)))
    assert np.abs(grads.network["kernel"][:, :2]).min() > 0.0
    close(left.guide["a"]["v"], grads.guide["a"]["v"])
    close(left.guide["b"], grads.guide["b"])
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(none))


def test_partial_adds_what_is_known():
    guide = guides.sequence(a=guides.partial(PAIR, c=2, d=lambda x: x[0][:2]), e=guides.from_distribution(zeros_init, of_known))
    params = guide.init(KEY, X)
    z, log_q = guide.sample_and_log_prob(params, KEY, X)
    close((z["a"]["c"], z["a"]["d"]), (2.0, X[:2]))
    assert jnp.issubdtype(z["a"]["c"].dtype, jnp.floating)
    drawn = {name: z["a"][name] for name in ("a", "b")}
    close(log_q, PAIR.log_prob(params["a"], X, drawn) + norm.logpdf(z["e"], 2.0))
    model = jvi.model(lambda x, z: norm.logpdf(z["a"]) + norm.logpdf(z["b"]).sum() + norm.logpdf(x[0], z["a"], z["scale"]))
    objective = objectives.elbo_entropy(model, guides.partial(PAIR, scale=1.5))
    assert np.isfinite(objective(objective.init(KEY, X), KEY, X)[0])


def of_known(params, x):
    return distrax.Normal(params + x[1]["a"]["c"], 1.0)


# Errors


def draws(guide, x=X):
    return guide.sample_and_log_prob(guide.init(KEY, x), KEY, x)


def density(guide, z, x=X):
    return guide.log_prob(guide.init(KEY, x), x, z)


def strata(guide, x=X):
    parts = {name: part.init(KEY, x) for name, part in guide.parts}
    return guide.strata(parts, KEY, x)


MATRIX = guides.MeanField(jvi.space(jvi.real(2, 2)))
OFF = guides.from_distribution(
    lambda rng, x: jnp.zeros(3), lambda params, x: distrax.MultivariateNormalDiag(params), space=jvi.space(jvi.real(2))
)
THIN = guides.LowRank(jvi.space(jvi.real(1)), 1)
DROPPED = jvi.networks.network(nn.Dropout(0.5, deterministic=True), training=nn.Dropout(0.5, deterministic=False))
UNLIKE = guides.Mixture((guides.product(u=ONE, v=guides.MeanField(jvi.space(jvi.real(3)))), guides.product(u=ONE, v=TWO)))
ERRORS = {
    "no guide": (TypeError, r"^guide\.b: a guide must have", lambda: guides.product(a=ONE, b=3)),
    "a class": (TypeError, "a guide must have", lambda: guides.plate(guides.MeanField, 2)),
    "no guide inside": (TypeError, "a guide must have", lambda: guides.amortize(None, nn.Dense(2))),
    "a network's size": (
        ValueError,
        r"^guide\.a\.b: .* one vector of 2 numbers, its parameters \(loc: .*it emits float32\[3\]",
        lambda: draws(guides.product(a=guides.sequence(b=guides.amortize(ONE, nn.Dense(3), inputs=lambda x: x[0])))),
    ),
    "a network's output": (
        ValueError,
        r"^guide\.a: .* emits \[0\]: float32\[3\], \[1\]",
        lambda: draws(guides.product(a=guides.amortize(ONE, jvi.networks.network(Twice())))),
    ),
    "a network with state inside": (
        TypeError,
        "keeps state cannot be amortized",
        lambda: draws(
            guides.amortize(guides.given(jvi.networks.network(Normed(2, still=True), training=Normed(2)), ONE), nn.Dense(7))
        ),
    ),
    "not of the space": (
        ValueError,
        r"^guide\.a\.b: the guide's draw must have shape \[2\]",
        lambda: draws(guides.product(a=guides.plate(guides.product(b=OFF), 2))),
    ),
    "another z": (
        ValueError,
        r"^guide\.a\.b: z must have shape \[2\]",
        lambda: density(guides.product(a=guides.product(b=TWO)), {"a": {"b": jnp.zeros(3)}}),
    ),
    "mismatched parts": (
        ValueError,
        r"^guide\.a: z must be a dict by part, of b; got c\.",
        lambda: density(guides.product(a=guides.product(b=TWO)), {"a": {"c": jnp.zeros(2)}}),
    ),
    "mismatched parameters": (
        ValueError,
        "the parameters must be a dict by part, of a, b; got a",
        lambda: PAIR.sample_and_log_prob({"a": ONE.init(KEY, X)}, KEY, X),
    ),
    "a draw the bijector does not take": (
        ValueError,
        r"^guide\.s: the bijector SoftmaxCentered takes events of 1 axes",
        lambda: draws(guides.product(s=guides.transform(ONE, tfb.SoftmaxCentered))),
    ),
    "a bijector that is built": (TypeError, "must be what builds one", lambda: guides.transform(ONE, tfb.Exp())),
    "no bijector": (TypeError, "must build a distrax or TFP bijector", lambda: draws(guides.transform(ONE, dict))),
    "no bijectors": (ValueError, "at least one latent", lambda: guides.transform(ONE, {})),
    "a bijector for a dict": (ValueError, "a bijector takes one array", lambda: draws(guides.transform(PAIR, tfb.Exp))),
    "a bijector for nobody": (
        ValueError,
        "bijectors for c need a draw that is a dict with these names",
        lambda: draws(guides.transform(PAIR, {"c": tfb.Exp})),
    ),
    "a bijector for bits": (
        ValueError,
        r"^guide\.k: a bijector takes real numbers",
        lambda: draws(guides.transform(guides.product(k=BIT), {"k": tfb.Exp})),
    ),
    "no copies": (ValueError, "num must be 1 or more", lambda: guides.plate(ONE, 0)),
    "other slices": (
        ValueError,
        r"^guide\.z: a shared plate of 4 .* along axes 0.*got float32\[3\]",
        lambda: draws(guides.product(z=guides.plate(ONE, 4, shared=True)), jnp.zeros(3)),
    ),
    "other copies": (
        ValueError,
        r"^guide\.z: every leaf of a plate's z must have 4 copies in front; got float32\[3\]",
        lambda: density(guides.product(z=guides.plate(ONE, 4)), {"z": jnp.zeros(3)}),
    ),
    "no such part": (ValueError, "no part 'c'; the parts are a, b", lambda: guides.freeze(PAIR, "c")),
    "no such part inside": (
        ValueError,
        r"^guide\.a: there is no part 'w'; the parts are u, v",
        lambda: guides.freeze(COMPOSED, "a/w"),
    ),
    "no parts": (ValueError, r"^guide\.b: .* not made of named parts", lambda: guides.freeze(PAIR, "b/c")),
    "drawn already": (ValueError, "draws b already, with a, b", lambda: guides.partial(PAIR, b=1.0)),
    "drawn already, once drawn": (
        ValueError,
        r"^guide\.p: the guide draws a already",
        lambda: draws(guides.product(p=guides.partial(guides.MeanField(jvi.space({"a": jvi.real()})), a=1.0))),
    ),
    "known, no dict": (TypeError, "draws are a dict", lambda: draws(guides.partial(ONE, b=1.0))),
    "known array": (TypeError, r"^guide\.c: a known latent must be a number", lambda: guides.partial(PAIR, c=np.ones(2))),
    "nothing known": (ValueError, "at least one known latent", lambda: guides.partial(PAIR)),
    "z without the known": (ValueError, "known latents c", lambda: density(guides.partial(PAIR, c=1.0), {"a": 0.0})),
    "a component": (
        ValueError,
        r"^guide\.p\[1\]\.v: z must have shape \[2\]",
        lambda: density(guides.product(p=UNLIKE), {"p": {"u": jnp.zeros(()), "v": jnp.zeros(3)}}),
    ),
    "a component of equals": (
        ValueError,
        r"^guide\[0\]\.b: z must have shape \[2\]",
        lambda: density(guides.Mixture((guides.product(b=TWO),) * 2), {"b": jnp.zeros(3)}),
    ),
    "a component's start": (
        ValueError,
        r"^guide\.p\[1\]: the network that amortizes this guide must emit one vector of 2 numbers",
        lambda: draws(guides.product(p=guides.Mixture((ONE, guides.amortize(ONE, nn.Dense(3)))))),
    ),
    "a stratum": (
        ValueError,
        r"^guide\.p\[0\]\.b: the guide's draw must have shape \[2\]",
        lambda: strata(guides.sequence(a=ONE, p=guides.Mixture((guides.product(b=OFF),) * 2))),
    ),
    "a stratum of unlike components": (
        ValueError,
        r"^guide\.p\[1\]\.b: the guide's draw must have shape \[2\]",
        lambda: strata(guides.product(p=guides.Mixture((guides.product(b=TWO), guides.product(b=OFF))))),
    ),
    "strata of a part": (
        TypeError,
        r"^guide\.p: partial adds latents to a guide whose draws are a dict",
        lambda: strata(guides.product(p=guides.partial(guides.Mixture((ONE, ONE)), c=1.0))),
    ),
    "no recipe": (TypeError, "must make what the recipe is of", lambda: jvi.recipe(3)),
    "training without a distribution": (
        ValueError,
        "training draws from the guide's distribution",
        lambda: guides.amortize(THIN, DROPPED).train(WithNetwork({}, THIN.init(KEY, X)), KEY, X),
    ),
}


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x, x


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_and_where(name):
    kind, message, act = ERRORS[name]
    with pytest.raises(kind, match=message):
        act()


@pytest.mark.filterwarnings("ignore:shape requires:DeprecationWarning")
def test_errors_that_are_not_ours_have_a_note_of_where_once():
    """A network that is not told what to see of (x, earlier) fails inside of JAX, whose message knows of no guide."""
    inner = guides.sequence(a=MATRIX, b=guides.amortize(MATRIX, nn.Dense(8)))
    for guide, path in ((inner, "b"), (guides.product(c=guides.Mixture((inner, inner))), "c[0].b")):
        with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
            jax.eval_shape(guide.init, KEY, X)
        assert [note for note in caught.value.__notes__ if "guide" in note] == [f"in guide.{path}"]

    def broken(params, rng, x):
        raise KeyError("weights")

    guide = guides.product(a=guides.product(b=guides.from_functions(zeros_init, broken)))
    with pytest.raises(KeyError, match="weights") as caught:
        draws(guide)
    assert caught.value.args == ("weights",)
    assert caught.value.__notes__ == ["in guide.a.b"]
