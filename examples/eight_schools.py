"""Eight schools: does coaching help? A hierarchical model, mean-field against full-rank.

Eight schools report the effect of coaching on test scores, `y`, each with its own known standard error. The hierarchical
model lets them share what they say: every true effect is mu + tau * t_j, with mu the mean over schools and tau their spread.
"""

import json
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
from jax.scipy.stats import cauchy
from rich.console import Console
from rich.table import Table

import jvi
from jvi import plots
from jvi.diagnostics import verdict

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
REFERENCE = "shared/posteriordb/reference/eight_schools-eight_schools_noncentered.json"

# A space says what the latents are. Guides are Gaussian on unconstrained coordinates; tau = exp(u) stays positive.
space = jvi.space({"mu": jvi.real(), "tau": jvi.positive(), "t": jvi.real(8)})
x = (EFFECT, STANDARD_ERROR)


def log_joint(x, z):
    """log p(x, z): a plain function of the data and one draw of the latents. Returns one number."""
    y, sigma = x
    log_prior = distrax.Normal(0.0, 5.0).log_prob(z["mu"])
    log_prior += jnp.log(2.0) + cauchy.logpdf(z["tau"], 0.0, 5.0)  # half-Cauchy
    log_prior += jnp.sum(distrax.Normal(0.0, 1.0).log_prob(z["t"]))
    theta = z["mu"] + z["tau"] * z["t"]
    return log_prior + jnp.sum(distrax.Normal(theta, sigma).log_prob(y))


def fit(guide, seed):
    """Maximize the ELBO. Nothing but the guide changes between the two fits."""
    objective = jvi.elbo(jvi.model(log_joint), guide, num_samples=16)
    svi = jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.05, num_steps=5_000))
    state, info = jvi.fit(svi, jax.random.key(seed), x, num_steps=5_000)
    return jvi.Posterior.of(svi, state, x), info


def theta(rng, z):
    """The schools' true effects, a function of the latents: the posterior's `predictive` draws it."""
    return {"mu": z["mu"], "tau": z["tau"], "theta": z["mu"] + z["tau"] * z["t"]}


def reference():
    """Mean and sd by coordinate of a long run made by others, where it is at hand."""
    for root in Path(__file__).resolve().parents:
        if (root / REFERENCE).is_file():
            found = json.loads((root / REFERENCE).read_text())
            rows = zip(found["parameter_names"], found["mean"], found["sd"], strict=True)
            return {_zero_based(name): (mean, sd) for name, mean, sd in rows}
    return {}


def _zero_based(name):
    stem, _, index = name.rstrip("]").partition("[")
    return f"{stem}[{int(index) - 1}]" if index else stem


def main(out: Path, console: Console | None = None) -> dict[str, jvi.diagnostics.Verdict]:
    console = console or Console(highlight=False)
    verdicts, draws, infos, weights = {}, {}, {}, {}
    for name, guide in {"mean-field": jvi.guides.MeanField(space), "full-rank": jvi.guides.FullRank(space)}.items():
        posterior, infos[name] = fit(guide, seed=0)
        verdicts[name] = verdict(posterior, jax.random.key(1), num_samples=40_000)
        console.print(f"[bold]{name}[/] {verdicts[name]}")
        weights[name] = jvi.posterior.log_weights(posterior, jax.random.key(1), num_samples=40_000)  # the verdict's own
        draws[name] = posterior.predictive(jax.random.key(2), theta, 10_000)

    known = reference()
    table = Table("", *draws, *(["reference"] if known else []), title="posterior mean ± sd", title_justify="left")
    for name in ("mu", "tau", "theta[0]", "theta[7]"):
        stem, _, index = name.rstrip("]").partition("[")
        columns = [one[stem][:, int(index)] if index else one[stem] for one in draws.values()]
        cells = [f"{column.mean():.2f} ± {column.std():.2f}" for column in columns]
        table.add_row(name, *cells, *([f"{known[name][0]:.2f} ± {known[name][1]:.2f}"] if known else []))
    console.print(table)

    plots.trace(infos, ylabel="ELBO (nats)").savefig(out / "eight_schools_trace.png")
    plots.marginals(draws, reference=known).savefig(out / "eight_schools_marginals.png")
    plots.khat_tail(weights).savefig(out / "eight_schools_khat.png")
    return verdicts


if __name__ == "__main__":
    main(Path("."))
