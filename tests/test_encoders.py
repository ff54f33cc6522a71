"""Encoders: what their masks and symmetries promise, and what amortized guides reach with them."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy.stats import norm as scipy_norm

import jvi
from jvi import encoders, guides
from jvi.encoders.plain import _neighbourhoods
from jvi.encoders.temporal import _around

KEY = jax.random.key(0)
SET = encoders.SetTransformer(3, width=8, num_heads=2, num_layers=1, num_inducing=4)
CAUSAL = encoders.SequenceTransformer(3, width=8, num_heads=2, num_layers=2, causal=True)
OF_ELEMENTS = {
    "set": SET,
    "sequence": encoders.SequenceTransformer(3, width=8, num_heads=2, num_layers=1),
    "causal": CAUSAL,
    "recurrent": encoders.Recurrent(3, hidden=4),
    "forward": encoders.Recurrent(3, hidden=4, bidirectional=False),
    "convolution": encoders.TemporalConvolution(3, width=4, num_layers=2, kernel_size=5),
    "causal convolution": encoders.TemporalConvolution(3, width=4, num_layers=2, kernel_size=4, causal=True),
}
X = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
SPACE = jvi.space(jvi.real(1))
# Each program runs once or twice.
compiled = partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


def started(encoder, x):
    """Parameters unlike the initial ones, where outputs are small and biases zero."""
    shapes, rng = jax.eval_shape(partial(encoder.init, KEY), x), np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@compiled
def apply(encoder, params, x):
    return encoder.apply(params, x)


@compiled
def with_gradients(encoder, params, x):
    """The output, and the gradient of its sum of squares by the parameters and the values."""

    def squares(params, values):
        out = encoder.apply(params, (values, x[1]))
        return jnp.sum(out**2), out

    grads, out = jax.grad(squares, (0, 1), has_aux=True)(params, x[0])
    return out, *grads


@compiled
def initial(encoder, x):
    return encoder.init(KEY, x)


def padded(values, after=3, fill=jnp.nan):
    more = jnp.full((after, values.shape[1]), fill, values.dtype)
    return jnp.concatenate([values, more]), jnp.arange(len(values) + after) < len(values)


@pytest.mark.parametrize("name", OF_ELEMENTS)
def test_padding_changes_nothing_whatever_it_holds(name):
    encoder = OF_ELEMENTS[name]
    params = started(encoder, X)
    nothing = padded(X)[0], jnp.zeros(8, bool)
    for x in (padded(X), nothing):
        out, by_params, by_values = with_gradients(encoder, params, x)
        if x is nothing:  # an empty set has an answer of its own, a step that is not there has none
            assert np.all(np.isfinite(out))
            assert bool(np.any(out)) is (name == "set")
        elif name == "set":
            close(out, apply(encoder, params, X))
        else:
            close(out[:5], apply(encoder, params, X))
            assert not np.any(out[5:])
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(by_params))
        assert np.all(np.isfinite(by_values))
        assert not np.any(by_values[~x[1]])
        assert bool(np.any(by_values)) is bool(x[1].any())


def test_sets_have_no_order_but_a_size():
    params = started(SET, X)
    apart = jnp.array([True, False, True, True, False, True, False, True])
    spread = jnp.full((8, 2), 7.0).at[jnp.flatnonzero(apart)].set(X[::-1])
    alone = apply(SET, params, X)
    close(apply(SET, params, (spread, apart)), alone)
    assert np.abs(apply(SET, params, np.concatenate([X, X])) - alone).max() > 1e-2  # two copies are more evidence


def test_steps_that_are_passed_over_are_as_if_they_were_not():
    apart = jnp.array([False, True, True, False, True, True, True, False])
    spread = jnp.full((8, 2), 7.0).at[jnp.flatnonzero(apart)].set(X)
    for name in ("recurrent", "forward"):
        params = started(OF_ELEMENTS[name], X)
        close(apply(OF_ELEMENTS[name], params, (spread, apart))[apart], apply(OF_ELEMENTS[name], params, X))


@pytest.mark.parametrize("name", ["sequence", "causal", "recurrent", "forward", "convolution", "causal convolution"])
def test_what_steps_see(name):
    encoder = OF_ELEMENTS[name]
    params = started(encoder, X)

    @jax.jit
    def sensitivity(x):
        return jnp.abs(jax.jacobian(lambda x: jnp.sum(encoder.apply(params, x), -1))(x)).sum(-1)

    seen = np.asarray(sensitivity(X)) > 0.0
    expected = np.tril(np.ones((5, 5), bool)) if name in ("causal", "forward", "causal convolution") else np.ones((5, 5), bool)
    np.testing.assert_array_equal(seen, expected)


def test_encoders_compare_by_value():
    for build in (
        lambda: encoders.MLP(3, hidden=(8,)),
        lambda: encoders.Convolutional(3, channels=(4,)),
        lambda: encoders.Recurrent(3),
        lambda: encoders.TemporalConvolution(3),
        lambda: encoders.SetTransformer(3),
        lambda: encoders.SequenceTransformer(3, causal=True),
    ):
        one, other = (guides.amortize(guides.FullRank(SPACE), build()) for _ in range(2))
        assert one == other
        assert hash(one) == hash(other)
    assert encoders.SetTransformer(3) != encoders.SetTransformer(3, num_inducing=8)


def test_guides_start_near_their_own_start():
    image, numbers = jnp.ones((6, 5)), {"a": jnp.arange(3), "b": jnp.ones((2, 2))}
    for encoder, x in (
        (encoders.MLP(2, hidden=(8,)), numbers),
        (encoders.Convolutional(2, channels=(4,), hidden=8), image),
        (encoders.SetTransformer(2, width=8, num_heads=2, num_layers=1), X[:, 0]),
    ):
        out = apply(encoder, initial(encoder, x), x)
        assert out.shape == (2,)
        assert 0.0 < np.abs(out).max() < 0.2


def test_an_image_may_have_channels():
    encoder = encoders.Convolutional(2, channels=(4,), hidden=8)
    shapes = [jax.eval_shape(partial(encoder.init, KEY), jnp.ones(shape)) for shape in ((6, 5), (6, 5, 1))]
    assert shapes[0] == shapes[1]
    kernel = jax.eval_shape(partial(encoder.init, KEY), jnp.ones((6, 5, 3)))["params"]["Dense_0"]["kernel"]
    assert kernel.shape == (3 * 3 * 3, 4)


@pytest.mark.parametrize("shape", [(6, 5, 3), (7, 8, 1)], ids=str)
def test_neighbourhoods_times_a_kernel_are_a_convolution(shape):
    image, kernel = jax.random.normal(KEY, shape), jax.random.normal(jax.random.key(1), (3, 3, shape[-1], 4))
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(image[None], kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)[0]
    np.testing.assert_allclose(_neighbourhoods(image) @ kernel.reshape(-1, 4), expected, rtol=1e-5, atol=1e-5)


def test_encoders_take_the_default_precision(float64):
    x = jnp.asarray(X, "float64")
    for encoder in (*OF_ELEMENTS.values(), encoders.MLP(3)):
        params = jax.eval_shape(partial(encoder.init, KEY), x)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float64"}
        assert jax.eval_shape(encoder.apply, params, x).dtype == np.float64
    params = started(OF_ELEMENTS["recurrent"], x)
    whole, alone = (apply(OF_ELEMENTS["recurrent"], params, x) for x in (padded(x), x))
    np.testing.assert_allclose(whole[:5], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("encoder", "x", "kind", "said"),
    [
        (SET, np.ones((2, 3, 4)), ValueError, "SetTransformer takes one datum, without a batch axis"),
        (SET, (X, np.ones(4, bool)), ValueError, r"mask \[N\] where there is one; got .*5,2.*4"),
        (encoders.SetTransformer(3, width=6), X, ValueError, "num_heads=4 and width=6"),
        (SET, {"values": X}, TypeError, "inputs=lambda x"),
        (SET, (X, {"a": X}), TypeError, "name what the encoder sees"),
        (encoders.Recurrent(3), np.ones(()), ValueError, "Recurrent takes one datum"),
        (encoders.TemporalConvolution(3, kernel_size=2), X, ValueError, "must be odd, or causal=True, got kernel_size=2"),
        (encoders.Convolutional(3), np.ones(4), ValueError, r"one image \[H, W\] or \[H, W, C\].*got shape \[4\]"),
    ],
)
def test_what_is_no_datum_is_refused(encoder, x, kind, said):
    with pytest.raises(kind, match=said):
        jax.eval_shape(partial(encoder.init, KEY), x)


def test_steps_around_times_a_kernel_are_a_dilated_convolution():
    steps, kernel = jax.random.normal(KEY, (9, 3)), jax.random.normal(jax.random.key(1), (3, 3, 4))
    for causal, padding in ((False, (4, 4)), (True, (8, 0))):
        expected = jax.lax.conv_general_dilated(
            steps[None], kernel, (1,), (padding,), rhs_dilation=(4,), dimension_numbers=("NTC", "TIO", "NTC")
        )[0]
        close(_around(steps, 3, 4, causal) @ kernel.reshape(-1, 4), expected)


def test_a_mask_of_its_own_is_that_of_a_pair():
    for name in ("sequence", "recurrent", "convolution"):
        encoder, (values, mask) = OF_ELEMENTS[name], padded(X)
        params = started(encoder, X)
        close(jax.jit(encoder.apply)(params, values, mask), apply(encoder, params, (values, mask)))
    with pytest.raises(TypeError, match="Recurrent takes an array"):
        encoders.Recurrent(3).init(KEY, (values, mask), mask)


def log_joint(x, z):
    """Observations of a mean, up to as many as the mask has room for; variance 1, and a standard normal prior."""
    values, mask = x
    return norm.logpdf(z[0]) + jnp.sum(jnp.where(mask, norm.logpdf(values, z[0]), 0.0))


def log_evidence(x):
    values, mask = x
    n = jnp.sum(mask)
    total, squares = jnp.sum(mask * values), jnp.sum(mask * values**2)
    return -0.5 * (n * jnp.log(2 * jnp.pi) + jnp.log1p(n) + squares - total**2 / (n + 1.0))


def simulate(key, most=20):
    of_z, of_x, of_size = jax.random.split(key, 3)
    values = jax.random.normal(of_z) + jax.random.normal(of_x, (most,))
    return values, jnp.arange(most) < jax.random.randint(of_size, (), 0, most + 1)


MODEL, INNER = jvi.model(log_joint), guides.MeanField(SPACE)
ENCODER = encoders.SetTransformer(2, width=16, num_heads=2, num_layers=1, num_inducing=4)
OBJECTIVE = jvi.elbo(MODEL, guides.amortize(INNER, ENCODER), num_samples=2)


def data_sets(seed, count):
    return jax.jit(jax.vmap(simulate))(jax.random.split(jax.random.key(seed), count))


@pytest.fixture(scope="module")
def fitted():
    """An encoder fitted for a short while, and data sets that it has not seen."""
    svi = jvi.SVI(jvi.per_example(OBJECTIVE), jvi.optimizer(jvi.svi.cosine_adam, 1e-2, num_steps=600))
    state, info = jvi.fit_batches(svi, KEY, data_sets(1, 4_000), num_steps=600, batch_size=32)
    assert info.finite.all()
    return state.params, data_sets(2, 500)


def standardized(own, x):
    """Errors of the mean, in standard deviations of the posterior N(sum x / (n + 1), 1 / (n + 1)), and ratios of sd to its sd."""
    root = np.sqrt(x[1].sum(-1) + 1.0)
    return (own.loc[:, 0] - np.sum(x[0] * x[1], -1) / root**2) * root, np.exp(own.log_scale[:, 0]) * root


@pytest.mark.long
def test_an_encoder_of_sets_matches_the_conjugate_posterior(fitted):
    """For data sets of 0 to 20 observations; measured: 0.03 and 0.01."""
    params, x = fitted
    error, ratio = standardized(emitted(params, x), x)
    assert np.sqrt(np.mean(error**2)) < 0.08
    assert np.mean(np.abs(ratio - 1.0)) < 0.03


@pytest.mark.long
def test_refining_an_encoders_answer_raises_the_bound_to_the_evidence(fitted):
    """What the bound lacks is KL(q || posterior), in closed form; for every data set a gain, on average over them."""
    params, x = fitted
    objective = dataclasses.replace(OBJECTIVE, num_samples=8)
    keys = jax.random.split(jax.random.key(3), len(x[0]))
    refined = jax.vmap(lambda key, x: jvi.refine(objective, params, key, x, num_steps=40))(keys, x)

    def gap(own):
        error, ratio = standardized(own, x)
        return 0.5 * (ratio**2 + error**2 - 1.0) - np.log(ratio)

    lacked, lacks = gap(emitted(params, x)), gap(refined)
    assert_rises(lacked - lacks)
    assert np.mean(lacks) < 3e-4  # nats; the z-test says that it is less than it was, this that it is nothing


@pytest.mark.long
def test_refining_makes_up_for_data_unlike_the_encoders(fitted):
    params, _ = fitted
    x = jnp.full(20, 6.0), jnp.ones(20, bool)
    objective = dataclasses.replace(OBJECTIVE, num_samples=8)
    refined = jvi.refine(objective, params, KEY, x, num_steps=500)
    bound, _ = jax.jit(dataclasses.replace(objective, guide=INNER))(params._replace(guide=refined), KEY, x)
    close(bound, log_evidence(x), 1e-2)


def emitted(params, x):
    return jax.jit(jax.vmap(lambda x: OBJECTIVE.guide.opened(params.guide, x)[1]))(x)


def assert_rises(gains):
    assert np.mean(gains) > scipy_norm.isf(1e-4) * np.std(gains, ddof=1) / np.sqrt(len(gains))


def test_refining_compiles_once_for_equal_objectives_and_leaves_the_model_alone():
    traces = []

    def counted(params, x, z):
        traces.append(None)
        return -0.5 * jnp.sum((z - x) ** 2) + params

    model = jvi.learned(lambda rng, x: jnp.zeros(()), counted)

    def objective():
        return jvi.elbo(model, guides.amortize(INNER, encoders.MLP(2, hidden=())))

    x = jnp.ones(1)
    params = jax.jit(objective().init)(KEY, x)
    before = jax.tree.map(np.asarray, params)
    first = jvi.refine(objective(), params, KEY, x, num_steps=3)
    seen = len(traces)
    second = jvi.refine(objective(), params, KEY, 2.0 * x, num_steps=3)
    assert len(traces) == seen
    assert jax.tree.structure(first) == jax.tree.structure(params.guide.guide)
    start = objective().guide.opened(params.guide, 2.0 * x)[1]
    assert 0.0 < float(second.loc[0] - start.loc[0]) < 0.1
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_refining_needs_an_amortized_guide():
    for objective in (jvi.elbo(MODEL, INNER), jvi.per_example(OBJECTIVE), OBJECTIVE.guide):
        with pytest.raises(TypeError, match=r"made by jvi.guides.amortize\(guide, network\)"):
            jvi.refine(objective, None, KEY, None)
    with pytest.raises(ValueError, match="num_steps must be 1 or more"):
        jvi.refine(OBJECTIVE, None, KEY, None, num_steps=0)
