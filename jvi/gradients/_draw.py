"""What an objective needs to know of a draw to differentiate it."""

from __future__ import annotations

from typing import Any, NamedTuple

from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar


class Draw(NamedTuple):
    """One particle.

    Attributes:
      z: the latent; with `log_mass`, each leaf [V, ...].
      log_q: its log-density, nats; with `log_mass`, [V].
      log_score: the part of `log_q` whose score stands in for a path that the draw does not have; None if it has all.
      log_mass: log-probabilities [V] of the values that enumerated latents take; None if there are none.
    """

    z: Latent
    log_q: Scalar
    log_score: Array | None = None
    log_mass: Array | None = None


def draw(gradient: Any, guide: Any, params: Params, rng: PRNGKey, x: Data) -> Draw:
    """A draw by any estimator: by its `draw`, or, where it has none, by calling it."""
    if hasattr(gradient, "draw"):
        return gradient.draw(guide, params, rng, x)
    return Draw(*gradient(guide, params, rng, x))
