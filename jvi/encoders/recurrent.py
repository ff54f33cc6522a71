"""Encoders that read a sequence step by step."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jvi._typing import Array
from jvi.encoders._layers import elements, last, precision


class Recurrent(nn.Module):
    """A gated recurrent unit over a sequence [T, F] -> [T, num_outputs]; by default one in each direction.

    Step t's numbers are of steps 0 to t, and with `bidirectional` of the later ones too, as a smoother's. Given
    `(values [T, F], mask [T])`, steps whose mask is false are passed over, wherever they are: the other steps' numbers are those of
    the sequence without them, and theirs are zero.

    Attributes:
      num_outputs: numbers for each step.
      hidden: units of the state, in each direction.
      bidirectional: whether a second unit reads the sequence from its end.

    Raises:
      TypeError, ValueError: if the input is neither [T, F] or [T], nor that with a mask [T].

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> encoder, x = jvi.encoders.Recurrent(2, hidden=8), jnp.linspace(-1.0, 1.0, 5)
      >>> params = encoder.init(jax.random.key(0), x)
      >>> padded = jnp.append(x, 9.0), jnp.arange(6) < 5
      >>> whole, same = encoder.apply(params, padded), encoder.apply(params, x)
      >>> whole.shape, bool(jnp.allclose(whole[:5], same, rtol=1e-4))
      ((6, 2), True)

    References:
      Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder; Krishnan, Shalit and Sontag (2017), Structured
      Inference Networks for Nonlinear State Space Models.
    """

    num_outputs: int
    hidden: int = 64
    bidirectional: bool = True

    @nn.compact
    def __call__(self, inputs: Any, mask: Any = None) -> Array:
        """[T, num_outputs], of one sequence; its mask is the second argument, or of a pair."""
        values, mask = elements(self, inputs, mask)
        start = jnp.zeros(
            self.hidden, values.dtype if values.dtype.itemsize < 4 else jnp.promote_types(values.dtype, precision())
        )
        seen = [_unit(self.hidden, reverse=False, name="forward")(start, (values, mask))[1]]
        if self.bidirectional:
            seen.append(_unit(self.hidden, reverse=True, name="backward")(start, (values, mask))[1])
        return jnp.where(mask[:, None], last(self.num_outputs)(jnp.concatenate(seen, -1)), 0.0)


class _Step(nn.Module):
    """One step of a gated recurrent unit, whose state stays where the mask is false."""

    hidden: int

    @nn.compact
    def __call__(self, state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        value, keep = inputs
        new, _ = nn.GRUCell(self.hidden, param_dtype=precision())(state, value)
        state = jnp.where(keep, new.astype(state.dtype), state)
        return state, state


def _unit(hidden: int, *, reverse: bool, name: str) -> Any:
    scanned = nn.scan(_Step, variable_broadcast="params", split_rngs={"params": False}, reverse=reverse)
    return scanned(hidden, name=name)
