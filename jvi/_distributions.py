"""What distrax's and TFP's distributions tell of themselves: parts, paths, finite supports, entropies and divergences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from jvi._typing import Array, PyTree

tfd = tfp.distributions
BERNOULLI = (distrax.Bernoulli, tfd.Bernoulli)
CATEGORICAL = (distrax.Categorical, tfd.Categorical)
ONE_HOT = (distrax.OneHotCategorical, tfd.OneHotCategorical)
_NO_PATH = (
    *(*BERNOULLI, *CATEGORICAL, *ONE_HOT, distrax.Multinomial, distrax.Quantized),
    *(distrax.MixtureSameFamily, distrax.MixtureOfTwo),
)
_MOST = 10_000  # values that are enumerated
_FAR = 1e4  # a logit whose probability is 0 or 1 in every precision


def base(distribution: Any) -> Any:
    """What `Independent` wraps."""
    while isinstance(distribution, (distrax.Independent, tfd.Independent)):
        distribution = distribution.distribution
    return distribution


def parts(distribution: Any) -> list[Any]:
    """The distributions that a joint one is made of, each without its `Independent`."""
    if isinstance(distribution, distrax.Joint):
        found = jax.tree.leaves(distribution.distributions, is_leaf=is_distribution)
        return [base(one) for one in found]
    return [base(distribution)]


def is_distribution(leaf: Any) -> bool:
    """Whether a node of a pytree is a distribution, which may be a pytree itself."""
    return hasattr(leaf, "log_prob")


def unjoined(distribution: Any) -> PyTree:
    """A joint distribution as the pytree of its distributions; any other as it is."""
    return distribution.distributions if isinstance(distribution, distrax.Joint) else distribution


def log_prob(distributions: PyTree, z: PyTree) -> Array:
    """The log-density of independent latents, one for every distribution, nats.

    Raises:
      ValueError: if the structures differ, a distribution has a batch shape, or is of another shape than its latent.
    """
    leaves, tree = jax.tree.flatten(distributions, is_leaf=is_distribution)
    total = jnp.zeros(())
    try:
        parts = tree.flatten_up_to(z)
    except ValueError as error:
        raise ValueError(f"the prior must be a pytree of distributions with the structure of the latents: {error}") from None
    for one, part in zip(leaves, parts, strict=True):
        if not jax.tree_util.all_leaves([part]):
            raise ValueError(
                f"the prior must be a pytree of distributions with the structure of the latents, one for each; got {one}."
            )
        shape, batch = tuple(one.event_shape), tuple(one.batch_shape)
        if batch != () or shape != jnp.shape(part):
            raise ValueError(
                f"a latent of shape {list(jnp.shape(part))} needs a {type(one).__name__} of that event shape and without batch shape; "
                f"got event shape {list(shape)}, batch shape {list(batch)}. Make batches events with distrax.Independent."
            )
        with jax.numpy_rank_promotion("allow"):
            total = total + one.log_prob(part)
    return total


def elementwise(distribution: Any) -> Any:
    """The distribution of every entry, as a batch of scalar ones in the event's shape; None if entries are not independent."""
    if isinstance(distribution, distrax.MultivariateNormalDiag):
        return distrax.Normal(distribution.loc, distribution.scale_diag)
    if isinstance(distribution, tfd.MultivariateNormalDiag):
        return distrax.Normal(distribution.mean(), distribution.stddev())
    inner = base(distribution)
    if not hasattr(inner, "event_shape") or tuple(inner.event_shape) != ():
        return None
    return inner if tuple(inner.batch_shape) == tuple(distribution.event_shape) else None


def kl(q: Any, p: Any) -> Array | None:
    """KL(q || p) in closed form, nats: by entry where both are elementwise, else one number; None where none is known."""
    q_each, p_each = elementwise(q), elementwise(p)
    with jax.numpy_rank_promotion("allow"):
        if q_each is not None and p_each is not None:
            found = _try(lambda: q_each.kl_divergence(p_each))
            return None if found is None else jnp.broadcast_to(found, tuple(q.event_shape))
        return _try(lambda: _vector(q).kl_divergence(_vector(p)))


def log_ratio(q: Any, p: Any, z: Array) -> Array:
    """log q(z) - log p(z), nats: by entry where both are elementwise, else one number; only log q(z) where `p` is None."""
    q_each, p_each = elementwise(q), elementwise(p)
    with jax.numpy_rank_promotion("allow"):
        if q_each is not None and p_each is not None:
            return q_each.log_prob(z) - p_each.log_prob(z)
        return q.log_prob(z) - (0.0 if p is None else p.log_prob(z))


