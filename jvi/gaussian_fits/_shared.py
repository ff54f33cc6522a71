"""What the Gaussian fits share: where they begin, when enough draws were taken, and the posterior they end in."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import jax
import numpy as np

from jvi._checks import check_count, check_data, check_key
from jvi._frames import Affine
from jvi._mixtures import Mixture
from jvi._precision import precise
from jvi._targets import Density, target_of
from jvi._typing import Data, PRNGKey, Scalar
from jvi.gaussian_fits._climb import Gaussian, ascended, climb
from jvi.gaussian_fits._saa import M, Member
from jvi.gaussian_fits._weigh import DRAWS, Weighed, posterior_of, posterior_with, weigh, weighed
from jvi.gaussian_fits.families import Family, FullRank
from jvi.posterior import Posterior
from jvi.report import Report
from jvi.spaces import Space

LogJoint = Callable[..., Scalar]
_DENSE = 300  # coordinates up to which a dense Gaussian is where every family begins
_MOST = 2**23  # numbers in the draws of a sample average


def begin(rng: PRNGKey, log_joint: LogJoint, space: Space, x: Data) -> tuple[Density, np.random.Generator]:
    """The density to fit, and the host's generator."""
    rng = check_key(rng)
    density = Density(target_of(log_joint, space, with_data=x is not None), check_data(x))
    return density, np.random.default_rng(np.asarray(jax.random.key_data(rng)))


def starts(density: Density, rng: np.random.Generator, count: int) -> np.ndarray:
    """Points around the origin where the density is finite, `count` [R, D] or fewer.

    Raises:
      ValueError: if there is none.
    """
    size = density.target.space.size
    points = np.concatenate([np.zeros((1, size)), rng.uniform(-2.0, 2.0, size=(63, size))])
    finite = np.isfinite(density.grads(points)[0])
    if not finite.any():
        raise ValueError(
            f"the log-joint is finite at none of {len(points)} points around the origin of {density.target.space}."
        )
    return points[finite][: check_count(count, "count")]


def climbed(density: Density, rng: np.random.Generator, count: int) -> Gaussian:
    """The best Gaussian that ascents pass."""
    climbs = climb(density, starts(density, rng, count), rng)
    return max((one.best for one in climbs), key=lambda fit: fit.elbo)


def member_of(family: Family, density: Density, rng: np.random.Generator, count: int) -> Member:
    """The member of a family to begin from, by ascents from `count` points.

    Where a dense Gaussian would be too dear, the ascents are those of L-BFGS, and widths come from a few differences of gradients.
    """
    space = density.target.space
    if space.size <= _DENSE or isinstance(family, FullRank):
        return family.near(space, climbed(density, rng, count))
    ends = np.stack([ascended(density, u) for u in starts(density, rng, count)])
    loc = ends[np.argmax(density.values(ends))]
    return family.spread(density, loc, _widths(density, loc, rng))


def settled(
    density: Density, rng: np.random.Generator, member: M, refine: Callable[[Density, M, np.ndarray], tuple[M, float]]
) -> M:
    """What `refine` makes of a member on fixed draws, which double until fresh ones give the same ELBO.

    Args:
      density: the target.
      rng: of the draws.
      member: where to begin.
      refine: from a member and noise [N, K] to a better member and its ELBO on that noise.
    """
    count = 2 ** int(np.ceil(np.log2(member.num_draws)))
    most = max(count, min(2**14, _MOST // member.num_noise))
    while True:
        member, elbo = refine(density, member, member.draws(rng, count))
        noise = rng.normal(size=(min(8_192, _MOST // member.num_noise), member.num_noise))
        # The entropy in closed form would add the noise that the log-density's own cancels.
        log_w = density.values(member.out(noise)) - member.log_prob(noise)
        finite = np.isfinite(log_w)
        gap = elbo - float(np.mean(log_w)) if finite.all() else np.inf
        error = float(np.std(log_w[finite]) / np.sqrt(max(1, finite.sum()))) if finite.any() else 0.0
        if not gap > max(0.02, 2.0 * error) or 2 * count > most:
            return member
        count *= 2


def finish(
    density: Density, rng: np.random.Generator, fit: Gaussian, began: float, method: str, mixture: Mixture | None = None
) -> Posterior:
    """The posterior of a dense Gaussian, its draws those of a mixture in the Gaussian's frame where there is one."""
    frame, size = Affine(fit.loc, fit.chol), len(fit.loc)
    mixture = mixture or Mixture(np.zeros(1), np.zeros((1, size)), np.eye(size)[None], 1e6)
    found = weigh(density, frame, mixture, rng)
    return posterior_of(density, fit.loc, fit.chol, _report(density, found, began, method), found.u, found.smoothed)


def finish_member(density: Density, rng: np.random.Generator, member: Member, began: float, method: str) -> Posterior:
    """The posterior of a family's member; nothing dense is formed that its guide does not hold."""
    noise = rng.normal(size=(DRAWS, member.num_noise))
    u = member.out(noise)
    found = weighed(u, density.values(u) - member.log_prob(noise))
    with precise():
        guide, params = member.guide(density.target.space)
    return posterior_with(density, guide, params, _report(density, found, began, method), u, found.smoothed)


def _report(density: Density, found: Weighed, began: float, method: str) -> Report:
    why = f"k-hat {found.khat:.2f} with {found.ess:,.0f} effective of {len(found.u):,} draws"
    return Report(
        trusted=found.good, reasons=(why if found.good else f"{why}: the fit misses part of the posterior",),
        advice=() if found.good else ("Use jvi.infer, which corrects what a Gaussian misses.",), method=method,
        elbo=found.elbo, elbo_se=found.elbo_se, log_evidence=found.log_evidence, log_evidence_se=found.log_evidence_se,
        khat=found.khat, khat_se=found.khat_se, ess=found.ess, num_draws=len(found.u),
        num_grads=density.num_grads, num_densities=density.num_values, seconds=perf_counter() - began,
    )  # fmt: skip


def _widths(density: Density, loc: np.ndarray, rng: np.random.Generator, num_probes: int = 16) -> np.ndarray:
    """The coordinates' widths [D] at a point, one over the root of the curvature's diagonal, by Hutchinson's estimate."""
    width = np.ones(len(loc))
    for _ in range(2):  # the second time with steps of the right size
        step = np.maximum(density.eps ** (1.0 / 3.0) * width, 8.0 * density.eps * np.abs(loc))
        signs = rng.choice([-1.0, 1.0], size=(num_probes, len(loc)))
        grads = density.grads(np.concatenate([loc + step * signs, loc - step * signs]))[1]
        curvature = np.mean(signs * (grads[num_probes:] - grads[:num_probes]), 0) / (2.0 * step)
        # A curvature that is negative, or lost in the noise, counts as a small one.
        width = 1.0 / np.sqrt(np.maximum(curvature, 1e-3 * np.median(np.abs(curvature)) + 1e-30))
    return width
