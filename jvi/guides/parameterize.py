"""A guide whose parameters are a function of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Data, Params, PRNGKey
from jvi.guides._places import check_guide
from jvi.guides._through import Through, trained
from jvi.guides.functions import Guide


@spec
class Computed:
    """The parameters of the guide inside are computed."""

    initialize: Callable[[PRNGKey, Data], Params]
    params_of: Callable[[Params, Data], Params]

    @property
    def trains(self) -> bool:
        """Whether a network is another in training: none is there."""
        return False

    def init(self, guide: Any, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters, checked to give the guide inside such as it has."""
        params = self.initialize(rng, x)
        found, wanted = jax.eval_shape(self.params_of, params, x), jax.eval_shape(lambda x: guide.init(rng, x), x)
        if jax.tree.structure(found) != jax.tree.structure(wanted) or _shapes(found) != _shapes(wanted):
            raise ValueError(
                f"params_of must return parameters as the guide's init does, {_tree.shapes(wanted)}; it returns {_tree.shapes(found)}."
            )
        return params

    def open(self, guide: Any, params: Params, x: Data) -> tuple[Params, Data]:
        """The parameters of the guide inside, and the data."""
        return self.params_of(params, x), x

    def train(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        """The distribution in training; nothing keeps state."""
        return trained(guide, self.params_of(params, x), rng, x)[0], params


def parameterize(guide: Guide, init: Callable[[PRNGKey, Data], Params], params_of: Callable[[Params, Data], Params]) -> Guide:
    """A guide at computed parameters: q(z; params_of(params, x)).

    For what is known of how a posterior depends on other latents: `Markov.from_information` of a prior's precision and learned
    pseudo-observations, in a `sequence` after the prior's parameters, say.

    Args:
      guide: a family, or a composition of guides.
      init: `(rng, x) -> params`, what is learned.
      params_of: `(params, x) -> the guide's parameters`, as `guide.init` makes them. As a part of a `sequence`, `x` is `(x, earlier)`.

    Raises:
      TypeError: if `guide` is no guide.
      ValueError: by `init`, if `params_of` returns parameters of other shapes than the guide's.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> from jvi.guides.gaussian import Diagonal
      >>> inner = jvi.guides.MeanField(jvi.space(jvi.real(3)))
      >>> one_scale = lambda params, x: Diagonal(params["loc"], jnp.full(3, params["log_scale"]))
      >>> guide = jvi.guides.parameterize(inner, lambda rng, x: {"loc": jnp.zeros(3), "log_scale": jnp.zeros(())}, one_scale)
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z.shape, bool(jnp.isclose(guide.log_prob(params, None, z), log_q))
      ((3,), True)

    References:
      Johnson et al. (2016), Composing Graphical Models with Neural Networks for Structured Representations and Fast Inference.
    """
    return Through(check_guide(guide), Computed(init, params_of))


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]
