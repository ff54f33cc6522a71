"""The same three problems written for every contender. Each `build` returns
`run(seed, x)`, which fits and returns its bounds.

What is compared is the cost of a step, so all use Adam at the same rate, as many draws, as many steps, float32, and the
gradient by reparameterization. Other libraries are used as their documentation shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

RATE = 1e-3
HIDDEN, LATENTS, PIXELS = 200, 20, 784


class Case(NamedTuple):
    """A problem: its kind, its size, and how many steps are timed."""

    kind: str
    num_data: int
    dim: int
    num_samples: int
    num_steps: int


CASES = {
    "logistic, mean-field, K = 1": Case("mean_field", 1_000, 25, 1, 20_000),
    "logistic, mean-field, K = 16": Case("mean_field", 1_000, 25, 16, 5_000),
    "logistic, full-rank D = 100, K = 1": Case("full_rank", 1_000, 100, 1, 5_000),
    "VAE, 60,000 x 784, batch 256": Case("vae", 60_000, PIXELS, 1, 234),
}
BATCH = 256


def data(case: Case, seed: int) -> Any:
    """Simulated data of the case's shapes; every seed makes new ones."""
    rng = np.random.default_rng(seed)
    if case.kind == "vae":
        rate = rng.uniform(size=(10, PIXELS)) ** 3
        chosen = rate[rng.integers(10, size=case.num_data)].astype(np.float32)
        return (rng.random(size=(case.num_data, PIXELS), dtype=np.float32) < chosen).astype(np.float32)
    features = rng.normal(size=(case.num_data, case.dim)).astype(np.float32)
    logits = features @ (rng.normal(size=case.dim) / math.sqrt(case.dim))
    return features, (rng.uniform(size=case.num_data) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def build(name: str, case: Case) -> Callable[[int, Any], np.ndarray]:
    """The contender's fit for this case.

    Raises:
      ImportError: if its library is not installed.
      NotImplementedError: if it has no such fit.
    """
    return BUILDERS[name](case)


# -- jvi and the loop written by hand ---------------------------------------------------------------------------------------


def _jvi(case: Case) -> Callable[[int, Any], np.ndarray]:
    import distrax
    import jax
    import jax.numpy as jnp
    import optax

    import jvi

    def log_joint(x, z):
        features, label = x
        logits = features @ z
        log_prior = -0.5 * (z @ z) - 0.5 * case.dim * math.log(2 * math.pi)
        return log_prior + jnp.sum(label * logits - jax.nn.softplus(logits))

    optimizer = jvi.optimizer(optax.adam, RATE)
    if case.kind == "vae":
        encoder, decoder = _networks()

        def log_density(params, x, z):
            logits = decoder.apply(params, z)
            log_prior = -0.5 * (z @ z) - 0.5 * LATENTS * math.log(2 * math.pi)
            return log_prior + jnp.sum(x * logits - jax.nn.softplus(logits))

        def gaussian(output):
            loc, log_scale = jnp.split(output, 2)
            return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))

        model = jvi.learned(lambda rng, x: decoder.init(rng, jnp.zeros(LATENTS)), log_density)
        guide = jvi.guides.conditional(encoder, gaussian)
        svi = jvi.SVI(jvi.per_example(jvi.elbo(model, guide, gradient=jvi.gradients.pathwise)), optimizer)
        fit = partial(jvi.fit_batches, svi, num_steps=case.num_steps, batch_size=BATCH, progress=False)
        return lambda seed, x: fit(jax.random.key(seed), x)[1].bound
    kind = jvi.guides.MeanField if case.kind == "mean_field" else jvi.guides.FullRank
    guide = kind(jvi.space(jvi.real(case.dim)))
    objective = jvi.elbo(jvi.model(log_joint), guide, num_samples=case.num_samples, gradient=jvi.gradients.pathwise)
    svi = jvi.SVI(objective, optimizer)
    return lambda seed, x: jvi.fit(svi, jax.random.key(seed), x, num_steps=case.num_steps, progress=False)[1].bound


def _networks() -> Any:
    import flax.linen as nn

    def mlp(outputs):
        return nn.Sequential((nn.Dense(HIDDEN), nn.relu, nn.Dense(HIDDEN), nn.relu, nn.Dense(outputs)))

    return mlp(2 * LATENTS), mlp(PIXELS)


