"""The same variational autoencoder on images, trained by every contender: `python -m benchmarks.throughput`.

All see the same 20,000 binary images, draw minibatches without replacement within an epoch, and maximize the importance-weighted bound
of K draws (the ELBO where K = 1) by Adam, through networks of the same layers. Other libraries are used as their documentation shows.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
NUM_DATA, SIDE, PIXELS, HIDDEN, LATENTS, RATE = 20_000, 28, 784, 200, 20, 1e-3


class Case(NamedTuple):
    """A network, and how it is trained.

    Attributes:
      convolutional: or else fully connected.
      num_samples: K.
      batch_size: images a step.
      num_steps: steps of a call, an epoch or a part of one.
      calls: calls of a run.
      narrow: whether the networks compute in bfloat16.
    """

    convolutional: bool
    num_samples: int
    batch_size: int
    num_steps: int
    calls: int = 1
    narrow: bool = False


class Contender(NamedTuple):
    """A way to train.

    Attributes:
      run: `(seed) -> bounds`, those of the steps on from where the last run ended.
      bound: `(params, key, x [B, 784]) -> nats per image`, differentiable, for params with parts `model` and `guide`.
    """

    run: Callable[[int], Any]
    bound: Callable[..., Any] | None = None


class Params(NamedTuple):
    """Parameters of the networks."""

    model: Any
    guide: Any


def images(limit: int = NUM_DATA) -> tuple[np.ndarray, str]:
    """Binary images [N, 784], uint8, and where they are from."""
    if FASHION.is_file():
        with gzip.open(FASHION) as file:
            pixels = np.frombuffer(file.read(16 + limit * PIXELS), np.uint8, offset=16)
        return (pixels.reshape(-1, PIXELS) > 127).astype(np.uint8), "Fashion-MNIST"
    rng = np.random.default_rng(0)
    rate = (rng.uniform(size=(10, PIXELS)) ** 3).astype(np.float32)
    return (rng.random((limit, PIXELS), np.float32) < rate[rng.integers(10, size=limit)]).astype(np.uint8), "simulated"


def networks(case: Case) -> tuple[Any, Any]:
    """Encoder, images [..., 784] to locations and log-scales [..., 40], and decoder, latents [..., 20] to logits [..., 784]."""
    import flax.linen as nn
    import jax.numpy as jnp

    kind = {"dtype": jnp.bfloat16 if case.narrow else jnp.float32}

    class Dense(nn.Module):
        num_outputs: int

        @nn.compact
        def __call__(self, inputs):
            hidden = nn.relu(nn.Dense(HIDDEN, **kind)(inputs))
            hidden = nn.relu(nn.Dense(HIDDEN, **kind)(hidden))
            return nn.Dense(self.num_outputs, **kind)(hidden).astype(jnp.float32)

    class ConvolutionalEncoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = x.reshape(*x.shape[:-1], SIDE, SIDE, 1)
            for channels in (16, 32):
                hidden = nn.relu(nn.Conv(channels, (4, 4), 2, **kind)(hidden))
            hidden = hidden.reshape(*x.shape[:-1], -1)
            return nn.Dense(2 * LATENTS, **kind)(hidden).astype(jnp.float32)

    def enlarged(grid):
        """Four channels as two by two pixels: what transposed convolutions do, whose gradient is slow on CPUs."""
        *lead, height, width, channels = grid.shape
        grid = grid.reshape(*lead, height, width, 2, 2, channels // 4)
        return jnp.swapaxes(grid, -4, -3).reshape(*lead, 2 * height, 2 * width, channels // 4)

    class ConvolutionalDecoder(nn.Module):
        @nn.compact
        def __call__(self, z):
            hidden = nn.relu(nn.Dense(7 * 7 * 32, **kind)(z)).reshape(*z.shape[:-1], 7, 7, 32)
            hidden = nn.relu(enlarged(nn.Conv(4 * 16, (3, 3), **kind)(hidden)))
            logits = enlarged(nn.Conv(4, (3, 3), **kind)(hidden))
            return logits.reshape(*z.shape[:-1], PIXELS).astype(jnp.float32)

    return (ConvolutionalEncoder(), ConvolutionalDecoder()) if case.convolutional else (Dense(2 * LATENTS), Dense(PIXELS))


def log_bernoulli(x: Any, logits: Any) -> Any:
    """As NumPyro computes it, whose gradient takes an exponential less than that of `jax.nn.softplus`."""
    import jax.numpy as jnp

    return x * logits - jnp.maximum(logits, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


# -- jvi and the loop written by hand ---------------------------------------------------------------------------------------


def jvi_parts(case: Case) -> tuple[Any, Any]:
    """Model and guide."""
    import distrax
    import jax.numpy as jnp

    import jvi

    encoder, decoder = map(jvi.networks.network, networks(case))

    def log_joint(params, x, z):
        logits = decoder.apply(params, z)
        log_prior = -0.5 * (z @ z) - 0.5 * LATENTS * math.log(2 * math.pi)
        return log_prior + jnp.sum(log_bernoulli(x, logits))

    def gaussian(output):
        loc, log_scale = jnp.split(output, 2)
        return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))

    model = jvi.learned(lambda rng, x: decoder.init(rng, jnp.zeros(LATENTS)), log_joint)
    return model, jvi.guides.conditional(encoder, gaussian, inputs=lambda x: x.astype(float))


def _jvi(case: Case, num_devices: int | None) -> Contender:
    import jax
    import optax

    import jvi

    model, guide = jvi_parts(case)
    if case.num_samples == 1:
        objective = jvi.per_example(jvi.elbo(model, guide, gradient=jvi.gradients.pathwise))
    else:
        objective = jvi.per_example(jvi.iwae(model, guide, num_samples=case.num_samples))
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, RATE))
    options = {"num_steps": case.num_steps * case.calls, "batch_size": case.batch_size, "progress": False}
    if num_devices is not None:
        if not hasattr(jvi, "sharding"):
            raise NotImplementedError("no meshes")
        options["mesh"] = jvi.sharding.data_mesh(num_devices)
    x, state = jax.device_put(images()[0]), None

    def run(seed):
        nonlocal state
        state, info = jvi.fit_batches(svi, jax.random.key(seed), x, state=state, **options)
        return info.bound

    return Contender(run, lambda params, key, x: objective(params, key, x)[0])


def by_hand(
    encoder: Any, decoder: Any, num_samples: int, split: Callable[[Any], Any] = lambda array: array
) -> Callable[..., Any]:
    """The bound on whole arrays: `(params, key, x [B, 784]) -> nats [B]`."""
    import jax
    import jax.numpy as jnp

    def bound(params, key, x):
        x = x.astype(jnp.float32)
        loc, log_scale = jnp.split(encoder.apply({"params": params.guide}, x), 2, axis=-1)
        eps = split(jax.random.normal(key, (len(x), num_samples, LATENTS)))
        z = loc[:, None] + jnp.exp(log_scale)[:, None] * eps
        logits = decoder.apply({"params": params.model}, z)
        log_w = jnp.sum(log_bernoulli(x[:, None], logits), -1) - 0.5 * jnp.sum(z**2, -1)
        log_w += 0.5 * jnp.sum(eps**2, -1) + jnp.sum(log_scale, -1)[:, None]
        return jax.nn.logsumexp(log_w, -1) - math.log(num_samples) if num_samples > 1 else log_w[:, 0]

    return bound


def _hand(case: Case, num_devices: int | None) -> Contender:
    """`lax.scan` over the steps of an epoch, the draws written as one batch; nothing is checked, skipped or told but the bound.

    Convolutions on a CPU: the same step, called from Python, because inside of a loop XLA takes ten times as long for them.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    def split(array):
        return array if mesh is None else jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P("data")))

    mesh = None if num_devices is None else Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    encoder, decoder = networks(case)
    bound, adam = by_hand(encoder, decoder, case.num_samples, split), optax.adam(RATE)

    def plan(key, data):
        """The images and the key of each step."""
        order = jax.random.permutation(key, len(data))[: case.num_steps * case.batch_size]
        return order.reshape(case.num_steps, case.batch_size), jax.random.split(key, case.num_steps)

    def step(carry, inputs, data):
        (params, moments), (chosen, key) = carry, inputs
        x = split(data[split(chosen)])
        value, grads = jax.value_and_grad(lambda params: -jnp.mean(bound(params, key, x)))(params)
        updates, moments = adam.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), -value

    @partial(jax.jit, donate_argnums=0)
    def scanned(carry, key, data):
        return jax.lax.scan(lambda carry, inputs: step(carry, inputs, data), carry, plan(key, data))

    planned = jax.jit(plan)

    @partial(jax.jit, donate_argnums=0)
    def one(carry, inputs, i, data):
        return step(carry, jax.tree.map(lambda leaf: leaf[i], inputs), data)

    def called(carry, key, data):
        inputs, bounds = planned(key, data), []
        for i in range(case.num_steps):
            carry, value = one(carry, inputs, i, data)
            bounds.append(value)
        return carry, jnp.stack(bounds)

    epoch = called if case.convolutional and jax.default_backend() == "cpu" else scanned

    def start(key):
        params = Params(decoder.init(key, jnp.zeros(LATENTS))["params"], encoder.init(key, jnp.zeros(PIXELS))["params"])
        return params, adam.init(params)

    everywhere = None if mesh is None else NamedSharding(mesh, P())
    x, carry = jax.device_put((images()[0], jax.jit(start)(jax.random.key(0))), everywhere)

    def run(seed):
        nonlocal carry
        bounds = []
        for key in jax.random.split(jax.random.key(seed), case.calls):
            carry, found = epoch(carry, key, x)
            bounds.append(found)
        return np.concatenate(jax.device_get(bounds))

    return Contender(run, lambda params, key, x: jnp.mean(bound(params, key, x)))


