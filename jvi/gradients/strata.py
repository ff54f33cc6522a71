"""The gradient of a mixture: a draw from every component, weighed by the components' weights."""

from __future__ import annotations

from typing import Any

import jax

from jvi._spec import spec
from jvi._typing import Data, Latent, Params, PRNGKey, Scalar
from jvi.gradients._draw import Draw
from jvi.gradients._paths import check_strata


@spec
class Stratified:
    """Stratified draws of a guide with strata, a `jvi.guides.Mixture` alone, nested or in a `product` or `sequence`.

    Every stratum c is drawn from once, through the path of its component, and the ELBO is sum_c w_c (log p(x, z_c) - log q(z_c | x)):
    so the weights have an ordinary derivative, and no draw has to pick a component. The parameters of log q are held fixed where
    `held`, as in `stl`: unbiased for the ELBO alone, and free of variance where q is the exact posterior. For the importance-weighted
    bound take `jvi.objectives.stratified`.

    Attributes:
      held: whether the parameters of log q are held fixed.

    Raises:
      ValueError: when the objective is built, if the guide has no strata.
      TypeError: once traced, if a component's draws have no path.

    Example:
      >>> import jax, jvi
      >>> part = jvi.guides.MeanField(jvi.space(jvi.real()))
      >>> model = jvi.model(lambda x, z: jax.scipy.stats.norm.logpdf(z))
      >>> guide = jvi.guides.Mixture((part, part))
      >>> objective = jvi.elbo(model, guide, gradient=jvi.gradients.stratified)  # which is the default
      >>> grads = jax.grad(objective, has_aux=True)(objective.init(jax.random.key(0), None), jax.random.key(1), None)[0]
      >>> grads.guide.logits.shape
      (2,)

    References:
      Morningstar et al. (2021), Automatic Differentiation Variational Inference with Mixtures; Roeder, Wu and Duvenaud (2017), Sticking
      the Landing.
    """

    held: bool = True

    def __call__(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """A draw from every stratum, each leaf [C, ...], and their log-densities [C]."""
        found = self.draw(guide, params, rng, x)
        return found.z, found.log_q

    def draw(self, guide: Any, params: Params, rng: PRNGKey, x: Data) -> Draw:
        """The same, with the strata's log masses."""
        z, log_mass = guide.strata(params, rng, x)
        check_strata(guide, params, rng, x, z)
        seen = jax.lax.stop_gradient(params) if self.held else params
        return Draw(z, jax.vmap(lambda one: guide.log_prob(seen, x, one))(z), log_mass=log_mass)

    def check(self, guide: Any) -> None:
        """Refuse a guide that has no strata."""
        if not hasattr(guide, "strata"):
            raise ValueError(
                f"gradients.stratified needs a guide with strata, a jvi.guides.Mixture alone or in a product; got {guide!r}. "
                "Use gradients.stl; for a plate of mixtures, whose n copies have C^n strata, gradients.score, or a Mixture of plates."
            )


stratified = Stratified()
