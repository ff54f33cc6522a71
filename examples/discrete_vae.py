"""A variational autoencoder whose code is 200 bits: discrete latents, which have no path to follow.

Every image x has a code z of 200 bits. DisARM draws codes in pairs of opposite numbers, and learns from what the pairs differ in.
"""

from pathlib import Path

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import jvi

NUM_BITS = 200


class MLP(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.num_outputs)(nn.relu(nn.Dense(128)(inputs)))


def bits(logits):
    """What the encoder's output means: independent bits."""
    return distrax.Independent(distrax.Bernoulli(logits), 1)


encoder, decoder = jvi.networks.network(MLP(NUM_BITS)), jvi.networks.network(MLP(64))
guide = jvi.guides.conditional(encoder, bits)


def init(rng, x):
    return {"decoder": decoder.init(rng, jnp.zeros(NUM_BITS)), "prior": jnp.zeros(NUM_BITS)}


def log_joint(params, x, z):
    """Every bit and every pixel is a Bernoulli; the bits' logits are learned, the pixels' are what the decoder says."""
    code = z.astype(jnp.float32)
    log_prior = jnp.sum(code * params["prior"] - jax.nn.softplus(params["prior"]))
    pixels = decoder.apply(params["decoder"], 2.0 * code - 1.0)
    return log_prior + jnp.sum(x * pixels - jax.nn.softplus(pixels))


model = jvi.learned(init, log_joint)


def load():
    """8 x 8 images, made black and white: 1,437 to train on, 360 held out."""
    images = (load_digits().data > 7.5).astype(np.float32)
    images = images[np.random.default_rng(0).permutation(len(images))]
    return images[:1_437], images[1_437:]


def main(out: Path, console: Console | None = None, num_steps: int = 5_000) -> dict:
    console = console or Console(highlight=False)
    train, test = load()
    objective = jvi.per_example(jvi.objectives.disarm(model, guide, num_samples=2))
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 1e-3, num_steps=num_steps))
    state, _ = jvi.fit_batches(svi, jax.random.key(0), train, num_steps=num_steps, batch_size=64)
    # 500 log-weights for each held-out image give the bound at every K that divides 500.
    held_out = jvi.per_example(jvi.objectives.vimco(model, guide, num_samples=500, chunk_size=50))
    log_w = np.asarray(jax.jit(held_out)(state.params, jax.random.key(1), test)[1].log_w)
    table = Table("K", "bound (nats)", "gain over the K before", title="held-out images: the bound rises in K")
    bounds, last = {}, None
    for k in (1, 50, 500):
        of_image = np.logaddexp.reduce(log_w.reshape(len(test), -1, k), axis=-1).mean(-1) - np.log(k)
        bounds[k] = jvi.diagnostics.mean_of(of_image)
        table.add_row(str(k), str(bounds[k]), "" if last is None else str(jvi.diagnostics.mean_of(of_image - last)))
        last = of_image
    console.print(table)
    _picture(state.params, test[:10]).savefig(out / "discrete_vae.png")
    return bounds


def _picture(params, images):
    from matplotlib.figure import Figure

    keys = jax.random.split(jax.random.key(2), len(images))
    codes, _ = jax.vmap(lambda x, key: guide.sample_and_log_prob(params.guide, key, x))(images, keys)
    prior = jax.random.bernoulli(jax.random.key(3), jax.nn.sigmoid(params.model["prior"]), codes.shape)
    decode = jax.vmap(lambda z: jax.nn.sigmoid(decoder.apply(params.model["decoder"], 2.0 * z - 1.0)))
    show = dict(zip(("held out", "reconstructed", "from the prior"), (images, decode(codes), decode(prior)), strict=True))
    figure = Figure(figsize=(8, 2.7), dpi=130, layout="constrained")
    for row, (title, pixels) in zip(figure.subplots(3, len(images)), show.items(), strict=True):
        for axes, image in zip(row, pixels, strict=True):
            axes.imshow(np.reshape(image, (8, 8)), cmap="gray_r", vmin=0, vmax=1)
            axes.set_axis_off()
        row[0].set_title(title, loc="left", fontsize=9)
    return figure


if __name__ == "__main__":
    main(Path("."))
