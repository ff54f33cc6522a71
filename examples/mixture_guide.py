"""A posterior of four modes: mean-field finds one of them, a mixture of guides all four, with the mass of each.

Only the absolute values of two correlated quantities are measured, so that their signs stay open. The evidence and every mode's mass
are known by quadrature.
"""

from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi

PRIOR = distrax.MultivariateNormalFullCovariance(jnp.array([0.3, 0.2]), jnp.array([[2.0, 0.8], [0.8, 2.0]]))
MEASURED, NOISE = jnp.array([1.2, 1.5]), 0.35
SIGNS = {"+ +": (1, 1), "- +": (-1, 1), "- -": (-1, -1), "+ -": (1, -1)}

space = jvi.space(jvi.real(2))
mean_field = jvi.guides.MeanField(space)
guides = {"mean-field": mean_field, "mixture": jvi.guides.Mixture((mean_field,) * 8, spread=2.0)}


def log_joint(x, z):
    """log p(x, z) of the absolute values x and the signed quantities z."""
    return PRIOR.log_prob(z) + distrax.Normal(jnp.abs(z), NOISE).log_prob(x).sum()


def by_quadrature():
    """log p(x), each mode's share of it, and the density on a grid."""
    line = jnp.linspace(-5.0, 5.0, 801)
    points = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1)
    density = jnp.exp(jax.vmap(jax.vmap(lambda z: log_joint(MEASURED, z)))(points)) * (line[1] - line[0]) ** 2
    mass = {name: float(density[jnp.all(points * jnp.array(signs) > 0, -1)].sum()) for name, signs in SIGNS.items()}
    total = sum(mass.values())
    return float(np.log(total)), {name: value / total for name, value in mass.items()}, (line, density)


def fit(guide, num_steps):
    """The same for both: the ELBO, of a mixture by a draw from each component."""
    objective = jvi.elbo(jvi.model(log_joint), guide, num_samples=8)
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.03, num_steps=num_steps))
    state, _ = jvi.fit(svi, jax.random.key(0), MEASURED, num_steps=num_steps)
    return jvi.Posterior.of(svi, state, MEASURED)


def main(out: Path, console: Console | None = None, num_steps: int = 3_000) -> dict:
    console = console or Console(highlight=False)
    log_evidence, mass, grid = by_quadrature()
    found, draws = {}, {}
    table = Table("", "ELBO", "log evidence", *SIGNS, title="nats, and the mass of every mode by its signs")
    for name, guide in guides.items():
        posterior = fit(guide, num_steps)
        draws[name] = posterior.sample(jax.random.key(1), 20_000)
        verdict = jvi.diagnostics.verdict(posterior, jax.random.key(2))
        share = {sign: float(jnp.all(draws[name] * jnp.array([signs]) > 0, 1).mean()) for sign, signs in SIGNS.items()}
        found[name] = (verdict.elbo, verdict.log_evidence, share)
        table.add_row(
            name,
            f"{verdict.elbo.value:.3f}",
            f"{verdict.log_evidence.value:.3f}",
            *(f"{value:.3f}" for value in share.values()),
        )
    table.add_row("exact", "", f"{log_evidence:.3f}", *(f"{value:.3f}" for value in mass.values()))
    console.print(table)
    _picture(grid, draws).savefig(out / "mixture_guide.png")
    return {**found, "exact": (log_evidence, mass)}


def _picture(grid, draws):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), dpi=130, layout="constrained")
    line, density = grid
    for axes, (name, z) in zip(figure.subplots(1, 2, sharex=True, sharey=True), draws.items(), strict=True):
        axes.plot(*z[:1_500].T, ".", color="#d1495b", markersize=2, alpha=0.5, label="draws")
        levels = float(density.max()) * np.array([0.01, 0.1, 0.5])
        axes.contour(line, line, density.T, levels=levels, colors="#1b6ca8", linewidths=1)
        axes.set(title=name, xlabel="first quantity", ylabel="second", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
    return figure


if __name__ == "__main__":
    main(Path("."))
