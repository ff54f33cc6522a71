"""A Gaussian over a time series, every step linked to the one before."""

from __future__ import annotations

from typing import ClassVar

import jax

from jvi._checks import check_count
from jvi._spec import spec
from jvi._typing import Array, Data, PRNGKey, Scalar
from jvi.guides._base import LOG_2PI, check_scale
from jvi.guides._information import of_information
from jvi.guides._linked import (
    Linked,
    Moments,
    check_moments,
    check_shape,
    initial,
    log_density,
    moments,
    moved,
    of_moments,
    whitened,
)
from jvi.guides._sweeps import Chain


@spec
class Markov:
    """A Gaussian over [T, D] with block-tridiagonal precision: u_t = loc_t + A_t (u_{t-1} - loc_{t-1}) + L_t eps_t.

    It holds the exact smoother of a linear-Gaussian state-space model, in O(T) time and memory: a draw is a scan, and its density is
    taken of all steps at once. Adam's steps move A_t's entries as much as means: steps of a few units or less are best, and where it
    is slow, `from_moments` starts from a Kalman smoother of a model nearby.

    Attributes:
      num_steps: T.
      dim: D; by default the latent is [T] in place of [T, D].
      init_scale: initial standard deviation of every entry; no links, means at zero.
      parallel: whether draws are by an associative scan, for accelerators: log2(T) rounds of D x D products in place of T steps. The
        draws are the same, to rounding.

    Raises:
      TypeError: if `num_steps` or `dim` is not a whole number.
      ValueError: if one is less than 1, or `init_scale` is not positive.

    Example:
      >>> import jax, jvi
      >>> guide = jvi.guides.Markov(num_steps=100, dim=2)
      >>> params = guide.init(jax.random.key(0), None)
      >>> z, log_q = guide.sample_and_log_prob(params, jax.random.key(1), None)
      >>> z.shape, guide.marginals(params).lag_one.shape
      ((100, 2), (99, 2, 2))

    References:
      Archer et al. (2015), Black Box Variational Inference for State Space Models; Särkkä and García-Fernández (2021), Temporal
      Parallelization of Bayesian Smoothers.
    """

    num_steps: int
    dim: int | None = None
    init_scale: float = 0.1
    parallel: bool = False
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.num_steps, "num_steps")
        if self.dim is not None:
            check_count(self.dim, "dim")
        check_scale(self.init_scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a draw."""
        return (self.num_steps,) if self.dim is None else (self.num_steps, self.dim)

    def init(self, rng: PRNGKey, x: Data) -> Linked:
        """Independent steps at zero with standard deviation `init_scale`; `rng` and `x` are not used."""
        return initial(self.num_steps, self.dim or 1, self.init_scale)

    def sample_and_log_prob(self, params: Linked, rng: PRNGKey, x: Data) -> tuple[Array, Scalar]:
        """One draw, [T, D] or [T], and its log-density in nats."""
        eps = jax.random.normal(rng, params.loc.shape, params.loc.dtype)
        return moved(self._structure, params, eps).reshape(self.shape), log_density(params, eps)

    def log_prob(self, params: Linked, x: Data, z: Array) -> Scalar:
        """log q(z), nats."""
        check_shape("z", z, self.shape, "a draw's")
        return log_density(params, whitened(self._structure, params, z.reshape(params.loc.shape)))

    def entropy(self, params: Linked, x: Data, z: Array) -> Scalar:
        """q's entropy, nats; `z` is not used."""
        return params.log_scale.sum() + 0.5 * params.loc.size * (1.0 + LOG_2PI)

    def marginals(self, params: Linked) -> Moments:
        """Means [T, D], covariances [T, D, D], and those of u_{t+1} with u_t [T - 1, D, D]; D is 1 where `dim` is None."""
        return moments(self._structure, params)

    def from_moments(self, loc: Array, cov: Array, lag_one: Array) -> Linked:
        """The parameters with these moments, such as a Kalman smoother's.

        What a step adds to the one before is found as a difference of covariances: where a step adds less than 1e-5 of its variance,
        float32 does not hold it.

        Args:
          loc: means [T, D].
          cov: covariances [T, D, D], positive definite.
          lag_one: covariances of u_{t+1}, by row, with u_t, by column [T - 1, D, D].

        Raises:
          ValueError: for an array of another shape.
        """
        size, dim = self.num_steps, self.dim or 1
        check_moments(size, dim, loc, cov, lag_one)
        return of_moments(self._structure, loc, cov, lag_one)

    def from_information(self, pull: Array, precision: Array, coupling: Array) -> Linked:
        """The parameters of the chain with log-density -u' J u / 2 + pull' u, but for a constant; differentiable, in O(T).

        With a Gaussian prior's J, and pseudo-observations added to its diagonal and to `pull`, this is that model's smoother: a guide
        whose links follow the prior's parameters.

        Args:
          pull: [T, D].
          precision: J's blocks on the diagonal [T, D, D]; J is positive definite.
          coupling: its blocks below, of step t + 1 by row with step t by column [T - 1, D, D].

        Raises:
          ValueError: for an array of another shape.

        References:
          Archer et al. (2015); Johnson et al. (2016), Composing Graphical Models with Neural Networks for Structured Representations.
        """
        size, dim = self.num_steps, self.dim or 1
        check_shape("pull", pull, (size, dim), "the precision times the means")
        check_shape("precision", precision, (size, dim, dim), "the blocks on the precision's diagonal")
        check_shape("coupling", coupling, (size - 1, dim, dim), "the blocks below them")
        return of_information(pull, precision, coupling)

    @property
    def _structure(self) -> Chain:
        return Chain(self.parallel)