# -- peers ------------------------------------------------------------------------------------------------------------------


def _numpyro(fused: bool, case: Case, num_devices: int | None) -> Contender:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.module import flax_module
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

    encoder, decoder = networks(case)

    def model(x):
        net = flax_module("decoder", decoder, input_shape=(1, LATENTS))
        with numpyro.plate("batch", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), LATENTS)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    def guide(x):
        net = flax_module("encoder", encoder, input_shape=(1, PIXELS))
        loc, log_scale = jnp.split(net(x.astype(jnp.float32)), 2, axis=-1)
        with numpyro.plate("batch", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    loss = Trace_ELBO() if case.num_samples == 1 else RenyiELBO(alpha=0, num_particles=case.num_samples)
    svi = SVI(model, guide, numpyro.optim.Adam(RATE), loss)
    host = images()[0]
    x, state = jax.device_put(host), jax.jit(svi.init)(jax.random.PRNGKey(0), jnp.asarray(host[: case.batch_size]))

    @jax.jit
    def epoch(state, x, key):
        order = jax.random.permutation(key, len(x))

        def body(t, carry):
            state, losses = carry
            chosen = jax.lax.dynamic_slice(order, (t * case.batch_size,), (case.batch_size,))
            state, loss = svi.update(state, x[chosen])
            return state, losses.at[t].set(loss)

        return jax.lax.fori_loop(0, case.num_steps, body, (state, jnp.zeros(case.num_steps)))

    update = jax.jit(svi.update)

    def steps(state, seed):
        order, losses = np.random.default_rng(seed).permutation(len(host)), []
        for chosen in order[: case.num_steps * case.batch_size].reshape(case.num_steps, case.batch_size):
            state, loss = update(state, host[chosen])
            losses.append(loss)
        return state, jnp.stack(losses)

    def run(seed):
        nonlocal state
        losses = []
        for i in range(case.calls):
            one = case.calls * seed + i
            state, found = epoch(state, x, jax.random.PRNGKey(one)) if fused else steps(state, one)
            losses.append(found)
        return -np.concatenate(jax.device_get(losses)) / case.batch_size

    def bound(params, key, x):
        return -loss.loss(key, {"encoder$params": params.guide, "decoder$params": params.model}, model, guide, x) / len(x)

    return Contender(run, bound)


def _pyro(case: Case, num_devices: int | None) -> Contender:
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, RenyiELBO, Trace_ELBO
    from torch import nn

    def dense(inputs, outputs):
        return nn.Sequential(
            nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
        )

    encoder, decoder = dense(PIXELS, 2 * LATENTS), dense(LATENTS, PIXELS)
    if case.convolutional:
        shape = (1, SIDE, SIDE)
        convolutions = (nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU())
        encoder = nn.Sequential(nn.Unflatten(-1, shape), *convolutions, nn.Flatten(), nn.Linear(32 * 7 * 7, 2 * LATENTS))
        larger = (nn.Conv2d(32, 64, 3, 1, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(16, 4, 3, 1, 1), nn.PixelShuffle(2))
        grid = nn.Unflatten(-1, (32, 7, 7))
        decoder = nn.Sequential(nn.Linear(LATENTS, 32 * 7 * 7), nn.ReLU(), grid, *larger, nn.Flatten())

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENTS), 1.0).to_event(1))
            logits = decoder(z.reshape(-1, LATENTS)).reshape(*z.shape[:-1], PIXELS)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    # Its bound of K draws is one of all images of the minibatch together, which is another bound at the same cost.
    several = {"num_particles": case.num_samples, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = Trace_ELBO() if case.num_samples == 1 else RenyiELBO(alpha=0, **several)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), loss)
    data, count = torch.as_tensor(images()[0]), case.num_steps * case.calls

    def run(seed):
        pyro.set_rng_seed(seed)
        order = torch.randperm(len(data))[: count * case.batch_size].split(case.batch_size)
        return -np.array([svi.step(data[chosen].float()) for chosen in order]) / case.batch_size

    return Contender(run)


