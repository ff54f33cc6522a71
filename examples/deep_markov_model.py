"""A deep Markov model of series of unequal length: what moves a hidden state is learned, and where it was is inferred.

A state creeps about in two wells and is seen through noise. A network learns its drift; an encoder that reads a series both ways says
where it was. In one guide every step follows the one before, in the other, mean field, it does not. Of a state that is one number the
evidence is known, on a grid: what each guide loses is measured, and what that does to the drift.
"""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from rich.console import Console
from rich.table import Table

import jvi

MOST, NOISE, GRID = 60, 0.5, jnp.linspace(-3.0, 3.0, 241)  # steps; the sd of what is seen about the state
COLUMNS = ("ELBO", "evidence", "lost by the guide", "short of the true drift")


class Drift(nn.Module):  # mean and sd of where the state goes next, of where it is
    @nn.compact
    def __call__(self, z):
        step, raw = nn.Dense(2)(nn.tanh(nn.Dense(32)(z[None])))
        return z + step, nn.softplus(raw - 1.0) + 0.02


class Apart(nn.Module):  # a step's mean and log sd, of its code alone, whatever the step before was
    @nn.compact
    def __call__(self, before, code):
        return tuple(jnp.split(nn.Dense(2)(nn.tanh(nn.Dense(64)(code))), 2))


def truth(z):
    return z + 0.1 * z * (1.0 - z**2), jnp.full_like(z, 0.2)


def simulate(seed):  # states [60], and what is seen of them: the first 20 or more, by a mask
    of_states, of_seen, of_size = jax.random.split(jax.random.key(seed), 3)
    eps = jax.random.normal(of_states, (MOST,))
    _, z = jax.lax.scan(lambda z, eps: (truth(z)[0] + truth(z)[1] * eps, z), eps[-1], eps)
    mask = jnp.arange(MOST) < jax.random.randint(of_size, (), 20, MOST + 1)
    return z, (jnp.where(mask, z + NOISE * jax.random.normal(of_seen, (MOST,)), 0.0), mask)


def log_joint(params, x, z):
    (y, mask), z = x, z[:, 0]
    moved = jnp.append(norm.logpdf(z[0]), norm.logpdf(z[1:], *jax.vmap(partial(drift.apply, params))(z[:-1])))
    return jnp.sum(jnp.where(mask, moved + norm.logpdf(y, z, NOISE), 0.0))


def log_evidence(moves, x):
    """Of the model whose state moves so, by a filter on the grid."""
    width, (loc, scale) = GRID[1] - GRID[0], jax.vmap(moves)(GRID)
    kernel = width * norm.pdf(GRID[None], loc[:, None], scale[:, None])

    def step(ahead, seen):
        return (ahead * seen / (total := jnp.sum(ahead * seen))) @ kernel, jnp.log(total)

    seen = jnp.where(x[1][:, None], norm.pdf(x[0][:, None], GRID[None], NOISE), 1.0)
    return jax.lax.scan(step, width * norm.pdf(GRID), seen)[1].sum()


drift = jvi.networks.network(Drift())
model = jvi.learned(lambda rng, x: drift.init(rng, jnp.zeros(())), log_joint)


def main(out: Path, console: Console | None = None, num_steps: int = 3_000, num_test: int = 200) -> dict:
    console, of, found, drawn = console or Console(highlight=False), jvi.diagnostics.mean_of, {}, {}
    table = Table("learned with", *COLUMNS, title="nats per held-out series")
    (_, train), (states, test) = (jax.vmap(simulate)(seeds) for seeds in (jnp.arange(1_000), 1_000 + jnp.arange(num_test)))
    evaluate = jax.jit(jax.vmap(log_evidence, (None, 0)), static_argnums=0)
    table.add_row("(the true drift)", "", str(of(exact := evaluate(truth, test))), "", "")
    reader = jvi.encoders.Recurrent(32, hidden=32)  # codes of every step, from a look both ways
    for name, combiner in {"mean-field": Apart(), "structured": jvi.guides.Gated(1)}.items():
        guide = jvi.guides.AutoregressiveSequence(reader, 1, combiner, inputs=lambda x: x[0], mask=lambda x: x[1])
        svi = jvi.SVI(jvi.per_example(jvi.elbo(model, guide)), jvi.optimizer(jvi.svi.cosine_adam, 5e-3, num_steps=num_steps))
        params = jvi.fit_batches(svi, jax.random.key(2), train, num_steps=num_steps, batch_size=50)[0].params
        measured = jax.jit(jvi.per_example(jvi.elbo(model, guide, num_samples=100), chunk_size=20))
        elbo = jnp.mean(measured(params, jax.random.key(3), test)[1].log_w, 1)
        evidence = evaluate(partial(drift.apply, params.model), test)
        found[name] = (of(elbo), of(evidence), of(evidence - elbo), of(exact - evidence))
        table.add_row(name, *map(str, found[name]))
        sample, first = jax.vmap(guide.sample_and_log_prob, (None, 0, None)), jax.tree.map(lambda leaf: leaf[0], test)
        drawn[name] = jax.jit(sample)(params.guide, jax.random.split(jax.random.key(4), 400), first)[0][:, first[1], 0]
    console.print(table)
    jvi.plots.bands(drawn, points=states[0, first[1]], ylabel="state").savefig(out / "deep_markov_model.png")
    return found


if __name__ == "__main__":
    main(Path("."))
