"""Particle-filter bounds against the Kalman filter, against `iwae` over the sequence, and against quadrature."""

from __future__ import annotations

import itertools
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_core import assert_z_test, flat
from jax.scipy.stats import norm
from numpy.polynomial.hermite_e import hermegauss

import jvi
from jvi import bounds, objectives, resampling

SLOPE, STEP, NOISE = 0.8, 0.6, 0.5  # z_0 ~ N(0, 1), z_t ~ N(SLOPE z_{t-1}, STEP^2), x_t ~ N(z_t, NOISE^2)
MODEL = jvi.models.state_space(
    lambda slope, z: norm.logpdf(z),
    lambda slope, z_prev, z: norm.logpdf(z, slope * z_prev, STEP),
    lambda slope, x, z: norm.logpdf(x, z, NOISE),
    init=lambda rng, x: jnp.asarray(SLOPE),
)


def kalman(slope, x):
    """log p(x), by filtering."""

    def step(carry, x):
        loc, var = carry
        total = var + NOISE**2
        gain = var / total
        loc, var, log_p = loc + gain * (x - loc), (1 - gain) * var, norm.logpdf(x, loc, jnp.sqrt(total))
        return (slope * loc, slope**2 * var + STEP**2), log_p

    return jnp.sum(jax.lax.scan(step, (0.0 * slope, 0.0 * slope + 1.0), x)[1])


def simulated(rng, length, slope=SLOPE):
    first, *keys = jax.random.split(rng, 3)
    eps = jax.random.normal(keys[0], (length,)).at[0].set(jax.random.normal(first) / STEP)
    _, z = jax.lax.scan(lambda z, e: (slope * z + STEP * e,) * 2, jnp.zeros(()), eps)
    return z + NOISE * jax.random.normal(keys[1], (length,))


def from_prior(params, x):
    _, z_prev = x
    return distrax.Normal(0.0, 1.0) if z_prev is None else distrax.Normal(SLOPE * z_prev, STEP)


def optimal(params, x):
    """The posterior of one step."""
    x_t, z_prev = x
    loc, precision = (0.0, 1.0) if z_prev is None else (SLOPE * z_prev, STEP**-2)
    var = 1.0 / (precision + NOISE**-2)
    return distrax.Normal(var * (precision * loc + x_t / NOISE**2), var**0.5)


def linear(params, x):
    x_t, z_prev = x
    before = 0.0 if z_prev is None else params["before"] * z_prev
    return distrax.Normal(before + params["now"] * x_t, jnp.exp(params["log_scale"]))


START = {"before": jnp.asarray(0.4), "now": jnp.asarray(0.5), "log_scale": jnp.asarray(-0.5)}
PRIOR, OPTIMAL, LINEAR = (
    jvi.guides.from_distribution(lambda rng, x, start=start: start, dist)
    for start, dist in (((), from_prior), ((), optimal), (START, linear))
)


def values(objective, params, x, count, seed=0):
    return jax.jit(jax.vmap(lambda key: objective(params, key, x)))(jax.random.split(jax.random.key(seed), count))


def standard_error(samples):
    return np.std(samples, ddof=1) / math.sqrt(len(samples))


FILTERS = {
    "adaptive": {},
    "always, multinomial": {"ess_threshold": 1.0, "resampling": resampling.multinomial},
    "always, systematic": {"ess_threshold": 1.0},
    "never": {"ess_threshold": 0.0},
}


@pytest.mark.parametrize("name", FILTERS)
def test_the_evidence_is_estimated_without_bias_and_bounded_from_below(name):
    x = simulated(jax.random.key(5), 5)
    truth = float(kalman(SLOPE, x))
    objective = objectives.fivo(MODEL, PRIOR, num_particles=6, **FILTERS[name])
    value, aux = values(objective, objective.init(jax.random.key(0), x), x, 20_000)
    assert_z_test(np.exp(np.asarray(value, np.float64) - truth)[:, None], np.ones(1))
    assert value.mean() + 5 * standard_error(value) < truth
    np.testing.assert_allclose(jax.vmap(bounds.iwae)(aux.log_w), value, atol=1e-4)