def _hand(case: Case) -> Callable[[int, Any], np.ndarray]:
    """`lax.scan` over steps, the particles written as one batch; nothing is checked, skipped or reported but the bound."""
    import jax
    import jax.numpy as jnp
    import optax

    adam = optax.adam(RATE)
    dim, count = case.dim, case.num_samples

    def mean_field(params, key, x):
        (features, label), (loc, log_scale) = x, params
        eps = jax.random.normal(key, (count, dim) if count > 1 else (dim,))
        z = loc + jnp.exp(log_scale) * eps
        return _logistic_elbo(z, eps, jnp.sum(log_scale), features, label)

    def full_rank(params, key, x):
        (features, label), (loc, log_scale, lower) = x, params
        eps = jax.random.normal(key, (dim,))
        z = loc + jnp.exp(log_scale) * eps + jnp.tril(lower, -1) @ eps
        return _logistic_elbo(z, eps, jnp.sum(log_scale), features, label)

    def _logistic_elbo(z, eps, log_det, features, label):
        logits = z @ features.T if z.ndim == 2 else features @ z  # each the faster way round
        log_prior = -0.5 * jnp.sum(z**2, -1) - 0.5 * dim * math.log(2 * math.pi)
        log_likelihood = jnp.sum(label * logits - jax.nn.softplus(logits), -1)
        log_q = -0.5 * jnp.sum(eps**2, -1) - log_det - 0.5 * dim * math.log(2 * math.pi)
        return jnp.mean(log_prior + log_likelihood - log_q)

    if case.kind == "vae":
        return _hand_vae(case, adam)
    elbo = mean_field if case.kind == "mean_field" else full_rank

    @jax.jit
    def run(key, x):
        params = (jnp.zeros(dim), jnp.full(dim, math.log(0.1)))
        params = params if case.kind == "mean_field" else (*params, jnp.zeros((dim, dim)))

        def step(carry, key):
            params, moments = carry
            value, grads = jax.value_and_grad(lambda params: -elbo(params, key, x))(params)
            updates, moments = adam.update(grads, moments)
            return (optax.apply_updates(params, updates), moments), -value

        carry, bounds = jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, case.num_steps))
        return carry, bounds

    return lambda seed, x: np.asarray(run(jax.random.key(seed), x)[1])


def _hand_vae(case: Case, adam: Any) -> Callable[[int, Any], np.ndarray]:
    import jax
    import jax.numpy as jnp
    import optax

    encoder, decoder = _networks()

    def elbo(params, key, x):
        loc, log_scale = jnp.split(encoder.apply(params[0], x), 2, axis=-1)
        eps = jax.random.normal(key, loc.shape)
        z = loc + jnp.exp(log_scale) * eps
        logits = decoder.apply(params[1], z)
        log_p = jnp.sum(x * logits - jax.nn.softplus(logits), -1) - 0.5 * jnp.sum(z**2, -1)
        return jnp.mean(log_p + 0.5 * jnp.sum(eps**2, -1) + jnp.sum(log_scale, -1))

    @jax.jit
    def run(key, x):
        params = encoder.init(key, jnp.zeros(PIXELS)), decoder.init(key, jnp.zeros(LATENTS))
        order = jax.random.permutation(key, len(x))

        def step(carry, t):
            params, moments = carry
            chosen = jax.lax.dynamic_slice(order, (t * BATCH,), (BATCH,))

            def loss(params):
                return -elbo(params, jax.random.fold_in(key, t), x[chosen])

            value, grads = jax.value_and_grad(loss)(params)
            updates, moments = adam.update(grads, moments)
            return (optax.apply_updates(params, updates), moments), -value

        carry, bounds = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(case.num_steps))
        return carry, bounds

    return lambda seed, x: np.asarray(run(jax.random.key(seed), x)[1])


# -- peers ------------------------------------------------------------------------------------------------------------------


def _numpyro(case: Case) -> Callable[[int, Any], np.ndarray]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    if case.kind == "vae":
        return _numpyro_vae(case)

    def model(features, label):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(case.dim), 1.0).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=features @ z).to_event(1), obs=label)

    kind = autoguide.AutoNormal if case.kind == "mean_field" else autoguide.AutoMultivariateNormal
    svi = SVI(model, kind(model), numpyro.optim.Adam(RATE), Trace_ELBO(num_particles=case.num_samples))

    def run(seed, x):
        return -np.asarray(svi.run(jax.random.PRNGKey(seed), case.num_steps, *x, progress_bar=False).losses)

    return run


