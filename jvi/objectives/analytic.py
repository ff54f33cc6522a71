"""The ELBO with what has a closed form in closed form: the guide's entropy, or its divergence from the prior; and free bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvi import _distributions, bounds, gradients
from jvi import noise as noises
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, PyTree, Scalar
from jvi.controls import Control
from jvi.gradients.reparameterized import default
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.objectives._base import Aux, Params
from jvi.objectives._terms import NO_PRIOR, masked
from jvi.objectives._told import Whole, by_latent, chained, told
from jvi.objectives.floors import FreeBits
from jvi.objectives.monte_carlo import MonteCarlo, default_control
from jvi.schedules import is_one


class Terms(NamedTuple):
    """What is averaged over examples before it is combined.

    Attributes:
      energy: the mean log-density of the draws, without what is in `costs`, nats.
      costs: what is subtracted, by latent and by entry: divergences, or negative entropies, nats.
    """

    energy: Scalar
    costs: PyTree


class Particle(NamedTuple):
    """One draw's log-densities by name, costs, log-weight, and log-density of what has no path (None where all has one)."""

    densities: dict[str, Array]
    costs: PyTree
    log_w: Scalar
    log_score: Scalar | None


@spec
class Decomposed:
    """An ELBO with closed forms. Made by `elbo_kl` and `elbo_entropy`, and by `jvi.elbo` with `free_bits`.

    Attributes:
      sampled: the same ELBO by draws alone.
      by_kl: whether the closed form is the divergence from the prior; else it is the entropy.
      floor: free bits; None for the ELBO itself.
    """

    sampled: MonteCarlo
    by_kl: bool
    floor: FreeBits | None = None

    @property
    def model(self) -> Model:
        """The model."""
        return self.sampled.model

    @property
    def guide(self) -> Guide:
        """The guide."""
        return self.sampled.guide

    @property
    def bound(self) -> Callable[[Array], Scalar]:
        """The ELBO, of log-weights."""
        return self.sampled.bound

    def with_model(self, model: Model) -> Decomposed:
        """The same of another model."""
        sampled = self.sampled
        of = (sampled.guide, sampled.bound, sampled.num_samples, sampled.gradient, sampled.control, sampled.noise)
        return Decomposed(MonteCarlo(model, *of, sampled.chunk_size), self.by_kl, self.floor)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model, the guide and the control variate."""
        return self.sampled.init(rng, x)

    def absorb(self, params: Params, aux: Aux) -> Params:
        """The parameters after a step, with what the optimizer does not change."""
        return self.sampled.absorb(params, aux)

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        return self.sampled.terms(params, rng, x)

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound; and the log-weights, the ELBO itself and the divergences."""
        terms, aux = self.parts(params, rng, x, beta=beta)
        return self.combine(terms, beta), aux

    def parts(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Terms, Aux]:
        """What is averaged over examples, and what came along."""
        found = self.sampled.each(lambda key: self._particle(params, key, x), rng)
        costs = jax.tree.map(lambda cost: jnp.mean(cost, 0), found.costs)
        plain: Any = sum(found.densities.values())
        total = sum(jnp.sum(cost) for cost in jax.tree.leaves(costs))
        kl = jax.lax.stop_gradient(costs) if self.by_kl else None
        aux = Aux(jax.lax.stop_gradient(found.log_w), None, jax.lax.stop_gradient(jnp.mean(plain) - total), kl)
        energy = plain if is_one(beta) else self._weighted(found.densities, beta)
        if found.log_score is None:
            return Terms(jnp.mean(energy), costs), aux
        signal = jax.lax.stop_gradient(energy)
        baseline = self.sampled.control(params.control, x, bounds.elbo, signal)
        scored = jnp.mean(jax.lax.stop_gradient(signal - baseline.value) * found.log_score) - baseline.loss
        # Adds nothing to the value: only its gradient, which the mean's own lacks.
        energy = jnp.mean(energy) + (scored - jax.lax.stop_gradient(scored))
        return Terms(energy, costs), aux._replace(updates=baseline.updates)

    def combine(self, terms: Terms, beta: Any = 1.0) -> Scalar:
        """The bound, of the means: energy - beta * sum of floored costs."""
        floor = jnp.sum if self.floor is None else self.floor
        return terms.energy - beta * sum(floor(cost) for cost in jax.tree.leaves(terms.costs))

    def _weighted(self, densities: dict[str, Array], beta: Any) -> Array:
        if "log likelihood" not in densities:
            raise ValueError(NO_PRIOR)
        return densities["log likelihood"] + beta * densities.get("log prior", 0.0)

    def _particle(self, params: Params, rng: PRNGKey, x: Data) -> Particle:
        densities, found = self.sampled.drawn(params, rng, x)
        log_q = densities.pop("log q")
        log_w: Any = sum(densities.values()) - log_q
        params = params._replace(guide=masked(self.guide, params.guide, rng))
        if self.by_kl:
            densities.pop("log prior")
        exact: list[bool] = [not chained(self.guide)]
        if found.log_mass is None:
            costs = self._costs(params, x, found.z, log_q, exact)
        else:
            costs = jax.vmap(lambda z, log_q: self._costs(params, x, z, log_q, exact))(found.z, log_q)
            mass = jnp.exp(found.log_mass)

            # A value of no mass counts for nothing, even where a log-density is infinite there.
            def average(each: Array) -> Array:
                weight = mass.reshape(-1, *[1] * (each.ndim - 1))
                return jnp.sum(jnp.where(weight > 0.0, weight * each, 0.0), 0)

            densities, costs, log_w = jax.tree.map(average, (densities, costs, log_w))
        if found.log_score is not None and not (all(exact) and found.log_mass is None):
            raise ValueError(
                "gradients.score goes with closed forms only where every latent has one that no draw enters, and nothing is "
                "enumerated; use jvi.objectives.score, whose signal is the whole log-weight."
            )
        return Particle(densities, costs, log_w, found.log_score)

    def _costs(self, params: Params, x: Data, z: Latent, log_q: Scalar, exact: list[bool]) -> PyTree:
        """What is subtracted, by latent, at one draw; whether it is the same at any is added to `exact`."""
        q = told(self.guide, params.guide, x, z, log_q, not self.by_kl)
        held = q  # where log q is estimated, sticking the landing holds its parameters fixed
        if self.sampled.gradient is gradients.stl:
            held = told(self.guide, jax.lax.stop_gradient(params.guide), x, z, log_q, not self.by_kl)
        if not self.by_kl:
            return by_latent(lambda q, held, z: _negative_entropy(q, held, z, exact), q, held, z)
        model: Any = self.model
        if hasattr(model, "prior_distribution"):
            p = model.prior_distribution(params.model)
            return by_latent(lambda q, held, z, p: _divergence(q, held, z, p, self.floor, exact), q, held, z, p)
        exact.append(False)
        if self.floor is not None and (len(jax.tree.leaves(z)) > 1 or (self.floor.per_dimension and jnp.shape(z) != ())):
            raise ValueError(
                "free bits need the prior of every latent apart, and this model's is one function of them all: make it with "
                "jvi.models.with_prior."
            )
        return log_q - model.log_prior(params.model, z)


