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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


def dropped_with_prior():
    """The VAE with dropout, whose prior is a distribution."""
    model, guide, encoder, decoder = dropped()

    def prior(params):
        return distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))

    still = jvi.models.with_prior(prior, model.log_likelihood, init=model.model.init)
    return jvi.models.trained(still, model.training), guide, encoder, decoder


@pytest.mark.parametrize("floor", [None, 0.3])
@pytest.mark.long
def test_closed_forms_are_those_of_the_draws_own_masks(floor):
    """Divergence and entropy of the distribution that a draw is from, in chunks too; free bits after the mean over the minibatch."""
    model, guide, encoder, decoder = dropped_with_prior()
    elbo_kl, elbo_entropy = jvi.objectives.elbo_kl, jvi.objectives.elbo_entropy
    built = [elbo_kl(model, guide, num_samples=3, free_bits=floor), elbo_kl(model, guide, num_samples=3, chunk_size=2)]
    built.append(elbo_entropy(model, guide, num_samples=3, gradient=gradients.pathwise))
    by = [training(jvi.per_example(one)) for one in built[: 1 if floor else 3]]
    params, rng = by[0].init(jax.random.key(0), X), jax.random.key(1)

    def particle(params, x, key):
        q = gaussian(encoder.training.apply({"params": params.guide}, x, rngs={"dropout": jax.random.fold_in(key, MASK)}))
        with jax.numpy_rank_promotion("allow"):
            z, kl = q.sample(seed=key), q.kl_divergence(distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))
        mean = decoder.training.apply({"params": params.model}, z, rngs={"dropout": jax.random.fold_in(key, MODEL)})
        return norm.logpdf(x, mean).sum(), kl, norm.logpdf(z).sum() + q.entropy()

    def by_hand(params):
        each = [particle(params, x, key) for x, keys in zip(X, particle_keys(rng, 3), strict=True) for key in keys]
        energy, kl, plain = (jnp.mean(jnp.stack(values)) for values in zip(*each, strict=True))
        kl = energy - (kl if floor is None else jnp.maximum(kl, floor))
        return jnp.stack([kl, kl, energy + plain][: len(by)])

    found = jax.jit(lambda: [jax.value_and_grad(one, has_aux=True)(params, rng, X) for one in by])()
    expected, slopes = jax.jit(lambda: (by_hand(params), jax.jacrev(by_hand)(params)))()
    for i, ((value, _), grads) in enumerate(found):
        np.testing.assert_allclose(value, expected[i], rtol=1e-5)
        np.testing.assert_allclose(flat(grads), flat(jax.tree.map(lambda s, i=i: s[i], slopes)), rtol=1e-4, atol=2e-5)


def difference(one, other, num_draws=5_000):
    """Samples of what two estimators differ in, value and gradient; each draws for itself."""
    params = one.init(jax.random.key(0), X)

    def sample(key):
        found = [
            jax.value_and_grad(o, has_aux=True)(params, k, X) for o, k in zip((one, other), jax.random.split(key), strict=True)
        ]
        (a, of_a), (b, of_b) = found
        return jnp.concatenate([(a[0] - b[0])[None], flat((of_a.model, of_a.guide)) - flat((of_b.model, of_b.guide))])

    return jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(2), num_draws))


@pytest.mark.long
def test_estimators_in_training_have_the_mean_of_the_pathwise_one():
    """Scores of the ELBO and VIMCO's of IWAE, in chunks; doubly reparameterized, of pairs: all under a particle's own masks."""
    model, guide, *_ = dropped()

    def of(build):
        return training(jvi.per_example(build))

    options = {"num_samples": 3, "gradient": gradients.pathwise}
    samples = [
        difference(of(jvi.objectives.score(model, guide, num_samples=3, chunk_size=2)), of(jvi.elbo(model, guide, **options))),
        difference(of(jvi.objectives.vimco(model, guide, num_samples=3)), of(jvi.iwae(model, guide, **options))),
        difference(of(jvi.objectives.dreg(model, guide, num_samples=3)), of(jvi.iwae(model, guide, **options))),
    ]
    for found in samples:
        assert_z_test(found, jnp.zeros(found.shape[1]))


