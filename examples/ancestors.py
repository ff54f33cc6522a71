"""The traits of ancestors: Brownian motion along a phylogeny, mean-field against a tree.

A trait wanders along the branches of a family tree, and is measured, with error, in the 64 species of today. What were the
ancestors like? The posterior is Gaussian and known; a node and its parent are strongly correlated in it.
"""

from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi

NUM_TIPS, ERROR = 64, 0.3


def simulate(seed=0):
    """Lineages split at random until there are 64: the tree, and what is measured at its tips."""
    rng = np.random.default_rng(seed)
    parents, times, living, now = [-1], [0.0], [0], 0.0
    while len(living) < NUM_TIPS:
        now += rng.exponential(1.0 / len(living))
        split = living.pop(rng.integers(len(living)))
        times[split] = now
        living += [len(parents), len(parents) + 1]
        parents, times = [*parents, split, split], [*times, now, now]
    times, tips = np.array(times), np.array(living)
    times[tips] = now + rng.exponential(1.0 / NUM_TIPS)
    lengths = np.array([1.0, *(times[1:] - times[parents[1:]])])  # the root's own is its prior variance
    path = np.eye(len(parents))  # whose steps each node is the sum of
    for node in range(1, len(parents)):
        path[node] += path[parents[node]]
    trait = path @ (np.sqrt(lengths) * rng.normal(size=len(path)))
    return tuple(parents), times, lengths, path, tips, trait[tips] + ERROR * rng.normal(size=NUM_TIPS)


parents, times, lengths, path, tips, x = simulate()
above = np.array(parents[1:])  # the parents of all nodes but the root


def log_joint(x, z):
    """log p(x, z): a step for every branch, a measurement for every tip."""
    before = jnp.concatenate([jnp.zeros(1), z[above]])
    log_prior = jnp.sum(distrax.Normal(before, jnp.sqrt(lengths)).log_prob(z))
    return log_prior + jnp.sum(distrax.Normal(z[tips], ERROR).log_prob(x))


def exact():
    """Mean and covariance of all nodes given the tips, and log p(x), by dense algebra."""
    prior = (path * lengths) @ path.T
    marginal = prior[np.ix_(tips, tips)] + ERROR**2 * np.eye(NUM_TIPS)
    gain = np.linalg.solve(marginal, prior[tips]).T
    log_evidence = -0.5 * (x @ np.linalg.solve(marginal, x) + np.linalg.slogdet(2.0 * np.pi * marginal)[1])
    return gain @ x, prior - gain @ prior[tips], float(log_evidence)


def main(out: Path, console: Console | None = None, num_steps: int = 2_500) -> tuple[dict, dict]:
    console = console or Console(highlight=False)
    loc, cov, log_evidence = exact()
    guides = {"mean-field": jvi.guides.MeanField(jvi.space(jvi.tree(parents))), "tree": jvi.guides.Tree(parents)}
    table = Table("", "ELBO (nats)", "sd / exact sd", "root", title=f"{len(parents)} nodes")
    bounds, sds = {"exact": log_evidence}, {"exact": np.sqrt(np.diag(cov))}
    for name, guide in guides.items():
        objective = jvi.elbo(jvi.model(log_joint), guide, num_samples=8)
        svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.03, num_steps=num_steps))
        state, _ = jvi.fit(svi, jax.random.key(0), x, num_steps=num_steps)
        posterior = jvi.Posterior.of(svi, state, x)
        bounds[name] = jvi.diagnostics.elbo_estimate(posterior, jax.random.key(1), num_samples=4_000)
        sds[name] = (z := posterior.sample(jax.random.key(2), 4_000)).std(0)
        ratio, root = sds[name] / sds["exact"], f"{z[:, 0].mean():.2f} ± {z[:, 0].std():.2f}"
        table.add_row(name, str(bounds[name]), f"{ratio.min():.2f} to {ratio.max():.2f}", root)
    table.add_row("exact", f"{log_evidence:.3f}", "", f"{loc[0]:.2f} ± {sds['exact'][0]:.2f}")
    console.print(table)
    _picture(loc, sds).savefig(out / "ancestors.png")
    return bounds, sds


def _picture(loc, sds):
    from matplotlib.figure import Figure

    left, right = (figure := Figure(figsize=(9, 3.8), dpi=130, layout="constrained")).subplots(1, 2, width_ratios=(3, 2))
    left.plot([times[above], times[1:]], [loc[above], loc[1:]], color="0.75", linewidth=0.8, zorder=0)
    inner = np.setdiff1d(np.arange(len(parents)), tips)
    for (name, sd), color, width in zip(sds.items(), ("0.7", "C0", "C1"), (6.0, 3.0, 1.2), strict=True):
        left.errorbar(times[inner], loc[inner], sd[inner], fmt="none", ecolor=color, elinewidth=width, label=name)
        right.plot(sds["exact"], sd, "-" if name == "exact" else ".", color=color, label=name)
    left.plot(times[tips], x, ".", color="C3", markersize=4, label="measured")
    left.set(xlabel="time since the root", ylabel="trait", title="ancestors: exact mean ± sd of each posterior")
    left.legend(loc="lower left")
    right.set(xlabel="exact sd", ylabel="sd", title="posterior sd of every node")
    return figure


if __name__ == "__main__":
    main(Path("."))
