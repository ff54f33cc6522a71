"""Stochastic volatility: ten years of daily returns, each with a latent volatility. Mean-field against a Markov guide.

The log-volatility follows itself: v_t = mean + persistence (v_{t-1} - mean) + shock noise. A mean-field guide does not know that.
"""

from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, norm
from rich.console import Console
from rich.table import Table

import jvi
from jvi import plots

NAMES = "mean_log_volatility", "persistence_of_volatility", "white_noise_shock_scale"  # as the reference calls them
GLOBALS = dict(zip(NAMES, (jvi.real(), jvi.interval(-1.0, 1.0), jvi.positive()), strict=True))
of_globals = jvi.space(GLOBALS)


def load(small):
    """Returns of the S&P 500, mid-2010 to mid-2020 (the last hundred if `small`); means and sds of a long Hamiltonian run."""
    import inference_gym.using_jax as gym
    from inference_gym.internal.datasets.sp500_closing_prices import CLOSING_PRICES

    target = getattr(gym.targets, "VectorizedStochasticVolatilitySP500" + "Small" * small)
    known = target().sample_transformations["identity"]
    y = np.diff(CLOSING_PRICES)[-100 if small else 0 :]
    return (y - y.mean()).astype(np.float32), known.ground_truth_mean, known.ground_truth_standard_deviation


def log_joint(y, z):
    mean, persistence, shock = (z["globals"][name] for name in NAMES)
    log_prior = distrax.Beta(20.0, 1.5).log_prob(0.5 * (1.0 + persistence)) - jnp.log(2.0)
    log_prior += cauchy.logpdf(mean, 0.0, 5.0) + jnp.log(2.0) + cauchy.logpdf(shock, 0.0, 2.0)
    v = z["path"] - mean
    log_prior += norm.logpdf(v[0], 0.0, shock / jnp.sqrt(1.0 - persistence**2))
    log_prior += jnp.sum(norm.logpdf(v[1:], persistence * v[:-1], shock))
    return log_prior + jnp.sum(norm.logpdf(y, 0.0, jnp.exp(0.5 * z["path"])))


def start(rng, x):
    """A pseudo-observation for each day: log y^2 is v plus noise of mean -1.27 and variance pi^2 / 2."""
    return {"at": jnp.log(x[0] ** 2 + 0.1) + 1.27, "log_weight": jnp.full(len(x[0]), -1.6)}


def smoother(params, x):
    """The path's chain: its prior given the globals, times the pseudo-observations. It follows the globals, whatever they are."""
    (y, before), weight = x, jnp.exp(params["log_weight"])
    mean, persistence, shock = (before["globals"][name] for name in NAMES)
    own = jnp.where(jnp.arange(len(y)) % (len(y) - 1) == 0, 1.0, 1.0 + persistence**2) / shock**2 + weight
    coupling = jnp.full((len(y) - 1, 1, 1), -persistence / shock**2)
    found = jvi.guides.Markov(len(y)).from_information((weight * (params["at"] - mean))[:, None], own[:, None, None], coupling)
    return found._replace(loc=mean + found.loc)


def fit(guide, y, num_steps):
    optimizer = jvi.optimizer(jvi.svi.cosine_adam, 0.02, num_steps=num_steps)
    svi = jvi.SVI(jvi.elbo(jvi.model(log_joint), guide, num_samples=4), optimizer)
    state = svi.init(jax.random.key(0), y)
    # Both begin where volatility lasts: at a persistence of 0 all looks like shocks.
    at = of_globals.unconstrain(dict(zip(NAMES, (jnp.log(jnp.var(y)), jnp.array(0.95), jnp.array(0.2)), strict=True)))[0]
    if isinstance(begun := state.params.guide, dict):
        begun["globals"] = begun["globals"]._replace(loc=at)
    else:
        begun = begun._replace(loc=jnp.concatenate([at, jnp.full(len(y), at[0])]))
    state = state._replace(params=state.params._replace(guide=begun))
    state, _ = jvi.fit(svi, jax.random.key(0), y, num_steps=num_steps, state=state)
    keys = jax.random.split(jax.random.key(1), 4_000)
    z, log_q = jax.vmap(lambda key: guide.sample_and_log_prob(state.params.guide, key, y))(keys)
    log_w = jax.vmap(lambda z: log_joint(y, z))(z) - log_q
    return {**z["globals"], "log_volatility": z["path"]}, np.asarray(log_w)


def main(out: Path, console: Console | None = None, small: bool = False, num_steps: int = 5_000) -> dict:
    console, (y, mean, sd) = console or Console(highlight=False), load(small)
    mean_field = jvi.guides.MeanField(jvi.space({"globals": GLOBALS, "path": jvi.real(len(y))}))
    path = jvi.guides.parameterize(jvi.guides.Markov(len(y)), start, smoother)
    structured = jvi.guides.sequence(globals=jvi.guides.FullRank(of_globals), path=path)
    table, found, paths = Table("", "ELBO, nats", "means within 0.1 sd", "sd of v / reference", "shock"), {}, {}
    for name, guide in {"mean-field": mean_field, "Markov": structured}.items():
        z, log_w = fit(guide, y, num_steps)
        share = np.mean(np.concatenate([np.ravel(np.abs(z[key].mean(0) - mean[key]) / sd[key]) for key in z]) < 0.1)
        ratio, shock = np.median(z["log_volatility"].std(0) / sd["log_volatility"]), z[NAMES[2]]
        found[name] = log_w.mean(), log_w.std() / np.sqrt(len(log_w)), share, ratio
        shown = "{:.1f} ± {:.1f},{:.1%},{:.2f}".format(*found[name]).split(",")
        table.add_row(name, *shown, f"{shock.mean():.3f} ± {shock.std():.3f}")
        paths[name] = np.exp(0.5 * np.asarray(z["log_volatility"]))
    table.add_row("long run", "", "", "1", f"{mean[NAMES[2]]:.3f} ± {sd[NAMES[2]]:.3f}")
    console.print(table)
    labels = {"xlabel": "trading day", "ylabel": "daily sd, index points", "log": True}
    plots.bands(paths, points=np.abs(y), **labels).savefig(out / "stochastic_volatility.png")
    return found


if __name__ == "__main__":
    main(Path("."))