@pytest.mark.long
def test_with_the_optimal_proposal_the_bound_approaches_the_evidence():
    x = simulated(jax.random.key(6), 20)
    truth = float(kalman(SLOPE, x))
    gaps = []
    for count in (10, 1_000):
        objective = objectives.fivo(MODEL, OPTIMAL, num_particles=count)
        value = np.asarray(values(objective, objective.init(jax.random.key(0), x), x, 100)[0])
        gaps.append(truth - value.mean())
        # The logarithm of an unbiased estimate falls short by half its variance, and little more.
        assert abs(gaps[-1] - 0.5 * value.var(ddof=1)) < 4 * standard_error(value) + value.var()
    assert gaps[1] < 0.01 < gaps[0]


@pytest.mark.long
def test_it_beats_importance_weighting_over_a_long_sequence():
    x = simulated(jax.random.key(7), 30)
    truth = float(kalman(SLOPE, x))
    filtered, whole = (objectives.fivo(MODEL, PRIOR, num_particles=8, ess_threshold=share) for share in (0.5, 0.0))
    params = filtered.init(jax.random.key(0), x)
    upper, lower = (np.asarray(values(one, params, x, 500)[0]) for one in (filtered, whole))
    assert upper.mean() - lower.mean() > 5 * (standard_error(upper) + standard_error(lower))
    assert truth - upper.mean() > 5 * standard_error(upper)


def _unrolled(params, rng, x):
    z, log_q, before = [], 0.0, None
    for key, x_t in zip(jax.random.split(rng, len(x)), x, strict=True):
        before, log_one = LINEAR.sample_and_log_prob(params, key, (x_t, before))
        z, log_q = [*z, before], log_q + log_one
    return jnp.stack(z), log_q


