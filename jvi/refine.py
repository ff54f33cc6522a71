"""Semi-amortized inference: a few steps for one datum, from the answer of its encoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jvi import _loops as loops
from jvi import _tree
from jvi._checks import check_count, check_key
from jvi._spec import Recipe, spec
from jvi._typing import Data, Params, PRNGKey, Scalar
from jvi.guides._through import Through
from jvi.guides.amortize import Added
from jvi.objectives._base import Aux
from jvi.svi import SVI, cosine_adam

__all__ = ["refine"]

_COMPARED = 16  # fresh keys on which the end is compared with the start


def refine(
    objective: Any,
    params: Any,
    rng: PRNGKey,
    x: Data,
    *,
    num_steps: int = 20,
    optimizer: Recipe | optax.GradientTransformation | None = None,
) -> Params:
    """The parameters of an amortized guide for one datum, better than what its network emits for it.

    They start at the network's answer, params.guide.guide + network(x), and take `num_steps` steps up the objective for this `x`
    alone, and are returned where these have led up, by a comparison with the start on fresh draws. The network and the model stay as
    they are. What is returned are parameters of the guide that was amortized, `guide.guide`
    of `guide = jvi.guides.amortize(inner, network)`: use them with `inner`. What an encoder falls short of, for a datum unlike
    those of its training above all, is made up for at the cost of `num_steps` gradients.

    Args:
      objective: written for one datum, such as `jvi.elbo(model, guide, num_samples=8)`; its guide is made by `jvi.guides.amortize`.
        The better the start, the more draws: what a step gains must not drown in its noise.
      params: the objective's, as fitted.
      rng: key.
      x: one datum. For many, `jax.vmap(lambda key, one: jvi.refine(objective, params, key, one))(keys, x)`.
      num_steps: steps to take; each that is not finite is left out.
      optimizer: as of `jvi.SVI`; by default Adam, its rate going from 0.02 to zero.

    Returns:
      Parameters of the inner guide, for this `x`.

    Raises:
      TypeError: if the objective has no guide made by `amortize`, `rng` is no key, or a count no whole number.
      ValueError: if there are no steps.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * jnp.sum((z - x) ** 2))
      >>> inner = jvi.guides.MeanField(jvi.space(jvi.real(2)))
      >>> objective = jvi.elbo(model, jvi.guides.amortize(inner, jvi.encoders.MLP(4)), num_samples=10)
      >>> x = jnp.array([1.0, -1.0])
      >>> params = objective.init(jax.random.key(0), x)  # of an encoder that has learned nothing
      >>> fast = jvi.optimizer(jvi.svi.cosine_adam, 0.1, num_steps=300)
      >>> refined = jvi.refine(objective, params, jax.random.key(1), x, num_steps=300, optimizer=fast)
      >>> bool(jnp.allclose(refined.loc, x, atol=0.1))
      True

    References:
      Kim et al. (2018), Semi-Amortized Variational Autoencoders; Cremer, Li and Duvenaud (2018), Inference Suboptimality in
      Variational Autoencoders. The gradient is not taken through the steps.
    """
    guide = getattr(objective, "guide", None)
    if not isinstance(guide, Through) or not isinstance(guide.change, Added):
        raise TypeError(
            "refine starts from what a network emits, so that the objective's guide must be made by jvi.guides.amortize(guide, "
            f"network), the outermost where it is part of a composition, and the objective be that of one datum; got {objective!r}."
        )
    num_steps, rng = check_count(num_steps, "num_steps"), check_key(rng)
    optimizer = Recipe(cosine_adam, (0.02, num_steps)) if optimizer is None else optimizer
    alone = SVI(_Alone(dataclasses.replace(objective, guide=guide.guide)), optimizer)
    return loops.call(_Steps(alone, guide, num_steps), params, rng, x)


@spec
class _Alone:
    """An objective of its guide's parameters, all others given beside the datum."""

    objective: Any

    @property
    def upper(self) -> bool:
        return getattr(self.objective, "upper", False)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        return self.objective.init(rng, x[1]).guide

    def __call__(self, params: Params, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        fixed, x = x
        return self.objective(fixed._replace(guide=params), rng, x, beta=beta)


@spec
class _Steps:
    """The amortized guide's parameters at `x`, after some steps."""

    svi: SVI
    guide: Through
    num_steps: int

    def __call__(self, params: Any, rng: PRNGKey, x: Data) -> Params:
        _, inner, _ = self.guide.opened(params.guide, x)
        inner = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), inner)

        def step(carry: Any, i: Any) -> Any:
            inner, opt_state, in_a_row = carry
            found = self.svi.advance(inner, opt_state, in_a_row, jax.random.fold_in(rng, i), (params, x))
            return found[:3], None

        carry = (inner, self.svi.opt_init(inner), jnp.zeros((), jnp.int32))
        refined = jax.lax.scan(step, carry, jnp.arange(self.num_steps))[0][0]
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, self.num_steps + i))(jnp.arange(_COMPARED))

        def bound(inner: Params) -> Scalar:
            return jnp.mean(jax.vmap(lambda key: self.svi.objective(inner, key, (params, x))[0])(keys))

        start, end = bound(inner), bound(refined)
        return _tree.where(end < start if self.svi.objective.upper else end > start, refined, inner)