@pytest.mark.long
def test_discrete_estimators_in_training_have_the_mean_of_enumeration():
    """Two bits of an encoder with dropout: masks are averaged over, bits are summed out."""
    encoder = jvi.networks.network(Dropped(2), training=Dropped(2, True))
    guide = jvi.guides.conditional(encoder, lambda logits: distrax.Independent(distrax.Bernoulli(logits), 1))
    model, *_ = dropped()
    exact = training(jvi.per_example(jvi.objectives.enumerate_elbo(model, guide, num_samples=2)))
    for build in (jvi.objectives.score, jvi.objectives.rebar, jvi.objectives.disarm):
        found = difference(training(jvi.per_example(build(model, guide, num_samples=2))), exact)
        assert_z_test(found, jnp.zeros(found.shape[1]))


@pytest.mark.long
def test_parts_of_a_guide_train_each_with_its_own_network():
    """An encoder with statistics, and one after it with dropout, which sees the first one's draw."""
    first, second = (jvi.networks.network(kind(False), training=kind(True)) for kind in (lambda mode: Normed(4, "examples", mode),
        lambda mode: Dropped(4, mode)))  # fmt: skip
    guide = jvi.guides.sequence(
        a=jvi.guides.conditional(first, gaussian, inputs=lambda seen: seen[0]),
        b=jvi.guides.conditional(second, gaussian, inputs=lambda seen: jnp.concatenate([seen[0], seen[1]["a"]])),
    )
    model = jvi.model(lambda x, z: norm.logpdf(z["a"]).sum() + norm.logpdf(z["b"]).sum() + norm.logpdf(x[:2], z["b"]).sum())
    objective = training(jvi.per_example(jvi.elbo(model, guide, num_samples=2, gradient=gradients.pathwise)))
    params, rng = objective.init(jax.random.key(0), X), jax.random.key(1)

    def by_hand(own):
        hidden = (X - X.mean(0)[None]) / jnp.sqrt(X.var(0) + 1e-3)[None]
        own_norm = own["a"].params["BatchNorm_0"]
        hidden = hidden * own_norm["scale"][None] + own_norm["bias"][None]
        outputs = hidden @ own["a"].params["Dense_0"]["kernel"] + own["a"].params["Dense_0"]["bias"][None]
        total = []
        for x, output, keys in zip(X, outputs, particle_keys(rng, 2), strict=True):
            for key in keys:
                of_a, of_b = jax.random.split(key)
                masks = {"dropout": jax.random.fold_in(jax.random.fold_in(key, 1), MASK)}
                with jax.numpy_rank_promotion("allow"):
                    a, log_a = gaussian(output).sample_and_log_prob(seed=of_a)
                    seen = second.training.apply({"params": own["b"]}, jnp.concatenate([x, a]), rngs=masks)
                    b, log_b = gaussian(seen).sample_and_log_prob(seed=of_b)
                total.append(model.log_joint((), x, {"a": a, "b": b}) - log_a - log_b)
        return jnp.mean(jnp.stack(total))

    (value, aux), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, rng, X)
    expected, slopes = jax.jit(jax.value_and_grad(by_hand))(params.guide)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(flat(grads.guide), flat(slopes), rtol=1e-4, atol=1e-5)
    found = objective.absorb(params, aux).guide["a"].state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.1 * X.mean(0), rtol=1e-5)


def decoder_of_global(kind):
    """x_i ~ N(network(z), 1) of a global z of two; the network in both modes."""
    net = jvi.networks.network(kind(False), training=kind(True))

    def in_training(params, rng, x, z):
        mean, params = net.train(params, rng, z + x[:2])
        return norm.logpdf(x, mean).sum(), params

    split = jvi.split(
        lambda params, z: norm.logpdf(z).sum(),
        lambda params, x, z: norm.logpdf(x, net.apply(params, z + x[:2])).sum(),
        init=lambda rng, x: net.init(rng, jnp.zeros(2)),
    )
    return jvi.models.trained(split, in_training), net


