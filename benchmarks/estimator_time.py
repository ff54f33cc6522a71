"""What a gradient costs by each estimator, as a ratio to one written by hand: `python -m benchmarks.estimator_time`.

Value and gradient, compiled, K = 16, of a logistic regression (1,000 data, 25 coefficients) and of a VAE (64 data of 196 pixels, 100
hidden units, 16 latents), whose guide is a Gaussian written out or distrax's. By hand it is the same mathematics on whole arrays, with
nothing checked. The two take turns within every round; figures are medians of rounds. A new estimator is one row of `ROWS`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from rich.console import Console
from rich.table import Table

import jvi
from benchmarks.step_time import device_name

K = 16
COEFFICIENTS, PIXELS, HIDDEN, LATENTS = 25, 196, 100, 16
REACH = 1.05
SHIFT = -800.0  # nats, so that the densities' ratio is about one
stop = jax.lax.stop_gradient


class Case(NamedTuple):
    """A problem, for jvi and by hand.

    Attributes:
      model, guide, wrap: jvi's, and what makes an objective of one datum one of the data.
      params, x: where it is evaluated.
      log_joint: `(theta, x, z [..., K, D]) -> [..., K]`.
      moments: `(phi, x) -> (loc, log_scale)`, each [..., D].
      calls: evaluations a round.
    """

    model: Any
    guide: Any
    wrap: Callable[[Any], Any]
    params: Any
    x: Any
    log_joint: Callable[..., Any]
    moments: Callable[..., Any]
    calls: int


def logistic() -> Case:
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(1_000, COEFFICIENTS)), jnp.float32)
    label = jnp.asarray(rng.uniform(size=1_000) < 0.5, jnp.float32)

    def log_joint(x, z):
        features, label = x
        logits = features @ z
        return -0.5 * (z @ z) - _constant(COEFFICIENTS) + jnp.sum(label * logits - jax.nn.softplus(logits))

    def by_hand(theta, x, z):
        features, label = x
        logits = z @ features.T
        return -0.5 * jnp.sum(z**2, -1) - _constant(COEFFICIENTS) + jnp.sum(label * logits - jax.nn.softplus(logits), -1)

    guide = jvi.guides.MeanField(jvi.space(jvi.real(COEFFICIENTS)))
    params = jvi.objectives.Params((), guide.init(jax.random.key(0), None))
    model, moments = jvi.model(log_joint), (lambda phi, x: (phi.loc, phi.log_scale))
    return Case(model, guide, lambda one: one, params, (features, label), by_hand, moments, 20)


def vae(distribution: bool = False) -> Case:
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(64, PIXELS)) < 0.3, jnp.float32)
    theta, phi = (_network(jax.random.key(i), *sizes) for i, sizes in enumerate(((LATENTS, PIXELS), (PIXELS, 2 * LATENTS))))

    def log_joint(theta, x, z):
        logits = _apply(theta, z)
        return -0.5 * (z @ z) - _constant(LATENTS) + jnp.sum(x * logits - jax.nn.softplus(logits))

    def by_hand(theta, x, z):
        logits = _apply(theta, z)
        return -0.5 * jnp.sum(z**2, -1) - _constant(LATENTS) + jnp.sum(x[:, None] * logits - jax.nn.softplus(logits), -1)

    def moments(phi, x):
        return jnp.split(_apply(phi, x), 2, -1)

    def dist(phi, x):
        loc, log_scale = moments(phi, x)
        return distrax.MultivariateNormalDiag(loc, jnp.exp(log_scale))

    def log_prob(phi, x, z):
        loc, log_scale = moments(phi, x)
        return -0.5 * jnp.sum(((z - loc) * jnp.exp(-log_scale)) ** 2) - jnp.sum(log_scale) - _constant(LATENTS)

    def sample_and_log_prob(phi, rng, x):
        loc, log_scale = moments(phi, x)
        eps = jax.random.normal(rng, loc.shape)
        return loc + jnp.exp(log_scale) * eps, -0.5 * jnp.sum(eps**2) - jnp.sum(log_scale) - _constant(LATENTS)

    model = jvi.learned(lambda rng, x: theta, log_joint)
    if distribution:
        guide = jvi.guides.from_distribution(lambda rng, x: phi, dist)
    else:
        guide = jvi.guides.from_functions(lambda rng, x: phi, sample_and_log_prob, log_prob)
    return Case(model, guide, jvi.per_example, jvi.objectives.Params(theta, phi), x, by_hand, moments, 1)


CASES = {"logistic regression": logistic, "VAE": vae, "VAE, distrax": lambda: vae(distribution=True)}


def _constant(dim: int) -> float:
    return 0.5 * dim * math.log(2 * math.pi)


def _network(key: Any, inputs: int, outputs: int) -> Any:
    first, second = jax.random.split(key)
    return (
        jax.random.normal(first, (inputs, HIDDEN)) / math.sqrt(inputs),
        jnp.zeros(HIDDEN),
        jax.random.normal(second, (HIDDEN, outputs)) / math.sqrt(HIDDEN),
        jnp.zeros(outputs),
    )


def _apply(params: Any, inputs: Any) -> Any:
    with jax.numpy_rank_promotion("allow"):
        return jnp.tanh(inputs @ params[0] + params[1]) @ params[2] + params[3]


# -- by hand: `(case, params, key, x) -> value`, whose gradient is the estimator ---------------------------------------------


def _draws(case: Case, phi: Any, key: Any, x: Any) -> tuple[Any, Any]:
    """Draws [..., K, D], and their log-density of given moments."""
    loc, log_scale = case.moments(phi, x)
    eps = jax.random.normal(key, (*loc.shape[:-1], K, loc.shape[-1]))
    return loc[..., None, :] + jnp.exp(log_scale)[..., None, :] * eps, eps


def _log_q(case: Case, phi: Any, x: Any, z: Any) -> Any:
    loc, log_scale = case.moments(phi, x)
    square = ((z - loc[..., None, :]) * jnp.exp(-log_scale)[..., None, :]) ** 2
    return -0.5 * jnp.sum(square, -1) - jnp.sum(log_scale, -1)[..., None] - _constant(z.shape[-1])


def _pathwise(case: Case, params: Any, key: Any, x: Any) -> Any:
    z, eps = _draws(case, params.guide, key, x)
    log_scale = case.moments(params.guide, x)[1]
    log_q = -0.5 * jnp.sum(eps**2, -1) - jnp.sum(log_scale, -1)[..., None] - _constant(z.shape[-1])
    return case.log_joint(params.model, x, z) - log_q


def _iwae_of(log_w: Any) -> Any:
    return logsumexp(log_w, -1) - math.log(K)


def elbo_pathwise(case, params, key, x):
    return jnp.mean(_pathwise(case, params, key, x))


def elbo_stl(case, params, key, x):
    z, _ = _draws(case, params.guide, key, x)
    return jnp.mean(case.log_joint(params.model, x, z) - _log_q(case, stop(params.guide), x, z))


def iwae_pathwise(case, params, key, x):
    return jnp.mean(_iwae_of(_pathwise(case, params, key, x)))


def renyi(case, params, key, x):
    return jnp.mean(2.0 * _iwae_of(0.5 * _pathwise(case, params, key, x)))


def miwae(case, params, key, x):
    log_w = _pathwise(case, params, key, x)
    return jnp.mean(logsumexp(log_w.reshape(*log_w.shape[:-1], 4, K // 4), -1) - math.log(K // 4))


def cubo(case, params, key, x):
    return jnp.mean(0.5 * _iwae_of(2.0 * _pathwise(case, params, key, x)))


def tvo(case, params, key, x):
    log_w, betas = _pathwise(case, params, key, x)[..., None, :], np.asarray(jvi.bounds.log_spaced(5), np.float32)
    with jax.numpy_rank_promotion("allow"):
        means = jnp.sum(jax.nn.softmax(betas[:-1, None] * log_w, -1) * log_w, -1)
        return jnp.mean(jnp.sum(np.diff(betas) * means, -1))


def squared_hellinger(case, params, key, x):
    return -jnp.mean(jnp.expm1(0.5 * (_pathwise(case, params, key, x) - SHIFT)) ** 2)


def dreg(case, params, key, x):
    z, _ = _draws(case, params.guide, key, x)

    def weigh(theta, z):
        return case.log_joint(theta, x, z) - _log_q(case, stop(params.guide), x, z)

    log_w, pullback = jax.vjp(weigh, stop(params.model), stop(z))
    v = jax.nn.softmax(log_w, -1)
    by_theta, by_z = pullback(v / (log_w.size / K))
    parts = jax.tree.map(lambda g, p: jnp.sum(g * p), (by_theta, by_z * v[..., None]), (params.model, z))
    surrogate = sum(jax.tree.leaves(parts))
    return jnp.mean(_iwae_of(log_w)) + surrogate - stop(surrogate)


def _scored(case: Case, params: Any, key: Any, x: Any) -> tuple[Any, Any]:
    """Log-weights of fixed draws that move with the model alone, and log q that moves with the guide."""
    z = stop(_draws(case, params.guide, key, x)[0])
    log_q = _log_q(case, params.guide, x, z)
    return case.log_joint(params.model, x, z) - stop(log_q), log_q


def rloo(case, params, key, x):
    log_w, log_q = _scored(case, params, key, x)
    signal = log_w - (jnp.sum(log_w, -1, keepdims=True) - log_w) / (K - 1)
    surrogate = jnp.mean(stop(signal) * log_q)
    return jnp.mean(log_w) + surrogate - stop(surrogate)


def vimco(case, params, key, x):
    log_w, log_q = _scored(case, params, key, x)
    others = (jnp.sum(log_w, -1, keepdims=True) - log_w) / (K - 1)
    replaced = jnp.where(jnp.eye(K, dtype=bool), others[..., :, None], log_w[..., None, :])
    bound = _iwae_of(log_w)
    signal = bound[..., None] - _iwae_of(replaced) - jax.nn.softmax(log_w, -1)
    surrogate = jnp.mean(jnp.sum(stop(signal) * log_q, -1))
    return jnp.mean(bound) + surrogate - stop(surrogate)


def wake_sleep(case, params, key, x):
    log_w, log_q = _scored(case, params, key, x)
    surrogate = jnp.mean(jnp.sum(stop(jax.nn.softmax(log_w, -1)) * log_q, -1))
    return jnp.mean(_iwae_of(log_w)) + surrogate - stop(surrogate)


def forward_kl(case, params, key, x):
    log_w, log_q = _scored(case, stop_model(params), key, x)
    v = stop(jax.nn.softmax(log_w, -1))
    surrogate = jnp.mean(jnp.sum(v * log_q, -1))
    return jnp.mean(_iwae_of(log_w) - jnp.sum(v * log_w, -1)) + surrogate - stop(surrogate)


def stop_model(params):
    return params._replace(model=stop(params.model))


def hellinger(log_u):
    return jnp.expm1(0.5 * (log_u - SHIFT)) ** 2


ROWS: dict[str, tuple[Callable[[Any, Any], Any], Callable[..., Any]]] = {
    "elbo, pathwise": (lambda m, g: jvi.elbo(m, g, num_samples=K, gradient=jvi.gradients.pathwise), elbo_pathwise),
    "elbo, stl": (lambda m, g: jvi.elbo(m, g, num_samples=K, gradient=jvi.gradients.stl), elbo_stl),
    "iwae, pathwise": (lambda m, g: jvi.iwae(m, g, num_samples=K), iwae_pathwise),
    "renyi, 0.5": (lambda m, g: jvi.renyi(m, g, alpha=0.5, num_samples=K), renyi),
    "miwae, 4 x 4": (lambda m, g: jvi.objectives.miwae(m, g, num_groups=4, num_samples=K // 4), miwae),
    "cubo": (lambda m, g: jvi.objectives.cubo(m, g, num_samples=K), cubo),
    "tvo": (lambda m, g: jvi.objectives.tvo(m, g, num_samples=K), tvo),
    "f_divergence": (lambda m, g: jvi.objectives.f_divergence(m, g, hellinger, num_samples=K), squared_hellinger),
    "dreg": (lambda m, g: jvi.objectives.dreg(m, g, num_samples=K), dreg),
    "score, leave-one-out": (lambda m, g: jvi.objectives.score(m, g, num_samples=K), rloo),
    "vimco": (lambda m, g: jvi.objectives.vimco(m, g, num_samples=K), vimco),
    "forward_kl": (lambda m, g: jvi.objectives.forward_kl(m, g, num_samples=K), forward_kl),
    "wake_sleep": (lambda m, g: jvi.objectives.wake_sleep(m, g, num_samples=K), wake_sleep),
}


class Timing(NamedTuple):
    """Median microseconds by jvi, and by hand; the median of the rounds' ratios."""

    jvi: float
    hand: float
    ratio: float


