"""Networks in training: dropout, and batch statistics whose running averages no optimizer changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jvi import gradients
from jvi._checks import leading_axis
from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.gradients._draw import draw
from jvi.gradients._paths import check_path
from jvi.guides.functions import checked_draw
from jvi.networks import Variables
from jvi.objectives._base import Aux
from jvi.objectives._terms import MODEL
from jvi.objectives.analytic import Decomposed
from jvi.objectives.data import PerExample
from jvi.objectives.monte_carlo import MonteCarlo

_MASK = 0xFFFFFFFD  # folded into a particle's key for the guide's network


@spec
class TrainingGuide:
    """A guide whose network is in training."""

    guide: Any

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        return self.guide.init(rng, x)

    def distribution(self, params: Params, x: Data) -> Any:
        """Outside of training: of the same kind."""
        return self.guide.distribution(params, x)

    def at(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        """The distribution that a particle's key draws from, and the parameters with their new state."""
        return self.guide.train(params, jax.random.fold_in(rng, _MASK), x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density."""
        distribution, _ = self.at(params, rng, x)
        with jax.numpy_rank_promotion("allow"):
            return checked_draw(distribution, rng, self.guide.space)


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


@spec
class Training:
    """An objective whose networks are in training. Made by `training`."""

    objective: Any  # what gives the value, its guide and model in training
    sampled: MonteCarlo  # the objective of one datum in it
    batched: bool

    @property
    def upper(self) -> bool:
        """Whether it bounds the evidence from above."""
        return getattr(self.objective, "upper", False)

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters."""
        return self.objective.init(rng, x)

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound in training; `Aux.updates` has the networks' new state."""
        value, aux = self.objective(params, rng, x, beta=beta)
        if self.batched:
            keys = jax.random.split(rng, leading_axis(x))
            states = jax.vmap(lambda key, one: self._states(params, key, one), axis_name="examples")(keys, x)
            states = jax.tree.map(lambda leaf: jnp.mean(leaf, (0, 1)), states)
        else:
            states = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), self._states(params, rng, x))
        return value, aux._replace(updates=(aux.updates, states))

    def absorb(self, params: Any, aux: Aux) -> Any:
        """The parameters after a step, with what the optimizer does not change."""
        updates, states = aux.updates
        params = self.objective.absorb(params, aux._replace(updates=updates))
        return jax.tree.map(
            lambda own, new: own._replace(state=new) if isinstance(own, Variables) else own, params, states, is_leaf=_has_state
        )

    def _states(self, params: Any, rng: PRNGKey, x: Data) -> PyTree:
        """The networks' new state by particle, of the draws that the value takes with this key: the compiler computes them once."""
        guide, model = self.sampled.guide, self.sampled.model

        def one(key: PRNGKey) -> PyTree:
            z = draw(self.sampled.gradient, guide, params.guide, key, x).z
            new = params
            if isinstance(guide, TrainingGuide):
                new = new._replace(guide=guide.at(params.guide, key, x)[1])
            if isinstance(model, TrainingModel):
                new = new._replace(model=model.model.train(params.model, jax.random.fold_in(key, MODEL), x, z)[1])
            states = jax.tree.map(lambda own: own.state if isinstance(own, Variables) else None, new, is_leaf=_has_state)
            return jax.lax.stop_gradient(states)

        num_samples = self.sampled.num_samples
        keys = rng[None] if num_samples == 1 else self.sampled.noise(rng, num_samples)
        return jax.vmap(one, axis_name="particles")(keys)


def training(objective: Any) -> Training:
    """`objective` with its networks in training, for a fit: with dropout, and with the statistics of the batch at hand.

    The objective itself, `Posterior` and the diagnostics see the networks as they are outside of training. Every particle of every
    example has masks of its own. New running statistics are the mean over particles and examples; they travel in `Aux.updates`, and
    no gradient or optimizer changes them. All is written for one datum and one draw, so BatchNorm needs the names of the axes
    over which there are many: `axis_name="examples"` in an encoder, `axis_name=("examples", "particles")` in a decoder.

    Args:
      objective: an ELBO or another bound with `gradients.pathwise` or `stl`, alone or under `jvi.per_example`, whose guide is a
        `jvi.guides.conditional` of `network(..., training=...)`, or whose model is `jvi.models.trained`.

    Raises:
      TypeError: if it is another kind of objective.
      ValueError: if nothing in it has a training mode, its gradient does not fit, or it has a `chunk_size`, over which statistics
        cannot be taken.

    Example:
      >>> import distrax, flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> def norm(still):
      ...     return nn.BatchNorm(use_running_average=still, momentum=0.0, use_bias=False, use_scale=False, axis_name="examples")
      >>> encoder = jvi.networks.network(norm(True), training=norm(False))
      >>> guide = jvi.guides.conditional(encoder, lambda mean: distrax.MultivariateNormalDiag(mean, jnp.ones(1)))
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z[0]) + jax.scipy.stats.norm.logpdf(x[0], z[0]))
      >>> svi = jvi.SVI(jvi.objectives.training(jvi.per_example(jvi.elbo(model, guide))))
      >>> x = jnp.array([[1.0], [3.0]])
      >>> state, _ = jax.jit(svi.step)(svi.init(jax.random.key(0), x), x)
      >>> state.params.guide.state["batch_stats"]["mean"].tolist()
      [2.0]

    References:
      Srivastava et al. (2014), Dropout; Ioffe and Szegedy (2015), Batch Normalization.
    """
    batched = isinstance(objective, PerExample)
    inner = objective.objective if batched else objective
    sampled = inner.sampled if isinstance(inner, Decomposed) else inner
    if not isinstance(sampled, MonteCarlo):
        raise TypeError(
            f"training takes a bound such as jvi.elbo(model, guide), alone or under jvi.per_example; got {objective!r}."
        )
    if isinstance(inner, Decomposed):
        raise TypeError(
            "training takes no objective with closed forms, which are of the guide outside of training; take jvi.elbo."
        )
    if sampled.chunk_size is not None or (batched and objective.chunk_size is not None):
        raise ValueError("a chunk_size goes with no statistics over all particles and examples; leave it out in training.")
    guide, model, gradient = sampled.guide, sampled.model, sampled.gradient
    if not (hasattr(guide, "train") or hasattr(model, "train")):
        raise ValueError(
            "nothing in this objective has a training mode: make the network with jvi.networks.network(Encoder(), "
            "training=Encoder(training=True)), and the model with jvi.models.trained; else the objective needs no training(...)."
        )
    if hasattr(guide, "train"):
        if gradient not in (gradients.pathwise, gradients.stl):
            raise ValueError(
                "training takes gradients.pathwise or gradients.stl where the guide's network has a training mode."
            )
        guide, gradient = TrainingGuide(guide), _stl if gradient is gradients.stl else gradient
    if hasattr(model, "train"):
        model = TrainingModel(model, sampled.num_samples == 1)
    sampled = dataclasses.replace(sampled, model=model, guide=guide, gradient=gradient)
    return Training(PerExample(sampled) if batched else sampled, sampled, batched)


def _stl(guide: TrainingGuide, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
    """Sticking the landing: the density held fixed is that of the same masks."""
    z, _ = guide.sample_and_log_prob(params, rng, x)
    check_path(guide, params, rng, x, z)
    held, _ = guide.at(jax.lax.stop_gradient(params), rng, x)
    with jax.numpy_rank_promotion("allow"):
        return z, held.log_prob(z)


def _has_state(node: Any) -> bool:
    return isinstance(node, Variables)
