"""RELAX and REBAR: the score-function gradient with a learned surrogate of relaxed draws as control variate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jvi import _concrete, bounds
from jvi import noise as noises
from jvi._distributions import Logits
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi._typing import Params as ParamsTree
from jvi.gradients.relaxed import concrete
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.networks import Network, network
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._particles import Noise, check_particles, each_particle
from jvi.objectives._terms import log_weight, masked, terms_of


class Surrogate(NamedTuple):
    """Parameters of the control variate; `()` for what it does not have.

    Attributes:
      log_temperature: of the relaxed draws that the model is evaluated at.
      scale: what the model there counts.
      network: the network's own.
    """

    log_temperature: ParamsTree
    scale: ParamsTree
    network: ParamsTree


@spec
class Relax:
    """The ELBO of Bernoulli and one-hot latents, with a learned control variate. Made by `relax` and `rebar`."""

    model: Model
    guide: Guide
    num_samples: int
    temperature: float | None  # at the start; None where the model is not relaxed
    network: Network | None
    inputs: Callable[[Data, Any], Any] | None
    noise: Noise = noises.independent
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_parts(self.model, self.guide)
        check_particles(self.num_samples, self.noise, self.chunk_size)
        _concrete.check("jvi.objectives.relax", self.guide)

    @property
    def bound(self) -> Callable[[Array], Scalar]:
        """The ELBO."""
        return bounds.elbo

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model, the guide and the control variate."""
        model, guide = jax.random.split(rng)
        of_guide = self.guide.init(guide, x)
        log_temperature: Any = ()
        scale: Any = ()
        weights: Any = ()
        if self.temperature is not None:
            log_temperature, scale = jnp.asarray(math.log(self.temperature)), jnp.ones(())
        if self.network is not None:
            found = _concrete.logits_of(self.guide, of_guide, x)
            weights = self.network.init(jax.random.fold_in(rng, 2), self._seen(found, x, found.values))
        return Params(self.model.init(model, x), of_guide, Surrogate(log_temperature, scale, weights))

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The ELBO, nats, and its log-weights [K]."""
        found = _concrete.logits_of(self.guide, masked(self.guide, params.guide, rng), x)

        def one(key: PRNGKey) -> tuple[Scalar, list[Array], Scalar]:
            scores, bits = _draw(found, key)
            terms = terms_of(self.model, params.model, key, x, found.latent(bits, as_drawn=True))
            log_w = log_weight(terms, _log_q(bits, found), beta)
            # The control variate is learned from these numbers, and nothing else is to move by its loss.
            fixed = stop_gradient((params.model, x, found.values, log_w))

            def signal(control: Surrogate) -> list[Array]:
                model, x, values, log_w = fixed
                held = found._replace(values=values)
                value, slopes = jax.value_and_grad(lambda at: self._surrogate(control, held, model, key, x, at, beta))(scores)
                return [
                    (log_w - value) * _concrete.log_score(b, logits, one_hot) + _concrete.path_left(slope, at, logits, one_hot)
                    for b, slope, at, logits, one_hot in zip(bits, slopes, scores, values, found.one_hot, strict=True)
                ]

            signals = signal(params.control)
            return log_w, stop_gradient(signals), sum((jnp.sum(leaf**2) for leaf in signals), jnp.zeros(()))

        log_w, signals, squares = each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)
        value = jnp.mean(log_w)
        pairs = zip(signals, found.values, strict=True)
        score = sum((jnp.sum(jnp.mean(signal, 0) * logits) for signal, logits in pairs), -jnp.mean(squares))
        # Adds nothing to the value: only its gradient, by the guide's parameters and the control variate's.
        return value + (score - stop_gradient(score)), Aux(stop_gradient(log_w))

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        found = _concrete.logits_of(self.guide, masked(self.guide, params.guide, rng), x)

        def one(key: PRNGKey) -> dict[str, Array]:
            _, bits = _draw(found, key)
            terms = terms_of(self.model, params.model, key, x, found.latent(bits, as_drawn=True))
            return {**terms, "log q": _log_q(bits, found)}

        return each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)

    def _surrogate(
        self, control: Surrogate, found: Logits, model: ParamsTree, rng: PRNGKey, x: Data, scores: list[Array], beta: Any
    ) -> Scalar:
        """The control variate at these scores: what the log-weight of their latent is to be compared with."""
        value = jnp.zeros(())
        if self.temperature is not None:
            temperature = jnp.exp(control.log_temperature)
            z = [_concrete.soft(at, one_hot, temperature) for at, one_hot in zip(scores, found.one_hot, strict=True)]
            terms = terms_of(self.model, model, rng, x, found.latent(z, as_drawn=False))
            value = value + control.scale * log_weight(terms, _log_q(z, found), beta)
        if self.network is not None:
            value = value + jnp.reshape(self.network.apply(control.network, self._seen(found, x, scores)), ())
        return value

    def _seen(self, found: Logits, x: Data, scores: list[Array]) -> Any:
        """What the network sees."""
        z = [_concrete.soft(at, one_hot, 1.0) for at, one_hot in zip(scores, found.one_hot, strict=True)]
        if self.inputs is not None:
            return self.inputs(x, found.latent(z, as_drawn=False))
        return jnp.concatenate([jnp.ravel(leaf).astype(z[0].dtype) for leaf in [*jax.tree.leaves(x), *z]])


def relax(
    model: Model,
    guide: Guide,
    *,
    network: Any,
    num_samples: int = 1,
    temperature: float | None = 0.5,
    inputs: Callable[[Data, Any], Any] | None = None,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> Relax:
    """The ELBO of Bernoulli or one-hot latents by the score-function gradient, with a network of relaxed draws as control variate.

    The surrogate is c = scale * f(relaxed z) + network(x, relaxed z), where f is the log-weight, evaluated at latents between 0 and 1.
    What it predicts is subtracted from the signal, and its own gradient, through the path that relaxed draws have, is added again: the
    estimator is unbiased whatever the surrogate is. Its temperature, scale and weights live in `params.control`, and are trained
    alongside to minimize the squared gradient by the guide's logits, which is its variance but for a constant; the value knows
    nothing of it. The model's parameters get their plain gradient.

    A draw takes two evaluations of the model, and the gradient of the second is differentiated once more. The draws given the latent,
    which the estimator asks for, share their noise with the relaxed ones, so that no third is taken.

    Args:
      model: p(x, z). With a `temperature` it must also be a smooth function of floats between 0 and 1.
      guide: q(z | x), made by `jvi.guides.from_distribution` or `conditional` of Bernoulli or OneHotCategorical distributions, alone,
        in an `Independent` or in a `distrax.Joint`.
      network: a Linen module, what builds an NNX module, or `jvi.networks.network(...)`, with one output. It must be smooth, such as
        with `nn.tanh`: its gradient is what counts.
      num_samples: draws per evaluation, K.
      temperature: to start from, greater than 0; None to leave f out of the surrogate, for a model that is dear, or defined at the
        latent's own values only.
      inputs: `(x, relaxed z) -> what the network sees`; by default one vector, all of `x` and then of `z`. Where the guide is of
        global latents, `lambda x, z: z` is better.
      noise, chunk_size: as in `jvi.elbo`. Particles do not judge one another, so that all noise is right.

    Raises:
      ValueError: if a count is less than 1, `temperature` is not positive, or the guide was not made of a distribution.
      TypeError: if `network` is no network; once traced, if the guide is not of Bernoulli or OneHotCategorical distributions.

    Example:
      >>> import distrax, flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: (z - 0.45) ** 2)
      >>> net = nn.Sequential((nn.Dense(8), nn.tanh, nn.Dense(1)))
      >>> objective = jvi.objectives.relax(model, guide, network=net)
      >>> params = objective.init(jax.random.key(0), None)
      >>> value, _ = objective(params, jax.random.key(1), None)
      >>> value.shape, round(float(jnp.exp(params.control.log_temperature)), 2)
      ((), 0.5)

    References:
      Grathwohl et al. (2018), Backpropagation through the Void.
    """
    return Relax(model, guide, num_samples, _start(temperature), _network(network), inputs, noise, chunk_size)


def rebar(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    temperature: float = 0.5,
    noise: Noise = noises.independent,
    chunk_size: int | None = None,
) -> Relax:
    """The ELBO of Bernoulli or one-hot latents by the score-function gradient, with the relaxed model as control variate.

    `relax` without a network: the surrogate is the log-weight at relaxed draws, of a learned temperature and scale. For a model that
    is a smooth function of floats between 0 and 1.

    Args:
      model: p(x, z).
      guide, noise, chunk_size: as in `relax`.
      num_samples: draws per evaluation, K.
      temperature: to start from, greater than 0.

    Raises:
      ValueError, TypeError: as `relax`.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(3), lambda params, x: distrax.OneHotCategorical(params))
      >>> model = jvi.model(lambda x, z: z @ jnp.log(jnp.array([0.2, 0.3, 0.5])))
      >>> objective = jvi.objectives.rebar(model, guide, num_samples=4)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> aux.log_w.shape
      (4,)

    References:
      Tucker et al. (2017), REBAR: Low-Variance, Unbiased Gradient Estimates for Discrete Latent Variable Models.
    """
    return Relax(model, guide, num_samples, concrete(temperature).temperature, None, None, noise, chunk_size)


def _start(temperature: float | None) -> float | None:
    return None if temperature is None else concrete(temperature).temperature


def _network(source: Any) -> Network:
    if source is None:
        raise TypeError("relax needs a network with one output; without one it is jvi.objectives.rebar.")
    return network(source)


def _draw(found: Logits, rng: PRNGKey) -> tuple[list[Array], list[Array]]:
    """Scores of every latent, held fixed, and their bits."""
    drawn = zip(found.values, found.one_hot, _concrete.split(rng, found), strict=True)
    scores = [_concrete.scores(stop_gradient(logits), one_hot, key) for logits, one_hot, key in drawn]
    return scores, [_concrete.hard(at, one_hot) for at, one_hot in zip(scores, found.one_hot, strict=True)]


def _log_q(bits: list[Array], found: Logits) -> Scalar:
    # Of its gradient by the logits the mean is zero, and the score takes its place.
    drawn = zip(bits, found.values, found.one_hot, strict=True)
    return sum((_concrete.log_mass(z, stop_gradient(logits), one_hot) for z, logits, one_hot in drawn), jnp.zeros(()))
