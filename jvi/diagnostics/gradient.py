"""How noisy a gradient is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree
from jvi._checks import check_count, check_key
from jvi._loops import monte_carlo
from jvi._spec import spec
from jvi._typing import Array, Data, Estimate, Params, PRNGKey, PyTree
from jvi.objectives._base import check_objective
from jvi.schedules import is_one

__all__ = ["GradientReport", "GradientRow", "gradient_report"]

_GROUPS = 20  # of draws, whose disagreement is the standard error
_AT_ONCE = 2**24  # numbers of gradients held at once by default


class GradientRow(NamedTuple):
    """The gradient by one leaf of the parameters, or by all of them.

    Attributes:
      objective: its name, where several are compared.
      leaf: its name; "total" for all leaves together.
      size: entries.
      norm: Euclidean norm of the mean gradient; noise alone reads as sqrt(total_variance / S).
      variance: of one entry of one draw's gradient, the mean over entries.
      total_variance: the sum over entries.
      snr: |mean| / sd of one draw's gradient, the mean over the entries that vary, with its standard error; noise alone reads as
        sqrt(2 / (pi S)). Infinite where the gradient is exact, NaN where it is zero.
      num_constant: entries that do not vary, which `snr` leaves out.
    """

    objective: str
    leaf: str
    size: int
    norm: float
    variance: float
    total_variance: float
    snr: Estimate
    num_constant: int


class GradientReport(NamedTuple):
    """How noisy the gradients of one or several objectives are. Printed, it is a table.

    Attributes:
      rows: by objective and leaf, the total of each objective last.
      num_samples: S, gradients taken.
    """

    rows: tuple[GradientRow, ...]
    num_samples: int

    def __str__(self) -> str:
        named = any(row.objective for row in self.rows)
        lines = [["objective", "leaf", "size", "norm of mean", "variance", "summed", "SNR", "± se", "constant"]]
        for row in self.rows:
            numbers = (row.norm, row.variance, row.total_variance, row.snr.value, row.snr.standard_error)
            cells = [row.objective, row.leaf, f"{row.size:,}", *(f"{float(number):.3g}" for number in numbers)]
            lines.append([*cells, f"{row.num_constant:,}"])
        kept = [i for i in range(9) if (i != 0 or named) and (i != 8 or any(row.num_constant for row in self.rows))]
        widths = {i: max(len(line[i]) for line in lines) for i in kept}
        table = ["  ".join(line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i]) for i in kept) for line in lines]
        floor = math.sqrt(2.0 / (math.pi * self.num_samples))
        return "\n".join([*table, f"{self.num_samples:,} gradients; an SNR of {floor:.2g} is what noise alone reads as."])


@spec
class _Group:
    """Mean and variance of the gradient over `chunks` times `size` draws."""

    chunks: int
    size: int

    def __call__(self, rng: PRNGKey, objective: Any, params: Params, x: Data, beta: Any) -> tuple[PyTree, PyTree]:
        weight = {} if beta is None else {"beta": beta}

        def gradient(key: PRNGKey) -> PyTree:
            return jax.grad(lambda params: objective(params, key, x, **weight)[0])(params)

        def some(carry: Any, keys: PRNGKey) -> Any:
            count, mean, square = carry
            grads = jax.vmap(gradient)(keys)
            both = count + self.size

            def merged(mean: Array, square: Array, new: Array) -> tuple[Array, Array]:
                step, within = jnp.mean(new, 0) - mean, self.size * jnp.var(new, 0)
                return mean + step * self.size / both, square + within + step**2 * count * self.size / both

            pairs = [merged(*leaves) for leaves in zip(*map(jax.tree.leaves, (mean, square, grads)), strict=True)]
            means, squares = (jax.tree.unflatten(jax.tree.structure(mean), leaves) for leaves in zip(*pairs, strict=True))
            return (both, means, squares), None

        keys = jax.random.split(rng, (self.chunks, self.size))
        zeros = jax.tree.map(jnp.zeros_like, params)
        (count, mean, square), _ = jax.lax.scan(some, (jnp.zeros(()), zeros, zeros), keys)
        return mean, jax.tree.map(lambda leaf: leaf / count, square)


def gradient_report(
    objective: Any,
    params: Params,
    rng: PRNGKey,
    x: Data = None,
    *,
    num_samples: int = 1_000,
    beta: float | None = None,
    chunk_size: int | None = None,
) -> GradientReport:
    """The noise of a gradient, leaf by leaf: its variance and its signal-to-noise ratio, at fixed parameters and data.

    To compare estimators, hand over several objectives by name: they see the same keys.

    Args:
      objective: any objective, or a dict of them that share `params`.
      params: where the gradient is taken, such as `state.params`.
      rng: key.
      x: the data of one step, as the objective takes them.
      num_samples: S, gradients to take, at least 40; rounded up to whole groups.
      beta: weight of the KL term; 1 by default.
      chunk_size: gradients taken at once. By default as many as hold 2^24 numbers. Beside them memory is taken for 40
        times the parameters, however many gradients there are.

    Returns:
      The report: `rows`, and printed, a table.

    Raises:
      TypeError: if an objective is none, `rng` no typed key or a count no whole number.
      ValueError: if `num_samples` is less than 40 or `chunk_size` less than 1, or `params` is empty.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> params = jvi.objectives.Params((), guide.init(jax.random.key(0), None)._replace(loc=jnp.ones(1)))
      >>> both = {"pathwise": jvi.gradients.pathwise, "score": jvi.gradients.score}
      >>> objectives = {name: jvi.elbo(model, guide, num_samples=4, gradient=gradient) for name, gradient in both.items()}
      >>> report = jvi.gradient_report(objectives, params, jax.random.key(1))
      >>> by_loc = {row.objective: row.variance for row in report.rows if row.leaf == "guide.loc"}
      >>> by_loc["score"] > 10 * by_loc["pathwise"]
      True

    References:
      Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better.
    """
    rng, num_samples = check_key(rng), check_count(num_samples, "num_samples", least=2 * _GROUPS)
    beta = None if beta is None or is_one(beta) else beta
    objectives = dict(objective) if isinstance(objective, Mapping) else {"": objective}
    for one in objectives.values():
        check_objective(one)
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if not size:
        raise ValueError("params must hold the parameters that the gradient is taken by, and it holds none.")
    most = max(_AT_ONCE // size, 1) if chunk_size is None else check_count(chunk_size, "chunk_size")
    each = -(-num_samples // _GROUPS)
    chunks = -(-each // min(most, each))
    group = _Group(chunks, -(-each // chunks))
    rows: list[GradientRow] = []
    for name, one in objectives.items():
        found = monte_carlo(group, rng, one, params, x, beta, num_samples=_GROUPS, chunk_size=max(most // each, 1))
        means, variances = map(jax.tree.leaves, found)
        labels = [label for label, _ in _tree.named_leaves(params)]
        sums = [_sums(*leaf, group.chunks * group.size) for leaf in zip(means, variances, strict=True)]
        rows += [_row(name, *leaf) for leaf in zip(labels, sums, strict=True)]
        if len(sums) > 1:
            rows.append(_row(name, "total", _Sums(*map(sum, zip(*sums, strict=True)))))
    return GradientReport(tuple(rows), _GROUPS * group.chunks * group.size)


class _Sums(NamedTuple):
    """Sums over the entries of a leaf: what rows are made of, and add up over leaves.

    Attributes:
      size: entries; `varying`: those of which draws differ.
      square: of the mean gradient.
      variance: of one draw.
      snr: over the varying entries; `without`: the same without each group of draws [G].
    """

    size: Any
    varying: Any
    square: Any
    variance: Any
    snr: Any
    without: Any


def _sums(mean: Array, variance: Array, draws: int) -> _Sums:
    """From the means and variances of groups of `draws`, [G, ...] each."""
    first = np.asarray(mean, float).reshape(_GROUPS, -1)
    second = np.asarray(variance, float).reshape(_GROUPS, -1) + first**2
    total, square = first.sum(0), second.sum(0)

    def moments(total: np.ndarray, square: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
        center = total / groups
        return center, np.maximum(square / groups - center**2, 0.0) * groups * draws / (groups * draws - 1)

    center, spread = moments(total, square, _GROUPS)
    varies = spread > 1e-12 * center**2  # what rounding leaves is no noise

    def snr(center: np.ndarray, spread: np.ndarray) -> float:
        return float(np.sum(np.abs(center[varies]) / np.sqrt(np.maximum(spread[varies], 1e-300))))

    without = [snr(*moments(total - one, square - other, _GROUPS - 1)) for one, other in zip(first, second, strict=True)]
    return _Sums(
        center.size, int(varies.sum()), float(center @ center), float(spread.sum()), snr(center, spread), np.array(without)
    )


def _row(objective: str, leaf: str, sums: _Sums) -> GradientRow:
    snr = Estimate(math.inf if sums.square else math.nan, math.nan)
    if sums.varying:
        jackknife = np.sqrt((_GROUPS - 1) * np.var(sums.without / sums.varying))
        snr = Estimate(sums.snr / sums.varying, float(jackknife))
    return GradientRow(
        objective, leaf, sums.size, math.sqrt(sums.square), sums.variance / max(sums.size, 1), sums.variance, snr,
        sums.size - sums.varying,
    )  # fmt: skip
