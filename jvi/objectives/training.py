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
from jvi._typing import Array, Data, PRNGKey, PyTree, Scalar
from jvi.gradients._draw import draw
from jvi.gradients.relaxed import Concrete, StraightThrough
from jvi.networks import Variables
from jvi.objectives._base import Aux
from jvi.objectives._masks import TrainingModel, has_mode, in_training, renewed
from jvi.objectives._parted import Parted
from jvi.objectives._particles import each_particle
from jvi.objectives._posterior_draws import Weighted
from jvi.objectives._terms import MODEL, masked
from jvi.objectives.analytic import Decomposed
from jvi.objectives.data import PerExample
from jvi.objectives.disarm import Disarm
from jvi.objectives.doubly import DReG
from jvi.objectives.hierarchical import GlobalLocal
from jvi.objectives.monte_carlo import MonteCarlo, estimators
from jvi.objectives.relax import Relax
from jvi.objectives.reweighted import ForwardKL, WakeSleep

# The field in which an objective holds what draws for it.
_HELD = {PerExample: "objective", Decomposed: "sampled", Parted: "particles", ForwardKL: "weighted", WakeSleep: "weighted"}
_DRAWN = (gradients.pathwise, gradients.stl, gradients.score, gradients.enumerated)


@spec
class Training:
    """An objective whose networks are in training. Made by `training`.

    Attributes:
      objective: what gives the value, its guides and models in training.
      still: the same outside of training.
    """

    objective: Any
    still: Any
    outermost: ClassVar[bool] = True  # what is made of it would lose the new state

    @property
    def upper(self) -> bool:
        """Whether it bounds the evidence from above."""
        return getattr(self.objective, "upper", False)

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters."""
        return self.still.init(rng, x)

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound in training; `Aux.updates` has the networks' new state."""
        _check_statistics(self.objective, params)
        value, aux = self.objective(params, rng, x, beta=beta)
        states = _states(params) and _renewed(self.objective, params, rng, x)
        return value, aux._replace(updates=(aux.updates, states))

    def absorb(self, params: Any, aux: Aux) -> Any:
        """The parameters after a step, with what the optimizer does not change."""
        updates, states = aux.updates
        if hasattr(self.objective, "absorb"):
            params = self.objective.absorb(params, aux._replace(updates=updates))
        nodes, tree = jax.tree.flatten(params, is_leaf=_has_state)
        fresh = iter(states)
        return tree.unflatten([node._replace(state=next(fresh)) if _has_state(node) else node for node in nodes])

    def terms(self, params: Any, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights, of the very draws that `__call__` takes with this key: for error reports."""
        return self.objective.terms(params, rng, x)


def training(objective: Any) -> Training:
    """`objective` with its networks in training, for a fit: with dropout, and with the statistics of the batch at hand.

    The objective itself, `Posterior` and the diagnostics see the networks as they are outside of training. Every particle of every
    example has masks of its own, under which its draw, densities and closed forms are taken; with `relax`, `rebar` and `disarm`, which
    evaluate the guide once, those of the guide are an example's. New running statistics are the mean over particles and examples; they
    travel in `Aux.updates`, and no gradient or optimizer changes them.

    All is written for one datum and one draw, so BatchNorm needs the names of the axes over which there are many:
    `axis_name="examples"` in an encoder, `axis_name=("examples", "particles")` in a decoder. Under `global_local` these are the
    minibatch and the inner objective's particles, anew for every draw of the global latents.

    Dropout goes with everything: its masks are noise that is averaged over. Statistics in the model make every log-weight a function
    of all draws, which a gradient through the draws follows. Estimators that judge a draw by its own log-weight alone are biased by
    it and refused: scores, enumeration, `dreg`, `relax`, `rebar`, `disarm`. Nor are statistics linear in the data, so that the mean
    over the minibatches of an epoch is not the value of all data.

    Args:
      objective: of any kind but `fivo` and `rao_blackwell`, alone or under `per_example`, `subsampled` or `global_local`; its guide has
        a `jvi.guides.conditional` of `network(..., training=...)`, alone or as a part, or its model is `jvi.models.trained`. With a
        `chunk_size`, running statistics cost one more pass forward.

    Raises:
      TypeError: if it is another kind of objective.
      ValueError: if nothing in it has a training mode, or its gradient does not fit; when called, if a model with statistics meets an
        estimator that they bias, or chunks, over which they cannot be taken.

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
    if not trains(objective):
        _in_training(objective)  # refuses what is no objective of its kinds
        raise ValueError(
            "nothing in this objective has a training mode: make the network with jvi.networks.network(Encoder(), "
            "training=Encoder(training=True)), and the model with jvi.models.trained; else the objective needs no training(...)."
        )
    return Training(_in_training(objective), objective)


def trains(objective: Any) -> bool:
    """Whether a guide or a model in it has a training mode, that it is not in."""
    inside = _drawing(objective)
    if isinstance(inside, GlobalLocal):
        return trains(inside.outer) or trains(inside.inner)
    return any(has_mode(getattr(inside, name, None)) for name in ("guide", "model", "proposal"))


def _in_training(objective: Any) -> Any:
    """The same with its guides and models in training."""
    if isinstance(objective, GlobalLocal):
        if has_mode(objective.outer.model):
            raise ValueError(
                "the prior of the global latents has a training mode, and is the one model here that draws nothing: take networks "
                "that are the same in training there, and put dropout and BatchNorm into the inner objective or the guides."
            )
        outer, inner = (_in_training(one) if trains(one) else one for one in (objective.outer, objective.inner))
        return dataclasses.replace(objective, outer=outer, inner=inner)
    if type(objective) in _HELD:
        name = _HELD[type(objective)]
        return dataclasses.replace(objective, **{name: _in_training(getattr(objective, name))})
    if not isinstance(objective, (MonteCarlo, DReG, Weighted, Relax, Disarm)):
        raise TypeError(
            "training takes a bound such as jvi.elbo, iwae, dreg, wake_sleep or relax, alone or under jvi.per_example, subsampled or "
            "global_local, and goes outermost; not fivo, whose steps would each need masks of their own, nor rao_blackwell, which "
            f"takes log-densities apart: their networks must be the same in training (LayerNorm, no dropout). Got {objective!r}."
        )
    guide, model, gradient = objective.guide, objective.model, getattr(objective, "gradient", gradients.pathwise)
    for one in estimators(gradient, guide):
        if one not in _DRAWN and not isinstance(one, (Concrete, StraightThrough)):
            raise ValueError(
                "training takes gradients.pathwise, stl, score, enumerated, concrete and straight_through, and by_group of these, "
                f"which draw from the distribution that a network gives under a particle's masks; got {one!r}."
            )
    if has_mode(model):
        model = TrainingModel(model, objective.num_samples == 1)
    return dataclasses.replace(objective, model=model, guide=in_training(guide))


def _drawing(objective: Any) -> Any:
    """What draws particles in it."""
    return _drawing(getattr(objective, _HELD[type(objective)])) if type(objective) in _HELD else objective


def _check_statistics(objective: Any, params: Any) -> None:
    """Refuse a model with batch statistics, which all particles share, where particles are taken by themselves."""
    if isinstance(objective, PerExample):
        if objective.chunk_size is not None and _states(params):
            raise ValueError(
                "a network keeps statistics of the minibatch, which is not at hand at once in chunks of examples: leave chunk_size out "
                "of per_example, or use GroupNorm or LayerNorm."
            )
        return _check_statistics(objective.objective, params)
    if isinstance(objective, GlobalLocal):
        _check_statistics(objective.outer, params.outer)
        return _check_statistics(objective.inner, params.inner)
    one = _drawing(objective)
    if not isinstance(one.model, TrainingModel) or not _states(params.model):
        return None
    alone = (gradients.stl,) if isinstance(one, Weighted) else (gradients.score, gradients.enumerated)
    if isinstance(one, (DReG, Relax, Disarm)) or any(used in alone for used in estimators(one.gradient, one.guide)):
        raise ValueError(
            "the model's network keeps statistics of the batch, by which every draw changes the log-weights of all others; this "
            "estimator judges a draw by its own log-weight, and would be biased. Use GroupNorm or LayerNorm in the model, or "
            "gradients.pathwise or stl with a reparameterized guide (jvi.elbo, jvi.iwae)."
        )
    if one.chunk_size is not None and one.chunk_size < one.num_samples:
        raise ValueError(
            "the model's network keeps statistics of all particles, which are not at hand at once in chunks: leave chunk_size out, or "
            "use GroupNorm or LayerNorm in the model. (Dropout, and statistics in the guide's network, go with chunks.)"
        )
    return None


def _renewed(objective: Any, params: Any, rng: PRNGKey, x: Data) -> list[PyTree]:
    """The networks' new state, of the draws that the value takes with this key: unless in chunks, the compiler computes them once."""
    if isinstance(objective, PerExample):
        return _over_examples(lambda key, one: _renewed(objective.objective, params, key, one), rng, leading_axis(x), x)
    outer = objective.outer if isinstance(objective, GlobalLocal) else objective
    drawing, own = _drawing(outer), params.outer if isinstance(objective, GlobalLocal) else params
    guide, model = drawing.guide, drawing.model

    def one(key: PRNGKey) -> list[PyTree]:
        of_guide, of_model = masked(guide, own.guide, key), jax.random.fold_in(key, MODEL)
        found = draw(getattr(drawing, "gradient", gradients.score), guide, of_guide, key, x)
        z = found.z if found.log_mass is None else guide.sample_and_log_prob(of_guide, key, x)[0]
        new = own._replace(guide=renewed(guide, of_guide, x, z))
        if isinstance(model, TrainingModel):
            new = new._replace(model=model.model.train(own.model, of_model, x, z)[1])
        if not isinstance(objective, GlobalLocal):
            return _states(new)

        def of_local(key: PRNGKey, one: Data) -> list[PyTree]:
            return _renewed(objective.inner, params.inner, key, (one, z))

        return _states(new) + _over_examples(of_local, of_model, leading_axis(x), x)

    if drawing.num_samples == 1:
        states = jax.vmap(one, axis_name="particles")(rng[None])
    else:
        states = each_particle(one, rng, drawing.num_samples, drawing.noise, drawing.chunk_size)
    return jax.lax.stop_gradient(jax.tree.map(lambda leaf: jnp.mean(leaf, 0), states))


def _over_examples(one: Callable[[PRNGKey, Data], list[PyTree]], rng: PRNGKey, count: int, x: Data) -> list[PyTree]:
    """The mean of `one(key, datum)` over the leading axis of `x`."""
    states = jax.vmap(one, axis_name="examples")(jax.random.split(rng, count), x)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), states)


def _states(params: Any) -> list[PyTree]:
    """What networks keep beside their parameters, in the order of the tree."""
    return [node.state for node in jax.tree.leaves(params, is_leaf=_has_state) if _has_state(node)]


def _has_state(node: Any) -> bool:
    return isinstance(node, Variables)
