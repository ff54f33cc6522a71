"""Particle-filter bounds of state-space models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi import gradients
from jvi import noise as noises
from jvi._checks import check_count, leading_axis
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, PyTree, Scalar
from jvi.gradients._draw import draw
from jvi.gradients.relaxed import Concrete
from jvi.guides.functions import Guide
from jvi.models import StateSpace
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives._particles import Noise, gradient_only
from jvi.objectives.monte_carlo import estimators
from jvi.resampling import multinomial, systematic
from jvi.schedules import is_one


class Particles(NamedTuple):
    """K particles after a step.

    Attributes:
      z: latents of the step, each leaf [K, ...].
      log_w: log-weights [K] whose exponentials sum to one.
    """

    z: Latent
    log_w: Array


@spec
class ParticleFilter:
    """A particle filter's estimate of log p(x). Made by `fivo`."""

    state_space: StateSpace
    proposal: Guide
    num_particles: int
    ess_threshold: float
    resampling: Callable[[PRNGKey, Array], Array]
    resampling_gradient: bool
    mask: Callable[[Data], Array] | None
    noise: Noise
    gradient: Any = gradients.pathwise

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model, from the sequence, and of the guide, from its first step."""
        model, guide = jax.random.split(rng)
        return Params(self.state_space.init(model, x), self.proposal.init(guide, (_at(x, 0), None)))

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound, nats of the sequence, and the last step's log-weights [K], whose `bounds.iwae` it is."""
        length, count, beta = leading_axis(x), self.num_particles, 1.0 if is_one(beta) else beta
        seen = None if self.mask is None else jnp.asarray(self.mask(x), bool)
        if seen is not None and seen.shape != (length,):
            raise ValueError(f"mask must return one truth value for each of {length} steps, got shape {list(seen.shape)}.")
        # All keys are made at once, which is cheaper than step by step, and again on the way back.
        of_resampling, of_proposal = jax.vmap(jax.random.split)(jax.random.split(rng, length)).T
        of_proposal = jax.vmap(lambda key: self.noise(key, count))(of_proposal)
        z, log_alpha, log_drawn = self._propose(params, of_proposal[0], _at(x, 0), None, beta)
        particles, first = _normalized(z, log_alpha - math.log(count))

        def step(particles: Particles, now: tuple[Any, ...]) -> tuple[Particles, tuple[Scalar, Scalar | None]]:
            of_resampling, of_proposal, x_t, seen = now
            before, log_chosen = self._resampled(particles, of_resampling, seen)
            z, log_alpha, log_drawn = self._propose(params, of_proposal, x_t, before.z, beta)
            if seen is not None:  # after the end of a shorter sequence the particles stay as they are
                new, old = (z, log_alpha, log_drawn), (before.z, 0.0, None if log_drawn is None else 0.0)
                z, log_alpha, log_drawn = jax.tree.map(lambda new, old: jnp.where(seen, new, old), new, old)
            after, increment = _normalized(z, before.log_w + log_alpha)
            return after, (increment, _sum(log_chosen, log_drawn))

        rest = jax.tree.map(lambda leaf: leaf[1:], (of_resampling, of_proposal, x, seen))
        # Of each step only the particles are kept for the gradient.
        step = jax.checkpoint(step, prevent_cse=False)
        particles, (increments, log_scores) = jax.lax.scan(step, particles, rest)
        value = first + jnp.sum(increments)
        log_w = jax.lax.stop_gradient(particles.log_w + math.log(count) + value)
        scored = _sum(
            None if log_drawn is None else jax.lax.stop_gradient(value) * log_drawn,
            None if log_scores is None else jnp.sum(jax.lax.stop_gradient(jnp.cumsum(increments[::-1])[::-1]) * log_scores),
        )
        # A choice is judged by what the bound gains from its step on; what was before it has mean zero beside its score.
        return value if scored is None else value + gradient_only(scored), Aux(log_w)

    def _propose(
        self, params: Params, keys: PRNGKey, x_t: Data, before: Latent, beta: Any
    ) -> tuple[Latent, Array, Scalar | None]:
        """Draws of a step, each leaf [K, ...], what they add to the log-weights [K], and the log-density of what has no path."""

        def one(key: PRNGKey, before: Latent) -> tuple[Latent, Scalar, Array | None]:
            found = draw(self.gradient, self.proposal, params.guide, key, (x_t, before))
            if before is None:
                log_p = self.state_space.log_initial(params.model, found.z)
            else:
                log_p = self.state_space.log_transition(params.model, before, found.z)
            log_alpha = self.state_space.log_emission(params.model, x_t, found.z) + beta * (log_p - found.log_q)
            return found.z, log_alpha, found.log_score

        z, log_alpha, log_score = jax.vmap(one)(keys, before)
        return z, log_alpha, None if log_score is None else jnp.sum(log_score)

    def _resampled(self, particles: Particles, rng: PRNGKey, seen: Array | None) -> tuple[Particles, Scalar | None]:
        """The particles that go on, and the log-probability of their choice; as they are where the ESS is large enough."""
        count = self.num_particles
        if self.ess_threshold == 0.0:
            return particles, None
        # Of weights that sum to one the effective sample size is 1 / sum w^2.
        needed = -logsumexp(2.0 * particles.log_w) < math.log(self.ess_threshold * count)
        needed = needed if seen is None else needed & seen
        chosen = self.resampling(rng, jax.lax.stop_gradient(particles.log_w))
        chosen = jnp.where(needed, chosen, jnp.arange(count))
        log_chosen = jnp.where(needed, jnp.sum(particles.log_w[chosen]), 0.0) if self.resampling_gradient else None
        log_w = jnp.where(needed, -math.log(count), particles.log_w)
        return Particles(jax.tree.map(lambda leaf: leaf[chosen], particles.z), log_w), log_chosen


