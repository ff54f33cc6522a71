"""Gaussian fits that are not stochastic gradients."""

from __future__ import annotations

from jvi.gaussian_fits.fits import batch_and_match, laplace, linear_response, moment_matched, pathfinder

__all__ = ["batch_and_match", "laplace", "linear_response", "moment_matched", "pathfinder"]
