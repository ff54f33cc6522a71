"""Amortized guides of time series that are drawn step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Params, PRNGKey, Scalar
from jvi.guides._base import LOG_2PI, check_scale
from jvi.networks import network


class Stepwise(NamedTuple):
    """Parameters of `AutoregressiveSequence`.

    Attributes:
      encoder: the encoder's.
      combiner: the combiner's.
      before: what the first step sees as the draw before it [D].
    """

    encoder: Params
    combiner: Params
    before: Array


class Gated(nn.Module):
    """A combiner: (draw before [D], code [H]) -> (mean [D], log standard deviation [D]), gated between linear and not.

    joint = (tanh(W before) + V code) / 2, as in the deep Markov model's ST-LR; mean = (1 - gate) * (B before) + gate * proposed, where
    gate, proposed and the standard deviation are functions of joint. The standard deviation starts near `init_scale`.

    Attributes:
      dim: D.
      width: of joint.
      init_scale: initial standard deviation.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> combiner = jvi.guides.Gated(dim=2, width=16)
      >>> params = combiner.init(jax.random.key(0), jnp.zeros(2), jnp.zeros(5))
      >>> loc, log_scale = combiner.apply(params, jnp.zeros(2), jnp.zeros(5))
      >>> loc.shape, round(float(log_scale[0]), 2)  # log(0.1)
      ((2,), -2.3)

    References:
      Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models.
    """

    dim: int
    width: int = 64
    init_scale: float = 0.1

    @nn.compact
    def __call__(self, before: Array, code: Array) -> tuple[Array, Array]:
        """The next step's mean and log standard deviation."""
        joint = 0.5 * (jnp.tanh(nn.Dense(self.width)(before)) + nn.Dense(self.width)(code))
        gate = nn.sigmoid(nn.Dense(self.dim)(joint))
        loc = (1.0 - gate) * nn.Dense(self.dim)(before) + gate * nn.Dense(self.dim)(nn.tanh(joint))
        small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
        log_scale = nn.Dense(self.dim, kernel_init=small)(nn.tanh(joint)) + math.log(self.init_scale)
        return loc, log_scale


