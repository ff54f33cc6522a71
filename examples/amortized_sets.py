"""One posterior for any data set: a set Transformer reads up to 100 observations, in any order, and says what the line is.

Every data set is points (t, y) about a line, y ~ N(z[0] + z[1] t, 1), padded to one shape and masked. Encoders trained on simulated
ones, by ELBO or forward KL, are compared with the conjugate posterior on others; a few steps from their answer make up for the rest.
"""

from functools import partial
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from rich.console import Console
from rich.table import Table

import jvi
from jvi.guides import FullRank, MeanField

MOST = 100  # observations
GROUPS = ((0, 3), (4, 10), (11, 30), (31, MOST))  # of numbers of observations


class Lines:
    """The model: a log-density of data and latents, and draws of both."""

    init = staticmethod(lambda rng, x: ())

    def log_joint(self, params, x, z):
        (t, y), mask = x[0].T, x[1]
        return jnp.sum(norm.logpdf(z)) + jnp.sum(jnp.where(mask, norm.logpdf(y, z[0] + z[1] * t), 0.0))

    def sample(self, params, rng):
        """A data set, padded, points [MOST, 2] and mask [MOST], and z [2]; small sets are as frequent as large ones."""
        of_z, of_t, of_y, of_size = jax.random.split(rng, 4)
        z, t = jax.random.normal(of_z, (2,)), jax.random.uniform(of_t, (MOST,), maxval=2.0)
        y = z[0] + z[1] * t + jax.random.normal(of_y, (MOST,))
        return (jnp.stack([t, y], -1), jnp.arange(2, MOST + 2) <= (MOST + 1.0) ** jax.random.uniform(of_size)), z


def conjugate(x):
    design = jnp.stack([x[1], x[1] * x[0][:, 0]])
    cov = jnp.linalg.inv(jnp.eye(2) + design @ design.T)
    return distrax.MultivariateNormalFullCovariance(cov @ design @ x[0][:, 1], cov)


model, space = Lines(), jvi.space(jvi.real(2))
by_elbo = partial(jvi.elbo, model, num_samples=4)
by_forward_kl = partial(jvi.objectives.wake_sleep, model, num_samples=2, sleep=1.0)  # log q(z | x) of what the model draws
FITS = {"mean-field": (MeanField, by_elbo), "its forward KL": (MeanField, by_forward_kl), "full-rank": (FullRank, by_elbo)}


def summary(q):
    return q.mean(), q.stddev(), q.sample(seed=jax.random.key(4), sample_shape=(500,))


def main(out: Path, console: Console | None = None, num_steps: int = 4_000, num_test: int = 1_000, depth: int = 2, fits=FITS):
    console = console or Console(highlight=False)
    draw = jax.jit(jax.vmap(lambda key: model.sample((), key)[0]))
    train, test = (draw(jax.random.split(jax.random.key(i), n)) for i, n in enumerate((20_000, num_test)))
    mean, sd, _ = exact = jax.jit(jax.vmap(lambda x: summary(conjugate(x))))(test)
    sizes, found = np.asarray(jnp.sum(test[1], -1)), {}
    for name, (family, objective_of) in fits.items():
        size = jvi.guides.num_params(inner := family(space))
        encoder = jvi.encoders.SetTransformer(size, width=32, num_inducing=8, num_layers=depth)
        objective = objective_of(guide := jvi.guides.amortize(inner, encoder))
        svi = jvi.SVI(jvi.per_example(objective), jvi.optimizer(jvi.svi.cosine_adam, 5e-3, num_steps=num_steps))
        state, _ = jvi.fit_batches(svi, jax.random.key(2), train, num_steps=num_steps, batch_size=32)
        found[name] = jax.jit(jax.vmap(lambda x, at=state.params.guide, q=guide: summary(q.distribution(at, x))))(test)
    keys = jax.random.split(jax.random.key(3), num_test)
    refined = jax.vmap(partial(jvi.refine, objective, state.params, num_steps=50))(keys, test)
    found["refined"] = jax.jit(jax.vmap(lambda params, x: summary(inner.distribution(params, x))))(refined, test)
    scores = {name: (np.mean(np.abs(a - mean) / sd, -1), np.mean(b / sd, -1)) for name, (a, b, _) in found.items()}
    for title, i in (("error of the mean, in posterior sds", 0), ("sd / posterior sd", 1)):
        table = Table("guide", *(f"n = {a} to {b}" for a, b in GROUPS), title=title)
        for name, score in scores.items():
            table.add_row(name, *(str(jvi.diagnostics.mean_of(score[i][(a <= sizes) & (sizes <= b)])) for a, b in GROUPS))
        console.print(table)
    _picture({"exact": exact, **found}, sizes, scores).savefig(out / "amortized_sets.png")
    return scores


def _picture(found, sizes, scores):
    from matplotlib.figure import Figure

    cloud, *others = (figure := Figure(figsize=(10, 3.4), dpi=130, layout="constrained")).subplots(1, 3)
    for i, (name, (_, _, z)) in enumerate(found.items()):
        cloud.plot(*np.asarray(z[np.argmax(sizes > 19)]).T, ".", ms=3, alpha=0.5, color=f"C{i}", label=name)
    for axes, part, title in zip(others, (0, 1), ("error of the mean, posterior sds", "sd / posterior sd"), strict=True):
        for i, score in enumerate(scores.values(), 1):
            axes.plot(sizes, score[part], ".", ms=3, alpha=0.5, color=f"C{i}")
        axes.set(xscale="symlog", xlabel="observations", title=title, ylim=(0, 1.5))
    cloud.set(xlabel="intercept", ylabel="slope", title="a held-out set")
    figure.legend(*cloud.get_legend_handles_labels(), loc="outside right upper", markerscale=3, frameon=False)
    return figure


if __name__ == "__main__":
    main(Path("."))
