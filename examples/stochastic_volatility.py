"""Stochastic volatility: ten years of daily returns, each with its own latent volatility. Mean-field against a Markov guide.

The log-volatility v_t follows its neighbours: v_t = mean + persistence (v_{t-1} - mean) + shock noise. Given the three globals the
posterior of the path is nearly a Gaussian chain; a mean-field guide does not know that neighbours go together.
"""

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, norm
from rich.console import Console
from rich.table import Table

import jvi


class Returns(NamedTuple):
    """Daily returns [T], with means and sds of a long Hamiltonian run that come along with them."""

    y: np.ndarray
    mean: dict
    sd: dict


def load(small=False):
    """Returns of the S&P 500, mid-2010 to mid-2020, as the package inference-gym ships them; the last hundred of them if `small`."""
    import inference_gym.using_jax as gym
    from inference_gym.internal.datasets.sp500_closing_prices import CLOSING_PRICES

    kind = gym.targets.VectorizedStochasticVolatilitySP500Small if small else gym.targets.VectorizedStochasticVolatilitySP500
    known = kind().sample_transformations["identity"]
    y = np.diff(CLOSING_PRICES)[-100 if small else 0 :]
    return Returns(
        (y - y.mean()).astype(np.float32), dict(known.ground_truth_mean), dict(known.ground_truth_standard_deviation)
    )


GLOBALS = {
    "persistence_of_volatility": jvi.interval(-1.0, 1.0),
    "mean_log_volatility": jvi.real(),
    "white_noise_shock_scale": jvi.positive(),
}
of_globals = jvi.space(GLOBALS)


def log_joint(y, z):
    """log p(y, z); z holds the globals and the path."""
    persistence, mean, shock = (z["globals"][name] for name in GLOBALS)
    log_prior = distrax.Beta(20.0, 1.5).log_prob(0.5 * (1.0 + persistence)) - jnp.log(2.0)
    log_prior += cauchy.logpdf(mean, 0.0, 5.0) + jnp.log(2.0) + cauchy.logpdf(shock, 0.0, 2.0)
    v = z["path"] - mean
    log_prior += norm.logpdf(v[0], 0.0, shock / jnp.sqrt(1.0 - persistence**2))
    log_prior += jnp.sum(norm.logpdf(v[1:], persistence * v[:-1], shock))
    return log_prior + jnp.sum(norm.logpdf(y, 0.0, jnp.exp(0.5 * z["path"])))


@dataclass(frozen=True)
class Path:
    """The log-volatilities given the globals: prior times a pseudo-observation N(at_t, exp(-log_weight_t)) of each, a Markov chain.

    It follows the globals as the prior does, whatever they are; two numbers a day are learned.
    """

    num_steps: int

    def init(self, rng, x):
        # log y^2 is the log-volatility plus noise of mean -1.27 and variance pi^2 / 2.
        return {"at": jnp.log(x[0] ** 2 + 0.1) + 1.27, "log_weight": jnp.full(self.num_steps, -1.6)}

    def chain(self, params, x):
        persistence, mean, shock = (x[1]["globals"][name] for name in GLOBALS)
        ends = jnp.arange(self.num_steps) % (self.num_steps - 1) == 0
        weight, own = jnp.exp(params["log_weight"]), jnp.where(ends, 1.0, 1.0 + persistence**2) / shock**2
        coupling = jnp.full((self.num_steps - 1, 1, 1), -persistence / shock**2)
        markov = jvi.guides.Markov(self.num_steps)
        linked = markov.from_information((weight * (params["at"] - mean))[:, None], (own + weight)[:, None, None], coupling)
        return markov, linked._replace(loc=mean + linked.loc)

    def sample_and_log_prob(self, params, rng, x):
        markov, linked = self.chain(params, x)
        return markov.sample_and_log_prob(linked, rng, x)

    def log_prob(self, params, x, z):
        markov, linked = self.chain(params, x)
        return markov.log_prob(linked, x, z)


def guides(num_steps):
    """Two guides of the same latents."""
    return {
        "mean-field": jvi.guides.MeanField(jvi.space({"globals": GLOBALS, "path": jvi.real(num_steps)})),
        "Markov": jvi.guides.sequence(globals=jvi.guides.FullRank(of_globals), path=Path(num_steps)),
    }