@pytest.mark.long
def test_networks_on_minibatches_of_a_global_latent():
    """N / B, a mask for every datum, and statistics over the minibatch and the particles."""
    guide, rng = jvi.guides.MeanField(jvi.space(jvi.real(2))), jax.random.key(1)
    model, net = decoder_of_global(lambda mode: Dropped(3, mode))
    options = {"num_samples": 2, "gradient": gradients.pathwise}
    objective = training(jvi.objectives.subsampled(jvi.elbo(model, guide, **options), num_data=20))
    params = objective.init(jax.random.key(0), X)

    def by_hand(params):
        total = []
        for key in jax.random.split(rng, 2):
            z, log_q = guide.sample_and_log_prob(params.guide, key, X)
            log_p = []
            for one, x in zip(jax.random.split(jax.random.fold_in(key, MODEL), len(X)), X, strict=True):
                mean = net.training.apply({"params": params.model}, z + x[:2], rngs={"dropout": one})
                log_p.append(norm.logpdf(x, mean).sum())
            total.append(norm.logpdf(z).sum() + 5.0 * sum(log_p) - log_q)
        return jnp.mean(jnp.stack(total))

    (value, _), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, rng, X)
    expected, slopes = jax.jit(jax.value_and_grad(by_hand))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), flat(slopes), rtol=1e-4, atol=1e-4)

    model, _ = decoder_of_global(lambda mode: Normed(3, BOTH, mode))
    objective = training(jvi.objectives.subsampled(jvi.elbo(model, guide, **options), num_data=20))
    params = objective.init(jax.random.key(0), X)
    new = objective.absorb(params, jax.jit(objective)(params, rng, X)[1])
    z = jnp.stack([guide.sample_and_log_prob(params.guide, key, X)[0] for key in jax.random.split(rng, 2)])
    seen = (z[:, None] + X[None, :, :2]).reshape(-1, 2)
    found = new.model.state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.1 * seen.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * seen.var(0), rtol=1e-4)


