"""One posterior for any data set: a set Transformer reads up to 100 observations, in any order, and says what the line is.

Every data set is points (t, y) about a line, y ~ N(z[0] + z[1] t, 1), padded to one shape and masked. An encoder trained on simulated
ones is compared with the conjugate posterior on others; then a few steps from its answer make up for what it falls short of.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from rich.console import Console
from rich.table import Table

import jvi

MOST = 100  # observations
GROUPS = ((0, 3), (4, 10), (11, 30), (31, MOST))  # of numbers of observations


def log_joint(x, z):
    points, mask = x
    return jnp.sum(norm.logpdf(z)) + jnp.sum(jnp.where(mask, norm.logpdf(points[:, 1], z[0] + z[1] * points[:, 0]), 0.0))


def conjugate(x):
    """Mean and covariance of the exact posterior."""
    points, mask = x
    design = jnp.stack([mask, mask * points[:, 0]])
    cov = jnp.linalg.inv(jnp.eye(2) + design @ design.T)
    return cov @ design @ points[:, 1], cov


def simulate(key):
    """A data set of the model, padded: points [MOST, 2] and mask [MOST]. Small sets are as frequent as large ones."""
    of_z, of_t, of_y, of_size = jax.random.split(key, 4)
    z, t = jax.random.normal(of_z, (2,)), jax.random.uniform(of_t, (MOST,), maxval=2.0)
    y = z[0] + z[1] * t + jax.random.normal(of_y, (MOST,))
    size = jnp.floor((MOST + 1.0) ** jax.random.uniform(of_size)) - 1.0
    return jnp.stack([t, y], -1), jnp.arange(MOST) < size


model, space = jvi.model(log_joint), jvi.space(jvi.real(2))
families = {"mean-field": jvi.guides.MeanField(space), "full-rank": jvi.guides.FullRank(space)}


def moments(guide, params, x):
    q = guide.distribution(params, x)
    return q.mean(), q.stddev()


def main(out: Path, console: Console | None = None, num_steps: int = 4_000, num_test: int = 1_000) -> dict:
    console = console or Console(highlight=False)
    draw = jax.jit(jax.vmap(simulate))
    train, test = (draw(jax.random.split(jax.random.key(i), n)) for i, n in enumerate((20_000, num_test)))
    mean, cov = jax.jit(jax.vmap(conjugate))(test)
    sd, sizes = jnp.sqrt(jnp.diagonal(cov, axis1=1, axis2=2)), np.asarray(jnp.sum(test[1], -1))
    one = int(np.argmax(sizes > 19))  # a data set to look at
    found, draws = {}, {"exact": np.random.default_rng(0).multivariate_normal(mean[one], cov[one], 500)}
    for name, inner in families.items():
        encoder = jvi.encoders.SetTransformer(jvi.guides.num_params(inner), width=32, num_inducing=8)
        objective = jvi.elbo(model, guide := jvi.guides.amortize(inner, encoder), num_samples=4)
        svi = jvi.SVI(jvi.per_example(objective), jvi.optimizer(jvi.svi.cosine_adam, 5e-3, num_steps=num_steps))
        state, _ = jvi.fit_batches(svi, jax.random.key(2), train, num_steps=num_steps, batch_size=32)
        found[name] = jax.jit(jax.vmap(partial(moments, guide, state.params.guide)))(test)
        of_one = partial(guide.sample_and_log_prob, state.params.guide, x=jax.tree.map(lambda leaf: leaf[one], test))
        draws[name] = jax.jit(jax.vmap(of_one))(jax.random.split(jax.random.key(4), 500))[0]
    refine = jax.vmap(partial(jvi.refine, objective, state.params, num_steps=50))
    found["refined"] = jax.vmap(partial(moments, inner))(refine(jax.random.split(jax.random.key(3), len(sd)), test), test)
    scores = {name: (np.mean(np.abs(a - mean) / sd, -1), np.mean(b / sd, -1)) for name, (a, b) in found.items()}
    for title, i in (("error of the mean, in posterior sds", 0), ("sd / posterior sd", 1)):
        table = Table("guide", *(f"n = {a} to {b}" for a, b in GROUPS), title=title)
        for name, score in scores.items():
            of_group = [jvi.diagnostics.mean_of(score[i][(a <= sizes) & (sizes <= b)]) for a, b in GROUPS]
            table.add_row(name, *(f"{of.value:.3f} ± {of.standard_error:.3f}" for of in of_group))
        console.print(table)
    _picture(draws, sizes, scores).savefig(out / "amortized_sets.png")
    return scores


def _picture(draws, sizes, scores):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), dpi=130, layout="constrained")
    cloud, *others = figure.subplots(1, 3)
    for name, z in draws.items():
        cloud.plot(*np.asarray(z).T, ".", ms=3, alpha=0.5, label=name)
    cloud.set(xlabel="intercept", ylabel="slope", title="posterior of a held-out set")
    for axes, i, title in zip(others, (0, 1), ("error of the mean, posterior sds", "sd / posterior sd"), strict=True):
        for name, score in scores.items():
            axes.plot(sizes, score[i], ".", ms=3, alpha=0.5, label=name)
        axes.set(xscale="symlog", xlabel="observations", title=title, ylim=(0, 1.5))
    cloud.legend(markerscale=3), others[0].legend(markerscale=3)
    return figure


if __name__ == "__main__":
    main(Path("."))
