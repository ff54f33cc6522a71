"""The Gaussian of a chain or a tree of coordinates, from nothing but a point."""

from __future__ import annotations

import numpy as np

from jvi._targets import Density
from jvi.gaussian_fits._climb import Gaussian
from jvi.gaussian_fits._curvature import newton
from jvi.gaussian_fits._draws import whitened
from jvi.gaussian_fits._pattern import Pattern
from jvi.gaussian_fits._saa import diagonal, fitted
from jvi.gaussian_fits._sparse import Sparse


def tree_fit(density: Density, pattern: Pattern, begin: np.ndarray, rng: np.random.Generator) -> Gaussian:
    """The Gaussian with the pattern's zeros in its precision of largest sample-average ELBO.

    Mean-field first, because a point tells nothing where scales are latent: the density may have no mode. Then a few steps by expected
    curvature, which see what depends on what, and L-BFGS at last, in their frame.

    Args:
      density: the target.
      pattern: what may depend on what.
      begin: where to begin [D].
      rng: of the draws.
    """
    size = len(begin)
    narrow = Gaussian(begin, 0.1 * np.eye(size), -np.inf)
    plain = diagonal(density, narrow, whitened(rng, 64, size, dense=False), num_steps=200)
    member = Sparse.spread(plain.loc, pattern, np.diag(plain.chol))
    for count in (16, 64):
        member = newton(density, member, member.draws(rng, count))
    best, elbo = fitted(density, member, member.draws(rng, member.num_draws))
    return Gaussian(best.loc, best.root(), elbo)