@spec
class AutoregressiveSequence:
    """q(z | x) = prod_t N(z_t; combiner(z_{t-1}, h_t)) over [T, D], with codes h [T, H] = encoder(x), from one network for every datum.

    What the encoder sees decides on what a step knows of the data: one that goes backward in time, both ways, or attends to all of x
    can make it the smoother; one that goes forward alone, the filter. T is the codes', and may differ from datum to datum.
    Draws are a scan; the density is taken of all steps at once.

    Attributes:
      encoder: a Linen module, what builds an NNX module, or `jvi.networks.network(...)`: `inputs(x) -> h`, or, with a mask,
        `(inputs(x), mask(x)) -> h`, as `jvi.encoders.Recurrent`, `TemporalConvolution` and `SequenceTransformer`.
      dim: D.
      combiner: a network, `(z_{t-1} [D], h_t [H]) -> (mean [D], log standard deviation [D])`; `Gated(dim)` by default.
      inputs: `(x) -> what the encoder sees`; all of `x` by default.
      mask: `(x) -> [T]`, bool, false where a step is padding: its draw is 0 with log-density 0, and the step after sees the last draw
        that is none. That other codes do not depend on padding is the encoder's to see to.
      init_scale: initial standard deviation, of the default combiner.

    Raises:
      TypeError: if `encoder` or `combiner` is not a network, or `inputs` or `mask` no function.
      ValueError: if `dim` is less than 1 or `init_scale` is not positive; once traced, if the codes, the mask or the combiner's outputs
        are of other shapes.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.AutoregressiveSequence(nn.Dense(8), dim=2)
      >>> x = jnp.ones((30, 3))
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), x), jax.random.key(1), x)
      >>> z.shape, log_q.shape
      ((30, 2), ())

    References:
      Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models.
    """

    encoder: Any
    dim: int
    combiner: Any = None
    inputs: Callable[[Data], Any] | None = None
    mask: Callable[[Data], Array] | None = None
    init_scale: float = 0.1
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.dim, "dim")
        check_scale(self.init_scale)
        for name in ("inputs", "mask"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function of x, got {value!r}.")
        combiner = Gated(self.dim, init_scale=self.init_scale) if self.combiner is None else self.combiner
        object.__setattr__(self, "encoder", network(self.encoder))
        object.__setattr__(self, "combiner", network(combiner))

    def init(self, rng: PRNGKey, x: Data) -> Stepwise:
        """Initial parameters for data of these shapes."""
        of_encoder, of_combiner = jax.random.split(rng)
        encoder = self.encoder.init(of_encoder, *self._seen(x))
        before = jnp.zeros(self.dim)
        combiner = self.combiner.init(of_combiner, before, self._codes(encoder, x)[0])
        return Stepwise(encoder, combiner, before)

    def sample_and_log_prob(self, params: Stepwise, rng: PRNGKey, x: Data) -> tuple[Array, Scalar]:
        """One draw [T, D] and its log-density in nats."""
        codes, used = self._codes(params.encoder, x), self._used(x)

        def step(before: Array, at: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            code, used, eps = at
            loc, log_scale = self._combined(params, before, code)
            z = loc + jnp.exp(log_scale) * eps
            return jnp.where(used, z, before), (jnp.where(used, z, 0.0), jnp.where(used, _log_normal(eps, log_scale), 0.0))

        steps = jnp.arange(codes.shape[0])
        # By step, so that padding at the end changes no draw.
        eps = jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(rng, t), (self.dim,), params.before.dtype))(steps)
        used = jnp.ones(codes.shape[0], bool) if used is None else used
        _check(used, codes)
        _, (z, log_q) = lax.scan(step, params.before, (codes, used, eps))
        return z, jnp.sum(log_q)

    def log_prob(self, params: Stepwise, x: Data, z: Array) -> Scalar:
        """log q(z | x), nats: of all steps at once, since each sees the draw before it."""
        codes, used = self._codes(params.encoder, x), self._used(x)
        if jnp.shape(z) != (codes.shape[0], self.dim):
            raise ValueError(f"z must have shape {[codes.shape[0], self.dim]}, as the codes have; got {list(jnp.shape(z))}.")
        before = jnp.concatenate([params.before[None], z])
        if used is None:
            before = before[:-1]
        else:
            _check(used, codes)
            last = lax.cummax(jnp.where(used, jnp.arange(1, len(used) + 1), 0))  # step t's draw is row t + 1 of before
            before = before[jnp.concatenate([jnp.zeros(1, last.dtype), last[:-1]])]
        loc, log_scale = jax.vmap(lambda before, code: self._combined(params, before, code))(before, codes)
        each = jax.vmap(_log_normal)((z - loc) * jnp.exp(-log_scale), log_scale)
        return jnp.sum(each if used is None else jnp.where(used, each, 0.0))

    def _seen(self, x: Data) -> tuple[Any, ...]:
        seen = x if self.inputs is None else self.inputs(x)
        return (seen,) if self.mask is None else (seen, self.mask(x))

    def _used(self, x: Data) -> Array | None:
        return None if self.mask is None else jnp.asarray(self.mask(x), bool)

    def _codes(self, params: Params, x: Data) -> Array:
        codes = self.encoder.apply(params, *self._seen(x))
        if jnp.ndim(codes) != 2:
            raise ValueError(f"encoder must return codes [T, H], a row a step; got {_kind(codes)}.")
        return codes

    def _combined(self, params: Stepwise, before: Array, code: Array) -> tuple[Array, Array]:
        out = self.combiner.apply(params.combiner, before, code)
        if not isinstance(out, tuple) or len(out) != 2 or any(jnp.shape(part) != (self.dim,) for part in out):
            raise ValueError(
                f"combiner must return (mean [{self.dim}], log standard deviation [{self.dim}]); got {jax.tree.map(jnp.shape, out)}."
            )
        return out


def _log_normal(eps: Array, log_scale: Array) -> Scalar:
    return jnp.sum(-0.5 * (eps**2 + LOG_2PI) - log_scale)


def _check(used: Array, codes: Array) -> None:
    if used.shape != codes.shape[:1]:
        raise ValueError(
            f"mask must return [{codes.shape[0]}], a bool for each of the encoder's codes; got {list(used.shape)}."
        )


def _kind(codes: Any) -> str:
    return f"shape {list(jnp.shape(codes))}" if hasattr(codes, "shape") else type(codes).__name__
