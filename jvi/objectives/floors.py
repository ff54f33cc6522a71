"""Free bits: floors under what latents cost."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jvi._spec import spec
from jvi._typing import Array, Scalar


@spec
class FreeBits:
    """Nats of divergence that cost nothing. Made by `free_bits`."""

    nats: float
    per_dimension: bool = False

    def __post_init__(self) -> None:
        nats = self.nats
        if isinstance(nats, bool) or not isinstance(nats, (int, float)) or not 0.0 < nats < math.inf:
            raise ValueError(f"free bits must be a positive number of nats, got {nats!r}; leave them out for the ELBO itself.")

    def __call__(self, kl: Array) -> Scalar:
        """What one latent's divergence counts for, nats."""
        kl = kl if self.per_dimension else jnp.sum(kl)
        # Not jnp.maximum, which passes half of the gradient at the floor itself.
        return jnp.sum(jnp.where(kl > self.nats, kl, self.nats))


def free_bits(nats: float, *, per_dimension: bool = False) -> FreeBits:
    """Free bits: what a latent's divergence from the prior counts for is at least `nats`, so that nothing is gained by less.

    Args:
      nats: for every latent as a whole, that is for every leaf of z; or for every entry.
      per_dimension: whether every entry has its own floor. Takes latents whose entries are independent, in guide and prior.

    Raises:
      ValueError: if `nats` is not a positive number.

    Example:
      >>> import jax.numpy as jnp, jvi
      >>> kl = jnp.array([0.1, 2.0])
      >>> whole, each = jvi.objectives.free_bits(0.5), jvi.objectives.free_bits(0.5, per_dimension=True)
      >>> round(float(whole(kl)), 3), round(float(each(kl)), 3)
      (2.1, 2.5)

    References:
      Kingma et al. (2016), Improved Variational Inference with Inverse Autoregressive Flow.
    """
    return FreeBits(nats, per_dimension)
