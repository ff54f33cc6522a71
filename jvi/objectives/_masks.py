"""Guides and models whose networks are in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax

from jvi import _distributions
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.guides.compose import Composed, Parts, product, sequence
from jvi.guides.functions import checked_draw


class Masked(NamedTuple):
    """A network's parameters, and the key that a particle's masks are drawn from."""

    params: Params
    rng: PRNGKey


@spec
class TrainingGuide:
    """A guide whose network is in training; all but `init` and `masked` take `Masked` parameters."""

    guide: Any

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        return self.guide.init(rng, x)

    def masked(self, params: Params, rng: PRNGKey) -> Masked:
        """The parameters with the key of a particle's masks."""
        return Masked(params, rng)

    def distribution(self, params: Masked, x: Data) -> Any:
        """q(z | x) under these masks."""
        return self.guide.train(*params, x)[0]

    def sample_and_log_prob(self, params: Masked, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density."""
        distribution = self.distribution(params, x)
        with jax.numpy_rank_promotion("allow"):  # distrax and TFP rely on it
            return checked_draw(distribution, rng, self.guide.space)

    def log_prob(self, params: Masked, x: Data, z: Latent) -> Scalar:
        """The log-density of `z`, nats."""
        distribution = self.distribution(params, x)
        with jax.numpy_rank_promotion("allow"):
            return distribution.log_prob(z)

    def support(self, params: Masked, x: Data) -> Latent:
        """All values of a finite latent."""
        distribution = self.distribution(params, x)
        with jax.numpy_rank_promotion("allow"):
            return _distributions.finite_support(distribution)


@spec
class TrainingModel:
    """A model whose networks are in training."""

    model: Any
    alone: bool  # one particle, over which nobody maps
    draws: ClassVar[bool] = True  # its densities take a key

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        return self.model.init(rng, x)

    @property
    def log_prior(self) -> Callable[[Params, Latent], Scalar]:
        """log p(z), nats; absent where it is not known apart."""
        return self.model.log_prior

    @property
    def prior_distribution(self) -> Callable[[Params], PyTree]:
        """p(z) by latent; absent where the prior is no distribution."""
        return self.model.prior_distribution

    def log_likelihood(self, params: Params, x: Data, z: Latent, rng: PRNGKey) -> Scalar:
        """log p(x | z), nats."""
        return self.log_joint(params, x, z, rng)

    def log_joint(self, params: Params, x: Data, z: Latent, rng: PRNGKey) -> Scalar:
        """log p(x, z), or log p(x | z) where the prior is known apart, nats."""

        def value(z: Latent) -> Scalar:
            return self.model.train(params, rng, x, z)[0]

        if not self.alone:
            return value(z)
        return jax.vmap(value, axis_name="particles")(jax.tree.map(lambda leaf: leaf[None], z))[0]


def in_training(guide: Any) -> Any:
    """The guide, or its parts, with networks in training where they have such a mode."""
    if isinstance(guide, (Composed, Parts)):
        parts = {name: in_training(one) for name, one in guide.parts}
        return (sequence if guide.chained else product)(**parts)
    return TrainingGuide(guide) if has_mode(guide) else guide


def has_mode(one: Any) -> bool:
    """Whether a guide, a part of it, or a model has a training mode."""
    return callable(getattr(one, "train", None)) or any(has_mode(part) for _, part in getattr(one, "parts", ()))


def renewed(guide: Any, params: PyTree, x: Data, z: PyTree) -> PyTree:
    """Parameters with their new state, of those that `masked` returns, where the draw was `z`."""
    if isinstance(guide, TrainingGuide):
        return guide.guide.train(*params, x)[1]
    if not isinstance(guide, (Composed, Parts)):
        return params
    new, before = {}, {}
    for name, one in guide.parts:
        new[name] = renewed(one, params[name], guide.seen(x, before), z[name])
        before[name] = z[name]
    return new