def entropy(distribution: Any) -> Array | None:
    """The entropy in closed form, nats; None where none is known."""
    with jax.numpy_rank_promotion("allow"):
        return _try(distribution.entropy) if hasattr(distribution, "entropy") else None


def _try(closed_form: Callable[[], Array]) -> Array | None:
    try:
        return closed_form()
    except NotImplementedError:
        return None


def _vector(distribution: Any) -> Any:
    # Divergences between Gaussians of dense and of diagonal covariance are known to multivariate ones only.
    each = elementwise(distribution)
    if isinstance(each, (distrax.Normal, tfd.Normal)) and len(distribution.event_shape) == 1:
        return distrax.MultivariateNormalDiag(each.loc, jnp.broadcast_to(each.scale, jnp.shape(each.loc)))
    return distribution


def without_path(distribution: Any) -> str | None:
    """The name of a part whose draws do not depend differentiably on its parameters; None where all do."""
    for part in parts(distribution):
        while isinstance(part, distrax.Transformed):
            part = base(part.distribution)
        types = jax.tree.leaves(getattr(part, "reparameterization_type", None))  # TFP's; several of a joint distribution
        if isinstance(part, _NO_PATH) or any(one != tfd.FULLY_REPARAMETERIZED for one in types):
            return type(part).__name__
    return None


def is_finite(distribution: Any) -> bool:
    """Whether `finite_support` knows its values."""
    return all(isinstance(part, (*BERNOULLI, *CATEGORICAL, *ONE_HOT)) for part in parts(distribution))


def known(distribution: Any) -> bool:
    """Whether all parts are of libraries of which `without_path` knows all."""
    return all(type(part).__module__.startswith(("distrax.", "tensorflow_probability.")) for part in parts(distribution))


class Logits(NamedTuple):
    """The logits of a distribution whose latents are bits or one-hot vectors.

    Attributes:
      values: of each latent: its shape for bits, [..., V] for one-hot vectors.
      one_hot: whether each is one-hot.
      dtypes: of the latents' draws.
      tree: how the latents make up a draw.
    """

    values: list[Array]
    one_hot: list[bool]
    dtypes: list[Any]
    tree: Any

    def latent(self, leaves: list[Array], *, as_drawn: bool) -> PyTree:
        """A draw of these leaves; `as_drawn` in the types that the distribution's own draws have, else as they are."""
        if as_drawn:
            leaves = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.tree, leaves)


def logits_of(distribution: Any) -> Logits:
    """The logits of a Bernoulli or a OneHotCategorical, alone, in an `Independent` or in a `distrax.Joint`.

    Raises:
      TypeError: if it holds another distribution.
      ValueError: if a part has a batch shape.
    """
    joint = distribution.distributions if isinstance(distribution, distrax.Joint) else distribution
    leaves, tree = jax.tree.flatten(joint, is_leaf=lambda leaf: hasattr(leaf, "log_prob"))
    values, one_hot = [], []
    for leaf in leaves:
        part = base(leaf)
        if isinstance(part, CATEGORICAL) and not isinstance(part, ONE_HOT):  # distrax has the latter inherit from the former
            raise TypeError(
                f"draws of {type(part).__name__} are indices, which cannot be relaxed: use distrax.OneHotCategorical, whose draws "
                "are one-hot vectors, or gradients.score or enumerated."
            )
        if not isinstance(part, (*BERNOULLI, *ONE_HOT)):
            raise TypeError(
                f"{type(part).__name__} is neither Bernoulli nor OneHotCategorical, alone, in an Independent or in a "
                "distrax.Joint: use gradients.pathwise for what has a path, and jvi.objectives.score for what has none."
            )
        if tuple(leaf.batch_shape):
            raise ValueError(
                f"{type(part).__name__} has batch shape {list(leaf.batch_shape)}: make it part of the event with "
                "distrax.Independent."
            )
        found = part.logits_parameter() if hasattr(part, "logits_parameter") else part.logits
        values.append(jnp.clip(found, -_FAR, _FAR))  # an infinite one would make 0 * inf of an impossible value
        one_hot.append(isinstance(part, ONE_HOT))
    return Logits(values, one_hot, [base(leaf).dtype for leaf in leaves], tree)


def finite_support(distribution: Any) -> PyTree:
    """All values that a draw can take, each leaf [V, ...]; their order is that of a counter whose last digit runs fastest.

    Raises:
      TypeError: if the support is not known to be finite.
      ValueError: if there are more than ten thousand values.
    """
    if isinstance(distribution, distrax.Joint):
        leaves, tree = jax.tree.flatten(distribution.distributions, is_leaf=is_distribution)
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
