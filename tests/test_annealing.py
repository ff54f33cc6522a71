"""`beta` as a user passes it: to every objective, by number and by schedule, of models whose prior is known apart or not."""

from __future__ import annotations

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from tensorflow_probability.substrates import jax as tfp

import jvi
from jvi import gradients, objectives

KEY, X = jax.random.key(0), jnp.array([0.7, -0.4])
REAL = jvi.guides.MeanField(jvi.space(jvi.real()))
BITS = jvi.guides.product(
    a=jvi.guides.from_distribution(lambda rng, x: jnp.array(0.3), lambda params, x: distrax.Bernoulli(params)),
    b=jvi.guides.from_distribution(lambda rng, x: jnp.array(-0.2), lambda params, x: distrax.Bernoulli(params)),
)


ROW = jvi.guides.from_distribution(
    lambda rng, x: jnp.array([0.3, -0.2]), lambda params, x: distrax.Independent(distrax.Bernoulli(params), 1)
)


def real_prior(z):
    return norm.logpdf(z)


def real_likelihood(x, z):
    return norm.logpdf(x, z)


def bits_prior(z):
    return -0.7 * z["a"] + 0.2 * z["b"]


def bits_likelihood(x, z):
    return norm.logpdf(x, z["a"] - 0.5 * z["b"])


def row_prior(z):
    return jnp.array([-0.7, 0.2]) @ z


def row_likelihood(x, z):
    return norm.logpdf(x, jnp.array([1.0, -0.5]) @ z)


def joint(prior, likelihood):
    return jvi.model(lambda x, z: prior(z) + likelihood(x, z))


PARTS = {
    "real": (real_prior, real_likelihood, REAL),
    "bits": (bits_prior, bits_likelihood, BITS),
    "row": (row_prior, row_likelihood, ROW),
}
TWO = {"num_samples": 2}
BUILD = {  # which latents, and how the objective of one datum is made of a model and a guide
    "elbo": ("real", jvi.elbo),
    "elbo_entropy": ("real", objectives.elbo_entropy),
    "iwae": ("real", functools.partial(jvi.iwae, **TWO)),
    "miwae": ("real", functools.partial(objectives.miwae, num_groups=2, **TWO)),
    "piwae": ("real", functools.partial(objectives.piwae, num_groups=2, **TWO)),
    "renyi": ("real", functools.partial(jvi.renyi, alpha=0.5, **TWO)),
    "cubo": ("real", functools.partial(objectives.cubo, **TWO)),
    "tvo": ("real", functools.partial(objectives.tvo, **TWO)),
    "f_divergence": ("real", functools.partial(objectives.f_divergence, f=tfp.vi.kl_reverse, **TWO)),
    "tail_adaptive": ("real", functools.partial(objectives.tail_adaptive, **TWO)),
    "dreg": ("real", functools.partial(objectives.dreg, **TWO)),
    "stratified": (
        "real", lambda model, guide: objectives.stratified(model, jvi.guides.Mixture((guide, guide)), **TWO)
    ),
    "vimco": ("bits", functools.partial(objectives.vimco, **TWO)),
    "score": ("bits", functools.partial(objectives.score, **TWO)),
    "rao_blackwell": ("bits", objectives.rao_blackwell),
    "disarm": ("row", objectives.disarm),
    "rebar": ("row", objectives.rebar),
    "enumerate_elbo": ("bits", objectives.enumerate_elbo),
    "by_group": (
        "bits",
        functools.partial(jvi.elbo, gradient=gradients.by_group(a=gradients.enumerated, b=gradients.score), **TWO),
    ),
    "augmented": ("real", lambda model, guide: objectives.augmented(jvi.elbo(model, guide), flipped)),
    "subsampled": ("real", lambda model, guide: objectives.subsampled(jvi.elbo(model, guide), num_data=2)),
}  # fmt: skip
NEVER = {"forward_kl": objectives.forward_kl, "wake_sleep": objectives.wake_sleep}


def flipped(rng, x):
    return x * jnp.where(jax.random.bernoulli(rng), 1.0, -1.0)


def made(name, split):
    latents, build = BUILD[name]
    prior, likelihood, guide = PARTS[latents]
    return build(jvi.split(prior, likelihood) if split else joint(prior, likelihood), guide)


