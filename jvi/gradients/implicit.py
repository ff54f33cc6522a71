"""The gradient of a continuous mixture's own ELBO, by Markov chains over what was mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi.gradients._paths import check_path
from jvi.guides.annealed import leapfrog
from jvi.guides.semi_implicit import SemiImplicit


class Chain(NamedTuple):
    """A Markov chain over eps given z.

    Attributes:
      eps: its last `num_inner` states, each leaf [num_inner, ...].
      acceptance: the share of its moves that a Metropolis test accepts, on average.
    """

    eps: Latent
    acceptance: Scalar


@spec
class Uivi:
    """The gradient of a `SemiImplicit` guide's own ELBO. Made by `uivi`."""

    num_inner: int
    num_warmup: int
    num_steps: int
    step_size: float
    elbo_only: ClassVar[str] = (
        "gradients.uivi is for the ELBO: it has no part of log q but its slope at the draw. Use gradients.pathwise"
    )

    def __post_init__(self) -> None:
        check_count(self.num_inner, "num_inner")
        check_count(self.num_warmup, "num_warmup", least=0)
        check_count(self.num_steps, "num_steps")
        if not self.step_size > 0.0:
            raise ValueError(f"step_size must be positive, got {self.step_size}.")

    def check(self, guide: Any) -> None:
        """Refuse a guide that is no `SemiImplicit`, or whose mixing has no density."""
        if not isinstance(guide, SemiImplicit):
            raise ValueError(f"gradients.uivi is for a jvi.guides.SemiImplicit, got {guide!r}.")
        if not hasattr(guide.mixing, "log_prob"):
            raise ValueError(
                "gradients.uivi moves the mixing's draws by their density, so that mixing must be a guide with a log_prob; got "
                f"{guide.mixing!r}. Use gradients.pathwise, whose bound needs none."
            )

    def __call__(self, guide: SemiImplicit, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, and the guide's own log_q of it, whose gradient is that of the marginal's log-density by the draw."""
        of_draw, of_chain = jax.random.split(rng)
        eps, z, log_q = guide.with_noise(params, of_draw, x)
        check_path(guide, params, of_draw, x, z)
        fixed, seen, start, held = jax.lax.stop_gradient((params, x, eps, z))
        inner = self._chain(guide, fixed, of_chain, seen, start, held).eps
        each = jax.vmap(lambda eps: guide.conditional.log_prob(fixed.conditional, (seen, jax.lax.stop_gradient(eps)), z))(inner)
        steered = jnp.mean(each)
        return z, jax.lax.stop_gradient(log_q) + (steered - jax.lax.stop_gradient(steered))

    def chain(self, guide: SemiImplicit, params: Params, rng: PRNGKey, x: Data) -> Chain:
        """The chain of the very draw that `__call__` takes with this key: its acceptance tells a good `step_size`."""
        of_draw, of_chain = jax.random.split(rng)
        eps, z, _ = guide.with_noise(params, of_draw, x)
        return self._chain(guide, params, of_chain, x, eps, z)

    def _chain(self, guide: SemiImplicit, params: Params, rng: PRNGKey, x: Data, eps: Latent, z: Latent) -> Chain:
        u, constrain = _coordinates(guide.mixing, eps)

        def log_density(u: Array) -> Scalar:
            eps, log_det = constrain(u)
            log_mixing = guide.mixing.log_prob(params.mixing, x, eps)
            return log_mixing + log_det + guide.conditional.log_prob(params.conditional, (x, eps), z)

        def move(at: tuple[Array, Scalar], key: PRNGKey) -> tuple[tuple[Array, Scalar], tuple[Array, Scalar]]:
            of_step, of_momentum, of_test = jax.random.split(key, 3)
            # Equal steps would lead in circles where the density is a Gaussian.
            step = self.step_size * jax.random.uniform(of_step, (), u.dtype, minval=0.5)
            before = jax.random.normal(of_momentum, u.shape, u.dtype)

            def leap(_: int, moved: tuple[Array, Array]) -> tuple[Array, Array]:
                return leapfrog(jax.grad(log_density), step, *moved)

            new, after = jax.lax.fori_loop(0, self.num_steps, leap, (at[0], before))
            there = log_density(new)
            log_ratio = there - at[1] + 0.5 * (jnp.sum(before**2) - jnp.sum(after**2))
            ratio = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
            accept = jax.random.uniform(of_test, (), u.dtype) < ratio
            at = (jnp.where(accept, new, at[0]), jnp.where(accept, there, at[1]))
            return at, (at[0], ratio)

        keys = jax.random.split(rng, self.num_warmup + self.num_inner)
        _, (states, ratios) = jax.lax.scan(move, (u, log_density(u)), keys)
        return Chain(jax.vmap(lambda u: constrain(u)[0])(states[self.num_warmup :]), jnp.mean(ratios))


def uivi(*, num_inner: int = 1, num_warmup: int = 5, num_steps: int = 5, step_size: float = 0.3) -> Uivi:
    """Unbiased implicit variational inference: the gradient of the ELBO of a `SemiImplicit` guide's own marginal q(z | x).

    The slope of a marginal's log-density is that of its conditional, averaged over what may have been mixed:

        d log q(z) / dz = E[d log q(z | eps) / dz]   over eps ~ q(eps | z)

    and the parameters' gradient is that through the draw, as by `stl`. q(eps | z) is sampled by Hamiltonian Monte Carlo: `num_warmup`
    moves, and `num_inner` more whose states are averaged. A chain starts at the eps_0 that made z, which is an exact draw of
    q(eps | z), and each move is accepted or rejected, so that every state is one, however few or bad the moves are. What is
    approximate: the states must not depend on eps_0, by which the draw's path goes. The bias is what their correlation with it
    leaves, and vanishes as fast, in the number of moves; without any, the gradient would be that of the bound with
    `num_auxiliary=0`.

    The value remains the guide's own lower bound, which `num_auxiliary` tightens, and which the gradient is not that of. For the ELBO
    only. A particle takes (num_warmup + num_inner) num_steps gradients of the mixing's and the conditional's densities.

    Args:
      num_inner: states to average.
      num_warmup: moves before the first of them.
      num_steps: leapfrog steps of a move.
      step_size: the largest; every move takes one between half of it and all, in units of eps, or of its coordinates where the mixing
        has a `space`. Without one, eps is taken to be real. About the width of q(eps | z), pi / 2 / num_steps of it for moves
        that forget most; `chain(guide, params, rng, x).acceptance` should be well above a half.

    Raises:
      TypeError, ValueError: if a number is out of its range; when the objective is built, if the guide is no `SemiImplicit`, its mixing
        has no `log_prob`, or the bound is not the ELBO.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> mixing = jvi.guides.MeanField(jvi.space(jvi.real()), init_scale=1.0)
      >>> around = jvi.guides.from_distribution(lambda rng, x: jnp.ones(()), lambda w, x: distrax.Normal(w * x[1], 0.8))
      >>> guide = jvi.guides.SemiImplicit(mixing, around, num_auxiliary=10)
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, 3.0, 1.0))
      >>> objective = jvi.elbo(model, guide, gradient=jvi.gradients.uivi(step_size=0.3), num_samples=16)
      >>> state, _ = jvi.fit(jvi.SVI(objective, jvi.optimizer(jvi.svi.cosine_adam, 0.05, 500)), jax.random.key(0), num_steps=500)
      >>> mixed = state.params.guide.conditional * jnp.exp(state.params.guide.mixing.log_scale[0])
      >>> round(float(jnp.hypot(mixed, 0.8)), 1)  # the posterior's sd
      1.0

    References:
      Titsias and Ruiz (2019), Unbiased Implicit Variational Inference.
    """
    return Uivi(num_inner, num_warmup, num_steps, step_size)


def _coordinates(mixing: Any, eps: Latent) -> tuple[Array, Callable[[Array], tuple[Latent, Scalar]]]:
    """Real coordinates [D] of a draw, and what leads back, with its log-determinant."""
    space = getattr(mixing, "space", None)
    if space is not None:
        return space.unconstrain(eps)[0], space.constrain
    u, back = ravel_pytree(eps)
    return u, lambda u: (back(u), jnp.zeros((), u.dtype))
