"""A weighted sum of guides over the same latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, PyTree, Scalar
from jvi.guides._places import part
from jvi.guides._strata import strata_of
from jvi.guides.functions import Guide


class Mixed(NamedTuple):
    """Parameters of `Mixture`.

    Attributes:
      logits: log weights of the components, up to a constant [C].
      components: the components' own parameters, a tuple of C.
    """

    logits: Array
    components: tuple[Params, ...]


@spec
class Mixture:
    """A mixture of guides: q(z | x) = sum_c softmax(logits)[c] q_c(z | x).

    For posteriors of several modes, and for skewed ones. A draw picks its component, a step that has no derivative by the weights; so
    objectives draw from every component at once and weigh the draws (`strata`), which gives weights and components low-variance,
    unbiased gradients: `jvi.elbo` does so by default, `jvi.objectives.stratified` for the tighter bound. Others that need a path
    through the draw refuse a mixture. Components may be anything with a `log_prob`, mixtures and products among them; equal ones are
    evaluated in one batch. Which modes are found is decided by where the components start.

    Attributes:
      guides: the components, over the same latents.
      spread: standard deviation of the components' initial locations about their own, in unconstrained coordinates; every component
        parameter that is called `loc` is moved. Components that start at one place stay together.

    Raises:
      TypeError: if a component is no guide.
      ValueError: if there is none, one has no `log_prob` or another space than the first, or `spread` is negative; once traced, if
        their draws are of different shapes.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> log_normal = jax.scipy.stats.norm.logpdf
      >>> def two_modes(x, z):
      ...     return jnp.logaddexp(jnp.log(0.7) + log_normal(z, -3.0, 0.5), jnp.log(0.3) + log_normal(z, 3.0, 0.5))
      >>> part = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> svi = jvi.SVI(jvi.elbo(jvi.model(two_modes), jvi.guides.Mixture((part, part), spread=3.0), num_samples=8))
      >>> state, _ = jvi.fit(svi, jax.random.key(0), num_steps=3_000)
      >>> [round(float(weight), 2) for weight in jnp.sort(jax.nn.softmax(state.params.guide.logits))]
      [0.3, 0.7]

    References:
      Morningstar et al. (2021), Automatic Differentiation Variational Inference with Mixtures; Gershman, Hoffman and Blei (2012),
      Nonparametric Variational Inference.
    """

    guides: tuple[Any, ...]
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.guides, tuple) or not self.guides:
            raise ValueError(
                f"a mixture needs a tuple of at least one guide, as in Mixture((one, other)); got {self.guides!r}."
            )
        for i, guide in enumerate(self.guides):
            if not isinstance(guide, Guide):
                raise TypeError(f"guides[{i}] must be a guide, with init and sample_and_log_prob, got {guide!r}.")
            if not hasattr(guide, "log_prob"):
                raise ValueError(f"guides[{i}] needs a log_prob, for the density of the mixture, and {guide!r} has none.")
        spaces = [getattr(guide, "space", None) for guide in self.guides]
        for i, space in enumerate(spaces):
            if space is not None and spaces[0] is not None and space != spaces[0]:
                raise ValueError(f"all components must be over the same latents: guides[{i}] is over {space}, not {spaces[0]}.")
        if not 0.0 <= self.spread < math.inf:
            raise ValueError(f"spread must be zero or more, and finite; got {self.spread}.")

    def init(self, rng: PRNGKey, x: Data) -> Mixed:
        """Equal weights, and the components' own initial parameters, their locations spread."""
        keys = jax.random.split(rng, (len(self.guides), 2))
        found = self._each(lambda guide, key: _moved(key[1], guide.init(key[0], x), self.spread), keys)
        return Mixed(jnp.zeros(len(self.guides)), tuple(found))

    def sample_and_log_prob(self, params: Mixed, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, of a component that is drawn by its weight, and the mixture's log-density in nats."""
        pick, rng = jax.random.split(rng)
        chosen = jax.random.categorical(pick, params.logits)
        if self._alike:
            own = jax.tree.map(lambda leaf: leaf[chosen], _stacked(params.components, "parameters"))
            with part(0):  # and of the others as well, which are its equals
                z, _ = self.guides[0].sample_and_log_prob(own, rng, x)
        else:
            drawn = self._each(lambda guide, own: guide.sample_and_log_prob(own, rng, x)[0], params.components)
            z = jax.tree.map(lambda leaf: leaf[chosen], _stacked(drawn, "draws"))
        return z, self.log_prob(params, x, z)

    def log_prob(self, params: Mixed, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        if self._alike:
            components = _stacked(params.components, "parameters")
            with part(0):
                each = jax.vmap(lambda own: self.guides[0].log_prob(own, x, z))(components)
        else:
            each = jnp.stack(self._each(lambda guide, own: guide.log_prob(own, x, z), params.components))
        return logsumexp(jax.nn.log_softmax(params.logits) + each)

    def strata(self, params: Mixed, rng: PRNGKey, x: Data) -> tuple[Latent, Array]:
        """One draw from every component, and from every stratum of a component that has some: leaves [C, ...], log masses [C]."""
        keys = jax.random.split(rng, len(self.guides))
        log_weights = jax.nn.log_softmax(params.logits)
        if self._alike:
            components = _stacked(params.components, "parameters")
            with part(0):
                z, log_mass = jax.vmap(lambda own, key: strata_of(self.guides[0], own, key, x))(components, keys)
            z = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), z)
            return z, (log_weights[:, None] + log_mass).reshape(-1)
        found = self._each(lambda guide, own, key: strata_of(guide, own, key, x), params.components, keys)
        log_mass = jnp.concatenate([weight + inner for weight, (_, inner) in zip(log_weights, found, strict=True)])
        _check_alike([z for z, _ in found], "draws, with their strata's axis in front,", strata=1)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[z for z, _ in found]), log_mass

    def grow(self, params: Mixed, new_params: Params, weight: float, *, guide: Any = None) -> tuple[Mixture, Mixed]:
        """The mixture with one component more: (1 - weight) q + weight q_new. The others keep their densities and proportions.

        To boost, add components one by one where the fit falls short, and train on.

        Args:
          params: of this mixture.
          new_params: of the new component.
          weight: of the new component, between 0 and 1.
          guide: the new component; by default another like the last.

        Raises:
          ValueError: if `weight` is not between 0 and 1, or the component does not fit.

        References:
          Guo et al. (2016), Boosting Variational Inference.
        """
        if not 0.0 < weight < 1.0:
            raise ValueError(f"weight must lie between 0 and 1, got {weight}.")
        bigger = Mixture((*self.guides, self.guides[-1] if guide is None else guide), self.spread)
        old = jax.nn.log_softmax(params.logits) + math.log1p(-weight)
        return bigger, Mixed(jnp.append(old, math.log(weight)), (*params.components, new_params))

    @property
    def _alike(self) -> bool:
        return all(guide == self.guides[0] for guide in self.guides)

    def _each(self, act: Callable[..., Any], *of_each: Iterable[Any]) -> list[Any]:
        """`act(guide, *its own)` for every component, in whose name errors are."""
        found = []
        for i, (guide, *own) in enumerate(zip(self.guides, *of_each, strict=True)):
            with part(i):
                found.append(act(guide, *own))
        return found


