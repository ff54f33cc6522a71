"""Networks with dropout and running statistics, through objectives with several particles and minibatches."""

from __future__ import annotations

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm

import jvi
from jvi import gradients
from jvi.objectives import training

pytestmark = pytest.mark.quick

MASK, MODEL = 0xFFFFFFFD, 0xFFFFFFFF  # what is folded into a particle's key for the guide's network and for the model's
X = jnp.array([[0.5, -1.0, 2.0], [1.5, 0.3, 0.0], [-0.7, 0.2, 1.0], [2.0, 2.0, -1.0]])
BOTH = ("examples", "particles")


class Normed(nn.Module):
    num_outputs: int
    axes: str | tuple[str, ...]
    training: bool = False

    @nn.compact
    def __call__(self, x):
        normed = nn.BatchNorm(use_running_average=not self.training, momentum=0.9, epsilon=1e-3, axis_name=self.axes)(x)
        return nn.Dense(self.num_outputs)(normed)


class Dropped(nn.Module):
    num_outputs: int
    training: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_outputs)(nn.Dropout(0.4, deterministic=not self.training)(nn.Dense(8)(x)))


def gaussian(output):
    loc, raw = jnp.split(output, 2)
    return distrax.MultivariateNormalDiag(loc, jax.nn.softplus(raw))


def parts(make_encoder, make_decoder):
    """A VAE of two latents, in both modes."""
    encoder = jvi.networks.network(make_encoder(False), training=make_encoder(True))
    decoder = jvi.networks.network(make_decoder(False), training=make_decoder(True))

    def log_likelihood(params, x, z):
        return norm.logpdf(x, decoder.apply(params, z)).sum()

    def in_training(params, rng, x, z):
        mean, params = decoder.train(params, rng, z)
        return norm.logpdf(x, mean).sum(), params

    split = jvi.split(
        lambda params, z: norm.logpdf(z).sum(), log_likelihood, init=lambda rng, x: decoder.init(rng, jnp.zeros(2))
    )
    return jvi.models.trained(split, in_training), jvi.guides.conditional(encoder, gaussian), encoder, decoder


def normed():
    return parts(lambda mode: Normed(4, "examples", mode), lambda mode: Normed(3, BOTH, mode))


def dropped():
    return parts(lambda mode: Dropped(4, mode), lambda mode: Dropped(3, mode))


def particle_keys(rng, num_samples):
    examples = jax.random.split(rng, len(X))
    return jax.vmap(lambda key: jax.random.split(key, num_samples))(examples) if num_samples > 1 else examples[:, None]


@pytest.mark.parametrize("num_samples", [1, 3])
def test_running_statistics_after_a_step_are_those_of_the_batch(num_samples):
    model, guide, *_ = normed()
    objective = training(jvi.per_example(jvi.elbo(model, guide, num_samples=num_samples)))
    svi = jvi.SVI(objective, jvi.optimizer(optax.adamw, 0.1, weight_decay=0.5))  # whose decay would change them
    state = svi.init(jax.random.key(0), X)
    step = jax.jit(svi.step)
    new, info = step(state, X)
    assert info.finite
    found = new.params.guide.state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.1 * X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * X.var(0), rtol=1e-5)

    # The encoder by hand, in the batch's own statistics, and its draws.
    dense = state.params.guide.params["Dense_0"]
    hidden = (X - X.mean(0)[None]) / jnp.sqrt(X.var(0) + 1e-3)[None]
    outputs = hidden @ dense["kernel"] + dense["bias"][None]
    keys = particle_keys(jax.random.fold_in(state.rng, 0), num_samples)
    draw = jax.vmap(lambda output, keys: jax.vmap(lambda key: gaussian(output).sample(seed=key))(keys))
    z = draw(outputs, keys).reshape(-1, 2)
    found = new.params.model.state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.1 * z.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * z.var(0), rtol=1e-4)

    grads = jax.jit(jax.grad(objective, has_aux=True))(state.params, jax.random.key(1), X)[0]
    assert not flat(grads.guide.state).any()
    assert not flat(grads.model.state).any()
    assert flat(grads.guide.params).any()
    skipped, info = step(new, X.at[0, 0].set(jnp.inf))
    assert not info.finite
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), skipped.params, new.params))


def test_a_fit_brings_running_averages_that_evaluation_uses():
    model, guide, *_ = normed()
    data = jnp.asarray(3.0 + 2.0 * np.random.default_rng(0).normal(size=(200, 3)), jnp.float32)
    svi = jvi.SVI(training(jvi.per_example(jvi.elbo(model, guide, num_samples=2))), jvi.optimizer(optax.adam, 1e-2))
    state, info = jvi.fit_batches(svi, jax.random.key(0), data, num_steps=200, batch_size=50)
    assert info.finite.all()
    mean = state.params.guide.state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, data.mean(0), atol=0.3)
    whole = jax.jit(jvi.per_example(jvi.elbo(model, guide)))(state.params, jax.random.key(1), data)[0]
    alone = jvi.elbo(model, guide)(state.params, jax.random.key(1), data[0])[
        0
    ]  # one datum has no batch: nothing is needed of it
    assert jnp.isfinite(alone)
    assert abs(whole - info.bound[-50:].mean()) < 0.5


