"""A variational autoencoder on handwritten digits: amortized inference with a learned model.

Every image x has a latent z. An encoder network gives q(z | x) for any image, a decoder network gives p(x | z), and both are
trained on minibatches by the importance-weighted bound. All is written for one image and one draw.
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
from jvi.diagnostics import khat_threshold, pareto_khat

NUM_LATENTS = 8


class MLP(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(nn.Dense(128)(inputs))
        return nn.Dense(self.num_outputs)(nn.relu(nn.Dense(128)(hidden)))


def gaussian(output):
    """What the encoder's output means: a diagonal Gaussian over z."""
    loc, raw = jnp.split(output, 2)
    return distrax.MultivariateNormalDiag(loc, jax.nn.softplus(raw) + 1e-4)


encoder, decoder = jvi.networks.network(MLP(2 * NUM_LATENTS)), jvi.networks.network(MLP(64))
guide = jvi.guides.conditional(encoder, gaussian)


def log_joint(params, x, z):
    """z ~ N(0, I); every pixel is a Bernoulli whose logit the decoder gives."""
    log_prior = jnp.sum(distrax.Normal(0.0, 1.0).log_prob(z))
    return log_prior + jnp.sum(distrax.Bernoulli(logits=decoder.apply(params, z)).log_prob(x))


model = jvi.learned(lambda rng, x: decoder.init(rng, jnp.zeros(NUM_LATENTS)), log_joint)


def load():
    """8 x 8 images, made black and white: 1,437 to train on, 360 held out."""
    images = (load_digits().data > 7.5).astype(np.float32)
    images = images[np.random.default_rng(0).permutation(len(images))]
    return images[:1_437], images[1_437:]


def main(out: Path, console: Console | None = None, num_steps: int = 6_000) -> dict:
    console = console or Console(highlight=False)
    train, test = load()
    objective = jvi.per_example(jvi.iwae(model, guide, num_samples=5))
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 2e-3, num_steps=num_steps))
    state, _ = jvi.fit_batches(svi, jax.random.key(0), train, num_steps=num_steps, batch_size=128)
    # 500 log-weights for each held-out image give the bound at every K that divides 500.
    held_out = jvi.per_example(jvi.iwae(model, guide, num_samples=500))
    log_w = np.asarray(jax.jit(held_out)(state.params, jax.random.key(1), test)[1].log_w)
    table = Table("K", "bound (nats)", "gain over the K before", title="held-out images: the bound rises in K")
    bounds, last = {}, None
    for k in (1, 5, 50, 500):
        of_image = np.logaddexp.reduce(log_w.reshape(len(test), -1, k), axis=-1).mean(-1) - np.log(k)
        bounds[k] = jvi.diagnostics.mean_of(of_image)
        table.add_row(str(k), str(bounds[k]), "" if last is None else str(jvi.diagnostics.mean_of(of_image - last)))
        last = of_image
    console.print(table)
    good = float(np.mean(np.asarray(jax.vmap(pareto_khat)(log_w)) < khat_threshold(500)))
    word = "reliable" if good > 0.9 else "NOT RELIABLE: take q(z | x) as a proposal to weight, not as the posterior"
    console.print(f"[bold]encoder[/] {word} (k-hat below its limit for {good:.0%} of the images)")
    _picture(state.params, test[:10]).savefig(out / "digits_vae.png")
    return bounds


def _picture(params, images):
    from matplotlib.figure import Figure

    encoded = jax.vmap(lambda x: gaussian(encoder.apply(params.guide, x)).mean())(images)
    prior = jax.random.normal(jax.random.key(2), (len(images), NUM_LATENTS))
    decoded = [jax.nn.sigmoid(jax.vmap(lambda z: decoder.apply(params.model, z))(z)) for z in (encoded, prior)]
    show = dict(zip(("held out", "reconstructed", "from the prior"), (images, *decoded), strict=True))
    figure = Figure(figsize=(8, 2.7), dpi=130, layout="constrained")
    for row, (title, pixels) in zip(figure.subplots(3, len(images)), show.items(), strict=True):
        for axes, image in zip(row, pixels, strict=True):
            axes.imshow(np.reshape(image, (8, 8)), cmap="gray_r", vmin=0, vmax=1)
            axes.set_axis_off()
        row[0].set_title(title, loc="left", fontsize=9)
    return figure


if __name__ == "__main__":
    main(Path("."))
