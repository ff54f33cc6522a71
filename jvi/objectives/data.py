"""Many data: what is summed, what is averaged, and by how much a minibatch counts. No other file scales anything by N / B."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jvi import bounds
from jvi._checks import check_count, leading_axis
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.objectives._base import Aux, check_objective
from jvi.objectives.monte_carlo import MonteCarlo


@spec
class PerExample:
    """The mean of an objective over the leading axis of `x`. Made by `per_example`."""

    objective: Any

    @property
    def upper(self) -> bool:
        """Whether it bounds the evidence from above."""
        return getattr(self.objective, "upper", False)

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters, from the first example."""
        return self.objective.init(rng, _first(x))

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The mean bound, nats per datum, and the log-weights [B, K]."""
        return _averaged(self.objective, params, jax.random.split(rng, leading_axis(x)), x, beta)

    def absorb(self, params: Any, aux: Aux) -> Any:
        """The parameters after a step, with what the optimizer does not change."""
        return self.objective.absorb(params, aux) if hasattr(self.objective, "absorb") else params

    def terms(self, params: Any, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [B, K]."""
        keys = jax.random.split(rng, leading_axis(x))
        return jax.vmap(lambda key, one: self.objective.terms(params, key, one))(keys, x)


@spec
class Minibatch:
    """A split model whose likelihood is that of `num_data` independent data, estimated from those it is given."""

    model: Any
    num_data: int

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters, from the first datum."""
        return self.model.init(rng, _first(x))

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z), nats."""
        return self.model.log_prior(params, z)

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """N times the mean log-likelihood of the data in `x` [B, ...], nats."""
        _check_batch(x, self.num_data)
        return self.num_data * jnp.mean(jax.vmap(lambda one: self.model.log_likelihood(params, one, z))(x))

    @property
    def prior_distribution(self) -> Callable[[Params], PyTree]:
        """p(z) by latent; absent where the model's prior is no distribution."""
        return self.model.prior_distribution

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z) of all data, nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)


class Nested(NamedTuple):
    """Parameters of `global_local`: those of its two objectives."""

    outer: Any
    inner: Any


