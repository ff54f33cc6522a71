"""Runs whose numbers do not depend on the mesh: objectives by name, for fake devices and for real processes."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

import jvi
from jvi._spec import spec

STEPS, BATCH = 100, 64
X = np.random.default_rng(0).normal(size=(256, 6)).astype(np.float32)


def init_encoder(rng, x):
    first, second, out = jax.random.split(rng, 3)
    return {
        "first": 0.4 * jax.random.normal(first, (6, 64)),
        "second": 0.1 * jax.random.normal(second, (64, 32)),  # large enough to be split
        "out": 0.1 * jax.random.normal(out, (32, 4)),
    }


def encode(params, x):
    return jnp.tanh(jnp.tanh(x @ params["first"]) @ params["second"]) @ params["out"]


def gaussian(params, x):
    loc, raw = jnp.split(encode(params, x), 2)
    return distrax.MultivariateNormalDiag(loc, jax.nn.softplus(raw) + 1e-3)


def independent(params, x):
    loc, raw = jnp.split(encode(params, x), 2)
    return distrax.Independent(distrax.Normal(loc, jax.nn.softplus(raw) + 1e-3), 1)


def bits(params, x):
    return distrax.Independent(distrax.Bernoulli(encode(params, x)), 1)


def decoder(rng, num_latents):
    return {"w": 0.5 * jax.random.normal(rng, (num_latents, 6)), "b": jnp.zeros(6)}


def two(rng, x):
    return decoder(rng, 2)


def four(rng, x):
    return decoder(rng, 4)


def log_likelihood(params, x, z):
    return jnp.sum(norm.logpdf(x, jnp.tanh(z) @ params["w"] + params["b"], 0.7))


def prior(params):
    return distrax.Independent(distrax.Normal(jnp.zeros(2), jnp.ones(2)), 1)


def log_prior(params, z):
    return jnp.sum(norm.logpdf(z))


def of_bits(params, x, z):
    return 4 * jnp.log(0.5) + log_likelihood(params, x, z.astype(float))


def of_weights(z):
    return jnp.sum(norm.logpdf(z["w"], 0.0, 3.0))


def regression(x, z):
    return norm.logpdf(x[0], x[1:] @ z["w"], 1.0)


MODEL = jvi.split(log_prior, log_likelihood, init=two)
GUIDE = jvi.guides.from_distribution(init_encoder, gaussian)
FLOORED = jvi.guides.from_distribution(init_encoder, independent)
DISCRETE = jvi.guides.from_distribution(init_encoder, bits)
WEIGHTS = jvi.guides.MeanField(jvi.space({"w": jvi.real(5)}))

OBJECTIVES = {
    "elbo": jvi.per_example(jvi.elbo(MODEL, GUIDE)),
    "iwae": jvi.per_example(jvi.iwae(MODEL, GUIDE, num_samples=8)),
    "dreg": jvi.per_example(jvi.objectives.dreg(MODEL, GUIDE, num_samples=8)),
    "vimco": jvi.per_example(jvi.objectives.vimco(jvi.learned(four, of_bits), DISCRETE, num_samples=8)),
    "free bits": jvi.per_example(jvi.elbo(jvi.models.with_prior(prior, log_likelihood, init=two), FLOORED, free_bits=0.2)),
    "subsampled": jvi.objectives.subsampled(
        jvi.elbo(jvi.split(of_weights, regression), WEIGHTS, num_samples=8), num_data=len(X)
    ),
}


@spec
class Sum:
    """All of them in one program: their parameters do not meet."""

    parts: tuple

    def init(self, rng, x):
        return tuple(part.init(jax.random.fold_in(rng, i), x) for i, part in enumerate(self.parts))

    def __call__(self, params, rng, x, *, beta=1.0):
        found = [
            part(own, jax.random.fold_in(rng, i), x, beta=beta)
            for i, (part, own) in enumerate(zip(self.parts, params, strict=True))
        ]
        return sum(value for value, _ in found), found[0][1]


def key():
    return jax.random.key(0)  # not before a process has met the others


def svi(objective):
    return jvi.SVI(objective, jvi.optimizer(optax.adam, 3e-3))


def run(objective, mesh=None, num_steps=STEPS, **kwargs):
    return jvi.fit_batches(svi(objective), key(), X, num_steps=num_steps, batch_size=BATCH, mesh=mesh, **kwargs)


# A run of vimco amplifies rounding errors some 1e5 times in these steps, though each gradient is right to the last place: its runs are
# compared in float64, to the rounding of float32.
REAL = Sum(tuple(objective for name, objective in OBJECTIVES.items() if name != "vimco"))
