"""A guide whose draws are pushed through a bijector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from tensorflow_probability.substrates import jax as tfp

from jvi import _tree
from jvi._spec import Recipe, spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi.guides._places import check_guide, has, part, with_part
from jvi.guides.functions import Guide

tfb, tfd = tfp.bijectors, tfp.distributions
Built = Callable[[], Any] | Recipe
Terms = tuple[Latent, Scalar]


@spec
class Pushed:
    """A guide's draws through bijectors."""

    guide: Any
    bijectors: tuple[tuple[str | None, Built], ...]  # by name; one without a name takes the whole draw

    @property
    def reparameterized(self) -> bool:
        """Whether draws are known to have a path."""
        return getattr(self.guide, "reparameterized", False)

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """The guide's initial parameters."""
        return self.guide.init(rng, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density."""
        u, log_q = self.guide.sample_and_log_prob(params, rng, x)
        z, log_det = self.moved(u, _forward)
        return z, log_q - log_det

    def moved(self, value: Latent, move: Callable[[Any, Array], tuple[Array, Scalar]]) -> tuple[Latent, Scalar]:
        """What the bijectors make of a draw, and the log-determinant of that."""
        if self.bijectors[0][0] is None:
            return move(_build(self.bijectors[0][1]), _one_array(value))
        if not isinstance(value, dict) or not {name for name, _ in self.bijectors} <= set(value):
            names = ", ".join(str(name) for name, _ in self.bijectors)
            raise ValueError(f"bijectors for {names} need a draw that is a dict with these names; got {_tree.shapes(value)}.")
        moved, total = dict(value), jnp.zeros(())
        for name, factory in self.bijectors:
            with part(str(name)):
                moved[name], log_det = move(_build(factory), _one_array(value[name]))
            total = total + log_det
        return moved, total

    @property
    def log_prob(self) -> Callable[[Params, Data, Latent], Scalar]:
        """`(params, x, z)` -> log q(z | x), nats."""
        has(self.guide, "log_prob")
        return PushedMethod(self, _log_prob)

    @property
    def entropy(self) -> Callable[[Params, Data, Latent], Scalar]:
        """`(params, x, z)` -> the entropy of the guide inside, plus the log-determinant at the draw `z`; nats."""
        has(self.guide, "entropy")
        return PushedMethod(self, _entropy)

    @property
    def distribution(self) -> Callable[[Params, Data], Any]:
        """`(params, x)` -> q(z | x)."""
        has(self.guide, "distribution")
        return PushedMethod(self, _distribution)

    @property
    def strata(self) -> Callable[[Params, PRNGKey, Data], Any]:
        """`(params, rng, x)` -> a draw from each stratum of a mixture, and their log masses."""
        has(self.guide, "strata")
        return PushedMethod(self, _strata)

    def with_part(self, path: Sequence[str], change: Callable[[Any], Any]) -> Pushed:
        """The same with a part of the guide inside changed."""
        return dataclasses.replace(self, guide=with_part(self.guide, path, change))


@spec
class PushedMethod:
    """A method of a `Pushed`; compares by value."""

    pushed: Pushed
    method: Callable[..., Any]

    def __call__(self, params: Params, *rest: Any) -> Any:
        """The method's value."""
        return self.method(self.pushed, params, *rest)


def transform(guide: Guide, bijector: Any) -> Guide:
    """A guide whose draws are pushed through a bijector: z = f(u), log q(z) = log q(u) - log|det df/du|.

    What the density is one of, the bijector says: `tfb.SoftmaxCentered`'s is per unit of the simplex's surface, which is less than that
    of a Dirichlet, of the first n - 1 entries, by 0.5 log(n). A latent in `jvi.simplex(n)` has the Dirichlet's.

    Args:
      guide: over real numbers.
      bijector: what builds a distrax or TFP bijector without arguments, such as `tfb.Exp`; `jvi.recipe(tfb.Scale, 2.0)` for one with
        arguments; for a draw that is a dict, a dict of these by name, of the latents that are to be moved. All axes of a latent
        belong to one event. A built bijector holds arrays, and is refused.

    Raises:
      TypeError: if `guide` is no guide, or a bijector is built already.
      ValueError: while traced, if draws are not what the bijector takes; a dict's message names the latent.

    Example:
      >>> import jax, jvi
      >>> from tensorflow_probability.substrates import jax as tfp
      >>> guide = jvi.guides.transform(jvi.guides.MeanField(jvi.space(jvi.real(2))), tfp.bijectors.SoftmaxCentered)
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> z.shape, round(float(z.sum()), 4), log_q.shape
      ((3,), 1.0, ())

    References:
      Dillon et al. (2017), TensorFlow Distributions.
    """
    if isinstance(bijector, Mapping):
        if not bijector:
            raise ValueError("bijector must name at least one latent, as in {'rate': tfb.Exp}; got an empty dict.")
        return Pushed(check_guide(guide), tuple((name, _check(bijector[name])) for name in sorted(bijector)))
    return Pushed(check_guide(guide), ((None, _check(bijector)),))


def _check(factory: Any) -> Built:
    built = isinstance(factory, (tfb.Bijector, distrax.Bijector))
    if built or not (callable(factory) or isinstance(factory, Recipe)):
        raise TypeError(
            "bijector must be what builds one, such as tfb.Exp, or jvi.recipe(tfb.Scale, 2.0), because a spec holds no arrays and "
            f"compares by value; got {factory!r}."
        )
    return factory


def _build(factory: Built) -> Any:
    bijector = factory.build() if isinstance(factory, Recipe) else factory()
    if not isinstance(bijector, (tfb.Bijector, distrax.Bijector)):
        raise TypeError(f"bijector must build a distrax or TFP bijector, got {type(bijector).__name__} of {factory!r}.")
    return bijector


def _forward(bijector: Any, u: Array) -> tuple[Array, Scalar]:
    """z, and log|det dz/du|."""
    _check_event(bijector, u, "forward_min_event_ndims", "event_ndims_in")
    with jax.numpy_rank_promotion("allow"):  # TFP relies on it
        if isinstance(bijector, tfb.Bijector):
            return bijector.forward(u), jnp.sum(bijector.forward_log_det_jacobian(u, u.ndim))
        z, log_det = bijector.forward_and_log_det(u)
        return z, jnp.sum(log_det)


def _inverse(bijector: Any, z: Array) -> tuple[Array, Scalar]:
    """u, and log|det du/dz|."""
    _check_event(bijector, z, "inverse_min_event_ndims", "event_ndims_out")
    with jax.numpy_rank_promotion("allow"):
        if isinstance(bijector, tfb.Bijector):
            u = bijector.inverse(z)
            return u, -jnp.sum(bijector.forward_log_det_jacobian(u, u.ndim))
        u, log_det = bijector.inverse_and_log_det(z)
        return u, jnp.sum(log_det)


def _check_event(bijector: Any, value: Array, of_tfp: str, of_distrax: str) -> None:
    least = getattr(bijector, of_tfp if isinstance(bijector, tfb.Bijector) else of_distrax)
    if value.ndim < least:
        raise ValueError(
            f"the bijector {type(bijector).__name__} takes events of {least} axes or more there, got shape {list(value.shape)}."
        )


def _one_array(value: Any) -> Array:
    if not jax.tree_util.all_leaves([value]):
        raise ValueError(
            f"a bijector takes one array, got {_tree.shapes(value)}: pass a dict of bijectors by name, or transform the parts."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(f"a bijector takes real numbers, which have a density; got {_tree.shapes(value)}.")
    return jnp.asarray(value)


def _log_prob(pushed: Pushed, params: Params, x: Data, z: Latent) -> Scalar:
    u, log_det = pushed.moved(z, _inverse)
    return pushed.guide.log_prob(params, x, u) + log_det


def _strata(pushed: Pushed, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Array]:
    u, log_mass = pushed.guide.strata(params, rng, x)
    return jax.vmap(lambda one: pushed.moved(one, _forward)[0])(u), log_mass


def _entropy(pushed: Pushed, params: Params, x: Data, z: Latent) -> Scalar:
    u, log_det = pushed.moved(z, _inverse)
    return pushed.guide.entropy(params, x, u) - log_det


def _distribution(pushed: Pushed, params: Params, x: Data) -> Any:
    inner = pushed.guide.distribution(params, x)
    factories = dict(pushed.bijectors)
    if inner is None:
        return None
    if None in factories:
        return None if isinstance(inner, distrax.Joint) else _through(inner, _build(factories[None]))
    each = inner.distributions if isinstance(inner, distrax.Joint) else None
    if not isinstance(each, dict):
        return None
    return distrax.Joint(
        {name: _through(one, _build(factories[name])) if name in factories else one for name, one in each.items()}
    )


def _through(distribution: Any, bijector: Any) -> Any:
    if isinstance(distribution, tfd.Distribution) and isinstance(bijector, tfb.Bijector):
        return tfd.TransformedDistribution(distribution, bijector)
    bijector, dims = distrax.as_bijector(bijector), len(distribution.event_shape)
    extra = dims - bijector.event_ndims_in
    return distrax.Transformed(distribution, distrax.Block(bijector, extra) if extra else bijector)