@spec
class WithLocals:
    """A global latent's prior, and the local objective of every datum as its likelihood."""

    prior: Any
    local: Any
    num_data: int
    draws: ClassVar[bool] = True  # its densities take a key

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the prior; those of the local objective, and beta, come from elsewhere."""
        return self.prior.init(rng, x)

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z) of the global latent, nats."""
        return self.prior.log_joint(params[0], None, z)

    def log_likelihood(self, params: Params, x: Data, z: Latent, rng: PRNGKey) -> Scalar:
        """N times the mean local bound of the data in `x` [B, ...], nats."""
        _, inner, beta = params
        count = _check_batch(x, self.num_data)
        keys = jax.random.split(rng, count)
        return self.num_data * _averaged(self.local, inner, keys, (x, z), beta, axes=(0, None))[0]

    @property
    def prior_distribution(self) -> Callable[[Params], PyTree]:
        """p(z) by latent; absent where the prior is no distribution."""
        known = self.prior.prior_distribution
        return lambda params: known(params[0])

    def log_joint(self, params: Params, x: Data, z: Latent, rng: PRNGKey) -> Scalar:
        """The sum of both, nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z, rng)


@spec
class GlobalLocal:
    """Global latents, and local ones of every datum. Made by `global_local`."""

    outer: MonteCarlo
    inner: Any
    num_data: int

    def init(self, rng: PRNGKey, x: Data) -> Nested:
        """Initial parameters; the local ones from the first datum and a draw of the global latent."""
        of_outer, of_inner, key = jax.random.split(rng, 3)
        outer = self.outer.init(of_outer, x)
        z, _ = self.outer.guide.sample_and_log_prob(outer.guide, key, x)
        return Nested(outer, self.inner.init(of_inner, (_first(x), z)))

    def __call__(self, params: Nested, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound for all `num_data` data, nats, and the log-weights of the global draws [K]."""
        objective, outer = self._whole(params, beta)
        return objective(outer, rng, x, beta=beta)

    def absorb(self, params: Nested, aux: Aux) -> Nested:
        """The parameters after a step, with what the optimizer does not change."""
        return params._replace(outer=self.outer.absorb(params.outer, aux))

    def terms(self, params: Nested, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights of the global draws [K]."""
        objective, outer = self._whole(params, 1.0)
        return objective.terms(outer, rng, x)

    def _whole(self, params: Nested, beta: Any) -> tuple[MonteCarlo, Any]:
        model = WithLocals(self.outer.model, self.inner, self.num_data)
        outer = params.outer._replace(model=(params.outer.model, params.inner, beta))
        return _with_model(self.outer, model), outer


def per_example(objective: Any) -> PerExample:
    """The mean of `objective` over independent data: `x` gains a leading axis [B, ...]; nats per datum.

    Every datum has its own draws and its own bound, so a bound of K draws stays what it is for one datum, and the mean over the
    minibatches of an epoch is that over the data. Not with free bits: their floor is under the minibatch's mean KL, so that the value
    of a minibatch is no mean of its examples'.

    Args:
      objective: written for one datum.

    Raises:
      TypeError: if `objective` is not one.
      ValueError: once traced, if the leaves of `x` do not share a leading axis.

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
    return PerExample(objective)


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
    _check_linear("subsampled", objective)
    if not (hasattr(objective.model, "log_prior") and hasattr(objective.model, "log_likelihood")):
        raise ValueError(
            "subsampled needs a model whose likelihood is known apart, because N / B is for the likelihood alone: make it with "
            "jvi.split(log_prior, log_likelihood), the likelihood that of one datum."
        )
    return _with_model(objective, Minibatch(objective.model, num_data))


def global_local(outer: MonteCarlo, inner: Any, *, num_data: int) -> GlobalLocal:
    """Global latents and local ones of every datum, on minibatches: N / B weighs the local log p and the local log q alike.

    The bound is E[log p(z) - log q(z) + (N / B) sum_i local_i(z)], where local_i is the inner objective of datum i given the global
    draw z: an ELBO, an importance-weighted bound, an enumeration. With the same draws of the global latent, its expectation over the
    minibatches of an epoch is that of all data.

    Args:
      outer: the ELBO of the prior of the global latents, `jvi.model(lambda x, z: log p(z))`, and their guide.
      inner: the objective of one datum, whose model and guide see `(x_i, z)` in place of `x`: `z` is the global draw.
      num_data: N, data in the whole set; `x` is [B, ...].

    Raises:
      TypeError: if an objective is none, or `num_data` no whole number.
      ValueError: if `outer` is a bound of several log-weights, whose minibatches do not average to that of all data.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> prior = jvi.model(lambda x, z: log_normal(z))
      >>> local = jvi.model(lambda x, z: log_normal(z, x[1]) + log_normal(x[0], z))  # z_i ~ N(mean, 1), x_i ~ N(z_i, 1)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> amortized = jvi.guides.from_distribution(
      ...     lambda rng, x: jnp.array(0.5), lambda a, x: distrax.Normal(a * x[0] + (1 - a) * x[1], 0.5**0.5)
      ... )
      >>> objective = jvi.objectives.global_local(jvi.elbo(prior, guide), jvi.elbo(local, amortized), num_data=100)
      >>> x = jnp.arange(10.0)
      >>> value, _ = objective(objective.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> value.shape
      ()

    References:
      Hoffman et al. (2013), Stochastic Variational Inference; Agrawal and Domke (2021), Amortized Variational Inference for Simple
      Hierarchical Models.
    """
    num_data = check_count(num_data, "num_data")
    check_objective(inner)
    _check_linear("global_local", outer)
    if getattr(inner, "upper", False):
        raise ValueError("global_local adds up lower bounds, and its inner objective is an upper one; take an ELBO or iwae.")
    return GlobalLocal(outer, inner, num_data)


def _averaged(objective: Any, params: Any, keys: PRNGKey, x: Data, beta: Any, axes: Any = 0) -> tuple[Scalar, Aux]:
    """The mean of an objective over examples; what it combines of their means is combined once."""
    whole = getattr(objective, "parts", objective)
    found, aux = jax.vmap(lambda key, one: whole(params, key, one, beta=beta), (0, axes), axis_name="examples")(keys, x)
    value = objective.combine(_mean(found), beta) if hasattr(objective, "parts") else jnp.mean(found)
    return value, aux._replace(updates=_mean(aux.updates), elbo=_mean(aux.elbo), kl=_mean(aux.kl))


def _with_model(objective: Any, model: Any) -> Any:
    return objective.with_model(model) if hasattr(objective, "with_model") else dataclasses.replace(objective, model=model)


def _check_linear(name: str, objective: Any) -> None:
    check_objective(objective)
    if not hasattr(objective, "bound") or not hasattr(objective, "model"):
        raise TypeError(f"{name} takes an objective of one model, such as jvi.elbo(model, guide); got {objective!r}.")
    if objective.bound is not bounds.elbo:
        raise ValueError(
            f"{name} takes the ELBO: a bound of several log-weights is not linear in the log-likelihood, so that its mean over "
            "minibatches is not its value for all data, and need not bound it. Use jvi.elbo; for local latents, per_example and "
            "global_local keep any bound of each datum exact."
        )


def _check_batch(x: Data, num_data: int) -> int:
    count = leading_axis(x)
    if count > num_data:
        raise ValueError(f"a minibatch of {count} data cannot be of a data set of num_data={num_data}.")
    return count


def _first(x: Data) -> Data:
    leading_axis(x)
    return jax.tree.map(lambda leaf: leaf[0], x)


def _mean(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), tree)
