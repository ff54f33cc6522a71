"""jvi: variational inference in JAX, as pure functions."""

from __future__ import annotations

from jvi import (
    augment,
    bounds,
    checkpoint,
    controls,
    diagnostics,
    encoders,
    gaussian_fits,
    gradients,
    guides,
    kernels,
    models,
    networks,
    noise,
    objectives,
    plots,
    posterior,
    precision,
    schedules,
    sharding,
    spaces,
    supports,
    svi,
)
from jvi._spec import recipe
from jvi.adapt import Adapted, adapt
from jvi.diagnostics import diagnose, gradient_report
from jvi.fit import fit, fit_batches
from jvi.infer import Budget, infer
from jvi.models import learned, model, split
from jvi.objectives import elbo, iwae, per_example, renyi
from jvi.posterior import Posterior
from jvi.refine import refine
from jvi.report import Report
from jvi.spaces import space
from jvi.supports import (
    cholesky_correlation,
    cholesky_covariance,
    interval,
    lower_bounded,
    negative,
    ordered,
    positive,
    positive_ordered,
    real,
    sequence,
    simplex,
    tree,
    unit_interval,
    unit_vector,
    upper_bounded,
)
from jvi.svgd import svgd
from jvi.svi import SVI, FitError, Info, NonFiniteError, State, optimizer

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "Adapted",
    "Budget",
    "FitError",
    "Info",
    "NonFiniteError",
    "Posterior",
    "Report",
    "State",
    "adapt",
    "augment",
    "bounds",
    "checkpoint",
    "cholesky_correlation",
    "cholesky_covariance",
    "controls",
    "diagnose",
    "diagnostics",
    "elbo",
    "encoders",
    "fit",
    "fit_batches",
    "gaussian_fits",
    "gradient_report",
    "gradients",
    "guides",
    "infer",
    "interval",
    "iwae",
    "kernels",
    "learned",
    "lower_bounded",
    "model",
    "models",
    "negative",
    "networks",
    "noise",
    "objectives",
    "optimizer",
    "ordered",
    "per_example",
    "plots",
    "positive",
    "positive_ordered",
    "posterior",
    "precision",
    "real",
    "recipe",
    "refine",
    "renyi",
    "schedules",
    "sequence",
    "sharding",
    "simplex",
    "space",
    "spaces",
    "split",
    "supports",
    "svgd",
    "svi",
    "tree",
    "unit_interval",
    "unit_vector",
    "upper_bounded",
]
