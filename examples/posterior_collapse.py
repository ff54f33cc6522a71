"""Posterior collapse and two cures: a variational autoencoder whose decoder could do without its latents.

The decoder also sees the pixels before the one that it predicts. At first those explain more than the still noisy latents, whose
divergence from the prior costs nats at once, and q(z | x) falls back to the prior. A divergence that counts for little in the beginning
(warm-up), or for nothing up to a floor (free bits), leaves the latents time to become useful. What they say is paid for: where
the decoder does as well alone, the bound is no higher for it.
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

NUM_LATENTS = 32


class Decoder(nn.Module):
    """Logits of the pixels, of the latents and of the pixels before (a masked autoencoder)."""

    @nn.compact
    def __call__(self, x, z):
        pixel, order = jnp.arange(64), jnp.arange(256) % 64  # hidden unit j sees the pixels before order[j]
        seen = self.param("seen", nn.initializers.lecun_normal(), (256, 64)) * (pixel < order[:, None])
        told = self.param("told", nn.initializers.lecun_normal(), (64, 256)) * (order <= pixel[:, None])
        return told @ nn.relu(nn.Dense(256)(z) + seen @ x) + self.param("bias", nn.initializers.zeros, (64,))


def gaussian(output):
    """What the encoder's output means: a diagonal Gaussian over z."""
    loc, raw = jnp.split(output, 2)
    return distrax.MultivariateNormalDiag(loc, jax.nn.softplus(raw + 0.5) + 1e-4)


decoder = jvi.networks.network(Decoder())
guide = jvi.guides.conditional(nn.Sequential((nn.Dense(128), nn.relu, nn.Dense(2 * NUM_LATENTS))), gaussian)


def log_likelihood(params, x, z):
    return jnp.sum(distrax.Bernoulli(logits=decoder.apply(params, x, z)).log_prob(x))


model = jvi.models.with_prior(
    lambda params: distrax.MultivariateNormalDiag(jnp.zeros(NUM_LATENTS), jnp.ones(NUM_LATENTS)),
    log_likelihood,
    init=lambda rng, x: decoder.init(rng, x, jnp.zeros(NUM_LATENTS)),
)


def load():
    """8 x 8 images, made black and white: 1,437 to train on, 360 held out."""
    images = np.random.default_rng(0).permutation((load_digits().data > 7.5).astype(np.float32))
    return images[:1_437], images[1_437:]


def main(out: Path, console: Console | None = None, num_steps: int = 2_000) -> dict:
    console = console or Console(highlight=False)
    train, test = load()
    runs = {
        "plain": (jvi.elbo(model, guide), None),
        "KL warm-up": (jvi.elbo(model, guide), jvi.schedules.warm_up(num_steps // 2)),
        "free bits": (jvi.elbo(model, guide, free_bits=4.0), None),
    }
    measured = jax.jit(jvi.per_example(jvi.objectives.elbo_kl(model, guide, num_samples=20)))
    table = Table("run", "ELBO (nats)", "of training images", "KL (nats)", "active units", title="held-out images")
    found = {}
    for name, (objective, beta) in runs.items():
        svi = jvi.SVI(jvi.per_example(objective), jvi.optimizer(jvi.svi.cosine_adam, 1e-2, num_steps=num_steps))
        state, _ = jvi.fit_batches(svi, jax.random.key(0), train, num_steps=num_steps, batch_size=128, beta=beta)
        (seen, _), (_, aux) = (measured(state.params, jax.random.key(1), images) for images in (train, test))
        means = jax.vmap(lambda x, params=state.params: guide.distribution(params.guide, x).mean())(test)
        active = int(jvi.diagnostics.active_units(means).number)
        found[name] = (float(aux.elbo), np.asarray(aux.kl), active)
        table.add_row(name, f"{aux.elbo:.2f}", f"{seen:.2f}", f"{aux.kl.sum():.2f}", f"{active} of {NUM_LATENTS}")
    console.print(table)
    _picture({name: kl for name, (_, kl, _) in found.items()}).savefig(out / "posterior_collapse.png")
    return found


def _picture(divergences):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for (name, kl), marker in zip(divergences.items(), "osv", strict=True):
        axes.plot(1 + np.arange(len(kl)), np.sort(kl)[::-1], marker=marker, markersize=4, linewidth=1, label=name)
    axes.set(xlabel="unit, largest first", ylabel="KL(q(z | x) || p(z)), nats", title="what each latent says of an image")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Path("."))
