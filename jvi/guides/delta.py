"""A point: the mode of the posterior."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import Array, Data, Latent, PRNGKey, Scalar
from jvi.guides._base import check
from jvi.spaces import Space


class Point(NamedTuple):
    """Parameters of `Delta`.

    Attributes:
      loc: coordinates of the point [D].
    """

    loc: Array


@spec
class Delta:
    """All mass in one point z = constrain(loc), for maximum a posteriori estimates: with it `jvi.elbo` is log p(x, z).

    Which density is maximized depends on what it is a density of. By default it is that of the latents themselves: log_q = 0, the value
    is log p(x, z), and the maximizer the mode of p(z | x) as `log_joint` writes it. With `of_coordinates` it is that of the
    unconstrained coordinates u: log_q = -log|det dz/du|, the value is log p(x, z) + log|det dz/du|. The two differ where a latent is
    constrained; the latter keeps a scale from collapsing to zero, and is where a Gaussian on the coordinates would be centred.

    A point has no density and no entropy: there is no `log_prob`, the value bounds no evidence, and objectives other than the ELBO, and
    estimates of the evidence, refuse it. A part of a `product` may be a point: its latents are then fitted to log p(x, z) averaged over
    the other parts, as in variational EM.

    Attributes:
      space: where the point lives.
      of_coordinates: whether the density of the unconstrained coordinates is maximized.

    Raises:
      TypeError: if `space` is not a Space.

    Example:
      >>> import distrax, jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: distrax.Gamma(3.0, 2.0).log_prob(z))
      >>> svi = jvi.SVI(jvi.elbo(model, jvi.guides.Delta(jvi.space(jvi.positive()))))
      >>> state, _ = jvi.fit(svi, jax.random.key(0), num_steps=2_000)
      >>> round(float(jnp.exp(state.params.guide.loc[0])), 2)  # the mode of Gamma(3, 2) is (3 - 1) / 2; that of log z is log(3 / 2)
      1.0
    """

    space: Space
    of_coordinates: bool = False
    reparameterized: ClassVar[bool] = True
    point: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.space, 1.0)

    def init(self, rng: PRNGKey, x: Data) -> Point:
        """The origin of the coordinates; `rng` and `x` are not used."""
        return Point(jnp.zeros(self.space.size))

    def sample_and_log_prob(self, params: Point, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """The point, and what stands in for log q: zero, or -log|det dz/du|; `rng` is not used."""
        z, log_det = self.space.constrain(params.loc)
        return z, -log_det if self.of_coordinates else jnp.zeros_like(log_det)