@pytest.mark.parametrize("num_samples", [1, 3])
def test_dropout_is_that_of_a_loop_written_by_hand(num_samples):
    """The value and all gradients: every particle of every example draws its own masks, in the encoder and in the decoder."""
    model, guide, encoder, decoder = dropped()
    objective = training(jvi.per_example(jvi.elbo(model, guide, num_samples=num_samples, gradient=gradients.pathwise)))
    params, rng = objective.init(jax.random.key(0), X), jax.random.key(1)

    def by_hand(params):
        total = []
        for x, keys in zip(X, particle_keys(rng, num_samples), strict=True):
            for key in keys:
                masks = {"dropout": jax.random.fold_in(key, MASK)}
                output = encoder.training.apply({"params": params.guide}, x, rngs=masks)
                with jax.numpy_rank_promotion("allow"):
                    z, log_q = gaussian(output).sample_and_log_prob(seed=key)
                masks = {"dropout": jax.random.fold_in(key, MODEL)}
                mean = decoder.training.apply({"params": params.model}, z, rngs=masks)
                total.append(norm.logpdf(z).sum() + norm.logpdf(x, mean).sum() - log_q)
        return jnp.mean(jnp.stack(total))

    (value, _), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, rng, X)
    expected, slopes = jax.jit(jax.value_and_grad(by_hand))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), flat(slopes), rtol=1e-4, atol=1e-5)
    still = jvi.per_example(jvi.elbo(model, guide, num_samples=num_samples, gradient=gradients.pathwise))
    assert abs(still(params, rng, X)[0] - value) > 1e-3


def test_masks_differ_between_particles_examples_and_steps():
    """A log-likelihood that is the number its mask spells; the rest of the log-weight is zero."""
    drop = jvi.networks.network(nn.Dropout(0.5, deterministic=True), training=nn.Dropout(0.5, deterministic=False))
    code = 0.5 * 2.0 ** jnp.arange(16)

    def in_training(params, rng, x, z):
        mask, params = drop.train({}, rng, jnp.ones(16))
        return mask @ code + 0.0 * z, params

    apart = jvi.split(lambda z: norm.logpdf(z, 0.0, 0.1), lambda x, z: jnp.zeros(()))
    guide = jvi.guides.MeanField(jvi.space(jvi.real()))  # starts there
    objective = training(jvi.per_example(jvi.elbo(jvi.models.trained(apart, in_training), guide, num_samples=3)))
    svi = jvi.SVI(objective, jvi.optimizer(optax.sgd, 0.0))
    state = svi.init(jax.random.key(0), X)
    keys = [jax.random.fold_in(state.rng, step) for step in range(2)]
    codes = np.concatenate([np.round(objective(state.params, key, X)[1].log_w).ravel() for key in keys])
    assert len(set(codes.tolist())) == 2 * len(X) * 3


def test_sticking_the_landing_shares_its_masks():
    """Both estimators have the same mean; with other masks in log q they would not."""
    model, guide, *_ = dropped()
    by = {
        gradient: training(jvi.per_example(jvi.elbo(model, guide, gradient=gradient)))
        for gradient in (gradients.pathwise, gradients.stl)
    }
    params = by[gradients.stl].init(jax.random.key(0), X)

    def one(key):
        value, grads = zip(*(jax.value_and_grad(o, has_aux=True)(params, key, X) for o in by.values()), strict=True)
        return jnp.concatenate([(value[0][0] - value[1][0])[None], flat(grads[0]) - flat(grads[1])])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 5_000))
    assert_z_test(samples, jnp.zeros(samples.shape[1]))


def test_what_cannot_be_is_refused():
    model, guide, *_ = dropped()
    plain = jvi.guides.MeanField(jvi.space(jvi.real(2)))
    still = jvi.split(lambda z: norm.logpdf(z).sum(), lambda x, z: norm.logpdf(x[:2], z).sum())
    with pytest.raises(ValueError, match="nothing in this objective has a training mode"):
        training(jvi.elbo(still, plain))
    with pytest.raises(ValueError, match=r"gradients\.pathwise or gradients\.stl"):
        training(jvi.objectives.score(still, guide))
    with pytest.raises(ValueError, match="chunk_size"):
        training(jvi.elbo(model, guide, num_samples=4, chunk_size=2))
    with pytest.raises(TypeError, match="closed forms"):
        training(jvi.elbo(model, guide, free_bits=0.5))
    with pytest.raises(TypeError, match="training takes a bound"):
        training(jvi.SVI(jvi.elbo(still, plain)))
    with pytest.raises(TypeError, match=r"network\(Encoder\(\), training="):
        jvi.networks.network(Normed(2, "examples")).init(jax.random.key(0), jnp.ones(3))
    with pytest.raises(TypeError, match="of the kind of source"):
        jvi.networks.network(Normed(2, "examples"), training=Dropped(2))
    with pytest.raises(ValueError, match="no training mode"):
        jvi.networks.network(nn.Dense(2)).train({}, jax.random.key(0), jnp.ones(3))
