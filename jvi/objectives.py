"""Objectives: a model, a guide, a bound and a gradient put together into `(params, rng, x) -> (bound, aux)`.

Larger is better, and the value is the bound itself, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jvi import _tree, bounds, gradients
from jvi._checks import check_count, leading_axis
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi._typing import Params as ParamsTree
from jvi._vectors import vector_first
from jvi.guides.functions import Guide
from jvi.models import Model, check_log_density

__all__ = ["Aux", "MonteCarlo", "Objective", "Params", "PerExample", "elbo", "iwae", "per_example", "renyi"]


class Params(NamedTuple):
    """What an objective is differentiated by.

    Attributes:
      model: the model's parameters; `()` if nothing is learned.
      guide: the guide's parameters.
    """

    model: ParamsTree
    guide: ParamsTree


class Aux(NamedTuple):
    """What an objective reports beside its value.

    Attributes:
      log_w: log-weights [K], nats; [B, K] under `per_example`.
    """

    log_w: Array


class Objective(Protocol):
    """Any spec with these two methods is an objective.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> objective = jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real())))
      >>> value, aux = objective(objective.init(jax.random.key(0), 1.0), jax.random.key(1), 1.0)
      >>> value.shape, aux.log_w.shape
      ((), (1,))
    """

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters."""
        ...

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound, nats, and what came along."""
        ...


@spec
class MonteCarlo:
    """A bound of K log-weights. Made by `elbo`, `iwae` and `renyi`.

    Attributes:
      model, guide: what is fitted to what.
      bound: log-weights [K] -> scalar.
      num_samples: K.
      gradient: `(guide, params, rng, x) -> (z, log_q)`.
    """

    model: Model
    guide: Guide
    bound: Callable[[Array], Scalar]
    num_samples: int
    gradient: Callable[..., tuple[Latent, Scalar]]

    def __post_init__(self) -> None:
        _check_parts(self.model, self.guide)
        check_count(self.num_samples, "num_samples")
        if self.gradient is gradients.stl and not hasattr(self.guide, "log_prob"):
            raise ValueError(
                "gradients.stl needs a guide with a log_prob, and this guide's density is intractable; use gradients.pathwise."
            )

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model and the guide."""
        model, guide = jax.random.split(rng)
        return Params(self.model.init(model, x), self.guide.init(guide, x))

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound and its log-weights.

        Args:
          params: of the model and the guide.
          rng: key, consumed.
          x: one datum, or all of the data.
          beta: weight of log p(z) - log q(z | x); other than 1 only with `jvi.split` models.
        """
        log_w = self._particles(lambda key: self._log_weight(params, key, x, beta), rng)
        return self.bound(log_w), Aux(log_w)

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        return self._particles(lambda key: self._terms(params, key, x), rng)

    def _particles(self, one: Callable[[PRNGKey], Any], rng: PRNGKey) -> Any:
        if self.num_samples == 1:
            return jax.tree.map(lambda value: value[None], one(rng))
        return jax.vmap(one)(jax.random.split(rng, self.num_samples))

    def _terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        z, log_q = self.gradient(self.guide, params.guide, rng, x)
        _check_differentiable(z)
        batched = vector_first if self.num_samples > 1 else lambda function: function
        if not hasattr(self.model, "log_prior"):
            return {"log joint": batched(self.model.log_joint)(params.model, x, z), "log q": log_q}
        split: Any = self.model
        likelihood = batched(split.log_likelihood)(params.model, x, z)
        return {"log prior": split.log_prior(params.model, z), "log likelihood": likelihood, "log q": log_q}

    def _log_weight(self, params: Params, rng: PRNGKey, x: Data, beta: Any) -> Scalar:
        terms = self._terms(params, rng, x)
        if isinstance(beta, float) and beta == 1.0:
            log_w = sum(value for name, value in terms.items() if name != "log q") - terms["log q"]
        elif "log prior" in terms:
            log_w = terms["log likelihood"] + beta * (terms["log prior"] - terms["log q"])
        else:
            raise ValueError("beta other than 1 needs a model whose prior is known apart: make it with jvi.split.")
        return check_log_density(log_w, "the log-weight")


@spec
class PerExample:
    """The mean of an objective over the leading axis of `x`. Made by `per_example`."""

    objective: Any

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters, from the first example."""
        leading_axis(x)
        return self.objective.init(rng, jax.tree.map(lambda leaf: leaf[0], x))

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The mean bound, nats per datum, and the log-weights [B, K]."""
        keys = jax.random.split(rng, leading_axis(x))
        values, aux = jax.vmap(lambda key, one: self.objective(params, key, one, beta=beta))(keys, x)
        return jnp.mean(values), aux

    def terms(self, params: Any, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [B, K]."""
        keys = jax.random.split(rng, leading_axis(x))
        return jax.vmap(lambda key, one: self.objective.terms(params, key, one))(keys, x)


@spec
class _Renyi:
    alpha: float

    def __call__(self, log_w: Array) -> Scalar:
        return bounds.renyi(log_w, self.alpha)


