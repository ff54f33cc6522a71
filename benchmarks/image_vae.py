"""The flagship's autoencoder in jvi, in NumPyro and by hand in Flax and optax: `python -m benchmarks.image_vae`.

The networks of `examples/image_vae.py` (one level), the ELBO with one draw and without closed forms, the same optimizer, batch size,
number of steps and data, pixels made black and white anew at each step; each draws its own initial values and minibatches. All are
measured by one program: the bound at K = 50 of the same held-out images, with the same draws.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.command import command_line
from benchmarks.step_time import device_name

BATCH, RATE, SIZE = 100, 2e-3, 20
HEAD = ("", "seed", "K = 1 (nats)", "K = 50 (nats)", "K = 50, more than by hand", "ms a step")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_vae", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000, help="of each run (default 2,000)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each (default 2)")
    parser.add_argument("--images", type=int, default=2_000, help="held-out images (default 2,000)")
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's files")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()

    import jax

    import jvi
    from examples import image_vae

    console = Console(highlight=False)
    train, test = image_vae.load(options.data, console)
    test = np.asarray(jvi.augment.binarized(jax.random.key(1), test[: options.images]))
    model, guide, _ = image_vae.build(train.shape[1])
    empty = jax.eval_shape(guide.init, jax.random.key(0), test[0])
    of, rows, means = jvi.diagnostics.mean_of, [], {}
    for seed in range(options.seeds):
        reference = None
        for name, run in {"by hand": by_hand, "jvi": with_jvi, "NumPyro": with_numpyro}.items():
            began = time.perf_counter()
            encoder, level, decoder = jax.block_until_ready(run(train, seed, options.steps))
            seconds = time.perf_counter() - began
            params = jvi.objectives.Params(decoder, empty._replace(network=encoder, guide={"low": level}))
            bounds = image_vae.bounds_of(model, guide, params, jax.random.key(2), test, 50, (1, 50))
            reference = bounds[50] if reference is None else reference
            more = str(of(bounds[50] - reference)) if name != "by hand" else ""
            means.setdefault(name, []).append(bounds[50].mean())
            rows.append(
                (name, str(seed), str(of(bounds[1])), str(of(bounds[50])), more, f"{1e3 * seconds / options.steps:.1f}")
            )
            console.print(*rows[-1], sep="  ")
    table = Table(*HEAD, title=f"{options.steps:,} steps, {len(test):,} held-out images")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    between = {
        name: f"{np.mean(each):.2f} (seeds: sd {np.std(each, ddof=1):.2f})" for name, each in means.items() if len(each) > 1
    }
    lines = [", ".join(f"{name} {text}" for name, text in between.items())]
    console.print(*lines)
    if options.out:
        head = [f"# Image VAE, {date.today()}", "", f"Device: {device_name()}. `{command_line('benchmarks.image_vae')}`", ""]
        body = [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---:"] * len(HEAD), *rows)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*head, *body, "", *lines]) + "\n")
    return 0


def with_jvi(train: Any, seed: int, steps: int) -> tuple[Any, Any, Any]:
    """Parameters of the encoder, of the level of latents and of the decoder, as those below return them."""
    import jax
    import optax

    import jvi
    from examples.image_vae import build

    model, guide, _ = build(train.shape[1])
    objective = jvi.per_example(jvi.elbo(model, guide, gradient=jvi.gradients.pathwise))
    objective = jvi.objectives.augmented(objective, jvi.augment.binarized)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, RATE))
    params = jvi.fit_batches(svi, jax.random.key(seed), train, num_steps=steps, batch_size=BATCH)[0].params
    return params.guide.network, params.guide.guide["low"], params.model


def with_numpyro(train: Any, seed: int, steps: int) -> tuple[Any, Any, Any]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.module import flax_module
    from numpyro.infer import SVI, Trace_ELBO

    from examples.image_vae import Decoder, Encoder, Level
    from jvi.augment import binarized as binarize

    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Level(SIZE, name="level")((Encoder(name="encoder")(x), {}))

    class Low(nn.Module):
        side: int

        @nn.compact
        def __call__(self, z):
            return Decoder(self.side, name="decoder")({"low": z})

    side = train.shape[1]

    def model(x):
        net = flax_module("model", Low(side), input_shape=(1, SIZE))
        with numpyro.plate("batch", BATCH):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((BATCH, SIZE)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(2), obs=x)

    def guide(x):
        loc, raw = jnp.split(flax_module("guide", Heads(), input_shape=(1, side, side))(x), 2, axis=-1)
        with numpyro.plate("batch", BATCH):
            numpyro.sample("z", dist.Normal(loc, nn.softplus(raw + 0.54) + 1e-4).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    key = jax.random.PRNGKey(seed)
    state = jax.jit(svi.init)(key, jnp.zeros((BATCH, side, side)))

    @jax.jit
    def run(state, train):
        def step(t, carry):
            state, order = carry
            order, chosen = minibatch(key, order, t, len(train))
            return svi.update(state, binarize(jax.random.fold_in(key, t), train[chosen]))[0], order

        return jax.lax.fori_loop(0, steps, step, (state, jnp.arange(len(train))))[0]

    params = svi.get_params(run(state, jnp.asarray(train)))
    found = params["guide$params"]
    return found["encoder"], found["level"], params["model$params"]["decoder"]


def by_hand(train: Any, seed: int, steps: int) -> tuple[Any, Any, Any]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from examples.image_vae import Decoder, Encoder, Level
    from jvi.augment import binarized as binarize

    side, adam, key = train.shape[1], optax.adam(RATE), jax.random.key(seed)
    encoder, level, decoder = Encoder(), Level(SIZE), Decoder(side)

    def negative_elbo(params, key, images):
        of_pixels, of_z = jax.random.split(key)
        x = binarize(of_pixels, images)
        features = encoder.apply({"params": params["encoder"]}, x)
        loc, raw = jnp.split(level.apply({"params": params["level"]}, (features, {})), 2, axis=-1)
        scale, eps = nn.softplus(raw + 0.54) + 1e-4, jax.random.normal(of_z, loc.shape)
        z = loc + scale * eps
        logits = decoder.apply({"params": params["decoder"]}, {"low": z})
        log_p = jnp.sum(x * logits - nn.softplus(logits), (1, 2)) - 0.5 * jnp.sum(z**2, 1)
        return -jnp.mean(log_p + jnp.sum(0.5 * eps**2 + jnp.log(scale), 1))

    @jax.jit
    def run(train):
        keys = jax.random.split(key, 3)
        params = {
            "encoder": encoder.init(keys[0], jnp.zeros((side, side)))["params"],
            "level": level.init(keys[1], (jnp.zeros(256), {}))["params"],
            "decoder": decoder.init(keys[2], {"low": jnp.zeros(SIZE)})["params"],
        }

        def step(t, carry):
            params, moments, order = carry
            order, chosen = minibatch(key, order, t, len(train))
            grads = jax.grad(negative_elbo)(params, jax.random.fold_in(key, t), train[chosen])
            updates, moments = adam.update(grads, moments)
            return optax.apply_updates(params, updates), moments, order

        return jax.lax.fori_loop(0, steps, step, (params, adam.init(params), jnp.arange(len(train))))[0]

    found = run(jnp.asarray(train))
    return found["encoder"], found["level"], found["decoder"]


def minibatch(key: Any, order: Any, t: Any, count: int) -> tuple[Any, Any]:
    """The order of this epoch, and the places of this step's images."""
    import jax

    per_epoch = count // BATCH
    again = jax.random.fold_in(jax.random.fold_in(key, 2**31), t // per_epoch)
    order = jax.lax.cond(t % per_epoch == 0, lambda: jax.random.permutation(again, count), lambda: order)
    return order, jax.lax.dynamic_slice(order, (t % per_epoch * BATCH,), (BATCH,))


if __name__ == "__main__":
    sys.exit(main())
