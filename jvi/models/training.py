"""Models whose networks behave otherwise in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.models.densities import Model, check_callable, check_log_density


@spec
class Trained:
    """A model that is another in training. Made by `trained`."""

    model: Any
    training: Callable[..., tuple[Scalar, Params]]

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        return self.model.init(rng, x)

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z) outside of training, nats."""
        return self.model.log_joint(params, x, z)

    @property
    def log_prior(self) -> Callable[[Params, Latent], Scalar]:
        """log p(z), nats; absent where it is not known apart."""
        return self.model.log_prior

    @property
    def log_likelihood(self) -> Callable[[Params, Data, Latent], Scalar]:
        """log p(x | z) outside of training, nats; absent where it is not known apart."""
        return self.model.log_likelihood

    @property
    def prior_distribution(self) -> Callable[[Params], PyTree]:
        """p(z) by latent; absent where the prior is no distribution."""
        return self.model.prior_distribution

    def train(self, params: Params, rng: PRNGKey, x: Data, z: Latent) -> tuple[Scalar, Params]:
        """log p(x | z), or log p(x, z) where the prior is not known apart, in training; and the parameters with their new state."""
        value, params = self.training(params, rng, x, z)
        return check_log_density(value, "the log-density in training"), params


def trained(model: Model, training: Callable[[Params, PRNGKey, Data, Latent], tuple[Scalar, Params]]) -> Trained:
    """A model whose networks have dropout or running statistics, so that its density is another in training.

    Args:
      model: as it is outside of training.
      training: `(params, rng, x, z) -> (value, params)`: the log-likelihood, or the log-joint of a model whose prior is not known
        apart, with what `jvi.networks` calls `train` in place of `apply`; and the parameters, with their new state.

    Raises:
      TypeError: if `model` is no model, or `training` no function.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> net = jvi.networks.network(nn.Dropout(0.5, deterministic=True), training=nn.Dropout(0.5, deterministic=False))
      >>> def training(params, rng, x, z):
      ...     mean, params = net.train(params, rng, z)
      ...     return log_normal(x, mean).sum(), params
      >>> still = jvi.split(lambda params, z: log_normal(z).sum(), lambda params, x, z: log_normal(x, net.apply(params, z)).sum(),
      ...     init=lambda rng, x: net.init(rng, x))
      >>> model = jvi.models.trained(still, training)
      >>> value, _ = model.train(model.init(jax.random.key(0), jnp.ones(3)), jax.random.key(1), jnp.ones(3), jnp.ones(3))
      >>> value.shape
      ()
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must have the methods init and log_joint, got {model!r}.")
    return Trained(model, check_callable("training", training))