@pytest.mark.long
def test_networks_of_local_latents_under_global_ones():
    """Encoder and decoder with statistics: of the minibatch, and of the inner particles for each of two global draws."""
    local, amortized, *_ = normed()
    encoder = amortized.output.net
    inner_guide = jvi.guides.conditional(encoder, gaussian, inputs=lambda seen: seen[0])

    def in_training(params, rng, x, z):
        value, params = local.train(params, rng, x[0] + x[1], z)
        return value + norm.logpdf(z).sum(), params

    still = jvi.learned(lambda rng, x: local.init(rng, x), lambda params, x, z: local.log_joint(params, x[0] + x[1], z))
    prior, outer_guide = jvi.model(lambda x, z: norm.logpdf(z)), jvi.guides.MeanField(jvi.space(jvi.real()))
    inner = jvi.elbo(jvi.models.trained(still, in_training), inner_guide, num_samples=2)
    whole = jvi.objectives.global_local(jvi.elbo(prior, outer_guide, num_samples=2), inner, num_data=20)
    svi = jvi.SVI(training(whole), jvi.optimizer(optax.sgd, 1e-3))
    state = svi.init(jax.random.key(0), X)
    new, info = jax.jit(svi.step)(state, X)
    assert info.finite

    dense = state.params.inner.guide.params["Dense_0"]
    hidden = (X - X.mean(0)[None]) / jnp.sqrt(X.var(0) + 1e-3)[None]
    outputs = hidden @ dense["kernel"] + dense["bias"][None]
    means, values = [], []
    for outer in jax.random.split(jax.random.fold_in(state.rng, 0), 2):
        shift, log_q = outer_guide.sample_and_log_prob(state.params.outer.guide, outer, X)
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(jax.random.split(jax.random.fold_in(outer, MODEL), len(X)))
        q = [gaussian(output) for output in outputs]
        z = jnp.stack([jnp.stack([one.sample(seed=key) for key in own]) for one, own in zip(q, keys, strict=True)])
        flat_z = z.reshape(-1, 2)
        means.append(flat_z.mean(0))
        own = state.params.inner.model.params
        scaled = (flat_z - flat_z.mean(0)[None]) / jnp.sqrt(flat_z.var(0) + 1e-3)[None] * own["BatchNorm_0"]["scale"][None]
        mean = (scaled + own["BatchNorm_0"]["bias"][None]) @ own["Dense_0"]["kernel"] + own["Dense_0"]["bias"][None]
        of_q = jnp.stack([one.log_prob(draw) for one, draws in zip(q, z, strict=True) for draw in draws])
        fit = norm.logpdf(jnp.repeat(X, 2, 0) + shift, mean).sum(1) + norm.logpdf(flat_z).sum(1) - of_q
        values.append(norm.logpdf(shift) - log_q + 20 * fit.mean())
    np.testing.assert_allclose(info.bound, np.mean(values), rtol=1e-4)
    found = new.params.inner.model.state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, 0.1 * np.mean(means, 0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(new.params.inner.guide.state["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * X.mean(0), rtol=1e-5)


@pytest.mark.long
def test_statistics_of_an_encoder_go_with_chunks_and_scores():
    """They are of the data alone, whatever the draws."""
    encoder = jvi.networks.network(Normed(4, "examples"), training=Normed(4, "examples", True))
    guide = jvi.guides.conditional(encoder, gaussian)
    model = jvi.model(lambda x, z: norm.logpdf(z).sum() + norm.logpdf(x[:2], z).sum())
    built = [jvi.elbo(model, guide, num_samples=4, chunk_size=size) for size in (None, 2)]
    built += [
        jvi.objectives.score(model, guide, num_samples=4, chunk_size=3),
        jvi.objectives.wake_sleep(model, guide, num_samples=4),
    ]
    by = [training(jvi.per_example(one)) for one in built]
    params = by[0].init(jax.random.key(0), X)
    found = jax.jit(lambda key: [jax.value_and_grad(one, has_aux=True)(params, key, X) for one in by])(jax.random.key(1))
    for objective, ((_, aux), _) in zip(by, found, strict=True):
        statistics = objective.absorb(params, aux).guide.state["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(statistics["mean"], 0.1 * X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(flat(found[0][1]), flat(found[1][1]), rtol=1e-4, atol=1e-5)


def test_who_forgets_training_is_warned():
    model, guide, *_ = dropped()
    still = jvi.per_example(jvi.elbo(model, guide))
    with pytest.warns(UserWarning, match=r"objectives\.training\(objective\)"):
        jvi.SVI(still)
    jvi.SVI(training(still))  # warns of nothing, or the test fails
    assert jnp.isfinite(still(still.init(jax.random.key(0), X), jax.random.key(1), X)[0])


def test_a_model_with_statistics_is_refused_where_they_bias():
    model, guide, *_ = normed()
    for build in (
        lambda: jvi.objectives.score(model, guide, num_samples=2),
        lambda: jvi.objectives.dreg(model, guide, num_samples=2),
        lambda: jvi.objectives.wake_sleep(model, guide, num_samples=2, gradient=gradients.stl),
    ):
        objective = training(jvi.per_example(build()))
        with pytest.raises(ValueError, match="would be biased"):
            objective(objective.init(jax.random.key(0), X), jax.random.key(1), X)
    objective = training(jvi.per_example(jvi.elbo(model, guide, num_samples=4, chunk_size=2)))
    with pytest.raises(ValueError, match="leave chunk_size out"):
        objective(objective.init(jax.random.key(0), X), jax.random.key(1), X)


def test_what_cannot_be_is_refused():
    model, guide, *_ = dropped()
    plain = jvi.guides.MeanField(jvi.space(jvi.real(2)))
    still = jvi.split(lambda z: norm.logpdf(z).sum(), lambda x, z: norm.logpdf(x[:2], z).sum())
    with pytest.raises(ValueError, match="nothing in this objective has a training mode"):
        training(jvi.elbo(still, plain))
    with pytest.raises(ValueError, match=r"training takes gradients\.pathwise"):
        training(jvi.elbo(still, guide, gradient=lambda *args: gradients.pathwise(*args)))
    with pytest.raises(TypeError, match="goes outermost"):  # free bits would be under each example's mean
        jvi.per_example(training(jvi.elbo(model, guide)))
    with pytest.raises(TypeError, match="goes outermost"):
        jvi.objectives.subsampled(training(jvi.elbo(model, guide)), num_data=3)
    with pytest.raises(TypeError, match="goes outermost"):
        jvi.objectives.global_local(jvi.elbo(still, plain), training(jvi.elbo(model, guide)), num_data=3)
    with pytest.raises(ValueError, match="prior of the global latents"):
        training(jvi.objectives.global_local(jvi.elbo(model, plain), jvi.elbo(still, plain), num_data=3))
    with pytest.raises(TypeError, match="not fivo"):
        training(training(jvi.elbo(model, guide)))
    with pytest.raises(TypeError, match="training takes a bound"):
        training(jvi.SVI(jvi.elbo(still, plain)))
    with pytest.raises(TypeError, match=r"network\(Encoder\(\), training="):
        jvi.networks.network(Normed(2, "examples")).init(jax.random.key(0), jnp.ones(3))
    with pytest.raises(TypeError, match="of the kind of source"):
        jvi.networks.network(Normed(2, "examples"), training=Dropped(2))
    with pytest.raises(ValueError, match="no training mode"):
        jvi.networks.network(nn.Dense(2)).train({}, jax.random.key(0), jnp.ones(3))