def measure(case: Case, build: Callable[[Any, Any], Any], by_hand: Callable[..., Any], rounds: int) -> Timing:
    objective = case.wrap(build(case.model, case.guide))
    ours = jax.jit(jax.value_and_grad(lambda params, key, x: objective(params, key, x)[0]))
    hand = jax.jit(jax.value_and_grad(lambda params, key, x: by_hand(case, params, key, x)))
    times: dict[Any, list[float]] = {ours: [], hand: []}
    for i in range(-2, rounds):
        for function in (ours, hand) if i % 2 else (hand, ours):
            began = time.perf_counter()
            for _ in range(case.calls):
                out = function(case.params, jax.random.key(i + 2), case.x)
            jax.block_until_ready(out)
            if i >= 0:
                times[function].append(1e6 * (time.perf_counter() - began) / case.calls)
    ratio = statistics.median(a / b for a, b in zip(times[ours], times[hand], strict=True))
    return Timing(statistics.median(times[ours]), statistics.median(times[hand]), ratio)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimator_time", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101, help="rounds, an odd number")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="these rows only")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    console = Console(highlight=False)
    lines = [
        f"# What a gradient costs, {date.today()}",
        "",
        f"Device: {device_name()}. `python -m benchmarks.estimator_time`",
        "",
    ]
    lines += [f"Value and gradient, K = {K}; ratios to the same mathematics by hand, medians of {options.rounds} rounds.", ""]
    head = ["estimator", *(title for name in CASES for title in (f"{name}, ratio", "us", "by hand, us"))]
    table = Table(*head)
    lines += [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    worst, cases = 0.0, {name: make() for name, make in CASES.items()}
    for name, (build, by_hand) in ROWS.items():
        if options.row and name not in options.row:
            continue
        found = [measure(case, build, by_hand, options.rounds) for case in cases.values()]
        worst = max(worst, *(each.ratio for each in found))
        row = [name, *(cell for each in found for cell in (f"{each.ratio:.3f}", f"{each.jvi:,.0f}", f"{each.hand:,.0f}"))]
        table.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
    console.print(table)
    verdict = f"Largest ratio: {worst:.3f}, with {REACH} the one to reach."
    console.print(verdict)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*lines, "", verdict, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
