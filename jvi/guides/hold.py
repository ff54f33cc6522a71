"""Parts of a guide that are held: their parameters as they are, or their latents at known values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi.guides._places import check_guide, has, part, with_part
from jvi.guides._through import Through, trained
from jvi.guides.functions import Guide


@spec
class Frozen:
    """No gradient flows into the parameters of the guide inside."""

    @property
    def trains(self) -> bool:
        """Nothing here is trained."""
        return False

    def init(self, guide: Any, rng: PRNGKey, x: Data) -> Params:
        """The guide's own."""
        return guide.init(rng, x)

    def open(self, guide: Any, params: Params, x: Data) -> tuple[Params, Data]:
        """The same values."""
        return jax.lax.stop_gradient(params), x

    def train(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        """The distribution in training, whose state stays as it is."""
        return trained(guide, jax.lax.stop_gradient(params), rng, x)[0], params


def freeze(guide: Guide, *names: str) -> Guide:
    """The same guide, without gradients for the parameters of the named parts; of all parts, if none is named.

    Draws, densities and parameters are what they are without it, so that it can be taken off again. In a `sequence`, gradients still
    flow through a frozen part into what it sees. An optimizer that decays weights changes frozen ones too.

    Args:
      guide: any; with `names`, made of named parts.
      names: of parts, `"outer/inner"` for a part of a part. Combinators on the way are looked through.

    Raises:
      TypeError: if `guide` is no guide.
      ValueError: if there is no such part; the message lists those that there are.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> part = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> guide = jvi.guides.freeze(jvi.guides.product(a=part, b=part), "a")
      >>> params = guide.init(jax.random.key(0), None)
      >>> grads = jax.grad(lambda params: guide.log_prob(params, None, {"a": jnp.ones(()), "b": jnp.ones(())}))(params)
      >>> bool(grads["a"].loc == 0.0), bool(grads["b"].loc == 0.0)
      (True, False)
    """
    check_guide(guide)
    if not names:
        return _frozen(guide)
    for name in names:
        guide = with_part(guide, name.split("/"), _frozen)
    return guide


@spec
class Partial:
    """A guide whose draws gain latents that are known. Made by `partial`."""

    guide: Any
    known: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        if not self.known:
            raise ValueError("partial needs at least one known latent, as in jvi.guides.partial(guide, scale=1.0).")
        for name, value in self.known:
            with part(name):
                _check_known(value)
        _refuse_drawn(self.names_of_draws, self.known)

    @property
    def names_of_draws(self) -> tuple[str, ...]:
        """Names that the guide inside is known to draw before anything is drawn."""
        return tuple(getattr(self.guide, "names", ()))

    @property
    def reparameterized(self) -> bool:
        """Whether draws are known to have a path."""
        return getattr(self.guide, "reparameterized", False)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """The guide's initial parameters."""
        return self.guide.init(rng, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[dict[str, Latent], Scalar]:
        """One draw, with the known latents, and the log-density of what is drawn."""
        z, log_q = self.guide.sample_and_log_prob(params, rng, x)
        self.check(z)
        return {**z, **self.values(x)}, log_q

    def check(self, z: Latent) -> None:
        """Refuse draws that known latents cannot be added to."""
        if not isinstance(z, dict):
            raise TypeError(f"partial adds latents to a guide whose draws are a dict; this one draws {_tree.shapes(z)}.")
        _refuse_drawn(z, self.known)

    def values(self, x: Data) -> dict[str, Array]:
        """The known latents."""
        return {name: _value(name, known, x) for name, known in self.known}

    @property
    def log_prob(self) -> Callable[[Params, Data, dict[str, Latent]], Scalar]:
        """`(params, x, z)` -> the log-density of what is drawn; the known latents in `z` are not looked at."""
        has(self.guide, "log_prob")
        return OfDrawn(self, "log_prob")

    @property
    def entropy(self) -> Callable[[Params, Data, dict[str, Latent]], Scalar]:
        """`(params, x, z)` -> the entropy of what is drawn, nats."""
        has(self.guide, "entropy")
        return OfDrawn(self, "entropy")

    @property
    def distribution(self) -> Callable[[Params, Data], Any]:
        """`(params, x)` -> q(z | x), the known latents as points."""
        has(self.guide, "distribution")
        return WithPoints(self)

    @property
    def strata(self) -> Callable[[Params, PRNGKey, Data], Any]:
        """`(params, rng, x)` -> a draw from each stratum of a mixture, with the known latents, and their log masses."""
        has(self.guide, "strata")
        return StrataWithKnown(self)

    def with_part(self, path: Sequence[str], change: Callable[[Any], Any]) -> Partial:
        """The same with a part of the guide inside changed."""
        return dataclasses.replace(self, guide=with_part(self.guide, path, change))


@spec
class OfDrawn:
    """A method of the guide inside, of what it draws; compares by value."""

    held: Partial
    name: str

    def __call__(self, params: Params, x: Data, z: dict[str, Latent]) -> Any:
        """Of the draw without the known latents."""
        known = dict(self.held.known)
        if not isinstance(z, dict) or not set(known) <= set(z):
            raise ValueError(f"z must be a dict, with the known latents {', '.join(known)} in it; got {_tree.shapes(z)}.")
        drawn = {name: value for name, value in z.items() if name not in known}
        return getattr(self.held.guide, self.name)(params, x, drawn)


@spec
class StrataWithKnown:
    """The strata of the guide inside, each with the known latents; compares by value."""

    held: Partial

    def __call__(self, params: Params, rng: PRNGKey, x: Data) -> tuple[dict[str, Latent], Array]:
        """A draw from each, leaves [C, ...], and their log masses [C]."""
        z, log_mass = self.held.guide.strata(params, rng, x)
        self.held.check(z)
        known = self.held.values(x)
        return {**z, **{name: jnp.broadcast_to(one, (*log_mass.shape, *one.shape)) for name, one in known.items()}}, log_mass


@spec
class WithPoints:
    """The distribution of the guide inside, and points; compares by value."""

    held: Partial

    def __call__(self, params: Params, x: Data) -> Any:
        """A joint distribution; None where the guide inside tells none by name."""
        inner = self.held.guide.distribution(params, x)
        each = inner.distributions if isinstance(inner, distrax.Joint) else None
        if not isinstance(each, dict):
            return None
        points = {name: distrax.Deterministic(value) for name, value in self.held.values(x).items()}
        return distrax.Joint(
            {
                **each,
                **{
                    name: distrax.Independent(one, len(one.batch_shape)) if one.batch_shape else one
                    for name, one in points.items()
                },
            }
        )


def partial(guide: Guide, **known: Any) -> Guide:
    """A guide whose draws gain latents that are known, for a model that asks for them; its density does not change.

    Args:
      guide: draws a dict.
      known: by name, a number, a (nested) tuple of numbers, which become floats, or a function of `x`, which returns an array of any
        type. As a part of a `sequence`, `x` is `(x, earlier)`.

    Raises:
      TypeError: if `guide` is no guide, or a value is something else; an array, which is no part of a spec, is what a function of
        `x` returns.
      ValueError: if the guide draws the latent already; where only a draw can tell, while traced.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.partial(jvi.guides.MeanField(jvi.space({"loc": jvi.real()})), scale=2.0)
      >>> z, _ = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> sorted(z), float(z["scale"])
      (['loc', 'scale'], 2.0)
    """
    return Partial(check_guide(guide), tuple(sorted(known.items())))


def _frozen(guide: Any) -> Guide:
    return Through(guide, Frozen())


def _refuse_drawn(drawn: Any, known: tuple[tuple[str, Any], ...]) -> None:
    twice = [name for name, _ in known if name in drawn]
    if twice:
        raise ValueError(
            f"the guide draws {', '.join(twice)} already, with {', '.join(sorted(drawn))}: leave the part out, or name another."
        )


def _check_known(value: Any) -> None:
    if callable(value) or isinstance(value, (bool, int, float, np.number)):
        return
    if not isinstance(value, tuple):
        raise TypeError(f"a known latent must be a number, a tuple of numbers or a function of x; got {type(value).__name__}.")
    for entry in value:
        _check_known(entry)


def _value(name: str, known: Any, x: Data) -> Array:
    with part(name):
        return jnp.asarray(known(x)) if callable(known) else jnp.asarray(known, float)