def elbo(model: Model, guide: Guide, *, num_samples: int = 1, gradient: Callable[..., Any] | None = None) -> MonteCarlo:
    """The evidence lower bound E_q[log p(x, z) - log q(z | x)], by the mean of `num_samples` draws; nats.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: draws per evaluation, K.
      gradient: by default `gradients.stl`, which has no variance left where q is exact, so that a fit settles on the exact mean
        and sd; `gradients.pathwise` where the guide has no `log_prob`.

    Raises:
      TypeError: if `model` or `guide` lacks a method; once traced, if a latent is an integer.
      ValueError: if `num_samples` is less than 1, or `gradient` does not fit the guide.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> model = jvi.model(lambda x, z: log_normal(z) + log_normal(x, z))
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> objective = jvi.elbo(model, guide)
      >>> start = objective.init(jax.random.key(0), 2.0)
      >>> exact = start._replace(guide=start.guide._replace(loc=jnp.ones(1), log_scale=jnp.full(1, 0.5 * jnp.log(0.5))))
      >>> value, _ = objective(exact, jax.random.key(1), 2.0)
      >>> round(float(value), 4), round(float(log_normal(2.0, 0.0, 2**0.5)), 4)  # at the exact posterior it is log p(x)
      (-2.2655, -2.2655)

    References:
      Jordan et al. (1999), An Introduction to Variational Methods for Graphical Models.
    """
    if gradient is None:
        gradient = gradients.stl if hasattr(guide, "log_prob") else gradients.pathwise
    return MonteCarlo(model, guide, bounds.elbo, num_samples, gradient)


def iwae(model: Model, guide: Guide, *, num_samples: int, gradient: Callable[..., Any] = gradients.pathwise) -> MonteCarlo:
    """The importance-weighted bound E[log(mean_k p(x, z_k) / q(z_k | x))] of K = `num_samples` draws; nats.

    Args:
      model: p(x, z).
      guide: q(z | x).
      num_samples: K.
      gradient: `gradients.pathwise`.

    Raises:
      ValueError: for `gradients.stl` with more than one sample, which is biased here.

    Example:
      >>> import jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> jvi.iwae(model, jvi.guides.MeanField(jvi.space(jvi.real())), num_samples=5).num_samples
      5

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """
    _refuse_stl("iwae", gradient, num_samples)
    return MonteCarlo(model, guide, bounds.iwae, num_samples, gradient)


def renyi(
    model: Model, guide: Guide, *, alpha: float, num_samples: int, gradient: Callable[..., Any] = gradients.pathwise
) -> MonteCarlo:
    """The variational Rényi bound of order `alpha`, by `num_samples` draws; nats.

    With finitely many draws it is biased towards the ELBO.

    Args:
      model: p(x, z).
      guide: q(z | x).
      alpha: order; 1 is the ELBO, 0 the importance-weighted bound, minus infinity VR-max.
      num_samples: K.
      gradient: `gradients.pathwise`; `gradients.stl` for alpha = 1 only.

    Raises:
      ValueError: if `alpha` is NaN, or for `gradients.stl` where it is biased.

    Example:
      >>> import jvi
      >>> model = jvi.model(lambda x, z: -0.5 * z**2)
      >>> jvi.renyi(model, jvi.guides.MeanField(jvi.space(jvi.real())), alpha=0.5, num_samples=5).num_samples
      5

    References:
      Li and Turner (2016), Rényi Divergence Variational Inference.
    """
    bounds.check_alpha(alpha)
    if alpha != 1.0:
        _refuse_stl("renyi", gradient, num_samples)
    return MonteCarlo(model, guide, _Renyi(float(alpha)), num_samples, gradient)


def per_example(objective: Any) -> PerExample:
    """The mean of `objective` over independent data: `x` gains a leading axis [B, ...]; nats per datum.

    Every datum has its own draws and its own bound, so a bound of K draws stays what it is for one datum.

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
    if not callable(objective) or not hasattr(objective, "init"):
        raise TypeError(f"objective must be made by jvi.elbo, jvi.iwae or the like, got {objective!r}.")
    return PerExample(objective)


def _check_parts(model: Any, guide: Any) -> None:
    if not isinstance(model, Model):
        hint = "; wrap a function as jvi.model(log_joint)" if callable(model) else ""
        raise TypeError(f"model must have the methods init and log_joint, got {model!r}{hint}.")
    if not isinstance(guide, Guide):
        raise TypeError(f"guide must have the methods init and sample_and_log_prob, got {guide!r}.")


def _check_differentiable(z: Latent) -> None:
    for name, leaf in _tree.named_leaves(z, "z"):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name} is {jnp.result_type(leaf).name}: a draw that is not a real number has no pathwise gradient. Sum the "
                "discrete latent out inside the log-joint, or replace it by a continuous relaxation."
            )


def _refuse_stl(name: str, gradient: Any, num_samples: int) -> None:
    if gradient is gradients.stl and num_samples != 1:
        raise ValueError(
            f"gradients.stl is biased for {name} with num_samples={num_samples}: its weights depend on the parameters that it "
            "holds fixed. Use gradients.pathwise, or jvi.elbo with gradients.stl."
        )
