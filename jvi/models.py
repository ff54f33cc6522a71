"""Models: log p(x, z) of one datum and one draw, as a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jvi import _distributions
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, PyTree, Scalar

__all__ = [
    "Generative", "Model", "Split", "StateSpace", "Trained", "WithPrior", "generative", "learned", "model", "split", "state_space",
    "trained", "with_prior",
]  # fmt: skip


@runtime_checkable
class Model(Protocol):
    """p(x, z): any spec with these two methods is a model.

    One that also has `log_prior(params, z)` and `log_likelihood(params, x, z)` can be annealed.

    Example:
      >>> import jvi
      >>> isinstance(jvi.model(lambda x, z: -(z**2)), jvi.models.Model)
      True
    """

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        ...

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z), a scalar in nats."""
        ...


@spec
class _Joint:
    function: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        return () if self.initialize is None else self.initialize(rng, x)

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        value = self.function(x, z) if self.initialize is None else self.function(params, x, z)
        return check_log_density(value, "the log-joint")


@spec
class Split:
    """A model whose log-joint is a log-prior plus a log-likelihood. Made by `split`."""

    prior: Callable[..., Scalar]
    likelihood: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        return () if self.initialize is None else self.initialize(rng, x)

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z), nats."""
        value = self.prior(z) if self.initialize is None else self.prior(params, z)
        return check_log_density(value, "the log-prior")

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x | z), nats."""
        value = self.likelihood(x, z) if self.initialize is None else self.likelihood(params, x, z)
        return check_log_density(value, "the log-likelihood")

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x, z), nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)


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


def model(log_joint: Callable[[Data, Latent], Scalar]) -> Model:
    """A model with nothing to learn, from `log_joint(x, z) -> scalar`.

    Args:
      log_joint: log p(x, z) of one datum and one draw, constants included, in nats. Specs compare functions by identity:
        one defined once, at module level, compiles once.

    Raises:
      TypeError: if `log_joint` is not a function; once traced, a log-joint that is not one scalar is a ValueError.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> float(model.log_joint((), 1.0, jnp.array(3.0)))
      -2.0
    """
    return _Joint(_callable("log_joint", log_joint))


def learned(init: Callable[[PRNGKey, Data], Params], log_joint: Callable[[Params, Data, Latent], Scalar]) -> Model:
    """A model with parameters that are fitted by maximizing the bound, such as a decoder's weights.

    Args:
      init: `(rng, x) -> params`, a pytree of arrays.
      log_joint: `(params, x, z) -> scalar`, nats.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.learned(lambda rng, x: jnp.zeros(()), lambda mean, x, z: -0.5 * (z - mean) ** 2 - 0.5 * (x - z) ** 2)
      >>> params = model.init(jax.random.key(0), 1.0)
      >>> float(model.log_joint(params, 1.0, jnp.array(2.0)))
      -2.5
    """
    return _Joint(_callable("log_joint", log_joint), _callable("init", init))


def split(
    log_prior: Callable[..., Scalar],
    log_likelihood: Callable[..., Scalar],
    *,
    init: Callable[[PRNGKey, Data], Params] | None = None,
) -> Split:
    """A model in two terms, so that the likelihood can be told from the prior (annealing, better error reports).

    Args:
      log_prior: `(z) -> scalar`, or `(params, z)` when `init` is given.
      log_likelihood: `(x, z) -> scalar`, or `(params, x, z)` when `init` is given.
      init: `(rng, x) -> params` for a learned model.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> model = jvi.split(lambda z: -0.5 * z**2, lambda x, z: -0.5 * (x - z) ** 2)
      >>> float(model.log_joint((), 1.0, jnp.array(2.0)))
      -2.5
    """
    init = None if init is None else _callable("init", init)
    return Split(_callable("log_prior", log_prior), _callable("log_likelihood", log_likelihood), init)


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
    init = None if init is None else _callable("init", init)
    return WithPrior(prior, _callable("log_likelihood", log_likelihood), init)


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
    init = None if init is None else _callable("init", init)
    return Generative(_callable("prior", prior), _callable("likelihood", likelihood), init)


