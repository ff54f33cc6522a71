"""Weighted draws of a posterior, on the host, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jvi._typing import Estimate, Latent, PRNGKey, PyTree
from jvi.diagnostics.psis import khat_of

LEVELS = (0.05, 0.5, 0.95)


class Particles(NamedTuple):
    """Weighted draws.

    Attributes:
      z: latents, NumPy arrays [S, ...].
      log_w: normalized log-weights [S].
      generations: into how many successive, dependent generations of S / generations independent draws they fall.
    """

    z: Latent
    log_w: np.ndarray
    generations: int

    def resample(self, rng: PRNGKey, num_samples: int) -> np.ndarray:
        """Indices [num_samples] of draws, in random order, each about as often as its weight says."""
        place, order = (np.random.default_rng(np.asarray(jax.random.key_data(key))) for key in jax.random.split(rng))
        levels = (np.arange(num_samples) + place.uniform()) / num_samples
        total = np.cumsum(np.exp(self.log_w))
        # A random order first: where fewer are asked for than there are, neighbours must not stand for one another.
        shuffled = order.permutation(len(total))
        total = np.cumsum(np.exp(self.log_w)[shuffled])
        chosen = shuffled[np.minimum(np.searchsorted(total, levels * total[-1]), len(total) - 1)]
        return order.permutation(chosen)

    def mean(self, values: np.ndarray) -> Estimate:
        """The weighted mean of values [S, ...] with its standard error."""
        w = np.exp(self.log_w).reshape(-1, *(1,) * (np.ndim(values) - 1))
        mean = np.sum(w * values, 0)
        if self.generations > 1:  # equal weights; a particle's generations are one draw
            per_particle = values.reshape(self.generations, -1, *values.shape[1:]).mean(0)
            return Estimate(mean, per_particle.std(0, ddof=1) / np.sqrt(len(per_particle)))
        return Estimate(mean, np.sqrt(np.sum((w * (values - mean)) ** 2, 0)))


class Row(NamedTuple):
    """One entry of a latent: `mean`, `sd`, quantiles, standard error of the mean, effective draws, k-hat of its own tail."""

    mean: float
    sd: float
    q5: float
    median: float
    q95: float
    mcse: float
    ess: float
    khat: float


@dataclass(frozen=True)
class Summary:
    """A row for every entry of the latent: `summary["w[0]"].mean`. Printed, it is a table.

    Attributes:
      rows: by the entry's name.
    """

    rows: dict[str, Row]

    def __getitem__(self, name: str) -> Row:
        return self.rows[name]

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = [" " * width + "".join(f"{title:>11}" for title in ("mean", "sd", "5%", "50%", "95%", "mcse", "ESS", "k-hat"))]
        for name, row in self.rows.items():
            numbers = "".join(f"{value:>11.4g}" for value in row[:6])
            khat = "-" if row.khat != row.khat else f"{row.khat:.2f}"
            lines.append(f"{name:<{width}}{numbers}{row.ess:>11,.0f}{khat:>11}")
        return "\n".join(lines)


def summarize(particles: Particles) -> Summary:
    """Summaries of every entry of the latent."""
    rows = {}
    for name, leaf in named(particles.z):
        table = leaf.reshape(len(leaf), -1)
        indices = list(np.ndindex(leaf.shape[1:]))
        for j, index in enumerate(indices):
            entry = f"{name or 'z'}[{','.join(map(str, index))}]" if index else name or "z"
            rows[entry] = _row(particles, np.asarray(table[:, j], float))
    return Summary(rows)


def named(z: PyTree) -> list[tuple[str, Any]]:
    """Leaves with their names, as a user would index them: `w`, `group.scale`."""
    paths = jax.tree_util.tree_leaves_with_path(z)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]


def _row(particles: Particles, values: np.ndarray) -> Row:
    mean, error = particles.mean(values)
    w = np.exp(particles.log_w)
    sd = float(np.sqrt(np.sum(w * (values - mean) ** 2)))
    order = np.argsort(values)
    low, middle, high = np.interp(LEVELS, np.cumsum(w[order]) - 0.5 * w[order], values[order])
    ess = sd**2 / float(error) ** 2 if error > 0 else float("nan")
    khat = (
        float("nan")
        if particles.generations > 1 or sd == 0
        else khat_of(particles.log_w + np.log(np.abs(values - mean) + 1e-300))
    )
    return Row(float(mean), sd, float(low), float(middle), float(high), float(error), ess, khat)
