"""A convolutional variational autoencoder of Fashion-MNIST, trained and measured at full size: the settings are options.

Pixels are made black and white anew at every step. With one level of latents, or with two (`--ladder`): the upper ones say where the
lower ones are expected, and in what scale, and `z["low"]` is how far they are from there, so that all latents are N(0, I) a priori.
"""

import argparse
import gzip
import math
import sys
from collections.abc import Sequence
from functools import partial
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

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts them
FILES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
OBJECTIVES = {"elbo": jvi.objectives.elbo_kl, "iwae": jvi.iwae, "dreg": jvi.objectives.dreg}
PRECISIONS = {"float32": None, "bfloat16": jvi.precision.bfloat16}


# Convolutions as products of matrices: inside of a loop XLA's CPU takes 15 to 30 times as long for others.
class Down(nn.Module):  # of 4 x 4 pixels, with stride 2
    channels: int

    @nn.compact
    def __call__(self, x):
        *lead, height, width, channels = padded(x).shape
        folded = jnp.swapaxes(padded(x).reshape(*lead, height // 2, 2, width // 2, 2, channels), -4, -3)
        return nn.Dense(self.channels)(neighbours(folded.reshape(*lead, height // 2, width // 2, 4 * channels)))


class Up(nn.Module):  # the transpose of one such
    channels: int

    @nn.compact
    def __call__(self, x):
        out = nn.Dense(4 * self.channels)(neighbours(padded(x)))
        *lead, height, width, _ = out.shape
        out = jnp.swapaxes(out.reshape(*lead, height, width, 2, 2, self.channels), -4, -3)
        return out.reshape(*lead, 2 * height, 2 * width, self.channels)[..., 1:-1, 1:-1, :]


def padded(x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])


def neighbours(x):
    """Every 2 x 2 pixels in a row: [..., h, w, c] -> [..., h - 1, w - 1, 4 c]."""
    rows = jnp.concatenate([x[..., :-1, :, :], x[..., 1:, :, :]], -1)
    return jnp.concatenate([rows[..., :-1, :], rows[..., 1:, :]], -1)


class Encoder(nn.Module):  # features of an image
    @nn.compact
    def __call__(self, x):
        out = nn.relu(Down(64)(nn.relu(Down(32)(x[..., None]))))
        return nn.relu(nn.Dense(256)(out.reshape(*x.shape[:-2], -1)))


class Level(nn.Module):  # mean and scale of a level of latents, of the image's features and the levels above
    size: int

    @nn.compact
    def __call__(self, seen):
        features, above = seen
        return nn.Dense(2 * self.size)(nn.relu(nn.Dense(128)(jnp.concatenate([features, *above.values()], -1))))


class Decoder(nn.Module):  # logits of an image of side x side pixels
    side: int

    @nn.compact
    def __call__(self, z):
        code, start = z["low"], self.side // 4
        if "top" in z:
            loc, raw = jnp.split(nn.Dense(2 * code.shape[-1])(nn.relu(nn.Dense(128)(z["top"]))), 2, -1)
            code = loc + nn.softplus(raw + 0.54) * code
        out = nn.relu(nn.Dense(64 * start**2)(nn.relu(nn.Dense(256)(code))))
        return Up(1)(nn.relu(Up(32)(out.reshape(*code.shape[:-1], start, start, 64))))[..., 0]


def gaussian(output):
    """What an encoder's output means: a diagonal Gaussian."""
    loc, raw = jnp.split(output, 2, -1)
    return distrax.MultivariateNormalDiag(loc, nn.softplus(raw + 0.54) + 1e-4)


def build(side, *, ladder=False, precision=None):
    """The model p(x, z), the guide q(z | x) and the decoder, all for one image."""
    sizes = {"top": 10, "low": 20} if ladder else {"low": 20}
    network = partial(jvi.networks.network, precision=precision)
    decoder = network(Decoder(side))

    def prior(params):
        return {name: distrax.MultivariateNormalDiag(jnp.zeros(size), jnp.ones(size)) for name, size in sizes.items()}

    def log_likelihood(params, x, z):
        logits = decoder.apply(params, z)
        return jnp.sum(x * logits - nn.softplus(logits))

    levels = {name: jvi.guides.conditional(network(Level(size)), gaussian) for name, size in sizes.items()}
    guide = jvi.guides.given(network(Encoder()), jvi.guides.sequence(**levels))
    model = jvi.models.with_prior(
        prior, log_likelihood, init=lambda rng, x: decoder.init(rng, {name: jnp.zeros(size) for name, size in sizes.items()})
    )
    return model, guide, decoder


def load(folder, console):
    """Images [N, H, W], uint8, to train on and held out: Fashion-MNIST, or small digits where it is not installed."""
    missing = [name for name in FILES if not ((folder or FASHION) / name).is_file()]
    if folder and missing:
        raise SystemExit(f"{folder} must hold Fashion-MNIST as gzip IDX files, and {' and '.join(missing)} are not there.")
    if not missing:
        return tuple(read_idx((folder or FASHION) / name) for name in FILES)
    console.print(f"[yellow]No Fashion-MNIST in {FASHION} (Debian's dataset-fashion-mnist; or --data): 8 x 8 digits instead.")
    images = np.random.default_rng(0).permutation((load_digits().images * 255 / 16).astype(np.uint8))
    return images[:1_437], images[1_437:]


def read_idx(path):
    with gzip.open(path) as file:
        content = file.read()
    magic, *shape = np.frombuffer(content, ">i4", 4)
    if magic != 2051 or len(content) != 16 + math.prod(map(int, shape)):
        raise SystemExit(f"{path} is no IDX file of images, or is cut short.")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def bounds_of(model, guide, params, rng, images, num_samples, groups):
    """Each image's bound at every K of `groups`, of the same `num_samples` log-weights, in chunks of particles and images."""
    size = min(num_samples, 500)
    objective = jvi.iwae(model, guide, num_samples=num_samples, chunk_size=size)
    objective = jvi.per_example(objective, chunk_size=2_000 // size)
    log_w = np.asarray(jax.jit(objective)(params, rng, images)[1].log_w)
    return {k: np.logaddexp.reduce(log_w.reshape(len(images), -1, k), -1).mean(-1) - np.log(k) for k in groups}


def posterior_means(guide, params, x):
    """Means of the levels by name, each level's given those of the levels above."""
    levels, params, features = guide.opened(params, x)
    means = {}
    for name, level in levels.parts:
        means[name] = level.distribution(params[name], levels.seen(features, means)).mean()
    return means


def main(out: Path, console: Console | None = None, arguments: Sequence[str] = ()) -> dict:
    console, options = console or Console(highlight=False), parse(arguments)
    train, test = load(options.data, console)
    model, guide, decoder = build(train.shape[1], ladder=options.ladder, precision=PRECISIONS[options.precision])
    extra = {"free_bits": options.free_bits} if options.free_bits else {}
    objective = OBJECTIVES[options.objective](model, guide, num_samples=options.num_samples, **extra)
    objective = jvi.per_example(objective, chunk_size=options.chunk_size)
    objective = jvi.objectives.augmented(objective, jvi.augment.binarized)  # anew at every step, on the device
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, options.learning_rate, num_steps=options.steps))
    state, _ = jvi.fit_batches(
        svi, jax.random.key(0), train, num_steps=options.steps, batch_size=options.batch_size,
        beta=jvi.schedules.warm_up(options.warm_up) if options.warm_up else None,
        mesh=jvi.sharding.data_mesh() if options.mesh else None, checkpoint=options.checkpoint,
        callback=metrics(options.metrics) if options.metrics else None, callback_every=max(options.steps // 100, 1),
    )  # fmt: skip

    images = np.asarray(jvi.augment.binarized(jax.random.key(1), test[: options.num_test]))
    measure = partial(bounds_of, model, guide, state.params)
    of_all = measure(jax.random.key(2), images, 50, (1, 50))
    of_few = measure(jax.random.key(3), images[: options.num_few], 5_000, (50, 5_000))
    table = Table("K", "images", "bound (nats)", title="held out")
    found = {(k, len(each)): jvi.diagnostics.mean_of(each) for of in (of_all, of_few) for k, each in of.items()}
    for (k, count), value in found.items():
        table.add_row(f"{k:,}", f"{count:,}", str(value))
    gain = jvi.diagnostics.mean_of(of_few[5_000] - of_few[50])
    console.print(table, f"from K = 50 to 5,000, the same images: {gain}")
    means = jax.jit(jax.vmap(partial(posterior_means, guide, state.params.guide)))(images)
    active = {name: jvi.diagnostics.active_units(each) for name, each in means.items()}
    console.print("active units:", ", ".join(f"{name} {int(a.number)} of {a.variances.size}" for name, a in active.items()))
    _picture(partial(decoder.apply, state.params.model), images, means, active).savefig(out / "image_vae.png")
    return {"bounds": found, "gain": gain, "active": active, "params": state.params}


def metrics(folder):
    """A callback that writes what steps report as TensorBoard's events."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise SystemExit("--metrics writes TensorBoard's event files with tensorboardX: pip install tensorboardX") from None
    writer = SummaryWriter(str(folder))

    def write(state, info):
        for name in ("bound", "grad_norm", "ess"):
            writer.add_scalar(f"train/{name}", float(np.mean(getattr(info, name))), int(state.step))
        writer.flush()

    return write


def parse(arguments):
    parser = argparse.ArgumentParser(prog="image_vae.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help=f"folder with Fashion-MNIST's gzip IDX files (default {FASHION})")
    add("--objective", choices=OBJECTIVES, default="elbo")
    add("--num-samples", type=int, default=1, help="draws of each image, K (default 1)")
    add("--ladder", action="store_true", help="two levels of latents")
    add("--warm-up", type=int, default=0, help="steps until the KL term counts in full (default 0)")
    add("--free-bits", type=float, help="nats of each level that cost nothing, with the ELBO")
    add("--precision", choices=PRECISIONS, default="float32", help="what the networks compute in")
    add("--steps", type=int, default=6_000)
    add("--batch-size", type=int, default=100)
    add("--chunk-size", type=int, help="images at a time, where a batch does not fit (default all)")
    add("--learning-rate", type=float, default=2e-3)
    add("--mesh", action="store_true", help="split every batch over all devices")
    add("--checkpoint", type=Path, help="folder to keep the run in, and to go on from")
    add("--num-test", type=int, default=10_000, help="held-out images for K = 1 and 50 (default all)")
    add("--num-few", type=int, default=256, help="those for K = 5,000 (default 256)")
    add("--metrics", type=Path, help="folder for TensorBoard's event files")
    options = parser.parse_args(arguments)
    if options.free_bits and options.objective != "elbo":
        parser.error("--free-bits go with --objective elbo")
    return options


def _picture(decode, images, means, active, across=11):
    from matplotlib.figure import Figure

    draw = jax.jit(jax.vmap(lambda z: nn.sigmoid(decode(z))))
    some = jax.tree.map(lambda each: each[:across], means)
    prior = jax.tree.map(lambda each: jax.random.normal(jax.random.key(4), each.shape), some)
    rows = {"held out": images[:across], "reconstructed": draw(some), "from the prior": draw(prior)}
    by_variance = [(float(value), name, i) for name, a in active.items() for i, value in enumerate(a.variances)]
    for _, name, i in sorted(by_variance, reverse=True)[:6]:
        first = jax.tree.map(lambda each: jnp.repeat(each[:1], across, 0), means)
        moved = {**first, name: first[name].at[:, i].set(jnp.linspace(-3.0, 3.0, across))}
        rows[f"{name}[{i}] from -3 to 3"] = draw(moved)
    figure = Figure(figsize=(0.75 * across, 0.95 * len(rows)), dpi=130, layout="constrained")
    for row, (title, pixels) in zip(figure.subplots(len(rows), across), rows.items(), strict=True):
        for axes, image in zip(row, np.asarray(pixels), strict=True):
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axes.set_axis_off()
        row[0].set_title(title, loc="left", fontsize=8)
    return figure


if __name__ == "__main__":
    main(Path("."), arguments=sys.argv[1:])