def fivo(
    model: StateSpace,
    guide: Guide,
    *,
    num_particles: int,
    ess_threshold: float = 0.5,
    resampling: Callable[[PRNGKey, Array], Array] = systematic,
    resampling_gradient: bool = False,
    mask: Callable[[Data], Array] | None = None,
    noise: Noise = noises.independent,
    gradient: Callable[..., Any] = gradients.pathwise,
) -> ParticleFilter:
    """A particle filter's estimate of log p(x[0:T]), a lower bound in expectation; nats of the sequence.

    The estimate of p(x) is unbiased, so that its logarithm bounds log p(x) from below, and resampling keeps the gap linear in T where
    that of `iwae` is exponential. Draws that go on carry their gradients along. Those of the choice of ancestors are dropped, as the
    papers do, which biases the gradient, not the value; with `resampling_gradient` they are added by their score. Where draws have
    paths, a resampling that adapts to the weights is biased even so, because a threshold crossed has no gradient: the whole gradient
    takes `ess_threshold` 1 or 0. Discrete latents cross none. Memory is linear in T * K.

    Args:
      model: of `jvi.models.state_space`.
      guide: q(z_t | x_t, z_{t-1}), one step's guide, whose `x` is the pair `(x_t, z_prev)`. At the first step `z_prev` is None, and so
        it is for the guide's `init`.
      num_particles: K.
      ess_threshold: resample before a step if the effective sample size is less than this share of K; 0 is never, which is `iwae` over
        the sequence, 1 always.
      resampling: of `jvi.resampling`.
      resampling_gradient: whether to add the score-function gradient of the ancestors, each judged by what the bound gains from there
        on, which makes the gradient unbiased and noisy; for `jvi.resampling.multinomial` only.
      mask: `(x) -> [T]`, true for the steps of a sequence, false for what fills it up at its end; the first step is one. For sequences
        of unequal length, as in `mask=lambda x: x["is_real"]`; the filling must be finite.
      noise: how the particles' keys of a step are made.
      gradient: `gradients.pathwise`; `gradients.score` for latents that have no path, such as the states of a hidden Markov model, or
        by part `gradients.by_group`. Scores have no baseline here: where the states are few, sum them out in the log-joint instead.

    Raises:
      TypeError: if `model` is no state-space model, or `guide` no guide; once traced, if a latent has no path and is to have one.
      ValueError: if a number is out of range, `resampling_gradient` asked for where it has no probability, or for a `gradient` that
        would be biased.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> model = jvi.models.state_space(
      ...     lambda z: log_normal(z), lambda z_prev, z: log_normal(z, 0.9 * z_prev), lambda x, z: log_normal(x, z)
      ... )
      >>> def proposal(params, x):
      ...     x_t, z_prev = x
      ...     start = 0.0 if z_prev is None else 0.9 * z_prev
      ...     return distrax.Normal(start + params * (x_t - start), 0.7)
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.array(0.5), proposal)
      >>> objective = jvi.objectives.fivo(model, guide, num_particles=16)
      >>> x = jnp.zeros(20)
      >>> value, aux = objective(objective.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> value.shape, aux.log_w.shape
      ((), (16,))

    References:
      Maddison et al. (2017), Filtering Variational Objectives; Naesseth et al. (2018), Variational Sequential Monte Carlo; Le et al.
      (2018), Auto-Encoding Sequential Monte Carlo.
    """
    if not isinstance(model, StateSpace):
        raise TypeError(f"fivo needs a model in steps, made by jvi.models.state_space; got {model!r}.")
    check_parts(model, guide)
    if not 0.0 <= ess_threshold <= 1.0:
        raise ValueError(f"ess_threshold must lie between 0, never, and 1, always; got {ess_threshold!r}.")
    if not callable(resampling) or not (mask is None or callable(mask)):
        raise TypeError(f"resampling, and mask if given, must be functions; got {resampling!r} and {mask!r}.")
    if resampling_gradient and resampling is not multinomial:
        raise ValueError(
            "resampling_gradient needs the probability of the ancestors, which only jvi.resampling.multinomial draws one by one: "
            "pass resampling=jvi.resampling.multinomial."
        )
    _check_gradient(gradient, guide, noise)
    count = check_count(num_particles, "num_particles")
    return ParticleFilter(model, guide, count, float(ess_threshold), resampling, resampling_gradient, mask, noise, gradient)