def _negative_entropy(q: Any, held: Any, z: Latent, exact: list[bool]) -> Scalar:
    found = _distributions.entropy(q)
    exact.append(found is not None and not isinstance(q, Whole))
    return -jnp.sum(found) if found is not None else _distributions.log_ratio(held, None, z)


def _divergence(q: Any, held: Any, z: Latent, p: PyTree, floor: FreeBits | None, exact: list[bool]) -> Array:
    whole = isinstance(q, Whole)
    if not whole and not _distributions.is_distribution(p):
        raise ValueError(f"the prior of a latent whose guide is a {type(q).__name__} must be one distribution, got {p!r}.")
    found = None if whole else _distributions.kl(q, p)
    exact.append(found is not None)
    if found is None:
        found = held.log_prob(z) - _distributions.log_prob(p, z) if whole else _distributions.log_ratio(held, p, z)
    if floor is not None and floor.per_dimension and jnp.shape(found) != jnp.shape(z):
        raise ValueError(
            f"free bits per dimension need a latent whose entries are independent in the guide and in the prior; the divergence of "
            f"{type(q).__name__} is one number. Use free_bits({floor.nats}) for each latent as a whole."
        )
    return found


def elbo_kl(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    gradient: Callable[..., Any] | None = None,
    free_bits: float | FreeBits | None = None,
    control: Control | None = None,
    noise: Callable[[PRNGKey, int], PRNGKey] = noises.independent,
    chunk_size: int | None = None,
) -> Decomposed:
    """The ELBO as E_q[log p(x | z)] - KL(q(z | x) || p(z)), the divergence in closed form where distrax or TFP knows one; nats.

    The divergence is taken latent by latent, and estimated from the draws where no closed form is known: where the guide tells no
    distribution, or the two families do not fit. `Aux.kl` has it by latent, and by entry where those are independent.

    With `free_bits` the value is energy - beta * sum_g max(free_bits, KL_g), over the latents g, whose KL_g is averaged over the
    draws, and under `per_example` over the minibatch, before the floor. Less than the floor is not rewarded: there the gradient of
    KL_g is zero. The value is a lower bound of the ELBO, which is in `Aux.elbo`.

    Args:
      model: p(x, z), made by `jvi.models.with_prior`, whose prior is a distribution; of a `jvi.split` model the whole divergence is
        estimated from the draws.
      guide: q(z | x); made by `from_distribution` or `conditional`, `MeanField`, `FullRank` of one real vector, or a `product` or
        `sequence` of these, it tells its distributions.
      num_samples: draws per evaluation, K.
      gradient: as in `elbo`. What is in closed form is differentiated as such; `gradients.stl` is for the rest.
      free_bits: nats for every latent, or `free_bits(nats, per_dimension=True)`.
      control, noise, chunk_size: as in `elbo`.

    Raises:
      TypeError: as `elbo`.
      ValueError: if the prior is not known apart; once traced, if distributions and latents do not fit.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> normal = lambda: distrax.Normal(0.0, 1.0)
      >>> model = jvi.models.with_prior(normal, lambda x, z: jax.scipy.stats.norm.logpdf(x, z))
      >>> objective = jvi.objectives.elbo_kl(model, jvi.guides.MeanField(jvi.space(jvi.real())), num_samples=10)
      >>> value, aux = objective(objective.init(jax.random.key(0), 2.0), jax.random.key(1), 2.0)
      >>> round(float(aux.kl), 4), round(float(-jnp.log(0.1) + 0.5 * 0.1**2 - 0.5), 4)  # of N(0, 0.1^2) from N(0, 1)
      (1.8076, 1.8076)

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes; Kingma et al. (2016), Improved Variational Inference with Inverse
      Autoregressive Flow.
    """
    sampled = _sampled(model, guide, num_samples, gradient, control, noise, chunk_size)
    if not hasattr(model, "log_prior"):
        raise ValueError(
            "the divergence from the prior, and free bits, need a model whose prior is known apart: make it with "
            "jvi.models.with_prior (or jvi.split), or use jvi.objectives.elbo_entropy, without free bits."
        )
    floor = free_bits if free_bits is None or isinstance(free_bits, FreeBits) else FreeBits(free_bits)
    return Decomposed(sampled, True, floor)


