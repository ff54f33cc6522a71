"""Many data: what is summed, what is averaged, and by how much a minibatch counts. No other file scales anything by N / B."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi import bounds, sharding
from jvi._checks import check_count, leading_axis
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.objectives._base import Aux, check_objective
from jvi.objectives.monte_carlo import MonteCarlo


@spec
class PerExample:
    """The mean of an objective over the leading axis of `x`. Made by `per_example`."""

    objective: Any
    chunk_size: int | None = None

    @property
    def upper(self) -> bool:
        """Whether it bounds the evidence from above."""
        return getattr(self.objective, "upper", False)

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters, from the first example."""
        return self.objective.init(rng, first(x))

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The mean bound, nats per datum, and the log-weights [B, K]."""
        keys = jax.random.split(rng, leading_axis(x))
        return averaged(self.objective, params, keys, x, beta, chunk_size=self.chunk_size)

    def absorb(self, params: Any, aux: Aux) -> Any:
        """The parameters after a step, with what the optimizer does not change."""
        return self.objective.absorb(params, aux) if hasattr(self.objective, "absorb") else params

    def terms(self, params: Any, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [B, K]."""
        keys = jax.random.split(rng, leading_axis(x))
        size = self.chunk_size or len(keys)
        return jax.lax.map(lambda at: self.objective.terms(params, *at), (keys, x), batch_size=size)


@spec
class Minibatch:
    """A split model whose likelihood is that of `num_data` independent data, estimated from those it is given."""

    model: Any
    num_data: int

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters, from the first datum."""
        return self.model.init(rng, first(x))

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z), nats."""
        return self.model.log_prior(params, z)

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """N times the mean log-likelihood of the data in `x` [B, ...], nats."""
        check_batch(x, self.num_data)
        x = sharding.by_example(x)
        return whole(jnp.mean(jax.vmap(lambda one: self.model.log_likelihood(params, one, z))(x)), self.num_data)

    @property
    def prior_distribution(self) -> Callable[[Params], PyTree]:
        """p(z) by latent; absent where the model's prior is no distribution."""
        return self.model.prior_distribution

    @property
    def train(self) -> Callable[[Params, PRNGKey, Data, Latent], tuple[Scalar, Params]]:
        """The log-likelihood in training, nats, and the parameters with their new state; absent where the model has no such mode."""
        one: Any = self.model.train

        def of_all(params: Params, rng: PRNGKey, x: Data, z: Latent) -> tuple[Scalar, Params]:
            keys = jax.random.split(rng, check_batch(x, self.num_data))
            each, new = jax.vmap(lambda key, x: one(params, key, x, z), axis_name="examples")(keys, x)
            return whole(jnp.mean(each), self.num_data), _mean(new)

        return of_all

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z) of all data, nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)


def per_example(objective: Any, *, chunk_size: int | None = None) -> PerExample:
    """The mean of `objective` over independent data: `x` gains a leading axis [B, ...]; nats per datum.

    Every datum has its own draws and its own bound, so a bound of K draws stays what it is for one datum, and the mean over the
    minibatches of an epoch is that over the data. Not with free bits: their floor is under the minibatch's mean KL, so that the value
    of a minibatch is no mean of its examples'.

    With a `chunk_size` the gradient is accumulated: what lies between a chunk's draws and its bound is not kept, but computed again for
    the gradient, which is added to that of the chunks before. The numbers are the same, to rounding. A chunk takes every
    (B / chunk_size)-th example, so that a batch split over devices stays where it is if their number divides `chunk_size`.

    Args:
      objective: written for one datum.
      chunk_size: examples at a time, to bound memory, best a divisor of B; that of `objective` is of particles. All at once by default.

    Raises:
      TypeError: if `objective` is not one, or in training, or `chunk_size` no whole number.
      ValueError: if `chunk_size` is less than 1; once traced, if the leaves of `x` do not share a leading axis.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> objective = jvi.per_example(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real())), num_samples=3))
      >>> x = jnp.zeros(8)
      >>> value, aux = objective(objective.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> value.shape, aux.log_w.shape
      ((), (8, 3))
    """
    check_objective(objective)
    refuse_training(objective)
    return PerExample(objective, None if chunk_size is None else check_count(chunk_size, "chunk_size"))