def _moved(rng: PRNGKey, params: Params, spread: float) -> Params:
    """Parameters in which everything that is called `loc` lies elsewhere."""

    def one(node: Any, key: PRNGKey) -> Any:
        return (
            node._replace(loc=node.loc + spread * jax.random.normal(key, node.loc.shape, node.loc.dtype))
            if _has_loc(node)
            else node
        )

    nodes, tree = jax.tree.flatten(params, is_leaf=_has_loc)
    return tree.unflatten([one(node, jax.random.fold_in(rng, i)) for i, node in enumerate(nodes)])


def _has_loc(node: Any) -> bool:
    return "loc" in getattr(node, "_fields", ())


def _stacked(trees: Sequence[PyTree], what: str) -> PyTree:
    _check_alike(trees, what)
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _check_alike(trees: Sequence[PyTree], what: str, strata: int = 0) -> None:
    """Refuse trees of unequal structure or shapes, but for the axes of `strata` that lead."""

    def form(tree: PyTree) -> Any:
        return jax.tree.structure(tree), [jnp.shape(leaf)[strata:] for leaf in jax.tree.leaves(tree)]

    for i, tree in enumerate(trees):
        if form(tree) != form(trees[0]):
            raise ValueError(
                f"all components must have {what} of the same structure and shapes: guides[{i}] has {_tree.shapes(tree)}, guides[0] "
                f"{_tree.shapes(trees[0])}."
            )
