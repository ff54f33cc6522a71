"""Normal draws whose sample moments are exact, so that sample averages over them are."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular


def whitened(rng: np.random.Generator, num_draws: int, size: int, *, dense: bool = True) -> np.ndarray:
    """Normal draws [num_draws, size] in antithetic pairs, their sample covariance exactly I; of each column alone if not `dense`.

    A sample average over them is exact for every quadratic.
    """
    half = rng.normal(size=(num_draws // 2, size))
    draws = np.concatenate([half, -half])
    if not dense:
        return draws / np.sqrt(np.mean(draws**2, 0))
    root = np.linalg.cholesky(draws.T @ draws / num_draws)
    return solve_triangular(root, draws.T, lower=True).T


def nearby(rng: np.random.Generator, num_draws: int, size: int) -> np.ndarray:
    """The same for any size: columns less than num_draws / 4 apart are exactly uncorrelated, all of them where they are few.

    A sample average is exact for every quadratic without products of columns farther apart.
    """
    return along(rng, num_draws, 0, np.arange(-1, size - 1), 1)


def along(rng: np.random.Generator, num_draws: int, num_free: int, parents: np.ndarray, width: int) -> np.ndarray:
    """The same where dependence is a tree's: the first `num_free` columns are exactly uncorrelated with all others.

    The others, `width` for each node, are so with those of the nodes above, as many as num_draws / 4 allow; all where they are few.

    A sample average is exact for every quadratic without other products.
    """
    size = num_free + width * len(parents)
    if num_draws >= 4 * size:
        return whitened(rng, num_draws, size)
    count, most = num_draws // 2, max(num_draws // 4 - num_free, width)
    columns = rng.normal(size=(size, count))  # a row each, which lie together in memory
    columns[:num_free] = np.sqrt(count) * np.linalg.qr(columns[:num_free].T)[0].T
    above: list[list[int]] = []
    for i, parent in enumerate(parents):
        path = above[parent] if parent >= 0 else []
        for k in range(num_free + width * i, num_free + width * (i + 1)):
            before = np.concatenate([columns[:num_free], columns[path[-most:]]])
            columns[k] -= (before @ columns[k]) @ before / count
            columns[k] *= np.sqrt(count) / np.linalg.norm(columns[k])
            path = [*path[-most:], k]
        above.append(path)
    half = columns.T
    return np.concatenate([half, -half])


def with_factors(rng: np.random.Generator, num_draws: int, size: int, rank: int) -> np.ndarray:
    """Draws [num_draws, size + rank], whose last `rank` columns are exactly uncorrelated with all others.

    With chance correlations a factor's estimate would carry an error of sqrt(size / num_draws) times the diagonal's.
    """
    if num_draws >= 4 * (size + rank):
        return whitened(rng, num_draws, size + rank)
    factors = whitened(rng, num_draws, rank)
    half = rng.normal(size=(num_draws // 2, size))
    own = np.concatenate([half, -half])
    own -= factors @ (factors.T @ own / num_draws)
    return np.concatenate([own / np.sqrt(np.mean(own**2, 0)), factors], 1)
