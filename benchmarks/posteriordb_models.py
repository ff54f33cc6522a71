"""Log-joints of the shared posteriordb entries, written from their mathematics (`models.md` beside the data).

`load(root, name)` gives an `Entry`: a log-joint, a space and data as `jvi.infer` takes them, and the map from a latent to the
columns of the reference draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import beta, cauchy, gamma, norm, t

import jvi


class Reference(NamedTuple):
    """Reference draws [S, P] with their summaries [P] over all 10,000."""

    names: list[str]
    draws: np.ndarray
    chain: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    mcse: np.ndarray


class Entry(NamedTuple):
    """A posterior: `columns(z)` [P] are the quantities that the reference holds."""

    name: str
    log_joint: Callable[..., Any]
    space: Any
    x: Any
    columns: Callable[[Any], Any]
    reference: Reference


def names(root: Path) -> list[str]:
    """The names of all entries."""
    return [entry["name"] for entry in json.loads((root / "index.json").read_text())]


def load(root: Path, name: str) -> Entry:
    """Read one entry.

    Raises:
      KeyError: if there is no such entry, or its model is not written here.
    """
    index = {entry["name"]: entry for entry in json.loads((root / "index.json").read_text())}[name]
    data = {key: _array(value) for key, value in json.loads((root / index["data_file"]).read_text()).items()}
    summary = json.loads((root / index["reference_file"]).read_text())
    draws = np.load(root / index["draws_file"])
    reference = Reference(
        summary["parameter_names"], draws["draws"].astype(float), draws["chain"],
        *(np.array(summary[key]) for key in ("mean", "sd", "mcse_mean")),
    )  # fmt: skip
    return Entry(name, *MODELS[index["model_name"]](data), reference)


def _array(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    array = np.array(value)
    return array.astype(float) if array.dtype.kind == "f" else array


# -- linear regressions -----------------------------------------------------------------------------------------------------


def regression(x, z):
    features, y = x
    return jnp.sum(norm.logpdf(y, features @ z["beta"], z["sigma"]))


def regression_cauchy(x, z):
    return regression(x, z) + cauchy.logpdf(z["sigma"], 0.0, 2.5)


def _regression(data: dict, *, y: Callable, columns: Callable, log_joint: Callable = regression) -> tuple:
    features = [np.asarray(column, float) for column in columns(data)]
    matrix = np.stack([np.ones_like(features[0]), *features], 1)
    space = jvi.space({"beta": jvi.real(matrix.shape[1]), "sigma": jvi.positive()})
    return log_joint, space, (matrix, np.asarray(y(data), float)), _stacked


def _stacked(z):
    return jnp.concatenate([z["beta"], z["sigma"][None]])


def _standardized(x: np.ndarray, width: float = 1.0) -> np.ndarray:
    return (x - np.mean(x)) / (width * np.std(x, ddof=1))


def _with_product(first: np.ndarray, second: np.ndarray) -> list:
    return [first, second, first * second]


def _volume(d: dict) -> np.ndarray:
    return np.log(d["diam1"] * d["diam2"] * d["canopy_height"])


_SHRUB = ("diam1", "diam2", "canopy_height", "total_height", "density")

REGRESSIONS = {
    "earn_height": {"y": lambda d: d["earn"], "columns": lambda d: [d["height"]]},
    "log10earn_height": {"y": lambda d: np.log10(d["earn"]), "columns": lambda d: [d["height"]]},
    "logearn_height": {"y": lambda d: np.log(d["earn"]), "columns": lambda d: [d["height"]]},
    "logearn_height_male": {"y": lambda d: np.log(d["earn"]), "columns": lambda d: [d["height"], d["male"]]},
    "logearn_interaction_z": {
        "y": lambda d: np.log(d["earn"]), "columns": lambda d: _with_product(_standardized(d["height"]), d["male"])
    },
    "logearn_logheight_male": {"y": lambda d: np.log(d["earn"]), "columns": lambda d: [np.log(d["height"]), d["male"]]},
    "kidscore_momhs": {"y": lambda d: d["kid_score"], "columns": lambda d: [d["mom_hs"]], "log_joint": regression_cauchy},
    "kidscore_momiq": {"y": lambda d: d["kid_score"], "columns": lambda d: [d["mom_iq"]], "log_joint": regression_cauchy},
    "kidscore_momhsiq": {
        "y": lambda d: d["kid_score"], "columns": lambda d: [d["mom_hs"], d["mom_iq"]], "log_joint": regression_cauchy
    },
    "kidscore_interaction_c": {
        "y": lambda d: d["kid_score"],
        "columns": lambda d: _with_product(d["mom_hs"] - np.mean(d["mom_hs"]), d["mom_iq"] - np.mean(d["mom_iq"])),
    },
    "kidscore_interaction_c2": {
        "y": lambda d: d["kid_score"], "columns": lambda d: _with_product(d["mom_hs"] - 0.5, d["mom_iq"] - 100)
    },
    "kidscore_interaction_z": {
        "y": lambda d: d["kid_score"],
        "columns": lambda d: _with_product(_standardized(d["mom_hs"], 2.0), _standardized(d["mom_iq"], 2.0)),
    },
    "kidscore_mom_work": {"y": lambda d: d["kid_score"], "columns": lambda d: [d["mom_work"] == level for level in (2, 3, 4)]},
    "mesquite": {"y": lambda d: d["weight"], "columns": lambda d: [*(d[name] for name in _SHRUB), d["group"]]},
    "logmesquite": {
        "y": lambda d: np.log(d["weight"]), "columns": lambda d: [*(np.log(d[name]) for name in _SHRUB), d["group"]]
    },
    "logmesquite_logva": {
        "y": lambda d: np.log(d["weight"]), "columns": lambda d: [_volume(d), np.log(d["diam1"] * d["diam2"]), d["group"]]
    },
    "logmesquite_logvas": {
        "y": lambda d: np.log(d["weight"]),
        "columns": lambda d: [
            _volume(d), np.log(d["diam1"] * d["diam2"]), np.log(d["diam1"] / d["diam2"]), np.log(d["total_height"]),
            np.log(d["density"]), d["group"],
        ],
    },
    "logmesquite_logvolume": {"y": lambda d: np.log(d["weight"]), "columns": lambda d: [_volume(d)]},
    "nes": {
        "y": lambda d: d["partyid7"],
        "columns": lambda d: [
            d["real_ideo"], d["race_adj"], *(d["age_discrete"] == level for level in (2, 3, 4)), d["educ1"], d["gender"],
            d["income"],
        ],
    },
}  # fmt: skip


# -- the others -------------------------------------------------------------------------------------------------------------


def blr(x, z):
    return jnp.sum(norm.logpdf(z["beta"], 0.0, 10.0)) + norm.logpdf(z["sigma"], 0.0, 10.0) + regression(x, z)


def _blr(data):
    space = jvi.space({"beta": jvi.real(data["X"].shape[1]), "sigma": jvi.positive()})
    return blr, space, (data["X"], data["y"]), _stacked


def kilpisjarvi(x, z):
    years, y, location, spread = x
    coefficients = jnp.stack([z["alpha"], z["beta"]])
    log_prior = jnp.sum(norm.logpdf(coefficients, location, spread))
    return log_prior + jnp.sum(norm.logpdf(y, z["alpha"] + z["beta"] * years, z["sigma"]))


def _kilpisjarvi(data):
    space = jvi.space({"alpha": jvi.real(), "beta": jvi.real(), "sigma": jvi.positive()})
    prior = [np.array([data[f"{what}{name}"] for name in ("alpha", "beta")], float) for what in ("pmu", "ps")]
    x = (np.asarray(data["x"], float), np.asarray(data["y"], float), *prior)
    return kilpisjarvi, space, x, lambda z: jnp.stack([z["alpha"], z["beta"], z["sigma"]])


def diamonds(x, z):
    features, y = x
    log_prior = jnp.sum(norm.logpdf(z["b"])) + t.logpdf(z["intercept"], 3.0, 8.0, 10.0) + t.logpdf(z["sigma"], 3.0, 0.0, 10.0)
    return log_prior + jnp.sum(norm.logpdf(y, z["intercept"] + features @ z["b"], z["sigma"]))


def _diamonds(data):
    features = data["X"][:, 1:] - data["X"][:, 1:].mean(0)
    space = jvi.space({"b": jvi.real(features.shape[1]), "intercept": jvi.real(), "sigma": jvi.positive()})
    x = (features, np.asarray(data["Y"], float))
    return diamonds, space, x, lambda z: jnp.concatenate([z["b"], z["intercept"][None], z["sigma"][None]])


def eight_schools_centered(x, z):
    y, sigma = x
    log_prior = norm.logpdf(z["mu"], 0.0, 5.0) + cauchy.logpdf(z["tau"], 0.0, 5.0)
    log_prior += jnp.sum(norm.logpdf(z["theta"], z["mu"], z["tau"]))
    return log_prior + jnp.sum(norm.logpdf(y, z["theta"], sigma))


def eight_schools_noncentered(x, z):
    y, sigma = x
    log_prior = norm.logpdf(z["mu"], 0.0, 5.0) + cauchy.logpdf(z["tau"], 0.0, 5.0) + jnp.sum(norm.logpdf(z["t"]))
    return log_prior + jnp.sum(norm.logpdf(y, z["mu"] + z["tau"] * z["t"], sigma))


def _eight_schools(data, *, name: str):
    space = jvi.space({name: jvi.real(8), "mu": jvi.real(), "tau": jvi.positive()})
    x = (np.asarray(data["y"], float), np.asarray(data["sigma"], float))
    if name == "theta":
        return eight_schools_centered, space, x, lambda z: jnp.concatenate([z["theta"], z["mu"][None], z["tau"][None]])
    return (
        eight_schools_noncentered,
        space,
        x,
        lambda z: jnp.concatenate([z["mu"] + z["tau"] * z["t"], z["mu"][None], z["tau"][None]]),
    )


def autoregression(x, z):
    lagged, y = x
    log_prior = norm.logpdf(z["alpha"], 0.0, 10.0) + jnp.sum(norm.logpdf(z["beta"], 0.0, 10.0))
    log_prior += cauchy.logpdf(z["sigma"], 0.0, 2.5)
    return log_prior + jnp.sum(norm.logpdf(y, z["alpha"] + lagged @ z["beta"], z["sigma"]))


def _autoregression(data):
    y, order = np.asarray(data["y"], float), int(data["K"])
    lagged = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], 1)
    space = jvi.space({"alpha": jvi.real(), "beta": jvi.real(order), "sigma": jvi.positive()})
    return (
        autoregression,
        space,
        (lagged, y[order:]),
        lambda z: jnp.concatenate([z["alpha"][None], z["beta"], z["sigma"][None]]),
    )


def arma(y, z):
    log_prior = norm.logpdf(z["mu"], 0.0, 10.0) + norm.logpdf(z["phi"], 0.0, 2.0) + norm.logpdf(z["theta"], 0.0, 2.0)
    log_prior += cauchy.logpdf(z["sigma"], 0.0, 2.5)
    first = y[0] - (z["mu"] + z["phi"] * z["mu"])

    def step(error, pair):
        before, now = pair
        error = now - (z["mu"] + z["phi"] * before + z["theta"] * error)
        return error, error

    _, errors = jax.lax.scan(step, first, (y[:-1], y[1:]))
    return log_prior + norm.logpdf(first, 0.0, z["sigma"]) + jnp.sum(norm.logpdf(errors, 0.0, z["sigma"]))


def _arma(data):
    space = jvi.space({"mu": jvi.real(), "phi": jvi.real(), "sigma": jvi.positive(), "theta": jvi.real()})
    return arma, space, np.asarray(data["y"], float), lambda z: jnp.stack([z["mu"], z["phi"], z["theta"], z["sigma"]])


def two_normals(y, z):
    log_prior = jnp.sum(norm.logpdf(z["mu"], 0.0, 2.0)) + jnp.sum(norm.logpdf(z["sigma"], 0.0, 2.0))
    log_prior += beta.logpdf(z["theta"], 5.0, 5.0)
    parts = norm.logpdf(y[:, None], z["mu"][None], z["sigma"][None])
    log_mix = jnp.log(jnp.stack([z["theta"], 1.0 - z["theta"]]))
    return log_prior + jnp.sum(logsumexp(parts + log_mix[None], axis=1))


def _two_normals(data):
    space = jvi.space({"mu": jvi.ordered(2), "sigma": jvi.positive(2), "theta": jvi.unit_interval()})
    return two_normals, space, np.asarray(data["y"], float), lambda z: jnp.concatenate([z["mu"], z["sigma"], z["theta"][None]])


def _forward(log_emission, z):
    log_move = jnp.log(jnp.stack([z["theta1"], z["theta2"]]))

    def step(before, now):
        after = now + logsumexp(before[:, None] + log_move, axis=0)
        return after, None

    last, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])
    return logsumexp(last)


def hmm_normal(y, z):
    log_prior = jnp.sum(norm.logpdf(z["mu"], jnp.array([3.0, 10.0]), 1.0))
    return log_prior + _forward(norm.logpdf(y[:, None], z["mu"][None], 1.0), z)


def _hmm_normal(data):
    space = jvi.space({"theta1": jvi.simplex(2), "theta2": jvi.simplex(2), "mu": jvi.positive_ordered(2)})
    return hmm_normal, space, np.asarray(data["y"], float), lambda z: jnp.concatenate([z["theta1"], z["theta2"], z["mu"]])


def hmm_exponential(x, z):
    u, v, alpha = x
    log_prior = jnp.sum((alpha[0] - 1.0) * jnp.log(z["theta1"])) + jnp.sum((alpha[1] - 1.0) * jnp.log(z["theta2"]))
    for name in ("phi", "rate"):
        log_prior += jnp.sum(norm.logpdf(z[name], jnp.array([0.0, 3.0]), 1.0))
    rates = jnp.log(z["phi"]) + jnp.log(z["rate"])
    emission = rates[None] - z["phi"][None] * u[:, None] - z["rate"][None] * v[:, None]
    return log_prior + _forward(emission, z)


def _hmm_exponential(data):
    space = jvi.space(
        {"theta1": jvi.simplex(2), "theta2": jvi.simplex(2), "phi": jvi.positive_ordered(2), "rate": jvi.positive_ordered(2)}
    )
    x = tuple(np.asarray(data[name], float) for name in ("u", "v", "alpha"))
    return hmm_exponential, space, x, lambda z: jnp.concatenate([z["theta1"], z["theta2"], z["phi"], z["rate"]])


def gaussian_process(x, z):
    place, y = x
    log_prior = gamma.logpdf(z["rho"], 25.0, scale=0.25) + norm.logpdf(z["alpha"], 0.0, 2.0) + norm.logpdf(z["sigma"])
    square = (place[:, None] - place[None]) ** 2
    covariance = z["alpha"] ** 2 * jnp.exp(-0.5 * square / z["rho"] ** 2) + z["sigma"] * jnp.eye(place.shape[0])
    root = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(root, y, lower=True)
    return log_prior - 0.5 * white @ white - jnp.sum(jnp.log(jnp.diag(root))) - 0.5 * y.shape[0] * jnp.log(2 * jnp.pi)


def _gaussian_process(data):
    space = jvi.space({"rho": jvi.positive(), "alpha": jvi.positive(), "sigma": jvi.positive()})
    x = (np.asarray(data["x"], float), np.asarray(data["y"], float))
    return gaussian_process, space, x, lambda z: jnp.stack([z["rho"], z["alpha"], z["sigma"]])


def predator_prey(x, z):
    y_init, y = x
    theta, init, sigma = z["theta"], z["z_init"], z["sigma"]
    per_unit = 20

    def slope(state):
        u, v = state
        return jnp.stack([(theta[0] - theta[1] * v) * u, (-theta[2] + theta[3] * u) * v])

    def small(state, _):
        h = 1.0 / per_unit
        k1 = slope(state)
        k2 = slope(state + 0.5 * h * k1)
        k3 = slope(state + 0.5 * h * k2)
        k4 = slope(state + h * k3)
        return state + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    def unit(state, _):
        state, _ = jax.lax.scan(small, state, length=per_unit)
        return state, state

    _, path = jax.lax.scan(unit, init, length=y.shape[0])
    log_prior = jnp.sum(norm.logpdf(theta, jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])))
    log_prior += jnp.sum(norm.logpdf(jnp.log(sigma), -1.0, 1.0) - jnp.log(sigma))
    log_prior += jnp.sum(norm.logpdf(jnp.log(init), jnp.log(10.0), 1.0) - jnp.log(init))
    log_likelihood = jnp.sum(norm.logpdf(jnp.log(y_init), jnp.log(init), sigma))
    return log_prior + log_likelihood + jnp.sum(norm.logpdf(jnp.log(y), jnp.log(path), sigma[None]))


def _predator_prey(data):
    space = jvi.space({"theta": jvi.positive(4), "z_init": jvi.positive(2), "sigma": jvi.positive(2)})
    x = (np.asarray(data["y_init"], float), np.asarray(data["y"], float))
    return predator_prey, space, x, lambda z: jnp.concatenate([z["theta"], z["z_init"], z["sigma"]])


MODELS: dict[str, Callable[[dict], tuple]] = {
    **{name: partial(_regression, **parts) for name, parts in REGRESSIONS.items()},
    "blr": _blr,
    "kilpisjarvi": _kilpisjarvi,
    "diamonds": _diamonds,
    "eight_schools_centered": partial(_eight_schools, name="theta"),
    "eight_schools_noncentered": partial(_eight_schools, name="t"),
    "arK": _autoregression,
    "arma11": _arma,
    "low_dim_gauss_mix": _two_normals,
    "hmm_example": _hmm_normal,
    "hmm_drive_0": _hmm_exponential,
    "gp_regr": _gaussian_process,
    "lotka_volterra": _predator_prey,
}
