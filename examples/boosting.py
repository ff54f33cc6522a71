"""A posterior of several curved modes by boosting: a mixture gains component after component, each where the fit falls short most.

Two beacons report how far off they are, but not which report is whose. Mean-field finds one of the four places; components are added,
and all are trained on, until the ELBO gains no more than its standard error. The evidence is known by quadrature.
"""

from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jvi

PRIOR = distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.full(2, 1.5))
BEACONS, REPORTS, NOISE = jnp.array([[-1.0, 0.5], [1.2, -0.4]]), jnp.array([1.2, 2.0]), 0.2

part = jvi.guides.MeanField(jvi.space(jvi.real(2)), init_scale=0.3)


def log_joint(x, z):
    """log p(x, z) of the reports x [2], in whichever order, and the place z [2]."""
    off = distrax.Normal(jnp.linalg.norm(z - BEACONS, axis=-1), NOISE)
    return PRIOR.log_prob(z) + jnp.logaddexp(off.log_prob(x).sum(), off.log_prob(x[::-1]).sum()) - jnp.log(2.0)


def by_quadrature():
    """log p(x), and the density on a grid."""
    line = jnp.linspace(-5.0, 5.0, 801)
    points = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1)
    density = jnp.exp(jax.jit(jax.vmap(jax.vmap(lambda z: log_joint(REPORTS, z))))(points)) * (line[1] - line[0]) ** 2
    return float(jnp.log(density.sum())), (line, density)


@jax.jit
def start(key, mixture, params, elbo):
    """A component's parameters at the place, of many, where the posterior's density exceeds that of the fit most."""
    places = PRIOR.sample(seed=key, sample_shape=(4_000,))
    excess = jax.vmap(lambda z: jnp.exp(log_joint(REPORTS, z) - elbo) - jnp.exp(mixture.log_prob(params, None, z)))(places)
    return part.init(key, None)._replace(loc=places[jnp.argmax(excess)])


def train(mixture, params, num_steps):
    """All components and their weights, from where they are."""
    svi = jvi.SVI(
        jvi.elbo(jvi.model(log_joint), mixture, num_samples=8), jvi.optimizer(jvi.svi.cosine_adam, 0.03, num_steps=num_steps)
    )
    state = svi.init(jax.random.key(0), REPORTS)
    own = jax.tree.map(jnp.copy, params)  # a fit consumes the state that it begins with
    state = state._replace(params=state.params._replace(guide=own))
    state, _ = jvi.fit(svi, jax.random.key(0), REPORTS, num_steps=num_steps, state=state)
    return jvi.Posterior.of(svi, state, REPORTS)


def main(out: Path, console: Console | None = None, num_steps: int = 1_500, most: int = 15) -> dict:
    console = console or Console(highlight=False)
    log_evidence, grid = by_quadrature()
    mixture = jvi.guides.Mixture((part,), spread=0.0)
    params = mixture.init(jax.random.key(0), None)
    fits, bounds = [], []
    while len(fits) < most:
        posterior = train(mixture, params, num_steps)
        elbo = jvi.diagnostics.elbo_estimate(posterior, jax.random.key(2), num_samples=20_000)
        if bounds and elbo.value - bounds[-1].value <= np.hypot(elbo.standard_error, bounds[-1].standard_error):
            break
        fits.append(posterior), bounds.append(elbo)
        count, trained = len(fits), posterior.params.guide
        new = start(jax.random.key(count), mixture, trained, elbo.value)
        mixture, params = mixture.grow(trained, new, weight=1.0 / (count + 1.0))
    table = Table("components", "ELBO", "below log p(x)", title="nats")
    for count, elbo in enumerate(bounds, 1):
        table.add_row("1: mean-field" if count == 1 else str(count), str(elbo), f"{log_evidence - elbo.value:.3f}")
    table.add_row("log p(x)", f"{log_evidence:.3f}", "")
    console.print(table)
    _picture(grid, fits, bounds, log_evidence).savefig(out / "boosting.png")
    return {"bounds": bounds, "exact": log_evidence}


def _picture(grid, fits, bounds, log_evidence):
    from matplotlib.figure import Figure

    figure, (line, density) = Figure(figsize=(11, 3.2), dpi=130, layout="constrained"), grid
    *maps, curve = figure.subplots(1, 4)
    for axes, count in zip(maps, (1, (len(fits) + 1) // 2, len(fits)), strict=True):
        z = fits[count - 1].sample(jax.random.key(3), 1_500)
        axes.plot(*z.T, ".", color="#d1495b", markersize=2, alpha=0.5)
        levels = float(density.max()) * np.array([0.01, 0.1, 0.5])
        axes.contour(line, line, density.T, levels=levels, colors="#1b6ca8", linewidths=1)
        axes.set(title=f"{count} component{'s' * (count > 1)}", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    curve.axhline(log_evidence, color="#1b6ca8", label="log p(x)")
    curve.plot(range(1, len(bounds) + 1), [elbo.value for elbo in bounds], "o-", color="#d1495b", label="ELBO")
    curve.set(xlabel="components", ylabel="nats"), curve.legend()
    return figure


if __name__ == "__main__":
    main(Path("."))