@pytest.mark.long
def test_without_resampling_value_and_gradients_are_those_of_iwae_over_the_sequence():
    x = simulated(jax.random.key(8), 3)
    sequence = jvi.guides.from_functions(lambda rng, x: START, _unrolled)
    filtered = objectives.fivo(MODEL, LINEAR, num_particles=3, ess_threshold=0.0)
    whole = jvi.iwae(MODEL, sequence, num_samples=3)
    params = filtered.init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, whole.init(jax.random.key(0), x)))

    def one(objective, key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.concatenate([value[None], flat(grads)])

    keys = jax.random.split(jax.random.key(1), (2, 20_000))
    samples = [jax.jit(jax.vmap(lambda key, o=o: one(o, key)))(k) for o, k in zip((filtered, whole), keys, strict=True)]
    assert_z_test(samples[0] - samples[1], np.zeros(samples[0].shape[1]))


@pytest.mark.long
def test_the_gradient_of_resampling_makes_it_unbiased_where_every_step_resamples():
    """Two particles, two steps: all draws by quadrature, all ancestors by enumeration."""
    x = jnp.array([0.7, -0.4])
    nodes, mass = hermegauss(12)
    pairs = jnp.asarray(list(itertools.product(nodes, nodes)))
    chance = jnp.asarray(np.outer(mass, mass).ravel() / mass.sum() ** 2)

    def weigh(params, t, eps, before):
        dist = linear(params.guide, (x[t], before))
        z = dist.loc + dist.scale * eps
        log_p = MODEL.log_initial(params.model, z) if t == 0 else MODEL.log_transition(params.model, before, z)
        return z, log_p + MODEL.log_emission(params.model, x[t], z) - dist.log_prob(z)

    def exact(params):
        z, log_w = jax.vmap(jax.vmap(lambda eps: weigh(params, 0, eps, None)))(pairs)
        total = chance @ jax.vmap(bounds.iwae)(log_w)
        for ancestors in itertools.product((0, 1), repeat=2):
            chosen = jnp.asarray(ancestors)
            after = jax.vmap(
                lambda z: jax.vmap(lambda eps: bounds.iwae(jax.vmap(lambda e, b: weigh(params, 1, e, b)[1])(eps, z)))(pairs)
            )
            share = jnp.prod(jax.nn.softmax(log_w)[:, chosen], axis=1)
            total = total + jnp.sum(chance * share * (after(z[:, chosen]) @ chance))
        return total

    options = {"num_particles": 2, "ess_threshold": 1.0, "resampling": resampling.multinomial}
    objective, biased = (objectives.fivo(MODEL, LINEAR, **options, resampling_gradient=whether) for whether in (True, False))
    params = objective.init(jax.random.key(0), x)

    def one(objective, key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.concatenate([value[None], flat(grads)])

    keys = jax.random.split(jax.random.key(1), 40_000)
    samples, without = jax.jit(jax.vmap(lambda key: (one(objective, key), one(biased, key))))(keys)
    value, grads = jax.jit(jax.value_and_grad(exact))(params)
    truth = np.concatenate([np.asarray(value)[None], np.asarray(flat(grads))])
    assert_z_test(samples, truth)
    off = np.abs(np.asarray(without).mean(0) - truth) / (np.asarray(without).std(0) / 200.0)
    assert off[0] < 4
    assert off.max() > 10  # what is dropped by default is there


def staying(theta, stays):
    """Log-probability that a state of two stays, whose logit is learned, or does not."""
    return -jnp.logaddexp(0.0, -theta * jnp.where(stays, 1.0, -1.0))


HMM = jvi.models.state_space(
    lambda theta, z: jnp.where(z == 1, jnp.log(0.3), jnp.log(0.7)),
    lambda theta, z_prev, z: staying(theta, z == z_prev),
    lambda theta, x, z: norm.logpdf(x, 1.0 * z, 0.7),
    init=lambda rng, x: jnp.asarray(0.8),
)


def switch(params, x):
    x_t, z_prev = x
    return distrax.Bernoulli(params["now"] * x_t + (0.0 if z_prev is None else params["before"] * (2.0 * z_prev - 1.0)))


SWITCH = jvi.guides.from_distribution(lambda rng, x: {"before": jnp.asarray(0.6), "now": jnp.asarray(0.9)}, switch)


@pytest.mark.long
@pytest.mark.parametrize("share", [1.0, 0.95, 0.0])
def test_discrete_states_by_scores_match_enumeration(share):
    """Two particles, two steps: all draws and all ancestors summed out, whether resampling is always, adaptive, or never."""
    x = jnp.array([0.7, -0.4])
    pairs = jnp.asarray(list(itertools.product((0, 1), repeat=2)))

    def weigh(params, t, z, before):
        log_q = SWITCH.log_prob(params.guide, (x[t], before), z)
        log_p = HMM.log_initial(params.model, z) if t == 0 else HMM.log_transition(params.model, before, z)
        return log_q, log_p + HMM.log_emission(params.model, x[t], z) - log_q

    def after(params, log_w, before):
        """The mean over second draws of what they add to the bound."""
        log_q, log_alpha = jax.vmap(jax.vmap(lambda z, b: weigh(params, 1, z, b)), (0, None))(pairs, before)
        return jnp.sum(jnp.exp(log_q.sum(1)) * jax.nn.logsumexp(log_w[None] + log_alpha, axis=1))

    def exact(params):
        total = jnp.zeros(())
        for z in pairs:
            log_q, log_w = jax.vmap(lambda z: weigh(params, 0, z, None))(z)
            w = jax.nn.softmax(log_w)
            resampled = [jnp.prod(w[a]) * after(params, jnp.full(2, -math.log(2.0)), z[a]) for a in pairs]
            kept = after(params, jnp.log(w), z)
            gain = jnp.where(1.0 / jnp.sum(w**2) < 2 * share, sum(resampled), kept)
            total = total + jnp.exp(log_q.sum()) * (bounds.iwae(log_w) + gain)
        return total

    options = {"num_particles": 2, "ess_threshold": share, "resampling": resampling.multinomial, "resampling_gradient": True}
    objective = objectives.fivo(HMM, SWITCH, gradient=jvi.gradients.score, **options)
    params = objective.init(jax.random.key(0), x)

    def one(key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.concatenate([value[None], flat(grads), jnp.exp(value)[None]])

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 40_000))
    value, grads = jax.jit(jax.value_and_grad(exact))(params)
    evidence = sum(jnp.exp(HMM.log_joint(params.model, x, z)) for z in pairs)
    assert_z_test(samples, jnp.concatenate([value[None], flat(grads), evidence[None]]))


@pytest.mark.long
def test_scores_of_a_switching_model_with_a_continuous_state_fit_both():
    """The switch is scored, what it drives is reparameterized; steps beyond a sequence's end count for nothing."""
    model = jvi.models.state_space(
        lambda z: HMM.log_initial(0.8, z["s"]) + norm.logpdf(z["c"]),
        lambda z_prev, z: HMM.log_transition(0.8, z_prev["s"], z["s"]) + norm.logpdf(z["c"], z_prev["c"] * z["s"]),
        lambda x, z: norm.logpdf(x["y"], z["c"] + z["s"]),
    )
    guide = jvi.guides.product(
        s=jvi.guides.from_distribution(lambda rng, x: jnp.asarray(0.3), lambda p, x: distrax.Bernoulli(p)),
        c=jvi.guides.from_distribution(lambda rng, x: jnp.asarray(0.2), lambda p, x: distrax.Normal(p, 1.0)),
    )
    mixed = jvi.gradients.by_group(s=jvi.gradients.score, c=jvi.gradients.pathwise)
    objective = objectives.fivo(model, guide, num_particles=3, ess_threshold=0.0, mask=lambda x: x["real"], gradient=mixed)
    short = {"y": jnp.array([0.3, -0.2]), "real": jnp.ones(2, bool)}
    padded = {"y": jnp.array([0.3, -0.2, 9.0, 9.0]), "real": jnp.arange(4) < 2}
    params = objective.init(jax.random.key(0), short)

    def one(x, key):
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, key, x)
        return jnp.append(flat(grads), value)

    keys = jax.random.split(jax.random.key(1), (2, 20_000))
    samples = [jax.jit(jax.vmap(lambda key, x=x: one(x, key)))(own) for x, own in zip((short, padded), keys, strict=True)]
    assert_z_test(samples[0] - samples[1], np.zeros(samples[0].shape[1]))