def fit(guide, y, num_steps):
    svi = jvi.SVI(
        jvi.elbo(jvi.model(log_joint), guide, num_samples=4), jvi.optimizer(jvi.svi.cosine_adam, 0.02, num_steps=num_steps)
    )
    state = svi.init(jax.random.key(0), y)
    # Both begin at volatility that lasts for weeks and is right on average: persistence 0 explains the data with shocks alone.
    mean = float(np.log(np.var(y)))
    start = of_globals.unconstrain(dict(zip(GLOBALS, (jnp.array(0.95), jnp.array(mean), jnp.array(0.2)), strict=True)))[0]
    begun = state.params.guide
    if isinstance(begun, dict):
        begun["globals"] = begun["globals"]._replace(loc=start)
    else:
        begun = begun._replace(loc=jnp.concatenate([start, jnp.full(len(y), mean)]))
    state = state._replace(params=state.params._replace(guide=begun))
    state, _ = jvi.fit(svi, jax.random.key(0), y, num_steps=num_steps, state=state)
    keys = jax.random.split(jax.random.key(1), 4_000)
    z, log_q = jax.vmap(lambda key: guide.sample_and_log_prob(state.params.guide, key, y))(keys)
    log_w = jax.vmap(lambda z: log_joint(y, z))(z) - log_q
    return {**z["globals"], "log_volatility": z["path"]}, np.asarray(log_w)


def main(out: FilePath, console: Console | None = None, small: bool = False, num_steps: int = 6_000) -> dict:
    console = console or Console(highlight=False)
    returns = load(small)
    table = Table("", "ELBO, nats", "means within 0.1 sd", "sd, median ratio", "shock scale", title_justify="left")
    found = {}
    for name, guide in guides(len(returns.y)).items():
        draws, log_w = fit(guide, returns.y, num_steps)
        off = {key: np.abs(draws[key].mean(0) - returns.mean[key]) / returns.sd[key] for key in draws}
        share = np.mean(np.concatenate([np.ravel(part) for part in off.values()]) < 0.1)
        ratio = np.median(draws["log_volatility"].std(0) / returns.sd["log_volatility"])
        found[name] = draws, float(log_w.mean()), float(share), float(ratio)
        shock = draws["white_noise_shock_scale"]
        error = log_w.std() / np.sqrt(len(log_w))
        table.add_row(
            name, f"{log_w.mean():.1f} ± {error:.1f}", f"{share:.0%}", f"{ratio:.2f}", f"{shock.mean():.3f} ± {shock.std():.3f}"
        )
    known = "{:.3f} ± {:.3f}".format(returns.mean["white_noise_shock_scale"], returns.sd["white_noise_shock_scale"])
    table.add_row("long Hamiltonian run", "", "", "", known)
    console.print(table)
    picture(returns, {name: one[0] for name, one in found.items()}).savefig(out / "stochastic_volatility.png", dpi=120)
    return found


def picture(returns, draws):
    """The path of the daily sd, exp(v_t / 2), by both guides, above the returns' sizes; and where their sds stand."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    time = np.arange(len(returns.y))
    top.plot(time, np.abs(returns.y), ".", color="0.75", markersize=3, label="|return|")
    for (name, one), color in zip(draws.items(), ("tab:orange", "tab:blue"), strict=True):
        low, middle, high = np.quantile(np.exp(0.5 * np.asarray(one["log_volatility"])), (0.05, 0.5, 0.95), axis=0)
        top.fill_between(time, low, high, color=color, alpha=0.3, linewidth=0)
        top.plot(time, middle, color=color, linewidth=1, label=f"{name}: median and 90 %")
        bottom.plot(time, one["log_volatility"].std(0) / returns.sd["log_volatility"], color=color, linewidth=1, label=name)
    bottom.axhline(1.0, color="0.3", linewidth=0.8)
    top.set(yscale="log", ylabel="daily sd (index points)", ylim=(np.quantile(np.abs(returns.y), 0.02), None))
    bottom.set(xlabel="trading day", ylabel="sd of log-volatility / reference")
    top.legend(fontsize=8)
    bottom.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main(FilePath("."))