@pytest.mark.parametrize(  # subsampled needs a split model anyway
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "elbo")) for name in BUILD if name != "subsampled"]
)
def test_one_is_one_whatever_its_type_and_anything_else_needs_the_prior_apart(name):
    objective = made(name, split=False)
    params = objective.init(KEY, X[0])
    values = [objective(params, KEY, X[0], beta=beta)[0] for beta in (1.0, 1, jnp.ones(()))]
    assert jnp.isfinite(values[0])
    assert values[0] == values[1] == values[2]
    with pytest.raises(ValueError, match=r"prior is known apart: make it with jvi\.split"):
        objective(params, KEY, X[0], beta=0.5)


@pytest.mark.quick
@pytest.mark.parametrize("name", NEVER)
def test_objectives_towards_the_posterior_take_no_beta(name):
    objective = NEVER[name](jvi.split(real_prior, real_likelihood), REAL, num_samples=2)
    params = objective.init(KEY, X[0])
    assert objective(params, KEY, X[0], beta=np.float32(1.0))[0] == objective(params, KEY, X[0])[0]
    with pytest.raises(ValueError, match="beta must be 1"):
        jvi.fit(jvi.SVI(objective), KEY, X[0], num_steps=3, beta=jvi.schedules.warm_up(2), progress=False)


WRONG = {
    "negative": (-1.0, ValueError, "0 or more; got -1.0"),
    "not a number": (float("nan"), ValueError, "0 or more; got nan"),
    "text": ("half", TypeError, "must be a number"),
    "nothing": (None, TypeError, "must be a number"),
    "a list": ([0.5], TypeError, "must be a number"),
    "several": (jnp.ones(3), ValueError, r"one number.*shape \[3\]"),
    "a schedule": (jvi.schedules.warm_up(10), TypeError, r"a schedule goes to jvi\.fit"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_weight_is_refused(case):
    beta, error, match = WRONG[case]
    model = jvi.split(real_prior, real_likelihood)
    for objective in (jvi.elbo(model, REAL), objectives.elbo_kl(model, REAL)):
        with pytest.raises(error, match=match):
            objective(objective.init(KEY, X[0]), KEY, X[0], beta=beta)
    if beta is not None and not callable(beta):
        svi = jvi.SVI(jvi.elbo(model, REAL))
        for run in (jvi.fit, jvi.adapt):
            with pytest.raises(error, match=match):
                run(svi, KEY, X[0], beta=beta, progress=False)
        with pytest.raises(error, match=match):
            jvi.gradient_report(svi.objective, svi.objective.init(KEY, X[0]), KEY, X[0], beta=beta)


@pytest.mark.quick
def test_a_fit_and_a_report_at_one_need_no_prior_apart():
    objective = jvi.elbo(joint(real_prior, real_likelihood), REAL)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-2))
    _, plain = jvi.fit(svi, KEY, X[0], num_steps=3, progress=False)
    _, same = jvi.fit(svi, KEY, X[0], num_steps=3, beta=1, progress=False)
    np.testing.assert_array_equal(plain.bound, same.bound)
    jvi.gradient_report(objective, objective.init(KEY, X[0]), KEY, X[0], num_samples=40, beta=1.0)


@pytest.mark.long
@pytest.mark.parametrize("name", BUILD)
def test_a_schedule_goes_through_a_fit_of_any_objective_and_other_numbers_compile_nothing(name):
    traces = []
    latents, build = BUILD[name]
    prior, likelihood, guide = PARTS[latents]

    def counted(x, z):
        traces.append(1)
        return likelihood(x, z)

    objective = build(jvi.split(prior, counted), guide)
    x = X if name == "subsampled" else X[0]
    svi = jvi.SVI(objective, jvi.optimizer(optax.sgd, 0.0))
    counts = []
    for start in (0.25, 0.5):
        state, info = jvi.fit(svi, KEY, x, num_steps=4, beta=jvi.schedules.linear(start, 1.0, 3), progress=False)
        counts.append(len(traces))
        at = jax.jit(lambda beta, state=state: objective(state.params, jax.random.fold_in(state.rng, 0), x, beta=beta)[0])
        np.testing.assert_allclose(info.bound[0], at(start), rtol=1e-4)
        traces.clear()
    assert counts[0] > 0 == counts[1]
    assert info.bound[0] != info.bound[3]