def _numpyro_vae(case: Case) -> Callable[[int, Any], np.ndarray]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.module import flax_module
    from numpyro.infer import SVI, Trace_ELBO

    encoder, decoder = _networks()

    def model(x):
        net = flax_module("decoder", decoder, input_shape=(1, LATENTS))
        with numpyro.plate("batch", BATCH):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((BATCH, LATENTS)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    def guide(x):
        net = flax_module("encoder", encoder, input_shape=(1, PIXELS))
        loc, log_scale = jnp.split(net(x), 2, axis=-1)
        with numpyro.plate("batch", BATCH):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    init = jax.jit(svi.init)

    @jax.jit
    def epoch(state, x, order):
        def body(t, carry):
            state, bounds = carry
            chosen = jax.lax.dynamic_slice(order, (t * BATCH,), (BATCH,))
            state, loss = svi.update(state, x[chosen])
            return state, bounds.at[t].set(-loss / BATCH)

        return jax.lax.fori_loop(0, case.num_steps, body, (state, jnp.zeros(case.num_steps)))

    def run(seed, x):
        key = jax.random.PRNGKey(seed)
        return np.asarray(epoch(init(key, x[:BATCH]), x, jax.random.permutation(key, len(x)))[1])

    return run


def _blackjax(case: Case) -> Callable[[int, Any], np.ndarray]:
    import blackjax
    import jax
    import jax.numpy as jnp
    import optax

    if case.kind != "mean_field":
        raise NotImplementedError("mean-field only")
    adam = optax.adam(RATE)

    @jax.jit
    def train(key, x):
        features, label = x

        def log_density(z):
            logits = features @ z
            return -0.5 * (z @ z) + jnp.sum(label * logits - jax.nn.softplus(logits))

        state = blackjax.meanfield_vi(log_density, adam, case.num_samples).init(jnp.zeros(case.dim))
        kernel = blackjax.meanfield_vi(log_density, adam, case.num_samples)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, -info.elbo  # the field holds the negative ELBO

        return jax.lax.scan(step, state, jax.random.split(key, case.num_steps))[1]

    return lambda seed, x: np.asarray(train(jax.random.key(seed), x))


def _pymc(case: Case) -> Callable[[int, Any], np.ndarray]:
    import pymc

    if case.kind == "vae":
        raise NotImplementedError("no amortized fit")

    def run(seed, x):
        features, label = x
        with pymc.Model():
            z = pymc.Normal("z", 0.0, 1.0, shape=case.dim)
            pymc.Bernoulli("y", logit_p=pymc.math.dot(features, z), observed=label)
            fitted = pymc.fit(
                case.num_steps, method="advi" if case.kind == "mean_field" else "fullrank_advi", random_seed=seed,
                obj_optimizer=pymc.adam(learning_rate=RATE), obj_n_mc=case.num_samples, progressbar=False,
            )  # fmt: skip
        return -np.asarray(fitted.hist)

    return run


def _pyro(case: Case) -> Callable[[int, Any], np.ndarray]:
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Trace_ELBO, autoguide

    if case.kind == "vae":
        raise NotImplementedError("not written")

    def model(features, label):
        z = pyro.sample("z", dist.Normal(torch.zeros(case.dim), 1.0).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=features @ z).to_event(1), obs=label)

    def run(seed, x):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        kind = autoguide.AutoNormal if case.kind == "mean_field" else autoguide.AutoMultivariateNormal
        svi = SVI(model, kind(model), pyro.optim.Adam({"lr": RATE}), Trace_ELBO(num_particles=case.num_samples))
        tensors = [torch.as_tensor(part) for part in x]
        return -np.array([svi.step(*tensors) for _ in range(case.num_steps)])

    return run


BUILDERS = {"hand-written": _hand, "jvi": _jvi, "NumPyro": _numpyro, "BlackJAX": _blackjax, "PyMC": _pymc, "Pyro": _pyro}
# Steps are timed over a tenth of the run where one takes a thousand times as long.
SLOW = {"PyMC": 10, "Pyro": 20}