def _check_gradient(gradient: Any, guide: Guide, noise: Noise) -> None:
    used = estimators(gradient, guide)
    wrong = [one for one in used if one not in (gradients.pathwise, gradients.score) and not isinstance(one, Concrete)]
    if wrong:
        raise ValueError(
            "fivo takes gradients.pathwise, score or concrete, whose gradients are those of the bound: gradients.stl and "
            f"straight_through drop a score whose mean is zero for the ELBO only, and others draw no single z. Got {wrong[0]!r}."
        )
    check = getattr(gradient, "check", None)
    if check is not None:
        check(guide)
    if gradients.score in used and noises.are_joint(noise):
        raise ValueError(
            "with noise.antithetic or noise.sobol the score-function gradient is biased for fivo, because the particles' joint density "
            "is not the product of theirs: use noise.independent."
        )


def _normalized(z: Latent, log_w: Array) -> tuple[Particles, Scalar]:
    """Particles whose weights sum to one, and the logarithm of what they summed to."""
    total = logsumexp(log_w)
    # Where all weights are zero the bound is minus infinity, and stays so.
    return Particles(z, jnp.where(jnp.isneginf(total), -math.log(log_w.shape[0]), log_w - total)), total


def _sum(*terms: Scalar | None) -> Scalar | None:
    """The sum of those that there are."""
    found = [term for term in terms if term is not None]
    return sum(found[1:], found[0]) if found else None


def _at(x: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], x)
