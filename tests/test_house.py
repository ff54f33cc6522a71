"""The house rules: layers, documented and exemplified public names, quiet imports."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jvi

ROOT = Path(jvi.__file__).parent
# A module imports only from rows above its own.
LAYERS = [
    {"_precision", "_prefetch", "_spec", "_typing", "report"},
    {"_chunked", "_tree", "precision"},
    {
        "_ahead",
        "_bijectors",
        "_checks",
        "_leaves",
        "_one_draw",
        "_pace",
        "_parents",
        "_progress",
        "_shuffle",
        "_stationarity",
        "_vectors",
    },
    {
        "_additive",
        "_distributions",
        "_limits",
        "_reader",
        "_store",
        "augment",
        "encoders._layers",
        "kernels",
        "noise",
        "resampling",
        "schedules",
        "sharding",
    },
    {"_standing", "encoders.attention", "encoders.plain", "encoders.recurrent", "encoders.temporal"},
    {"encoders"},
    {"_concrete", "_frames", "_mixtures", "bounds", "diagnostics.collapse", "diagnostics.psis", "networks", "supports"},
    {"spaces"},
    {"_groups"},
    {"guides._base", "guides._factors", "guides._sweeps", "guides.functions", "models.densities"},
    {"guides._linked", "guides._places", "models.distributions", "models.sequences", "models.training"},
    {"guides._through", "models"},
    {"guides._fixed", "guides.auxiliary", "guides.semi_implicit"},
    {"guides.annealed", "guides.importance_weighted"},
    {"guides._information", "guides._strata"},
    {"guides._conditioners", "guides._splines", "guides.compose", "guides.conditional", "guides.gaussian", "guides.low_rank"},
    {"guides._couplings", "guides._flows"},
    {"guides._autoregressions", "guides.neural_spline", "guides.real_nvp"},
    {"guides.block_diagonal", "guides.delta", "guides.mixture", "guides.precision", "guides.sinh_arcsinh", "guides.student_t"},
    {"guides.amortize", "guides.given", "guides.hold", "guides.parameterize", "guides.plate", "guides.transform"},
    {"guides.autoregressive", "guides.autoregressive_flows", "guides.markov", "guides.tree"},
    {"guides.auto"},
    {"guides"},
    {"controls", "gradients._draw", "gradients._paths"},
    {"gradients.strata"},
    {"gradients.reparameterized"},
    {"gradients.finite", "gradients.groups", "gradients.implicit", "gradients.relaxed", "gradients.scored"},
    {"gradients"},
    {
        "objectives._base",
        "objectives._masks",
        "objectives._particles",
        "objectives._steered",
        "objectives._terms",
        "objectives._told",
        "objectives.floors",
    },
    {"objectives.disarm", "objectives.monte_carlo", "objectives.relax"},
    {"objectives._posterior_draws", "objectives.analytic", "objectives.data"},
    {"objectives.hierarchical", "objectives.weighted"},
    {"objectives._parted", "objectives.rao_blackwell", "objectives.scored", "objectives.stratified"},
    {
        "objectives.divergences",
        "objectives.doubly",
        "objectives.fivo",
        "objectives.grouped",
        "objectives.reweighted",
        "objectives.thermodynamic",
    },
    {"objectives.training"},
    {"objectives.augmented"},
    {"objectives", "svi"},
    {"_feeds", "_loops", "checkpoint"},
    {"_hosts", "_targets", "plots"},
    {"_bridge", "_maps", "_particles", "_run", "gaussian_fits._climb", "gaussian_fits._draws", "gaussian_fits._pattern"},
    {"_keeper", "_sources"},
    {"_drive"},
    {"adapt", "refine"},
    {
        "fit",
        "gaussian_fits._factored",
        "gaussian_fits._optima",
        "gaussian_fits._sparse",
        "gaussian_fits._triangular",
        "posterior",
    },
    {"diagnostics.gradient", "diagnostics.verdict", "gaussian_fits._curvature"},
    {"gaussian_fits._bends", "gaussian_fits._saa", "gaussian_fits._weigh", "gaussian_fits.families"},
    {"diagnostics", "gaussian_fits._shared", "gaussian_fits._trees"},
    {"gaussian_fits.fits", "gaussian_fits.matching", "gaussian_fits.natural"},
    {"gaussian_fits"},
    {"_journal", "_proposals"},
    {"_search", "svgd"},
    {"_pipeline"},
    {"infer"},
    {""},
    {"__main__"},
]
MODULES = [
    name.removeprefix("jvi.")
    for _, name, _ in pkgutil.walk_packages([str(ROOT)], "jvi.")
    if "_examples" not in name
] + [""]  # fmt: skip
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}


def path_of(module):
    base = ROOT / module.replace(".", "/") if module else ROOT
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def imports_of(module):
    """Names of the jvi modules that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if node.module == "jvi" else node.module or "" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "jvi" or name.startswith("jvi."):
                inner = name.removeprefix("jvi").removeprefix(".")
                yield inner if inner in ROW else inner.rpartition(".")[0]