def subsampled(objective: MonteCarlo, *, num_data: int) -> MonteCarlo:
    """`objective` of global latents on minibatches: the likelihood of B data counts N / B times; nats of the whole data set.

    With the same draws, the mean over the minibatches of an epoch is the bound of all data. That holds for the ELBO, which is linear
    in the log-likelihood, and not for bounds of several log-weights: these are refused.

    Args:
      objective: an ELBO of a `jvi.split` model, whose `log_likelihood(x, z)` is that of one datum; `x` gains a leading axis [B, ...].
        The guide sees the minibatch as its `x`, so it must be one that ignores it.
      num_data: N, data in the whole set.

    Raises:
      TypeError: if `objective` is no objective of one bound, or `num_data` no whole number.
      ValueError: if the model is not split, or the bound not the ELBO; once traced, if a minibatch has more than N data.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> model = jvi.split(lambda z: log_normal(z), lambda x, z: log_normal(x, z))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.objectives.subsampled(jvi.elbo(model, guide), num_data=4)
      >>> x, key = jnp.arange(4.0), jax.random.key(1)
      >>> params = objective.init(jax.random.key(0), x)
      >>> halves = [objective(params, key, part)[0] for part in (x[:2], x[2:])]
      >>> bool(jnp.isclose(sum(halves) / 2, objective(params, key, x)[0]))
      True

    References:
      Hoffman et al. (2013), Stochastic Variational Inference.
    """
    num_data = check_count(num_data, "num_data")
    check_linear("subsampled", objective)
    if not (hasattr(objective.model, "log_prior") and hasattr(objective.model, "log_likelihood")):
        raise ValueError(
            "subsampled needs a model whose likelihood is known apart, because N / B is for the likelihood alone: make it with "
            "jvi.split(log_prior, log_likelihood), the likelihood that of one datum."
        )
    return with_model(objective, Minibatch(objective.model, num_data))


def whole(mean: Scalar, num_data: int) -> Scalar:
    """What all data add up to, by the mean of a minibatch."""
    return num_data * mean


def averaged(
    objective: Any, params: Any, keys: PRNGKey, x: Data, beta: Any, axes: Any = 0, chunk_size: int | None = None
) -> tuple[Scalar, Aux]:
    """The mean of an objective over examples; what it combines of their means is combined once."""
    each = getattr(objective, "parts", objective)

    def means(keys: PRNGKey, x: Data) -> tuple[Any, Array]:
        """Of these examples; and the log-weights of each."""
        keys, x = sharding.by_example(keys), sharding.by_example(x) if axes == 0 else x
        found, aux = jax.vmap(lambda key, one: each(params, key, one, beta=beta), (0, axes), axis_name="examples")(keys, x)
        return _mean((found, aux._replace(log_w=None))), aux.log_w

    size = len(keys) if chunk_size is None else chunk_size
    (found, aux), log_w = _in_chunks(means, size, keys, x) if size < len(keys) else means(keys, x)
    value = objective.combine(found, beta) if hasattr(objective, "parts") else found
    return value, aux._replace(log_w=log_w)


def _in_chunks(means: Callable[..., tuple[Any, Array]], size: int, keys: PRNGKey, x: Data) -> tuple[Any, Array]:
    """`means(keys, x)`, `size` examples at a time; each chunk is computed again for its gradient."""
    count = len(keys)
    num, rest = divmod(count, size)

    def strided(leaf: Any) -> Array:
        # [B] -> [chunk, num] -> [num, chunk]: the other way round a chunk of a batch split over devices would lie on one of them.
        return jnp.swapaxes(leaf[: num * size].reshape(size, num, *leaf.shape[1:]), 0, 1)

    # In a scan nothing is shared between the two computations, and no barrier is needed to keep them apart.
    again = jax.checkpoint(means, prevent_cse=False)
    found, log_w = jax.lax.map(lambda chunk: again(*chunk), jax.tree.map(strided, (keys, x)))
    found, log_w = _mean(found), jnp.swapaxes(log_w, 0, 1).reshape(num * size, *log_w.shape[2:])
    if not rest:
        return found, log_w
    last, log_w_last = jax.checkpoint(means)(*jax.tree.map(lambda leaf: leaf[num * size :], (keys, x)))
    merged = jax.tree.map(lambda mean, other: mean + (rest / count) * (other - mean), found, last)
    return merged, jnp.concatenate([log_w, log_w_last])


def with_model(objective: Any, model: Any) -> Any:
    """The same objective of another model."""
    return objective.with_model(model) if hasattr(objective, "with_model") else dataclasses.replace(objective, model=model)


def check_linear(name: str, objective: Any) -> None:
    """Refuse what minibatches of a global latent would bias."""
    check_objective(objective)
    refuse_training(objective)
    if not hasattr(objective, "bound") or not hasattr(objective, "model"):
        raise TypeError(
            f"{name} takes an objective of one model, such as jvi.elbo(model, guide) or jvi.objectives.score, and sees to the data's "
            f"axis itself; got {type(objective).__name__}."
        )
    if objective.bound is not bounds.elbo:
        raise ValueError(
            f"{name} takes the ELBO: a bound of several log-weights is not linear in the log-likelihood, so that its mean over "
            "minibatches is not its value for all data, and need not bound it. Use jvi.elbo; for local latents, per_example and "
            "global_local keep any bound of each datum exact."
        )


def refuse_training(objective: Any) -> None:
    """Refuse an objective in training inside of another, which would lose its networks' new state."""
    if getattr(objective, "outermost", False):
        raise TypeError("jvi.objectives.training goes outermost: take it of what is made of the objective outside of training.")


def check_batch(x: Data, num_data: int) -> int:
    """The number of data in a minibatch, at most `num_data`."""
    count = leading_axis(x)
    if count > num_data:
        raise ValueError(f"a minibatch of {count} data cannot be of a data set of num_data={num_data}.")
    return count


def first(x: Data) -> Data:
    """The first example."""
    leading_axis(x)
    return jax.tree.map(lambda leaf: leaf[0], x)


def _mean(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), tree)