@spec
class StateSpace:
    """A Markov chain of latents, each with a datum. Made by `state_space`.

    Whole sequences are pytrees whose leaves have a leading axis [T, ...].
    """

    initial: Callable[..., Scalar]
    transition: Callable[..., Scalar]
    emission: Callable[..., Scalar]
    initialize: Callable[[PRNGKey, Data], Params] | None = None

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters; `()` if nothing is learned."""
        return () if self.initialize is None else self.initialize(rng, x)

    def log_initial(self, params: Params, z: Latent) -> Scalar:
        """log p(z_0), nats."""
        return self._density("initial", params, z)

    def log_transition(self, params: Params, z_prev: Latent, z: Latent) -> Scalar:
        """log p(z_t | z_{t-1}), nats."""
        return self._density("transition", params, z_prev, z)

    def log_emission(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x_t | z_t), nats."""
        return self._density("emission", params, x, z)

    def log_prior(self, params: Params, z: Latent) -> Scalar:
        """log p(z[0:T]), nats."""
        first, before, after = (jax.tree.map(lambda leaf, at=at: leaf[at], z) for at in (0, slice(-1), slice(1, None)))
        steps = jax.vmap(lambda z_prev, z: self.log_transition(params, z_prev, z))(before, after)
        return self.log_initial(params, first) + jnp.sum(steps)

    def log_likelihood(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x[0:T] | z[0:T]), nats."""
        return jnp.sum(jax.vmap(lambda x, z: self.log_emission(params, x, z))(x, z))

    def log_joint(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log p(x[0:T], z[0:T]), nats."""
        return self.log_prior(params, z) + self.log_likelihood(params, x, z)

    def _density(self, name: str, params: Params, *at: Any) -> Array:
        function = getattr(self, name)
        value = function(*at) if self.initialize is None else function(params, *at)
        return check_log_density(value, f"log_{name}")


def state_space(
    log_initial: Callable[..., Scalar],
    log_transition: Callable[..., Scalar],
    log_emission: Callable[..., Scalar],
    *,
    init: Callable[[PRNGKey, Data], Params] | None = None,
) -> StateSpace:
    """A state-space model p(z_0) p(x_0 | z_0) prod_t p(z_t | z_{t-1}) p(x_t | z_t), from the densities of one step.

    As a model of whole sequences it goes into any objective; step by step, into `jvi.objectives.fivo`.

    Args:
      log_initial: `(z) -> scalar`, nats, or `(params, z)` when `init` is given; so the others.
      log_transition: `(z_prev, z) -> scalar`.
      log_emission: `(x_t, z) -> scalar`.
      init: `(rng, x) -> params` for a learned model, `x` a whole sequence.

    Raises:
      TypeError: if one of them is no function; once traced, a density that is not one scalar is a ValueError.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> model = jvi.models.state_space(lambda z: -0.5 * z**2, lambda z_prev, z: -0.5 * (z - z_prev) ** 2, lambda x, z: x * z)
      >>> float(model.log_joint((), jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0])))  # -0.5 - 2 + 3
      0.5

    References:
      Durbin and Koopman (2012), Time Series Analysis by State Space Methods.
    """
    return StateSpace(
        _callable("log_initial", log_initial),
        _callable("log_transition", log_transition),
        _callable("log_emission", log_emission),
        None if init is None else _callable("init", init),
    )


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
    return Trained(model, _callable("training", training))


@spec
class WithoutData:
    """`function(z)` as a log-joint of no data."""

    function: Callable[[Latent], Scalar]

    def __call__(self, x: Data, z: Latent) -> Scalar:
        """log p(z), nats."""
        return self.function(z)


def check_log_density(value: Any, what: str) -> Array:
    """Return `value` if it is one real number.

    Raises:
      ValueError: if it has another shape.
      TypeError: if it is not a number.
    """
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, float, int)):
        raise TypeError(f"{what} must return a scalar, got {type(value).__name__}.")
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != ():
        raise ValueError(
            f"{what} must return a scalar, one number for one datum and one draw; got shape {list(shape)}. Sum over events; "
            "for independent data in a batch use jvi.per_example."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{what} must return a floating-point scalar, got {dtype.name}.")
    return jnp.asarray(value)


def _callable(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r} ({type(value).__name__}).")
    return value