@pytest.mark.long
def test_a_fit_raises_the_bound_and_recovers_the_transition():
    truth = 0.7
    x = jax.vmap(lambda key: simulated(key, 25, truth))(jax.random.split(jax.random.key(3), 30))
    model = jvi.models.state_space(MODEL.initial, MODEL.transition, MODEL.emission, init=lambda rng, x: jnp.zeros(()))
    objective = jvi.per_example(objectives.fivo(model, LINEAR, num_particles=8))
    state, info = jvi.fit(
        jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.05, num_steps=200)), jax.random.key(0), x, num_steps=200
    )

    def likelihood(slope):
        return jnp.sum(jax.vmap(lambda one: kalman(slope, one))(x))

    error = float(-jax.jit(jax.hessian(likelihood))(truth)) ** -0.5
    best = float(likelihood(truth)) / len(x)
    assert info.bound[:5].mean() < info.bound[-5:].mean() - 1.0
    assert best - 1.0 < info.bound[-20:].mean() < best + 0.1
    assert abs(float(state.params.model) - truth) < 3 * error


@pytest.mark.long
def test_sequences_of_unequal_length_end_where_their_mask_says():
    length, full = 4, 7
    x = simulated(jax.random.key(9), full)
    model = jvi.models.state_space(
        lambda z: norm.logpdf(z),
        lambda z_prev, z: norm.logpdf(z, SLOPE * z_prev, STEP),
        lambda x, z: norm.logpdf(x["y"], z, NOISE),
    )
    guide = jvi.guides.from_distribution(lambda rng, x: (), from_prior)
    objective = objectives.fivo(model, guide, num_particles=6, mask=lambda x: x["is_real"])
    padded = {"y": x.at[length:].set(1e3), "is_real": jnp.arange(full) < length}
    params = objective.init(jax.random.key(0), padded)
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda y, key: objective(params, key, {**padded, "y": y})[0]), (None, 0)))
    value, slopes = run(padded["y"], jax.random.split(jax.random.key(0), 20_000))
    assert_z_test(np.exp(np.asarray(value, np.float64) - float(kalman(SLOPE, x[:length])))[:, None], np.ones(1))
    assert not bool(slopes[:, length:].any())
    with pytest.raises(ValueError, match="one truth value"):
        objectives.fivo(model, guide, num_particles=2, mask=lambda x: True)(params, jax.random.key(0), padded)


