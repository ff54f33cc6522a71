"""A guide whose draws are carried towards a model's posterior by Hamiltonian steps along a path of densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi.guides._fixed import check_fixed, check_model
from jvi.guides.functions import Guide
from jvi.models import Model
from jvi.spaces import Space


class Path(NamedTuple):
    """Parameters of `Annealed`, all of them free reals.

    Attributes:
      guide: of the base guide.
      log_step: log step sizes [D], in units of the coordinates.
      increments: [num_steps], whose softmax is by how much each step raises the temperature; after the last it is 1.
      persistence: the logit of the share of the momentum that each step keeps of the last, a scalar.
    """

    guide: Params
    log_step: Array
    increments: Array
    persistence: Scalar


@spec
class Annealed:
    """A base guide's draws after T leapfrog steps along base^(1 - b) p(x, .)^b, with b rising from step to step to 1.

    Between steps the momentum is refreshed in part. No step is accepted or rejected, so that all is differentiable, and

        log_q = log q(u_0 | x) + sum_t (|p_t'|^2 - |p_t|^2) / 2 - log|dz/du|

    with the momenta p_t before and p_t' after each leapfrog step: log p(x, z) - log_q is a log-weight that makes every bound one. As T
    grows and steps shrink, the bound tends to log p(x) whatever the base is. Each draw takes T gradients of the model and of the base;
    its gradient keeps what they computed. There is no `log_prob`.

    Attributes:
      guide: the base, with a `log_prob`; best pretrained, as its parameters are learned along with the path's.
      model: p(x, z), with nothing to learn, since a guide sees no model's parameters. The objective's model may be another one, learned
        even: the bound is a bound all the same, best where the two are close.
      num_steps: T.
      space: where the draws live; by default the base guide's `space`. Steps are taken in its coordinates.
      init_step: initial step size of every coordinate: a good one is a fraction of the posterior's narrowest width.
      init_persistence: initial share of the momentum that is kept, between 0 and 1.

    Raises:
      TypeError: if `guide` is no guide with a `log_prob`, `model` no model, or there is no space.
      ValueError: if a number is out of its range, or, in `init`, if the model has parameters.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z[0] ** 2 + z[1] ** 2 + (z[0] - 2.0 * z[1]) ** 2))
      >>> base = jvi.guides.MeanField(jvi.space(jvi.real(2)), init_scale=0.5)
      >>> guide = jvi.guides.Annealed(base, model, num_steps=8, init_step=0.3)
      >>> z, log_q = guide.sample_and_log_prob(guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> z.shape, log_q.shape
      ((2,), ())

    References:
      Geffner and Domke (2021), MCMC Variational Inference via Uncorrected Hamiltonian Annealing; Zhang, Hsu, Li, Finn and Grosse
      (2021), Differentiable Annealed Importance Sampling; Thin et al. (2021), Monte Carlo Variational Auto-Encoders.
    """

    guide: Any
    model: Model
    num_steps: int
    space: Any = None
    init_step: float = 0.1
    init_persistence: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.guide, Guide) or not hasattr(self.guide, "log_prob"):
            raise TypeError(
                f"guide must be a guide with a log_prob, from which the path of densities starts; got {self.guide!r}."
            )
        check_model(self.model, "Annealed")
        check_count(self.num_steps, "num_steps")
        space = getattr(self.guide, "space", None) if self.space is None else self.space
        if not isinstance(space, Space):
            raise TypeError(f"space must be given, made by jvi.space, where the base guide has none; got {space!r}.")
        object.__setattr__(self, "space", space)
        if not self.init_step > 0.0:
            raise ValueError(f"init_step must be positive, got {self.init_step}.")
        if not 0.0 < self.init_persistence < 1.0:
            raise ValueError(f"init_persistence must be between 0 and 1, got {self.init_persistence}.")

    @property
    def reparameterized(self) -> bool:
        """Whether the base is known to have a path."""
        return getattr(self.guide, "reparameterized", False)

    def init(self, rng: PRNGKey, x: Data) -> Path:
        """The base's initial parameters, equal step sizes and even temperatures."""
        check_fixed(self.model, rng, x, "Annealed")
        step = jnp.full(self.space.size, math.log(self.init_step))
        logit = math.log(self.init_persistence) - math.log1p(-self.init_persistence)
        return Path(self.guide.init(rng, x), step, jnp.zeros(self.num_steps), jnp.asarray(logit))

    def sample_and_log_prob(self, params: Path, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw, and the log_q that belongs to the path it came by, nats."""
        begin, moments = jax.random.split(rng)
        z, log_q = self.guide.sample_and_log_prob(params.guide, begin, x)
        u, log_det = self.space.unconstrain(z)
        noise = jax.random.normal(moments, (self.num_steps + 1, self.space.size), u.dtype)
        step, keep = jnp.exp(params.log_step), jax.nn.sigmoid(params.persistence)
        temperatures = jnp.cumsum(jax.nn.softmax(params.increments))

        def one(carry: tuple[Array, Array], at: tuple[Array, Scalar]) -> tuple[tuple[Array, Array], Scalar]:
            (u, p), (eps, b) = carry, at
            p = keep * p + jnp.sqrt(1.0 - keep**2) * eps
            new, after = leapfrog(jax.grad(lambda u: self._bridge(params.guide, x, u, b)), step, u, p)
            return (new, after), 0.5 * (jnp.sum(after**2) - jnp.sum(p**2))

        (u, _), energies = jax.lax.scan(one, (u, noise[0]), (noise[1:], temperatures))
        z, own_det = self.space.constrain(u)
        return z, log_q - log_det + jnp.sum(energies) - own_det

    def _bridge(self, params: Params, x: Data, u: Array, b: Scalar) -> Scalar:
        z, log_det = self.space.constrain(u)
        log_joint = self.model.log_joint((), x, z)
        return (1.0 - b) * self.guide.log_prob(params, x, z) + b * log_joint + log_det


def leapfrog(slope: Callable[[Array], Array], step: Array, u: Array, p: Array) -> tuple[Array, Array]:
    """One step of (u, p) [D]: it preserves volume, and with the momentum turned round it leads back."""
    u = u + 0.5 * step * p
    p = p + step * slope(u)
    return u + 0.5 * step * p, p
