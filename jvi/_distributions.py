"""What distrax's and TFP's distributions tell of themselves: their parts, whether draws have a path, finite supports."""

from __future__ import annotations

import itertools
import math
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from jvi._typing import PyTree

tfd = tfp.distributions
BERNOULLI = (distrax.Bernoulli, tfd.Bernoulli)
CATEGORICAL = (distrax.Categorical, tfd.Categorical)
ONE_HOT = (distrax.OneHotCategorical, tfd.OneHotCategorical)
_DISCRETE = (*BERNOULLI, *CATEGORICAL, *ONE_HOT, distrax.Multinomial)
_MIXTURES = (distrax.MixtureSameFamily, distrax.MixtureOfTwo)
_MOST = 10_000  # values that are enumerated


def base(distribution: Any) -> Any:
    """What `Independent` wraps."""
    while isinstance(distribution, (distrax.Independent, tfd.Independent)):
        distribution = distribution.distribution
    return distribution


def parts(distribution: Any) -> list[Any]:
    """The distributions that a joint one is made of, each without its `Independent`."""
    if isinstance(distribution, distrax.Joint):
        found = jax.tree.leaves(distribution.distributions, is_leaf=lambda leaf: hasattr(leaf, "log_prob"))
        return [base(one) for one in found]
    return [base(distribution)]


def without_path(distribution: Any) -> str | None:
    """The name of a part whose draws do not depend differentiably on its parameters; None where all do."""
    for part in parts(distribution):
        known = getattr(part, "reparameterization_type", None)  # TFP's
        if isinstance(part, (*_DISCRETE, *_MIXTURES)) or (known is not None and known != tfd.FULLY_REPARAMETERIZED):
            return type(part).__name__
    return None


def is_finite(distribution: Any) -> bool:
    """Whether `finite_support` knows its values."""
    return all(isinstance(part, (*BERNOULLI, *CATEGORICAL, *ONE_HOT)) for part in parts(distribution))


def finite_support(distribution: Any) -> PyTree:
    """All values that a draw can take, each leaf [V, ...]; their order is that of a counter whose last digit runs fastest.

    Raises:
      TypeError: if the support is not known to be finite.
      ValueError: if there are more than ten thousand values.
    """
    if isinstance(distribution, distrax.Joint):
        leaves, tree = jax.tree.flatten(distribution.distributions, is_leaf=lambda leaf: hasattr(leaf, "log_prob"))
        tables = [finite_support(leaf) for leaf in leaves]
        rows = _product([len(table) for table in tables])
        return jax.tree.unflatten(tree, [table[row] for table, row in zip(tables, rows.T, strict=True)])
    inner = base(distribution)
    if isinstance(inner, BERNOULLI):
        levels, shape = 2, inner.batch_shape
    elif isinstance(inner, (*CATEGORICAL, *ONE_HOT)):
        levels, shape = inner.num_categories, inner.batch_shape
    else:
        raise TypeError(
            f"{type(inner).__name__} has no support that could be enumerated: that takes a Bernoulli, a Categorical or a "
            "OneHotCategorical, or an Independent or a Joint of them."
        )
    digits = jnp.asarray(_product([levels] * math.prod(shape)).reshape(-1, *shape))
    return jax.nn.one_hot(digits, levels, dtype=inner.dtype) if isinstance(inner, ONE_HOT) else digits.astype(inner.dtype)


def _product(levels: list[int]) -> np.ndarray:
    if math.prod(levels) > _MOST:
        raise ValueError(
            f"{math.prod(levels):,} values are too many to enumerate; use gradients.score with jvi.objectives.score, or "
            "jvi.objectives.disarm for Bernoulli latents."
        )
    return np.array(list(itertools.product(*map(range, levels))), np.int32).reshape(math.prod(levels), len(levels))
