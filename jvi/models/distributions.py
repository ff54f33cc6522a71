"""Models made of distributions: a prior that is known as such, a likelihood that can be sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jvi import _distributions
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.models.densities import check_callable, check_log_density


@spec
class WithPrior:
    """A model whose prior is a distribution, so that a KL divergence from it may be known in closed form. Made by `with_prior`.

    Example:
      >>> import distrax, jvi
      >>> model = jvi.models.with_prior(lambda: distrax.Normal(0.0, 1.0), lambda x, z: -0.5 * (x - z) ** 2)
      >>> isinstance(model, jvi.models.WithPrior)
      True
    """

    distribution: Callable[..., PyTree]
    likelihood: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        return () if self.initialize is None else self.initialize(rng, x)

    def prior_distribution(self, params: Params) -> PyTree:
        """p(z): a distribution, or a pytree of them, one for every latent."""
        return _distributions.unjoined(self.distribution() if self.initialize is None else self.distribution(params))

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z), nats."""
        return check_log_density(_distributions.log_prob(self.prior_distribution(params), z), "the log-prior")

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x | z), nats."""
        value = self.likelihood(x, z) if self.initialize is None else self.likelihood(params, x, z)
        return check_log_density(value, "the log-likelihood")

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z), nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)


@spec
class Generative:
    """A model that can be sampled as well as evaluated, its prior a distribution as in `WithPrior`. Made by `generative`."""

    distribution: Callable[..., PyTree]
    likelihood: Callable[..., Any]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        return () if self.initialize is None else self.initialize(rng, x)

    def sample(self, params: Params, rng: PRNGKey) -> tuple[Data, Latent]:
        """One draw of (x, z)."""
        of_z, of_x = jax.random.split(rng)
        priors, tree = jax.tree.flatten(self.prior_distribution(params), is_leaf=_distributions.is_distribution)
        keys = jax.random.split(of_z, len(priors))
        with jax.numpy_rank_promotion("allow"):  # distrax and TFP rely on it
            z = jax.tree.unflatten(tree, [one.sample(seed=key) for one, key in zip(priors, keys, strict=True)])
            return self._of_data(params, z).sample(seed=of_x), z

    def prior_distribution(self, params: Params) -> PyTree:
        """p(z): a distribution, or a pytree of them, one for every latent."""
        return _distributions.unjoined(self.distribution() if self.initialize is None else self.distribution(params))

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z), nats."""
        return check_log_density(_distributions.log_prob(self.prior_distribution(params), z), "the log-prior")

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x | z), nats."""
        with jax.numpy_rank_promotion("allow"):
            return check_log_density(self._of_data(params, z).log_prob(x), "the log-likelihood")

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z), nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)

    def _of_data(self, params: Params, z: Latent) -> Any:
        return self.likelihood(z) if self.initialize is None else self.likelihood(params, z)


def with_prior(
    prior: Callable[..., PyTree],
    log_likelihood: Callable[..., Scalar],
    *,
    init: Callable[[PRNGKey, Data], Params] | None = None,
) -> WithPrior:
    """A model whose prior is given as distributions, as `jvi.objectives.elbo_kl` and free bits want it; else as `split`.

    Args:
      prior: `() -> distribution`, or `(params) -> distribution` when `init` is given: distrax or TFP, without batch shape; for a
        pytree of latents a pytree of them, or a `distrax.Joint`.
      log_likelihood: `(x, z) -> scalar`, or `(params, x, z)` when `init` is given.
      init: `(rng, x) -> params` for a learned model.

    Raises:
      TypeError: if `prior` is a distribution itself, which holds arrays: give a function that returns it.
      ValueError: once traced, if a distribution's event shape is not that of its latent.

    Example:
      >>> import distrax, jax.numpy as jnp, jvi
      >>> model = jvi.models.with_prior(lambda: distrax.Normal(0.0, 1.0), lambda x, z: -0.5 * (x - z) ** 2)
      >>> round(float(model.log_prior((), jnp.array(0.0))), 3)
      -0.919
    """
    if not callable(prior):
        raise TypeError(
            f"prior must be a function that returns a distribution, as in lambda: distrax.Normal(0, 1); got {prior!r}."
        )
    init = None if init is None else check_callable("init", init)
    return WithPrior(prior, check_callable("log_likelihood", log_likelihood), init)


def generative(
    prior: Callable[..., PyTree], likelihood: Callable[..., Any], *, init: Callable[[PRNGKey, Data], Params] | None = None
) -> Generative:
    """A model from two distributions, which can be sampled: for `jvi.objectives.wake_sleep`, and to simulate data.

    Args:
      prior: `() -> distribution` of z, or `(params)` when `init` is given: as in `with_prior`.
      likelihood: `(z) -> distribution` of x, or `(params, z)` when `init` is given: distrax or TFP, without batch shape.
      init: `(rng, x) -> params` for a learned model.

    Raises:
      TypeError: if an argument is not a function.
      ValueError: once traced, if a log-density is not one scalar, or the prior's event shape not that of its latent.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> model = jvi.models.generative(lambda: distrax.Normal(0.0, 1.0), lambda z: distrax.Normal(z, 1.0))
      >>> x, z = model.sample((), jax.random.key(0))
      >>> x.shape, round(float(model.log_joint((), jnp.array(2.0), jnp.array(1.0))), 3)  # -log(2 pi) - 1
      ((), -2.838)
    """
    init = None if init is None else check_callable("init", init)
    return Generative(check_callable("prior", prior), check_callable("likelihood", likelihood), init)
