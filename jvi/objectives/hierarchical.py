"""Global latents, and local ones of every datum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax

from jvi import sharding
from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.controls import MovingAverage
from jvi.objectives._base import Aux, check_objective, nested, no_lower_bound
from jvi.objectives.data import averaged, check_batch, check_linear, first, refuse_training, whole, with_model
from jvi.objectives.monte_carlo import MonteCarlo


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
        count = check_batch(x, self.num_data)
        keys, x = jax.random.split(rng, count), sharding.by_example(x)
        return whole(averaged(self.local, inner, keys, (x, z), beta, axes=(0, None))[0], self.num_data)

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
        return Nested(outer, self.inner.init(of_inner, (first(x), z)))

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
        return with_model(self.outer, model), outer


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
      ValueError: if `outer` is a bound of several log-weights, whose minibatches do not average to that of all data; if `inner` is no
        lower bound, stops the gradient of what it sees (`wake_sleep`), or has a moving average or a biased one as its control.

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
    refuse_training(inner)
    check_linear("global_local", outer)
    if culprit := no_lower_bound(inner):
        raise ValueError(f"global_local adds up lower bounds of log p(x_i | z), and {culprit} is none; take an ELBO or iwae.")
    for one in nested(inner):
        if not getattr(one, "seen_through", True):
            raise ValueError(
                f"{type(one).__name__} stops the gradient of what it sees, here of the global draw, so that the outer guide's would be "
                "wrong; take jvi.iwae or jvi.objectives.dreg as the inner objective."
            )
        control = getattr(one, "control", None)
        if isinstance(control, MovingAverage):
            raise ValueError(
                "global_local hands no moving average on from step to step: use controls.leave_one_out or learned(...) in the inner "
                "objective."
            )
        if getattr(control, "biased", False):
            raise ValueError(
                f"{type(control).__name__} leaves a bias in the inner gradient, which N / B would weigh in the outer one: use "
                "control=jvi.controls.leave_one_out in the inner objective."
            )
    return GlobalLocal(outer, inner, num_data)
