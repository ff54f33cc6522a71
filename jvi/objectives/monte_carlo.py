"""A bound of K log-weights, by any estimator that treats one particle at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi import bounds, controls, gradients, noise
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.controls import Control
from jvi.gradients._draw import Draw, draw
from jvi.gradients.strata import Stratified
from jvi.guides.functions import Guide, is_point
from jvi.models import Model
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._particles import check_particles, each_particle
from jvi.objectives._terms import log_weight, masked, terms_of

_ENUMERATED = "gradients.enumerated is for the ELBO: for other bounds sum the latent out inside the log-joint."


class Weight(NamedTuple):
    """One particle's log-weight, and what its score-function gradient needs.

    Attributes:
      log_w: log-weight, nats; the mean over enumerated values.
      each: log-weights of the enumerated values [V], or `log_w` itself.
      log_mass: log-probabilities of the enumerated values [V]; None where nothing is enumerated.
      log_score: log-density of what has no path, [V] or []; None where all has one.
    """

    log_w: Scalar
    each: Array
    log_mass: Array | None
    log_score: Array | None


@spec
class MonteCarlo:
    """A bound of K log-weights. Made by `elbo`, `iwae`, `renyi` and their siblings.

    Attributes:
      model, guide: what is fitted to what.
      bound: log-weights [K] -> scalar.
      num_samples: K.
      gradient: how a particle is differentiated, of `jvi.gradients`.
      control: what is subtracted from the signal of draws without a path, of `jvi.controls`.
      noise: `(rng, K) -> keys [K]`, of `jvi.noise`; a function of your own must make independent keys, or not be scored.
      chunk_size: particles at a time; what lies between is computed again for the gradient. All at once by default.
      upper: whether it bounds the evidence from above, and so is minimized.
    """

    model: Model
    guide: Guide
    bound: Callable[[Array], Scalar]
    num_samples: int
    gradient: Callable[..., tuple[Latent, Scalar]]
    control: Control = controls.leave_one_out
    noise: Callable[[PRNGKey, int], PRNGKey] = noise.independent
    chunk_size: int | None = None
    upper: bool = False

    def __post_init__(self) -> None:
        check_parts(self.model, self.guide)
        check_particles(self.num_samples, self.noise, self.chunk_size)
        if not callable(self.gradient):
            raise TypeError(f"gradient must be one of jvi.gradients, such as jvi.gradients.stl; got {self.gradient!r}.")
        if self.gradient is gradients.stl and not hasattr(self.guide, "log_prob"):
            raise ValueError(
                "gradients.stl needs a guide with a log_prob, and this guide's density is intractable; use gradients.pathwise."
            )
        check = getattr(self.gradient, "check", None)
        if check is not None:
            check(self.guide)
        if self.bound is not bounds.elbo and is_point(self.guide):
            raise ValueError(
                "a jvi.guides.Delta is a point, without a density, and goes with the ELBO only: use jvi.elbo, or learn its latents as "
                "parameters of the model (jvi.learned)."
            )
        refuse_biased(self.bound, self.gradient, self.guide, self.num_samples)
        if not isinstance(self.control, Control):
            raise TypeError(f"control must be one of jvi.controls, such as jvi.controls.leave_one_out; got {self.control!r}.")
        if self.num_samples > 1 and noise.are_joint(self.noise) and getattr(self.gradient, "scores", False):
            check_scored(self.bound, self.control)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model, the guide and the control variate."""
        model, guide = jax.random.split(rng)
        control = self.control.init(jax.random.fold_in(rng, 2), x)
        return Params(self.model.init(model, x), self.guide.init(guide, x), control)

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound and its log-weights.

        Args:
          params: of the model and the guide.
          rng: key, consumed.
          x: one datum, or all of the data.
          beta: weight of log p(z) - log q(z | x); other than 1 only with `jvi.split` models.
        """
        found = self.particles(params, rng, x, beta)
        value, updates = differentiable(self.bound, self.control, params.control, x, found)
        return value, Aux(found.log_w if found.log_score is None else jax.lax.stop_gradient(found.log_w), updates)

    def particles(self, params: Params, rng: PRNGKey, x: Data, beta: Any = 1.0) -> Weight:
        """The weights of K particles, each leaf [K, ...]."""
        return self.each(lambda key: self._weight(params, key, x, beta), rng)

    def absorb(self, params: Params, aux: Aux) -> Params:
        """The parameters after a step, with what the optimizer does not change."""
        return params if aux.updates is None else params._replace(control=aux.updates)

    def terms(self, params: Params, rng: PRNGKey, x: Data) -> dict[str, Array]:
        """The terms of the log-weights [K], of the very draws that `__call__` takes with this key: for error reports."""
        return self.each(lambda key: self.drawn(params, key, x)[0], rng)

    def each(self, one: Callable[[PRNGKey], Any], rng: PRNGKey) -> Any:
        """`one(key)` for each of K particles, each leaf [K, ...]."""
        return each_particle(one, rng, self.num_samples, self.noise, self.chunk_size)

    def drawn(self, params: Params, rng: PRNGKey, x: Data) -> tuple[dict[str, Array], Draw]:
        """One particle's log-densities by name, and its draw."""
        found = draw(self.gradient, self.guide, masked(self.guide, params.guide, rng), rng, x)
        if found.log_mass is None:
            terms = terms_of(self.model, params.model, rng, x, found.z, batched=self.num_samples > 1)
            return {**terms, "log q": found.log_q}, found
        terms = jax.vmap(lambda z: terms_of(self.model, params.model, rng, x, z))(found.z)
        return {**terms, "log q": jnp.broadcast_to(found.log_q, found.log_mass.shape)}, found

    def _weight(self, params: Params, rng: PRNGKey, x: Data, beta: Any) -> Weight:
        terms, found = self.drawn(params, rng, x)
        log_q = terms.pop("log q")
        if found.log_mass is None:
            log_w = log_weight(terms, log_q, beta)
            return Weight(log_w, log_w, None, found.log_score)
        each = jax.vmap(lambda terms, log_q: log_weight(terms, log_q, beta))(terms, log_q)
        if self.bound is bounds.iwae and isinstance(self.gradient, Stratified):
            log_w = logsumexp(found.log_mass + each)
            return Weight(log_w, each, found.log_mass, found.log_score)
        if self.bound is not bounds.elbo:  # by an estimator that only shows now that it enumerates
            raise ValueError(_ENUMERATED)
        # A value of no mass has no weight, even where the log-joint is minus infinity there.
        log_w = jnp.sum(jnp.where(jnp.isneginf(found.log_mass), 0.0, jnp.exp(found.log_mass) * each))
        return Weight(log_w, each, found.log_mass, found.log_score)