def elbo_entropy(
    model: Model,
    guide: Guide,
    *,
    num_samples: int = 1,
    gradient: Callable[..., Any] | None = None,
    control: Control | None = None,
    noise: Callable[[PRNGKey, int], PRNGKey] = noises.independent,
    chunk_size: int | None = None,
) -> Decomposed:
    """The ELBO as E_q[log p(x, z)] + H(q), the entropy in closed form where the guide knows one; nats.

    The Gaussian guides know that of their coordinates, to which a constrained latent adds its log-determinant at the draw. The
    entropies of distrax's and TFP's distributions are taken latent by latent, and estimated from the draws where there is none.

    Args:
      model: p(x, z), any.
      guide: q(z | x).
      num_samples: draws per evaluation, K.
      gradient, control, noise, chunk_size: as in `elbo_kl`.

    Raises:
      TypeError, ValueError: as `elbo`.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: 0.0 * z)  # nothing but the entropy of N(0, 0.1^2) is left
      >>> objective = jvi.objectives.elbo_entropy(model, jvi.guides.MeanField(jvi.space(jvi.real())))
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> round(float(value), 4)
      -0.8836

    References:
      Kucukelbir et al. (2017), Automatic Differentiation Variational Inference.
    """
    return Decomposed(_sampled(model, guide, num_samples, gradient, control, noise, chunk_size), False)


def _sampled(model: Model, guide: Guide, num_samples: int, gradient: Any, control: Any, noise: Any, chunk: Any) -> MonteCarlo:
    gradient = default(guide) if gradient is None else gradient
    control = default_control(gradient, num_samples, control)
    return MonteCarlo(model, guide, bounds.elbo, num_samples, gradient, control, noise, chunk)
