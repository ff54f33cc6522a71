"""Data that an objective sees through noise: binarized, dequantized or otherwise drawn anew at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvi._checks import leading_axis
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, PyTree, Scalar
from jvi.objectives._base import Aux, check_objective, no_lower_bound
from jvi.objectives.data import Minibatch, PerExample, whole
from jvi.objectives.hierarchical import GlobalLocal
from jvi.objectives.training import Training

_DATA = 0xFFFFFFFC  # folded into a step's or an example's key for its datum


@spec
class Augmented:
    """An objective of transformed data. Made by `augmented`.

    Attributes:
      objective: of what the transform makes.
      transform: `(rng, x) -> x`, of one datum.
      batched: whether `x` has a leading axis of examples.
      num_data: N, where the value is that of a whole data set.
    """

    objective: Any
    transform: Callable[[PRNGKey, Data], Data]
    batched: bool = False
    num_data: int | None = None

    @property
    def upper(self) -> bool:
        """Whether it bounds the evidence from above."""
        return getattr(self.objective, "upper", False)

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters, by transformed data."""
        return self.objective.init(rng, self._drawn(rng, x))

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound of the data as they came, nats, and its log-weights."""
        volume = self._log_volume(x)
        value, aux = self.objective(params, rng, self._drawn(rng, x), beta=beta)
        return value + jnp.mean(volume), _shifted(aux, volume)

    def absorb(self, params: Any, aux: Aux) -> Any:
        """The parameters after a step, with what the optimizer does not change."""
        return self.objective.absorb(params, aux) if hasattr(self.objective, "absorb") else params

    @property
    def terms(self) -> Callable[[Any, PRNGKey, Data], dict[str, Array]]:
        """The terms of the log-weights, of the very draws that `__call__` takes; absent where the objective tells none."""
        terms = self.objective.terms
        return lambda params, rng, x: terms(params, rng, self._drawn(rng, x))

    @property
    def parts(self) -> Callable[..., tuple[PyTree, Aux]]:
        """What is averaged over examples before it is combined; absent where the objective is linear in its examples."""
        parts = self.objective.parts

        def found(params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[PyTree, Aux]:
            volume = self._log_volume(x)
            inner, aux = parts(params, rng, self._drawn(rng, x), beta=beta)
            return (inner, volume), _shifted(aux, volume)

        return found

    @property
    def combine(self) -> Callable[..., Scalar]:
        """The bound, of the means of `parts`."""
        combine = self.objective.combine
        return lambda found, beta=1.0: combine(found[0], beta) + found[1]

    def _drawn(self, rng: PRNGKey, x: Data) -> Data:
        key = jax.random.fold_in(rng, _DATA)
        if not self.batched:
            return self.transform(key, x)
        return jax.vmap(self.transform)(jax.random.split(key, leading_axis(x)), x)

    def _log_volume(self, x: Data) -> Array:
        """What is added to the log-weights, nats: a number, or one for each example [B]."""
        volume = getattr(self.transform, "log_volume", None)
        if volume is None:
            return jnp.zeros(())
        found = jax.vmap(volume)(x) if self.batched else volume(x)
        return found if self.num_data is None else whole(jnp.mean(found), self.num_data)


def augmented(objective: Any, transform: Callable[[PRNGKey, Data], Data]) -> Augmented | PerExample:
    """`objective` of data that are drawn anew at every step: binarized, dequantized, cropped, with noise.

    The data stay as they are, bytes for instance, on the host and on the device; the transform runs inside the compiled step, on
    every datum with a key of its own, by the step's key and the datum's place in the minibatch: on any number of devices the same.
    All particles of a datum see the same draw. The bound is of log p(transformed data), nats, the mean over draws; where the
    transform has a `log_volume(x)`, as `jvi.augment.Dequantized` does, that is added: it bounds log P(x) of the data as they came.

    Model and guide see transformed data, and so do `Posterior` and the diagnostics: hand them data that are.

    Args:
      objective: any; of one datum, or of many, as made by `per_example`, `training`, `subsampled` or `global_local`.
      transform: `(rng, x) -> x` of one datum: one of `jvi.augment`, or a function of yours, defined once, because specs compare
        functions by identity. It must make the same shapes from any key.

    Raises:
      TypeError: if `objective` or `transform` is not one.
      ValueError: for a transform with a `log_volume`, if `objective` is no lower bound: no other stays what it is.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> likelihood = lambda x, z: distrax.Bernoulli(logits=z).log_prob(x).sum()
      >>> model = jvi.models.with_prior(lambda: distrax.MultivariateNormalDiag(jnp.zeros(3), jnp.ones(3)), likelihood)
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real(3)))
      >>> objective = jvi.objectives.augmented(jvi.per_example(jvi.elbo(model, guide)), jvi.augment.binarized)
      >>> images = jnp.full((8, 3), 100, jnp.uint8)
      >>> value, aux = objective(objective.init(jax.random.key(0), images), jax.random.key(1), images)
      >>> value.shape, aux.log_w.shape
      ((), (8, 1))

    References:
      Salakhutdinov and Murray (2008), On the Quantitative Analysis of Deep Belief Networks; Theis, van den Oord and Bethge (2016), A
      Note on the Evaluation of Generative Models.
    """
    check_objective(objective)
    if not callable(transform):
        raise TypeError(f"transform must be a function (rng, x) -> x, such as jvi.augment.binarized; got {transform!r}.")
    if isinstance(objective, PerExample):
        return dataclasses.replace(objective, objective=augmented(objective.objective, transform))
    if hasattr(transform, "log_volume") and (culprit := no_lower_bound(objective)):
        raise ValueError(
            "a transform with a log_volume goes with lower bounds of the evidence: the mean over its draws lies below log P(x), so "
            f"that no other bound or divergence stays one. Take jvi.elbo, jvi.iwae or the like; got {culprit}."
        )
    if isinstance(objective, GlobalLocal):
        return Augmented(objective, transform, True, objective.num_data)
    if isinstance(model := getattr(objective, "model", None), Minibatch):
        return Augmented(objective, transform, True, model.num_data)
    return Augmented(objective, transform, isinstance(objective, Training) and isinstance(objective.still, PerExample))


def _shifted(aux: Aux, volume: Array) -> Aux:
    log_w = aux.log_w + (volume[:, None] if volume.ndim else volume)
    return aux._replace(log_w=log_w, elbo=None if aux.elbo is None else aux.elbo + jnp.mean(volume))
