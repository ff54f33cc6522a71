"""An estimator of its own for every group of latents."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.gradients._draw import Draw, draw
from jvi.gradients.reparameterized import default
from jvi.guides._places import opened, part


@spec
class ByGroup:
    """A guide's parts, each with its own estimator. Made by `by_group`."""

    groups: tuple[tuple[str, Any], ...]

    @property
    def scores(self) -> bool:
        """Whether any part's draws are scored."""
        return any(getattr(gradient, "scores", False) for _, gradient in self.groups)

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and log q(z | x)."""
        found = self.draw(guide, params, rng, x)
        return found.z, found.log_q

    def draw(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> Draw:
        """The same, with what is to be scored and what is enumerated."""
        guide, params, x = opened(guide, params, x)
        return self._from(guide, params, dict(zip(guide.names, jax.random.split(rng, len(guide.names)), strict=True)), x, {})

    def check(self, guide: Any) -> None:
        """Refuse a guide that has no such parts, and estimators that do not fit them."""
        if not hasattr(guide, "parts"):
            raise ValueError(
                f"gradients.by_group needs a guide made of named parts, by jvi.guides.product or sequence; got {guide!r}."
            )
        unknown = [name for name, _ in self.groups if name not in guide.names]
        if unknown:
            raise ValueError(f"gradients.by_group names {', '.join(unknown)}; the guide's parts are {', '.join(guide.names)}.")
        for name, one in guide.parts:
            gradient = self.of(name, one)
            if hasattr(gradient, "check"):
                with part(name):
                    gradient.check(one)

    def of(self, name: str, guide: Any) -> Any:
        """The estimator of one part."""
        return dict(self.groups).get(name) or default(guide)

    def _from(self, guide: Any, params: Params, keys: dict[str, PRNGKey], x: Data, before: dict[str, Latent]) -> Draw:
        """The draws of the parts after those in `before`."""
        left = [(name, one) for name, one in guide.parts if name not in before]
        if not left:
            return Draw({}, jnp.zeros(()))
        name, one = left[0]
        with part(name):
            first = draw(self.of(name, one), one, params[name], keys[name], guide.seen(x, before))
        if first.log_mass is None:
            rest = self._from(guide, params, keys, x, {**before, name: first.z})
            if (mass := rest.log_mass) is not None:
                first = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(mass), *jnp.shape(leaf))), first)
            log_score = _sum(first.log_score, rest.log_score)
            return Draw({name: first.z, **rest.z}, first.log_q + rest.log_q, log_score, rest.log_mass)

        def given(z: Latent) -> Draw:
            return self._from(guide, params, keys, x, {**before, name: z})

        mass: Any = first.log_mass
        rest = jax.vmap(given)(first.z)  # each leaf [V, ...], or [V, W, ...] where more is enumerated after it
        inner = 1 if rest.log_mass is None else rest.log_mass.shape[1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rest) if inner > 1 else rest
        z = jax.tree.map(lambda leaf: leaf.repeat(inner, 0), first.z)
        log_mass = mass.repeat(inner, 0) + (0.0 if flat.log_mass is None else flat.log_mass)
        return Draw({name: z, **flat.z}, first.log_q.repeat(inner, 0) + flat.log_q, flat.log_score, log_mass)


def by_group(**gradients: Any) -> ByGroup:
    """An estimator for every named part of a guide: enumerate one, reparameterize another, score the third.

    Parts that are not named are reparameterized (`stl` where they have a `log_prob`, else `pathwise`).

    Args:
      gradients: by the part's name, such as `gradients.score`.

    Raises:
      ValueError: when the objective is built, if the guide has no such part, or an estimator does not fit it.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> kind = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(2), lambda params, x: distrax.Categorical(params))
      >>> guide = jvi.guides.product(kind=kind, level=jvi.guides.MeanField(jvi.space(jvi.real())))
      >>> model = jvi.model(lambda x, z: jnp.log(0.5) - 0.5 * (z["level"] - z["kind"]) ** 2)
      >>> objective = jvi.elbo(model, guide, gradient=jvi.gradients.by_group(kind=jvi.gradients.enumerated))
      >>> value, _ = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> value.shape
      ()

    References:
      Schulman et al. (2015), Gradient Estimation Using Stochastic Computation Graphs.
    """
    return ByGroup(tuple(gradients.items()))


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return a + b