BUILDERS: dict[str, Callable[[Case, int | None], Contender]] = {
    "hand-written": _hand,
    "jvi": _jvi,
    "NumPyro, fori_loop": partial(_numpyro, True),
    "NumPyro, Python loop": partial(_numpyro, False),
    "Pyro": _pyro,
}


# -- a bound of many draws, evaluated ---------------------------------------------------------------------------------------


def jvi_many(case: Case, num_samples: int, chunk_size: int) -> Callable[..., Any]:
    """`(params, key, x [B, 784]) -> nats per image`, compiled."""
    import jax

    import jvi

    objective = jvi.per_example(jvi.iwae(*jvi_parts(case), num_samples=num_samples, chunk_size=chunk_size))
    return jax.jit(lambda params, key, x: objective(params, key, x)[0])


def many_by_hand(case: Case, num_samples: int, chunk_size: int) -> Callable[..., Any]:
    """The same, by a scan over chunks of draws that adds up the weights."""
    import jax
    import jax.numpy as jnp

    bound, chunks = by_hand(*networks(case), chunk_size), num_samples // chunk_size

    @jax.jit
    def evaluate(params, key, x):
        def step(total, key):
            return jnp.logaddexp(total, bound(params, key, x)), None

        total = jax.lax.scan(step, jnp.full(len(x), -jnp.inf), jax.random.split(key, chunks))[0]
        return jnp.mean(total) - math.log(chunks)

    return evaluate


EVALUATORS = {"hand-written": many_by_hand, "jvi": jvi_many}
