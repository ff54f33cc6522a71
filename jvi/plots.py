"""Pictures of a fit, with matplotlib, which is imported only when a picture is asked for.

Every function returns a matplotlib `Figure`, made without touching pyplot's state: save it with `figure.savefig(path)`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvi._typing import Array, Latent
from jvi.diagnostics.psis import khat_threshold, pareto_khat
from jvi.svi import Info

__all__ = ["bands", "khat_tail", "marginals", "pairs", "trace"]

COLORS = ("#1b6ca8", "#d1495b", "#3f8f5b", "#8d6cab", "#c58b2a")
MOST_PAIRS = 8


def trace(infos: Info | Mapping[str, Info], *, ylabel: str = "bound (nats)") -> Any:
    """The bound over the steps: a running mean on a band of two running standard deviations, skipped steps as ticks.

    The axis shows the last nine tenths of the run, where the bound has left its start.

    Args:
      infos: what `jvi.fit` returned, bounds [N]; or several, by name.
      ylabel: what the bound is, with its unit.

    Raises:
      ValueError: if there is nothing to draw.

    Example:
      >>> import jvi, numpy as np
      >>> ramp = np.linspace(-9.0, -1.0, 500)
      >>> info = jvi.Info(bound=ramp, grad_norm=ramp, ess=ramp, finite=np.ones(500, bool))
      >>> len(jvi.plots.trace(info).axes)
      1
    """
    named = _by_name(infos)
    figure, axes = _figure(6.4, 3.6)
    low, high = np.inf, -np.inf
    for color, (name, info) in zip(COLORS, named.items(), strict=False):
        bound = np.where(np.asarray(info.finite), np.asarray(info.bound, float), np.nan)
        if not np.isfinite(bound).any():
            raise ValueError(f"no step of {name or 'the run'} was finite: there is nothing to draw.")
        width = max(len(bound) // 100, 1)
        steps, mean, sd = _running(bound, width)
        axes.fill_between(steps, mean - 2 * sd, mean + 2 * sd, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, mean, color=color, linewidth=1.4, label=name or None)
        skipped = np.flatnonzero(~np.asarray(info.finite))
        axes.plot(skipped, np.full(len(skipped), 0.01), "|", color=color, transform=axes.get_xaxis_transform())
        late = slice(len(mean) // 10, None)
        low, high = min(low, np.nanmin((mean - 2 * sd)[late])), max(high, np.nanmax((mean + 2 * sd)[late]))
    room = 0.08 * (high - low) + 1e-6
    axes.set(xlabel="step", ylabel=ylabel, ylim=(low - room, high + room))
    _legend(axes, named)
    return figure


def marginals(draws: Latent | Mapping[str, Latent], *, reference: Mapping[str, tuple[float, float]] | None = None) -> Any:
    """A histogram of every coordinate, outlined, several fits on top of each other.

    Args:
      draws: draws of one posterior, a pytree with leading axis [S]; or several, a dict of dicts of draws.
      reference: known (mean, sd) by coordinate name, drawn as a mark with a bar of one sd to each side.

    Example:
      >>> import jvi, numpy as np
      >>> draws = {"mean": np.random.default_rng(0).normal(size=500), "w": np.random.default_rng(1).normal(size=(500, 2))}
      >>> [axes.get_title() for axes in jvi.plots.marginals({"fit": draws}).axes]
      ['mean', 'w[0]', 'w[1]']
    """
    tables = {name: _columns(one) for name, one in _draws_by_name(draws).items()}
    names = next(iter(tables.values()))[0]
    across = min(len(names), 5)
    down = -(-len(names) // across)
    figure, grid = _figure(2.3 * across, 1.9 * down + 0.4, down, across)
    panels = np.ravel(grid)
    for j, (axes, title) in enumerate(zip(panels, names, strict=False)):
        values = {name: table[:, j] for name, (_, table) in tables.items()}
        ends = [np.quantile(column, [0.002, 0.998]) for column in values.values()]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        for color, (name, column) in zip(COLORS, values.items(), strict=False):
            options = {"bins": 60, "range": (low, high), "density": True, "color": color}
            axes.hist(column, alpha=0.15, **options)
            axes.hist(column, histtype="step", linewidth=1.2, label=name or None, **options)
        if reference and title in reference:
            mean, sd = reference[title]
            height = 0.06 * axes.get_ylim()[1]
            axes.errorbar(mean, height, xerr=sd, fmt="ko", markersize=3.5, capsize=3, linewidth=1.2, label="reference ± sd")
        axes.set_title(title, fontsize=9)
        axes.set_yticks([])
    for axes in panels[len(names) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def bands(
    draws: Array | Mapping[str, Array],
    *,
    points: Array | None = None,
    xlabel: str = "step",
    ylabel: str = "",
    log: bool = False,
) -> Any:
    """Series: the median of the draws at each step, on a band that holds 90 % of them.

    Args:
      draws: [S, T], or several by name.
      points: data to draw beneath [T].
      xlabel, ylabel: of the axes.
      log: whether the vertical axis is logarithmic.

    Example:
      >>> import jvi, numpy as np
      >>> figure = jvi.plots.bands(np.random.default_rng(0).normal(size=(200, 30)), points=np.zeros(30))
      >>> figure.axes[0].get_xlabel()
      'step'
    """
    named = _by_name(draws)
    figure, axes = _figure(8.0, 3.6)
    if points is not None:
        axes.plot(np.asarray(points), ".", color="0.75", markersize=2.5, zorder=0)
    low, high = np.inf, -np.inf
    for color, (name, one) in zip(COLORS, named.items(), strict=False):
        lower, middle, upper = np.quantile(np.asarray(one), (0.05, 0.5, 0.95), axis=0)
        steps = np.arange(len(middle))
        axes.fill_between(steps, lower, upper, color=color, alpha=0.25, linewidth=0)
        axes.plot(steps, middle, color=color, linewidth=1.0, label=name or None)
        low, high = min(low, lower.min()), max(high, upper.max())
    room = (high / low) ** 0.1 if log else 0.05 * (high - low)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(low / room, high * room) if log else (low - room, high + room))
    if log:
        axes.set_yscale("log")
    _legend(axes, named)
    return figure


def pairs(draws: Latent | Mapping[str, Latent], *, most: int = MOST_PAIRS, num_points: int = 1_000) -> Any:
    """Scatter plots of every pair of coordinates, marginals on the diagonal: where a mean-field guide shows what it misses.

    Args:
      draws: as for `marginals`.
      most: how many coordinates to show, the first ones.
      num_points: how many draws to show.

    Example:
      >>> import jvi, numpy as np
      >>> len(jvi.plots.pairs({"fit": {"w": np.random.default_rng(1).normal(size=(500, 2))}}).axes)
      3
    """
    tables = {name: _columns(one) for name, one in _draws_by_name(draws).items()}
    names = next(iter(tables.values()))[0][:most]
    count = len(names)
    figure, grid = _figure(1.7 * count + 0.8, 1.7 * count + 0.4, count, count)
    grid = np.reshape(grid, (count, count))
    for i in range(count):
        for j in range(count):
            axes = grid[i, j]
            if j > i:
                axes.remove()
                continue
            for color, (name, (_, table)) in zip(COLORS, tables.items(), strict=False):
                if i == j:
                    axes.hist(
                        table[:, i], bins=50, density=True, histtype="step", color=color, linewidth=1.2, label=name or None
                    )
                    axes.tick_params(labelleft=False, left=False)
                else:
                    axes.plot(table[:num_points, j], table[:num_points, i], ".", color=color, markersize=1.5, alpha=0.4)
            axes.tick_params(labelsize=7)
            if i == count - 1:
                axes.set_xlabel(textwrap.fill(names[j], 18), fontsize=8)
            if j == 0 and i > 0:
                axes.set_ylabel(textwrap.fill(names[i], 18), fontsize=8)
    _legend(grid[0, 0], tables, outside=figure)
    return figure


def khat_tail(log_w: Array | Mapping[str, Array]) -> Any:
    """The upper tail of the weights on log-log axes, where a Pareto tail is a line of slope -1 / k.

    The dashed line has the slope of the threshold: a tail that falls less steeply is too heavy for importance sampling.

    Args:
      log_w: log-weights [S], nats, of fresh draws (`jvi.posterior.log_weights`); or several, by name.

    Example:
      >>> import jvi, numpy as np
      >>> len(jvi.plots.khat_tail(np.random.default_rng(0).normal(size=2_000)).axes)
      1
    """
    named = {name: np.asarray(values) for name, values in _by_name(log_w).items()}
    figure, axes = _figure(5.2, 4.0)
    for color, (name, values) in zip(COLORS, named.items(), strict=False):
        size = int(np.ceil(min(len(values) / 5, 3 * np.sqrt(len(values)))))
        tail = np.exp(np.sort(values)[-size:] - np.median(values))
        survival = np.arange(size, 0, -1) / len(values)
        khat = float(pareto_khat(jnp.asarray(values)))
        label = f"{name}: k-hat {khat:.2f}" if name else f"k-hat {khat:.2f}"
        axes.loglog(tail, survival, ".", color=color, markersize=4, label=label)
        limit = khat_threshold(len(values))
        axes.loglog(tail, survival[0] * (tail / tail[0]) ** (-1 / limit), "--", color=color, linewidth=0.9, alpha=0.7)
    axes.set(xlabel="weight relative to the median weight", ylabel="share of weights at least as large")
    axes.set_ylim(bottom=0.5 / max(len(values) for values in named.values()))
    axes.plot([], [], "k--", linewidth=0.9, label="slope at the limit")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _figure(width: float, height: float, down: int = 1, across: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(down, across)
    for one in np.ravel(np.asarray(axes, object)):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Any, named: Mapping[str, Any], outside: Any = None) -> None:
    if any(named):
        where = {"loc": "outside upper right"} if outside is not None else {"loc": "lower right"}
        handles, labels = axes.get_legend_handles_labels()
        (axes if outside is None else outside).legend(handles, labels, frameon=False, fontsize=9, **where)


def _by_name(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"": value}


def _draws_by_name(draws: Any) -> dict[str, Any]:
    several = isinstance(draws, Mapping) and all(isinstance(item, Mapping) for item in draws.values())
    return dict(draws) if several else {"": draws}


def _running(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle, mean and sd of consecutive blocks of `width` values, NaN left out."""
    blocks = values[: len(values) // width * width].reshape(-1, width)
    known = np.isfinite(blocks)
    count = np.where(known.any(1), known.sum(1), np.nan)
    mean = np.where(known, blocks, 0.0).sum(1) / count
    variance = np.where(known, (blocks - mean[:, None]) ** 2, 0.0).sum(1) / count
    return (np.arange(len(blocks)) + 0.5) * width, mean, np.sqrt(variance)


def _columns(draws: Latent) -> tuple[list[str], np.ndarray]:
    """Names and columns [S, D] of draws with a leading axis [S]."""
    names: list[str] = []
    columns: list[np.ndarray] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(draws):
        values = np.asarray(leaf, float)
        label = jax.tree_util.keystr(path, simple=True, separator=".") or "z"
        names += [f"{label}[{','.join(map(str, i))}]" if i else label for i in np.ndindex(values.shape[1:])]
        columns.append(values.reshape(len(values), -1))
    return names, np.concatenate(columns, 1)
