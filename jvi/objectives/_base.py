"""What objectives are, take and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi._typing import Params as ParamsTree
from jvi.guides.functions import Guide
from jvi.models import Model


class Params(NamedTuple):
    """What an objective is differentiated by.

    Attributes:
      model: the model's parameters; `()` if nothing is learned.
      guide: the guide's parameters.
      control: the control variate's parameters; `()` if there are none.
    """

    model: ParamsTree
    guide: ParamsTree
    control: ParamsTree = ()


class Aux(NamedTuple):
    """What an objective reports beside its value.

    Attributes:
      log_w: log-weights [K], nats; [B, K] under `per_example`.
      updates: parameters that are not the optimizer's to change, as of the next step; None where there are none.
      elbo: the ELBO itself, nats, where the value may be another: under free bits, or with a beta; else None.
      kl: estimates of KL(q || p) by latent, nats, and by entry where those are independent; None where not told apart. Like `elbo`
        the mean over the examples under `per_example`.
    """

    log_w: Array
    updates: Any = None
    elbo: Any = None
    kl: Any = None


class Objective(Protocol):
    """Any spec with these two methods is an objective.

    One may also have `absorb(params, aux) -> params`, which puts `aux.updates` where they belong after a step, and `upper`, true of
    an upper bound, which a fit minimizes. One that is not linear in what is averaged over examples, as with free bits, has
    `parts(params, rng, x, *, beta) -> (pytree, aux)` and `combine(pytree, beta) -> value`: the pytree is averaged, over examples and
    over devices, before it is combined.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> objective = jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real())))
      >>> value, aux = objective(objective.init(jax.random.key(0), 1.0), jax.random.key(1), 1.0)
      >>> value.shape, aux.log_w.shape
      ((), (1,))
    """

    def init(self, rng: PRNGKey, x: Data) -> Any:
        """Initial parameters."""
        ...

    def __call__(self, params: Any, rng: PRNGKey, x: Data, *, beta: Any = 1.0) -> tuple[Scalar, Aux]:
        """The bound, nats, and what came along."""
        ...


def nested(objective: Any) -> Iterator[Any]:
    """An objective, and those it is made of, from outside in."""
    while objective is not None:
        yield objective
        fields = {field.name for field in dataclasses.fields(objective)} if dataclasses.is_dataclass(objective) else set()
        objective = next((getattr(objective, name) for name in ("objective", "sampled", "particles") if name in fields), None)


def no_lower_bound(objective: Any) -> str | None:
    """What keeps an objective from being a lower bound of the evidence, by name; None where it is one."""
    for one in nested(objective):
        for of in (one, getattr(one, "bound", None)):
            if getattr(of, "upper", False) or not getattr(of, "bounds_evidence", True):
                return type(of).__name__
    return None


def check_parts(model: Any, guide: Any) -> None:
    """Refuse what is no model, or no guide."""
    if not isinstance(model, Model):
        hint = "; wrap a function as jvi.model(log_joint)" if callable(model) else ""
        raise TypeError(f"model must have the methods init and log_joint, got {model!r}{hint}.")
    if not isinstance(guide, Guide):
        raise TypeError(f"guide must have the methods init and sample_and_log_prob, got {guide!r}.")


def check_objective(objective: Any) -> None:
    """Refuse what is no objective."""
    if not callable(objective) or not hasattr(objective, "init"):
        raise TypeError(f"objective must be made by jvi.elbo, jvi.iwae or the like, got {objective!r}.")
