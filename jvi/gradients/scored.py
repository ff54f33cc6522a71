"""The score-function gradient, for draws that have no path."""

from __future__ import annotations

from typing import Any, ClassVar

import jax

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.gradients._draw import Draw


@spec
class Score:
    """The score-function gradient (REINFORCE): the draw is held fixed, and the objective adds its signal times grad log q(z | x).

    Unbiased for any guide with a `log_prob`, discrete latents and mixtures included, and noisy: objectives subtract a baseline from
    the signal, by default that of the other particles (`jvi.controls.leave_one_out`).

    Example:
      >>> import jax, jax.numpy as jnp, distrax, jvi
      >>> guide = jvi.guides.from_distribution(lambda rng, x: jnp.zeros(()), lambda params, x: distrax.Bernoulli(params))
      >>> model = jvi.model(lambda x, z: jnp.where(z == 1, jnp.log(0.9), jnp.log(0.1)))
      >>> objective = jvi.elbo(model, guide, num_samples=4, gradient=jvi.gradients.score)
      >>> value, aux = objective(objective.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> aux.log_w.shape
      (4,)

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference; Williams (1992).
    """

    scores: ClassVar[bool] = True  # its draws are held fixed, and log q is differentiated in their place

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, held fixed, and log q(z | x)."""
        found = self.draw(guide, params, rng, x)
        return found.z, found.log_q

    def draw(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> Draw:
        """The same, with what is to be scored."""
        z = jax.lax.stop_gradient(guide.sample_and_log_prob(params, rng, x)[0])
        log_q = guide.log_prob(params, x, z)
        return Draw(z, log_q, log_score=log_q)

    def check(self, guide: Any) -> None:
        """Refuse a guide whose density is intractable."""
        if not hasattr(guide, "log_prob"):
            raise ValueError(f"gradients.score needs a guide with a log_prob, and {guide!r} has none.")


score = Score()
