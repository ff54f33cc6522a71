"""Particle-filter bounds of state-space models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi import bounds, gradients
from jvi import noise as noises
from jvi._checks import check_count, leading_axis
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, PyTree, Scalar
from jvi.guides.functions import Guide
from jvi.models import StateSpace
from jvi.objectives._base import Aux, Params, check_parts
from jvi.objectives.weighted import Noise
from jvi.resampling import multinomial, systematic


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

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters of the model, from the sequence, and of the guide, from its first step."""
        model, guide = jax.random.split(rng)
        return Params(self.state_space.init(model, x), self.proposal.init(guide, (_at(x, 0), None)))

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound, nats of the sequence, and the last step's log-weights [K], whose `bounds.iwae` it is."""
        length, count = leading_axis(x), self.num_particles
        seen = jnp.ones(length, bool) if self.mask is None else jnp.asarray(self.mask(x), bool)
        if seen.shape != (length,):
            raise ValueError(f"mask must return one truth value for each of {length} steps, got shape {list(seen.shape)}.")
        keys = jax.random.split(rng, length)
        z, log_alpha = self._propose(params, keys[0], _at(x, 0), None, beta)
        particles, first = _normalized(z, log_alpha - math.log(count))

        def step(particles: Particles, now: tuple[PRNGKey, Data, Array]) -> tuple[Particles, tuple[Scalar, Scalar]]:
            key, x_t, seen = now
            of_resampling, of_proposal = jax.random.split(key)
            before, log_ancestors = self._resampled(particles, of_resampling, seen)
            z, log_alpha = self._propose(params, of_proposal, x_t, before.z, beta)
            # After the end of a shorter sequence the particles stay as they are.
            z = jax.tree.map(lambda new, old: jnp.where(seen, new, old), z, before.z)
            after, increment = _normalized(z, before.log_w + jnp.where(seen, log_alpha, 0.0))
            return after, (increment, log_ancestors)

        rest = jax.tree.map(lambda leaf: leaf[1:], x)
        # Of each step only the particles are kept for the gradient.
        step = jax.checkpoint(step, prevent_cse=False)
        particles, (increments, log_ancestors) = jax.lax.scan(step, particles, (keys[1:], rest, seen[1:]))
        value = first + jnp.sum(increments)
        log_w = jax.lax.stop_gradient(particles.log_w + math.log(count) + value)
        if self.resampling_gradient:
            later = jnp.cumsum(increments[::-1])[::-1]
            scored = jnp.sum(jax.lax.stop_gradient(later) * log_ancestors)
            value = value + (scored - jax.lax.stop_gradient(scored))
        return value, Aux(log_w)

    def _propose(self, params: Params, rng: PRNGKey, x_t: Data, before: Latent, beta: Any) -> tuple[Latent, Array]:
        """Draws of a step, each leaf [K, ...], and what they add to the log-weights [K]."""

        def one(key: PRNGKey, before: Latent) -> tuple[Latent, Scalar]:
            z, log_q = gradients.pathwise(self.proposal, params.guide, key, (x_t, before))
            if before is None:
                log_p = self.state_space.log_initial(params.model, z)
            else:
                log_p = self.state_space.log_transition(params.model, before, z)
            return z, self.state_space.log_emission(params.model, x_t, z) + beta * (log_p - log_q)

        return jax.vmap(one)(self.noise(rng, self.num_particles), before)

    def _resampled(self, particles: Particles, rng: PRNGKey, seen: Array) -> tuple[Particles, Scalar]:
        """The particles that go on, and the log-probability of their choice; as they are where the ESS is large enough."""
        count = self.num_particles
        needed = (bounds.ess(particles.log_w) < self.ess_threshold * count) & seen
        chosen = self.resampling(rng, jax.lax.stop_gradient(particles.log_w))
        chosen = jnp.where(needed, chosen, jnp.arange(count))
        log_chosen = jnp.where(needed, jnp.sum(particles.log_w[chosen]), 0.0)
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
) -> ParticleFilter:
    """A particle filter's estimate of log p(x[0:T]), a lower bound in expectation; nats of the sequence.

    The estimate of p(x) is unbiased, so that its logarithm bounds log p(x) from below, and resampling keeps the gap linear in T where
    that of `iwae` is exponential. Draws that go on carry their gradients along. Those of the choice of ancestors are dropped, which
    biases the gradient, not the value; so it is with adaptive resampling in any case. Memory is linear in T * K.

    Args:
      model: of `jvi.models.state_space`.
      guide: q(z_t | x_t, z_{t-1}), one step's reparameterized guide, whose `x` is the pair `(x_t, z_prev)`. At the first step `z_prev`
        is None, and so it is for the guide's `init`.
      num_particles: K.
      ess_threshold: resample before a step if the effective sample size is less than this share of K; 0 is never, which is `iwae` over
        the sequence, 1 always.
      resampling: of `jvi.resampling`.
      resampling_gradient: whether to add the score-function gradient of the ancestors, which makes the gradient unbiased for
        `ess_threshold=1` and noisy; for `jvi.resampling.multinomial` only.
      mask: `(x) -> [T]`, true for the steps of a sequence, false for what fills it up at its end; the first step is one. For sequences
        of unequal length, as in `mask=lambda x: x["is_real"]`; the filling must be finite.
      noise: how the particles' keys of a step are made.

    Raises:
      TypeError: if `model` is no state-space model, or `guide` no guide; once traced, if a latent has no path.
      ValueError: if a number is out of range, or `resampling_gradient` asked for where it has no probability.

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
    count = check_count(num_particles, "num_particles")
    return ParticleFilter(model, guide, count, float(ess_threshold), resampling, resampling_gradient, mask, noise)


def _normalized(z: Latent, log_w: Array) -> tuple[Particles, Scalar]:
    """Particles whose weights sum to one, and the logarithm of what they summed to."""
    total = logsumexp(log_w)
    # Where all weights are zero the bound is minus infinity, and stays so.
    return Particles(z, jnp.where(jnp.isneginf(total), -math.log(log_w.shape[0]), log_w - total)), total


def _at(x: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], x)
