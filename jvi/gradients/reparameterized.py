"""Gradients through the draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.gradients._paths import check_path
from jvi.gradients.strata import stratified


def pathwise(guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
    """The reparameterized gradient: through the draw and through the parameters of log q.

    Unbiased for every bound. Its variance does not vanish at the optimum, because of the score of q, whose mean is zero.
    Gamma, Beta, Dirichlet, Student-t and von Mises draws of distrax and TFP have a path too, by implicit reparameterization.

    Returns:
      One draw `z` and `log q(z | x)`, a scalar in nats.

    Raises:
      TypeError: once traced, if the draw does not depend differentiably on the parameters: a discrete latent, a mixture.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> guide = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> z, log_q = jvi.gradients.pathwise(guide, guide.init(jax.random.key(0), None), jax.random.key(1), None)
      >>> z.shape, log_q.shape
      ((), ())

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes; Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization
      Gradients.
    """
    z, log_q = guide.sample_and_log_prob(params, rng, x)
    check_path(guide, params, rng, x, z)
    return z, log_q


def stl(guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
    """Sticking the landing: through the draw only; the parameters of log q are held fixed.

    Unbiased for the ELBO, and free of variance where q is the exact posterior. Needs the guide's `log_prob`, evaluated once more.

    Returns:
      One draw `z` and `log q(z | x)`, a scalar in nats.

    Raises:
      TypeError: as `pathwise`.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z, x, 0.1))
      >>> objective = jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real())), gradient=jvi.gradients.stl)
      >>> exact = objective.init(jax.random.key(0), 0.0)  # q starts at mean 0 with standard deviation 0.1
      >>> grads = jax.grad(lambda params: objective(params, jax.random.key(1), 0.0)[0])(exact)
      >>> bool(jnp.abs(grads.guide.loc[0]) < 1e-4)
      True

    References:
      Roeder, Wu and Duvenaud (2017), Sticking the Landing.
    """
    z, _ = guide.sample_and_log_prob(params, rng, x)
    check_path(guide, params, rng, x, z)
    return z, guide.log_prob(jax.lax.stop_gradient(params), x, z)


def default(guide: Any) -> Callable[..., Any]:
    """`stratified` where the guide has strata, as mixtures have, `stl` where it has a `log_prob` that is not slow, else `pathwise`."""
    if hasattr(guide, "strata"):
        return stratified
    return stl if hasattr(guide, "log_prob") and not _slow(guide) else pathwise


def _slow(guide: Any) -> bool:
    """Whether the density of a draw takes many passes, as that of an inverse autoregressive flow does, anywhere in a composition."""
    inside = [part for _, part in getattr(guide, "parts", ())] + [getattr(guide, "guide", None)]
    return getattr(guide, "slow_log_prob", False) or any(_slow(one) for one in inside if one is not None)
