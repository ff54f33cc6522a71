"""What a guide tells of its distributions, latent by latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jvi import _distributions
from jvi._typing import Array, Data, Latent, PyTree, Scalar
from jvi.guides._places import opened, part


class Whole:
    """Latents whose guide tells no distribution, or its entropy as a whole."""

    def __init__(self, log_prob: Callable[[Latent], Scalar], entropy: Callable[[], Scalar] | None) -> None:
        self.log_prob, self.known = log_prob, entropy

    def entropy(self) -> Scalar:
        """Nats; NotImplementedError where it is not known."""
        if self.known is None:
            raise NotImplementedError
        return self.known()


def told(guide: Any, params: Any, x: Data, z: Latent, log_q: Scalar | None, by_entropy: bool) -> PyTree:
    """The guide's distributions by latent, at a draw that later parts may see."""
    if hasattr(guide, "parts") and hasattr(guide, "log_prob"):
        guide, params, x = opened(guide, params, x)
        found, before = {}, {}
        for name, one in guide.parts:
            with part(name):
                found[name] = told(one, params[name], guide.seen(x, before), z[name], None, by_entropy)
            before[name] = z[name]
        return found
    density = (lambda z: guide.log_prob(params, x, z)) if log_q is None else (lambda z: log_q)
    if by_entropy and hasattr(guide, "entropy"):
        return Whole(density, lambda: guide.entropy(params, x, z))
    known = guide.distribution(params, x) if hasattr(guide, "distribution") else None
    return Whole(density, None) if known is None else _distributions.unjoined(known)


def by_latent(function: Callable[..., Array], q: PyTree, *others: PyTree) -> PyTree:
    """`function` of every distribution of `q`, and of what lies there in the others."""
    leaves, tree = jax.tree.flatten(q, is_leaf=_distributions.is_distribution)
    try:
        rest = [tree.flatten_up_to(other) for other in others]
    except ValueError as error:
        raise ValueError(
            f"the prior must be a pytree of distributions with the structure of the guide's latents: {error}"
        ) from None
    return tree.unflatten([function(*one) for one in zip(leaves, *rest, strict=True)])


def chained(guide: Any) -> bool:
    """Whether a part's distribution depends on another's draw."""
    return getattr(guide, "chained", False) or any(chained(one) for _, one in getattr(guide, "parts", ()))
