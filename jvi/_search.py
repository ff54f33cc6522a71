"""How `jvi.infer` opens: points where the target is finite, ascents from them, a Gaussian at each optimum."""

from __future__ import annotations

import numpy as np

from jvi._journal import Journal
from jvi._targets import Density
from jvi.gaussian_fits._climb import Climb, Gaussian, climb
from jvi.gaussian_fits._draws import whitened
from jvi.gaussian_fits._optima import MASS, distinct, others
from jvi.gaussian_fits._pattern import declared
from jvi.gaussian_fits._saa import diagonal, full_rank
from jvi.gaussian_fits._trees import tree_fit

DENSE = 600  # coordinates up to which every entry of a covariance is fitted
_STARTS = 8
_ROUNDS = 12  # of ascents from afar
_LARGE_STEPS = 4  # of Newton's method in more coordinates than that, each a gradient a coordinate
_TREE = 100  # coordinates from which a declared chain or tree is fitted as such
_UNBOUNDED = 1e50  # nats, where an ascent is taken to have no end


class Search:
    """Looks for the optima of a target, and fits a Gaussian at each.

    Attributes:
      fits: the Gaussians so far, the best first.
    """

    def __init__(self, density: Density, rng: np.random.Generator, journal: Journal) -> None:
        self.density, self.rng, self.journal = density, rng, journal
        self.size, self.names = density.target.space.size, density.target.space.names
        self.fits: list[Gaussian] = []
        self._rough = False

    def settle(self, fits: list[Gaussian]) -> list[Gaussian]:
        """The Gaussians of all optima: ascents from afar, until they find no more."""
        empty = 0
        for _ in range(_ROUNDS):
            before, fits = fits, self.scatter(fits)
            empty = empty + 1 if len(fits) == len(before) else 0
            if empty == min(len(fits), 3):  # one search for a single optimum, three in vain where there are several
                return fits
        self.journal.doubts[f"{_ROUNDS} searches for optima had no end"] = (
            "Look for a symmetry that makes optima alike, and break it."
        )
        return fits

    def look(self) -> np.ndarray:
        """Points [S, D] where the target is finite, the best to begin from first."""
        self.journal.begin("look")
        # In order of preference: the origin, Stan's box, a small box, a wide cloud.
        box = self.rng.uniform(-2.0, 2.0, size=(191, self.size)) * np.where(np.arange(191) < 127, 1.0, 0.2)[:, None]
        points = np.concatenate([np.zeros((1, self.size)), box, 5.0 * self.rng.normal(size=(64, self.size))])
        values, grads = self.density.grads(points)
        finite = np.isfinite(values)
        if not finite.any():
            raise ValueError(
                f"the log-joint and its gradient are finite at none of {len(points)} points around the origin of the coordinates "
                f"of {self.density.target.space}. Look for a log or a division of something that can be zero or negative, or a "
                "support that is wider than where the log-joint is defined."
            )
        flat = [self.names[i] for i in np.flatnonzero(np.all(grads[finite] == 0.0, axis=0))]
        if flat:
            raise ValueError(
                f"the log-joint has no slope in {', '.join(flat[:5])} at any of {int(finite.sum())} points: the posterior is improper "
                "there, or the log-joint is a step function. Give it a prior, sum a discrete latent out, or take it out of the space."
            )
        self.journal.end(f"finite at {int(finite.sum())} of {len(points)} points")
        return points[finite]

    def grow(self, begin: np.ndarray) -> list[Gaussian]:
        """The Gaussian of a chain or tree that the space declares."""
        pattern = declared(self.density.target.space)
        if pattern is None or self.size < _TREE:
            return []
        self._rough = self.size > DENSE
        self.journal.begin("grow")
        self.journal.num_starts = self.journal.num_optima = 1
        found = tree_fit(self.density, pattern, begin, self.rng)
        self.fits = [found] if np.isfinite(found.elbo) else []
        self.journal.end(
            f"Gaussian of a tree of {len(pattern.parents):,} nodes and {pattern.num_free} free coordinates, sample-average ELBO "
            f"{found.elbo:.2f}"
        )
        return self.fits

    def explore(self, points: np.ndarray) -> list[Gaussian]:
        """Rough Gaussians at the optima that ascents from the first of the points [S, D] end in."""
        self.journal.begin("explore")
        self.journal.num_starts = starts = _STARTS if self.size <= 100 else 2 if self.size <= DENSE else 1
        begin, large = points[:starts], self.size > DENSE
        if large:  # the highest point of many coordinates may lie far from where the mass is
            narrow = Gaussian(begin[0], 0.1 * np.eye(self.size), -np.inf)
            draws = whitened(self.rng, 64, self.size, dense=False)
            self.fits = [diagonal(self.density, narrow, draws, num_steps=200)]
            begin = self.fits[0].loc[None]
        climbs = climb(self.density, begin, self.rng, num_steps=_LARGE_STEPS if large else 80)
        fits = self.fits + [one.best for one in climbs if np.isfinite(one.best.elbo)]
        self._rough = large and not climbs[0].converged
        fits.sort(key=lambda fit: -fit.elbo)
        top = max(climbs, key=lambda one: one.log_density)
        if not fits or top.log_density > _UNBOUNDED:
            raise ValueError(self._broken(top))
        kept = [fit for fit in distinct(fits) if fit.elbo > fits[0].elbo - 30.0][:4]
        self.fits = kept
        ended = sum(one.converged for one in climbs)
        self.journal.end(
            f"{ended} of {len(climbs)} ascents ended in an optimum, {len(kept)} distinct; best ELBO {fits[0].elbo:.2f}"
        )
        return kept

    def _broken(self, top: Climb) -> str:
        """Why there is no Gaussian around the highest point that an ascent reached."""
        sds = np.sqrt(np.sum(top.chol**2, 1))
        sides = np.concatenate([top.mode + 2.0 * np.diag(sds), top.mode - 2.0 * np.diag(sds)])
        outside = np.isneginf(self.density.values(sides)).reshape(2, -1).any(0)
        if np.max(np.abs(top.mode)) > 1e6 or not outside.any():
            far = int(np.argmax(np.abs(top.mode)))
            return f"ascents led to {self.names[far]} = {top.mode[far]:.3g} and had no end: the log-joint is unbounded above."
        named = ", ".join(self.names[i] for i in np.flatnonzero(outside))
        return (
            f"the log-joint is not finite on both sides of its highest point in {named}: it ends where the space goes on. Say so in "
            "the space, by jvi.positive, jvi.interval or the like."
        )

    def refine(self, fits: list[Gaussian]) -> list[Gaussian]:
        """The Gaussians of the highest sample-average ELBO that begin at these, those that have a share of the mass."""
        self.journal.begin("refine")
        if self.size <= DENSE:
            draws = whitened(self.rng, 2 ** int(np.ceil(np.log2(max(64, 4 * self.size)))), self.size)
            found = [self._bounded(fit, full_rank(self.density, fit, draws)) for fit in fits]
        else:
            draws = whitened(self.rng, 64, self.size, dense=False)
            found = [self._bounded(fit, diagonal(self.density, fit, draws, num_steps=100)) for fit in fits]
        found.sort(key=lambda fit: -fit.elbo)
        kept = [fit for fit in distinct(found) if fit.elbo > found[0].elbo - MASS]
        self.fits, self.journal.num_optima = kept, len(kept)
        self.journal.end(
            f"full-rank Gaussian, sample-average ELBO {kept[0].elbo:.2f}" + (f"; {len(kept)} optima" if len(kept) > 1 else "")
        )
        return kept

    def _bounded(self, start: Gaussian, found: Gaussian) -> Gaussian:
        """`found`, or where its width ran away, which it does for what cannot be normalized, the start and a doubt."""
        wide, before = (np.sqrt(np.sum(fit.chol**2, 1)) for fit in (found, start))
        runaway = np.flatnonzero(~(wide < 1e8 * before))
        if np.isfinite(found.elbo) and not len(runaway):
            return found
        named = ", ".join(self.names[i] for i in runaway[:5]) or "some direction"
        reason = f"the ELBO has no maximum, it grows with the width of {named}: the posterior may be improper there"
        self.journal.doubts[reason] = "Give every latent a proper prior."
        return start

    def scatter(self, fits: list[Gaussian]) -> list[Gaussian]:
        """With those of optima that ascents from afar find, if any."""
        if self._rough:
            return fits
        self.journal.begin("scatter")
        found = others(self.density, fits, self.rng)
        self.journal.end(f"ascents from afar found {len(found)} other optima")
        return self.refine([*fits, *found]) if found else fits