@pytest.mark.quick
def test_every_module_has_a_layer():
    assert set(MODULES) == set(ROW)


@pytest.mark.quick
@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_from_layers_above(module):
    below = [name for name in imports_of(module) if ROW[name] >= ROW[module]]
    assert not below


@pytest.mark.quick
def test_one_file_jits():
    for module in MODULES:
        if module != "_loops":
            tree = ast.parse(path_of(module).read_text())
            assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "jit"], module


PUBLIC = sorted(
    {
        (f"jvi.{module}".rstrip("."), name)
        for module in MODULES
        for name in getattr(importlib.import_module(f"jvi.{module}".rstrip(".")), "__all__", ())
        if not inspect.ismodule(getattr(importlib.import_module(f"jvi.{module}".rstrip(".")), name))
    }
)
# Containers of results and small siblings that share one example.
WITHOUT_EXAMPLE = {"Aux", "Params", "Info", "State", "FitError", "NonFiniteError", "MonteCarlo", "PerExample", "Split", "Network"} | {
    "real", "positive", "negative", "interval", "lower_bounded", "upper_bounded", "unit_interval", "simplex", "ordered",
    "positive_ordered", "unit_vector", "cholesky_correlation", "cholesky_covariance", "Verdict", "Budget", "Stage", "Baseline",
    "ActiveUnits", "GradientReport", "GradientRow", "Generative", "StateSpace", "Variables", "Trained",
}  # fmt: skip


@pytest.mark.quick
def test_every_public_module_says_what_is_public():
    for module in MODULES:
        if not any(part.startswith("_") for part in module.split(".")):
            text = path_of(module).read_text()
            assert "__all__" in text or module.startswith(("guides.", "gradients.", "objectives.", "models.", "encoders.")), (
                module
            )


@pytest.mark.quick
@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_names_have_docstrings_with_examples(module, name):
    value = getattr(importlib.import_module(module), name)
    doc = inspect.getdoc(value) or ""
    assert len(doc) > 20
    assert name in WITHOUT_EXAMPLE or ">>>" in doc
    if inspect.isclass(value) and value.__module__.startswith("jvi"):
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and inspect.isfunction(member):
                assert inspect.getdoc(member), f"{name}.{attribute}"


@pytest.mark.quick
@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_examples_in_docstrings_hold(module):
    failed, _ = doctest.testmod(importlib.import_module(f"jvi.{module}".rstrip(".")))
    assert not failed


@pytest.mark.quick
def test_importing_does_nothing_but_import():
    """No device is touched, no configuration changed, nothing printed, and no plotting library loaded."""
    code = """
import jax, optax, flax, distrax
before = dict(jax.config.values)
import jvi
assert dict(jax.config.values) == before, "configuration changed"
from jax.extend import backend
import sys
loaded = {"matplotlib", "arviz", "sklearn", "orbax.checkpoint", "flax.nnx"} & set(sys.modules)
assert not loaded, loaded
def refuse(*args, **kwargs):
    raise AssertionError("a device was touched")
"""
    # A platform that does not exist: whatever touches a device while importing fails.
    broken = "import os; os.environ['JAX_PLATFORMS'] = 'no_such_platform'\nimport jvi, jvi.diagnostics, jvi.guides"
    for source in (code, broken):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", source], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert done.stderr == ""


@pytest.mark.quick
def test_files_are_of_a_readable_size():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