def differentiable(
    bound: Callable[[Array], Scalar], control: Control, of_control: Any, x: Data, found: Weight
) -> tuple[Scalar, Any]:
    """The bound, with the gradient of draws that have no path added to its own; and the control's updates."""
    value = bound(found.log_w)
    if found.log_score is None:
        return value, None
    baseline = control(of_control, x, bound, jax.lax.stop_gradient(found.log_w))
    scored = _scored(bound, found, found.log_score, baseline.value) - baseline.loss
    # Adds nothing to the value: only its gradient, which the bound's own lacks.
    return value + (scored - jax.lax.stop_gradient(scored)), baseline.updates


def estimators(gradient: Any, guide: Any) -> list[Any]:
    """The estimators of a guide's parts, or the one that it has."""
    if not hasattr(gradient, "groups"):
        return [gradient]
    return [one for name, part in getattr(guide, "parts", ()) for one in estimators(gradient.of(name, part), part)]


def refuse_biased(bound: Any, gradient: Any, guide: Any, num_samples: int) -> None:
    """Refuse, for bounds that are not the mean of the log-weights, the estimators that are right only there."""
    if bound is bounds.elbo:
        return
    used = estimators(gradient, guide)
    if gradients.enumerated in used:
        raise ValueError(_ENUMERATED)
    strata = [one for one in used if isinstance(one, Stratified)]
    if strata and (bound is not bounds.iwae or used != [Stratified(held=False)]):
        raise ValueError(
            "gradients.stratified is for the ELBO; a tighter bound of a mixture is jvi.objectives.stratified(model, guide, "
            "num_samples=K), which takes a product or sequence with mixtures too."
        )
    if gradients.stl in used and num_samples != 1:
        raise ValueError(
            f"gradients.stl is biased for any bound but the ELBO, here with num_samples={num_samples}: the weights depend on the "
            "parameters that it holds fixed. Use gradients.pathwise (in by_group, which takes stl by default, for every part that is "
            "not scored), jvi.objectives.dreg, or jvi.elbo."
        )
    reasons = [one.elbo_only for one in used if hasattr(one, "elbo_only")]
    if reasons and num_samples != 1:
        raise ValueError(f"{reasons[0]}, or jvi.elbo; this is another bound, with num_samples={num_samples}.")


def _scored(bound: Callable[[Array], Scalar], found: Weight, log_score: Array, baseline: Array) -> Scalar:
    """What the score-function gradient is the gradient of."""
    if bound is not bounds.elbo:
        return jnp.sum(jax.lax.stop_gradient(bound(found.log_w) - baseline) * log_score)
    # Adding one cancels the score that log q brings along itself, whose mean is zero.
    if found.log_mass is None:
        return jnp.mean(jax.lax.stop_gradient(found.log_w - baseline + 1.0) * log_score)
    signal = jnp.exp(found.log_mass) * (found.each - baseline[:, None] + 1.0)
    log_score = log_score if log_score.ndim == 2 else log_score[:, None]
    return jnp.mean(jnp.sum(jax.lax.stop_gradient(signal) * log_score, 1))


def check_scored(bound: Any, control: Control) -> None:
    """Refuse what is biased with particles that depend on one another."""
    if bound is not bounds.elbo:
        raise ValueError(
            "with noise.antithetic or noise.sobol the score-function gradient is biased for bounds of several log-weights, because the "
            "particles' joint density is not the product of theirs: use noise.independent, or jvi.elbo."
        )
    if control is controls.leave_one_out:
        raise ValueError(
            "controls.leave_one_out is biased with noise.antithetic or noise.sobol, because a particle's draw decides on the others': "
            "use controls.moving_average(), learned(...), given(...) or none, or noise.independent."
        )


def default_control(gradient: Any, num_samples: int, control: Control | None) -> Control:
    """`control`, or by default the other particles, or where there is one, nothing."""
    if control is not None:
        if control is controls.leave_one_out and num_samples == 1 and hasattr(gradient, "draw"):
            raise ValueError("controls.leave_one_out needs num_samples of 2 or more; with one, use controls.moving_average().")
        return control
    return controls.leave_one_out if num_samples > 1 else controls.none
