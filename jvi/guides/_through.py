"""A guide that is another one, at parameters and data that are functions of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.guides._places import has, with_part
from jvi.spaces import Space


class WithNetwork(NamedTuple):
    """Parameters of `given` and `amortize`.

    Attributes:
      network: the network's; `()` of a plain function, `Variables` where it keeps state.
      guide: the guide's; of `amortize` what the network's output is added to.
    """

    network: Params
    guide: Params


class Change(Protocol):
    """How a `Through` comes by the parameters and the data of the guide inside."""

    def init(self, guide: Any, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        ...

    def open(self, guide: Any, params: Params, x: Data) -> tuple[Params, Data]:
        """The parameters of the guide inside, and what it sees."""
        ...

    def train(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        """The distribution in training, and the parameters with their new state."""
        ...

    @property
    def trains(self) -> bool:
        """Whether a network of its own is another in training."""
        ...


@spec
class Through:
    """A guide that is another, at `change.open(params, x)`. Made by `given`, `amortize` and `freeze`.

    What the guide inside lacks (a density, an entropy, a distribution, parts) it lacks too.
    """

    guide: Any
    change: Change

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters."""
        return self.change.init(self.guide, rng, x)

    def opened(self, params: Params, x: Data) -> tuple[Any, Params, Data]:
        """The guide inside, its parameters, and what it sees."""
        return (self.guide, *self.change.open(self.guide, params, x))

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density."""
        guide, params, x = self.opened(params, x)
        return guide.sample_and_log_prob(params, rng, x)

    @property
    def log_prob(self) -> Callable[[Params, Data, Latent], Scalar]:
        """`(params, x, z)` -> log q(z | x), nats."""
        return self._method("log_prob")

    @property
    def entropy(self) -> Callable[[Params, Data, Latent], Scalar]:
        """`(params, x, z)` -> the entropy, nats."""
        return self._method("entropy")

    @property
    def distribution(self) -> Callable[[Params, Data], Any]:
        """`(params, x)` -> q(z | x)."""
        return self._method("distribution")

    @property
    def support(self) -> Callable[[Params, Data], Latent]:
        """`(params, x)` -> all values of a finite latent."""
        return self._method("support")

    @property
    def strata(self) -> Callable[[Params, PRNGKey, Data], Any]:
        """`(params, rng, x)` -> a draw from each stratum of a mixture, and their log masses."""
        has(self.guide, "strata")
        return Strata(self)

    @property
    def train(self) -> Callable[[Params, PRNGKey, Data], tuple[Any, Params]]:
        """`(params, rng, x)` -> q(z | x) in training, and the parameters with their new state."""
        if not (self.change.trains or hasattr(self.guide, "train")):
            raise AttributeError("nothing in this guide has a training mode.")
        return Trains(self)

    @property
    def parts(self) -> tuple[tuple[str, Any], ...]:
        """Guides by name; their parameters are those of the guide that `opened` returns."""
        return self.guide.parts

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return self.guide.names

    @property
    def chained(self) -> bool:
        """Whether a part sees what came before it."""
        return getattr(self.guide, "chained", False)

    @property
    def space(self) -> Space | None:
        """What draws are checked against."""
        return getattr(self.guide, "space", None)

    @property
    def reparameterized(self) -> bool:
        """Whether draws are known to have a path."""
        return getattr(self.guide, "reparameterized", False)

    def with_part(self, path: Sequence[str], change: Callable[[Any], Any]) -> Through:
        """The same with a part of the guide inside changed."""
        return dataclasses.replace(self, guide=with_part(self.guide, path, change))

    def _method(self, name: str) -> Any:
        has(self.guide, name)
        return Method(self, name)


@spec
class Method:
    """A method of the guide inside; compares by value, as bound methods do not."""

    through: Through
    name: str

    def __call__(self, params: Params, x: Data, *rest: Any) -> Any:
        """The method's value at the inner parameters and data."""
        guide, params, x = self.through.opened(params, x)
        return getattr(guide, self.name)(params, x, *rest)


@spec
class Strata:
    """The strata of the guide inside."""

    through: Through

    def __call__(self, params: Params, rng: PRNGKey, x: Data) -> Any:
        """A draw from each, and their log masses."""
        guide, params, x = self.through.opened(params, x)
        return guide.strata(params, rng, x)


@spec
class Trains:
    """The training mode of a `Through`."""

    through: Through

    def __call__(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
        """q(z | x) in training, and the parameters with their new state."""
        return self.through.change.train(self.through.guide, params, rng, x)


def trained(guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Any, Params]:
    """A guide's distribution in training, or its only one.

    Raises:
      ValueError: if it tells none.
    """
    if hasattr(guide, "train"):
        return guide.train(params, jax.random.fold_in(rng, 1), x)
    distribution = guide.distribution(params, x) if hasattr(guide, "distribution") else None
    if distribution is None:
        raise ValueError(
            f"training draws from the guide's distribution, and {guide!r} tells none: use MeanField, from_distribution or "
            "conditional, or a network that is the same in training."
        )
    return distribution, params


def seen(inputs: Callable[[Data], Any] | None, x: Data) -> Any:
    """What a network sees of `x`."""
    return x if inputs is None else inputs(x)
