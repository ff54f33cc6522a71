"""Gaussian fits that are not stochastic gradients."""

from __future__ import annotations

import jvi.gaussian_fits.families as families
from jvi.gaussian_fits.fits import laplace, linear_response, moment_matched, pathfinder
from jvi.gaussian_fits.matching import batch_and_match
from jvi.gaussian_fits.natural import natural_gradient

__all__ = ["batch_and_match", "families", "laplace", "linear_response", "moment_matched", "natural_gradient", "pathfinder"]