@pytest.mark.long
def test_the_joint_density_of_a_sequence_is_the_sum_over_its_steps():
    """Latents of any structure, sequences of any length."""
    model = jvi.models.state_space(
        lambda z: norm.logpdf(z["a"]).sum(),
        lambda z_prev, z: norm.logpdf(z["a"], z_prev["a"][::-1], STEP).sum(),
        lambda x, z: norm.logpdf(x, z["a"].sum(), NOISE),
    )
    z, x = jnp.array([[0.3, -1.0], [0.2, 0.5], [1.1, 0.0]]), jnp.array([0.1, 0.4, -0.2])
    first = norm.logpdf(z[0]).sum() + norm.logpdf(x[0], z[0].sum(), NOISE)
    rest = norm.logpdf(z[1:], z[:-1, ::-1], STEP).sum() + norm.logpdf(x[1:], z[1:].sum(1), NOISE).sum()
    np.testing.assert_allclose(model.log_joint((), x, {"a": z}), first + rest, rtol=1e-5)
    np.testing.assert_allclose(model.log_joint((), x[:1], {"a": z[:1]}), first, rtol=1e-5)
    guide = jvi.guides.from_distribution(
        lambda rng, x: (), lambda params, x: distrax.Joint({"a": distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))})
    )
    for length in (1, 3):
        objective = objectives.fivo(model, guide, num_particles=4)
        value, _ = jax.jit(objective)(objective.init(jax.random.key(0), x), jax.random.key(1), x[:length])
        assert bool(jnp.isfinite(value))


def test_annealing_weighs_the_kl_of_every_step():
    x = simulated(jax.random.key(2), 3)
    objective = objectives.fivo(MODEL, OPTIMAL, num_particles=1)
    params = objective.init(jax.random.key(0), x)
    at = jax.jit(lambda beta: objective(params, jax.random.key(1), x, beta=beta)[0])
    np.testing.assert_allclose(at(0.5), 0.5 * (at(0.0) + at(1.0)), rtol=1e-5)  # linear for one particle
    np.testing.assert_allclose(at(1.0), objective(params, jax.random.key(1), x)[0], rtol=1e-5)


@pytest.mark.parametrize("resample", [resampling.multinomial, resampling.systematic])
def test_offspring_are_in_proportion_to_the_weights(resample):
    w = np.array([0.1, 0.0, 0.55, 0.3, 0.05])
    log_w = jnp.log(jnp.asarray(w)) + 3.0
    chosen = jax.jit(jax.vmap(lambda key: resample(key, log_w)))(jax.random.split(jax.random.key(0), 20_000))
    offspring = np.asarray(chosen)[:, :, None] == np.arange(5)
    counts = offspring.sum(1)
    assert_z_test(counts, 5 * w)
    if resample is resampling.systematic:
        assert np.abs(counts - 5 * w).max() < 1.0


COIN = jvi.guides.from_distribution(lambda rng, x: 0.0, lambda params, x: distrax.Bernoulli(params))
REFUSED = {
    "a model of one piece": (
        lambda: objectives.fivo(jvi.model(lambda x, z: -(z**2)), PRIOR, num_particles=2),
        TypeError,
        "models.state_space",
    ),
    "no guide": (lambda: objectives.fivo(MODEL, from_prior, num_particles=2), TypeError, "guide"),
    "a share above one": (lambda: objectives.fivo(MODEL, PRIOR, num_particles=2, ess_threshold=2.0), ValueError, "threshold"),
    "no particles": (lambda: objectives.fivo(MODEL, PRIOR, num_particles=0), ValueError, "num_particles"),
    "a name": (lambda: objectives.fivo(MODEL, PRIOR, num_particles=2, resampling="stratified"), TypeError, "function"),
    "no probability": (
        lambda: objectives.fivo(MODEL, PRIOR, num_particles=2, resampling_gradient=True),
        ValueError,
        "multinomial",
    ),
    "sticking the landing": (
        lambda: objectives.fivo(MODEL, LINEAR, num_particles=2, gradient=jvi.gradients.stl),
        ValueError,
        "zero for the ELBO only",
    ),
    "joint scores": (
        lambda: objectives.fivo(HMM, SWITCH, num_particles=2, gradient=jvi.gradients.score, noise=jvi.noise.sobol),
        ValueError,
        r"noise\.independent",
    ),
    "no path": (
        lambda: objectives.fivo(MODEL, COIN, num_particles=2)(objectives.Params(0.5, 0.0), jax.random.key(0), jnp.zeros(2)),
        TypeError,
        "path",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    build, error, hint = REFUSED[name]
    with pytest.raises(error, match=hint):
        build()
