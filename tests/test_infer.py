"""`infer`: right and trusted, or distrusted, or refused; on geometries with known answers, and on bad input."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm, t
from scipy.stats import multivariate_normal

import jvi
from jvi.__main__ import main

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(1.0, 2.0, size=(40, 3))
REAL = jvi.space(jvi.real())


def conjugate(x, z):
    """x_i ~ N(z, 4) and z ~ N(0, 9), each coordinate apart."""
    return jnp.sum(norm.logpdf(z["mean"], 0.0, 3.0)) + jnp.sum(norm.logpdf(x, z["mean"][None], 2.0))


def exact(x):
    precision = len(x) / 4.0 + 1.0 / 9.0
    mean = x.sum(0) / 4.0 / precision
    covariance = 4.0 * np.eye(len(x)) + 9.0
    evidence = -0.5 * np.einsum("nd,nm,md->", x, np.linalg.inv(covariance), x)
    return mean, 1.0 / np.sqrt(precision), evidence - 1.5 * (np.linalg.slogdet(covariance)[1] + len(x) * math.log(2 * math.pi))


def funnel(z):
    return norm.logpdf(z[0], 0.0, 1.5) + jnp.sum(norm.logpdf(z[1:], 0.0, jnp.exp(0.5 * z[0])))


def banana(z):
    return norm.logpdf(z[0], 0.0, 2.0) + norm.logpdf(z[1], 0.5 * (z[0] ** 2 - 4.0), 1.0)


def two_modes(z):
    place = jnp.array([[-6.0, 0.0], [6.0, 3.0]])
    return logsumexp(jnp.log(jnp.array([0.3, 0.7])) - 0.5 * jnp.sum((z[None] - place) ** 2, 1)) - math.log(2 * math.pi)


def heavy(z):
    return jnp.sum(t.logpdf(z, 5.0))


def ring(z):
    """Where z0^2 + z1^2 = 9, to 0.3: a valley that no few Gaussians fill; the square is about N(9, 0.3^2), the angle uniform."""
    return norm.logpdf(jnp.sum(z**2), 9.0, 0.3) - math.log(math.pi)


def scales(z):
    """A regression line in units that differ by 1e16."""
    return norm.logpdf(z["wide"], 3e8, 1e8) + norm.logpdf(z["narrow"], 2e-8, 1e-8)


def dirichlet(z):
    return jnp.sum(jnp.array([3.0, 10.0, 1.0]) * jnp.log(z))


PLANE = jvi.space(jvi.real(2))
# name: (log-joint, space, mean, sd, log evidence)
GEOMETRIES = {
    "funnel": (funnel, jvi.space(jvi.real(4)), np.zeros(4), np.array([1.5, *[math.exp(1.5**2 / 4)] * 3]), 0.0),
    "banana": (banana, PLANE, np.zeros(2), np.array([2.0, 3.0]), 0.0),
    "two modes": (two_modes, PLANE, np.array([2.4, 2.1]), np.sqrt(1 + 0.21 * np.array([144.0, 9.0])), 0.0),
    "ring": (ring, PLANE, np.zeros(2), np.full(2, math.sqrt(4.5)), 0.0),
    "heavy tails": (heavy, jvi.space(jvi.real(3)), np.zeros(3), np.full(3, math.sqrt(5 / 3)), 0.0),
    "wide and narrow": (
        scales, jvi.space({"narrow": jvi.real(), "wide": jvi.real()}), np.array([2e-8, 3e8]), np.array([1e-8, 1e8]), 0.0),
    "simplex": (
        dirichlet, jvi.space(jvi.simplex(3)), np.array([4, 11, 2]) / 17, np.sqrt(np.array([4 * 13, 11 * 6, 2 * 15]) / 17**2 / 18),
        math.lgamma(4) + math.lgamma(11) + math.lgamma(2) - math.lgamma(17)),
}  # fmt: skip


def columns(draws):
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(draws)], 1)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_known_geometries_are_right_and_trusted(name):
    log_joint, space, mean, sd, evidence = GEOMETRIES[name]
    posterior = jvi.infer(KEY, log_joint, space)
    report = posterior.report
    assert report.trusted, report
    draws = columns(posterior.sample(KEY, 10_000))
    kurtosis = np.mean((draws - draws.mean(0)) ** 4, 0) / draws.var(0) ** 2
    # Five standard errors at the effective number of draws, which tells less of a heavy-tailed sd.
    slack = 5.0 / math.sqrt(min(report.ess, 10_000.0))
    assert (np.abs(draws.mean(0) - mean) / sd < slack).all()
    assert (np.abs(draws.std(0) / sd - 1.0) < slack * np.sqrt(np.maximum(kurtosis - 1.0, 1.0)) / 2.0).all()
    assert abs(report.log_evidence - evidence) < 5.0 * report.log_evidence_se + 0.02, report.log_evidence


@pytest.mark.quick
def test_a_conjugate_posterior_with_everything_that_is_read_off_it():
    mean, sd, evidence = exact(DATA)
    posterior = jvi.infer(KEY, conjugate, jvi.space({"mean": jvi.real(3)}), DATA)
    report, summary = posterior.report, posterior.summary()
    assert report.trusted
    assert report.khat < 0.5
    assert abs(report.log_evidence - evidence) < 5 * report.log_evidence_se + 1e-6
    np.testing.assert_allclose(report.elbo, evidence, atol=1e-4)  # the family holds the posterior
    for j in range(3):
        row = summary[f"mean[{j}]"]
        assert abs(row.mean - mean[j]) < 5 * row.mcse
        assert abs(row.sd / sd - 1) < 5 / math.sqrt(2 * row.ess)
        assert abs((row.q95 - row.q5) / (2 * 1.645 * sd) - 1) < 0.05
    assert posterior.log_evidence() == (report.log_evidence, report.log_evidence_se)
    square = posterior.expectation(lambda z: z["mean"] ** 2)
    assert (np.abs(square.value - mean**2 - sd**2) < 5 * square.standard_error).all()
    z = {"mean": mean + 0.1}
    np.testing.assert_allclose(posterior.log_prob(z), norm.logpdf(z["mean"], mean, sd).sum(), atol=0.02)
    draws = posterior.sample(jax.random.key(1), 500)
    assert draws["mean"].shape == (500, 3)
    assert draws["mean"].dtype == np.float64
    np.testing.assert_array_equal(draws["mean"], posterior.sample(jax.random.key(1), 500)["mean"])
    predicted = posterior.predictive(KEY, lambda rng, z: z["mean"][0] + 2.0 * jax.random.normal(rng), 4_000)
    assert abs(float(predicted.mean()) - mean[0]) < 5 * math.hypot(2.0, sd) / math.sqrt(4_000)
    text = str(posterior)
    assert text.startswith("TRUSTED")
    assert "mean[2]" in text
    assert len(posterior.plot().axes) == 3
    tree = posterior.to_arviz()
    group = tree["posterior"] if "posterior" in getattr(tree, "children", {}) else tree.posterior
    assert group["mean"].shape == (4, 2_500, 3)


@pytest.mark.quick
def test_refits_of_new_data_trace_and_compile_nothing():
    calls = []

    def counted(x, z):
        calls.append(0)
        return conjugate(x, z)

    space = jvi.space({"mean": jvi.real(3)})
    jvi.infer(KEY, counted, space, DATA)
    first = len(calls)
    again = jvi.infer(jax.random.key(5), counted, jvi.space({"mean": jvi.real(3)}), DATA[::-1] + 1.0)
    assert len(calls) == first + 1  # the check of its shape, which compiles nothing
    assert again.report.trusted


@pytest.mark.quick
def test_a_log_joint_in_single_precision_only_is_run_in_it():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)), jnp.float32)

    def single(z):
        carry, _ = jax.lax.scan(
            lambda total, row: (total + norm.logpdf(row @ z.astype(jnp.float32)), None), jnp.float32(0), rows
        )
        return carry + jnp.sum(norm.logpdf(z.astype(jnp.float32)))

    posterior = jvi.infer(KEY, single, PLANE)
    assert posterior.report.trusted
    covariance = np.linalg.inv(np.eye(2) + np.asarray(rows.T @ rows, float))
    draws = posterior.sample(KEY, 10_000)
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(covariance)), rtol=0.05)


def flat(z):
    return norm.logpdf(z[0])


def step(z):
    return -jnp.floor(jnp.abs(z[0])) - 0.5 * z[1] ** 2


def half(x, z):
    """Finite for z > 0 only, though the space says any real number."""
    return -z + jnp.log(z)


def unbounded(z):
    return jnp.sum(z**2)


def heavy_tailed_beyond_measure(z):
    return norm.logpdf(z[0]) - 0.25 * jnp.log1p(z[1] ** 2)


def wrong_data(x, z):
    raise KeyError("no column named height")


REFUSED = {
    "constant in a coordinate": (lambda: jvi.infer(KEY, flat, PLANE), ValueError, ["z[1]", "improper", "prior"]),
    "a step function": (lambda: jvi.infer(KEY, step, PLANE), ValueError, ["z[0]", "step function"]),
    "finite nowhere": (
        lambda: jvi.infer(KEY, lambda z: jnp.log(-1.0 - z**2), REAL), ValueError, ["finite at none", "real[]", "log"]),
    "finite only on one side": (lambda: jvi.infer(KEY, half, REAL, jnp.zeros(1)), ValueError, ["in z", "jvi.positive"]),
    "unbounded above": (lambda: jvi.infer(KEY, unbounded, PLANE), ValueError, ["unbounded above", "z["]),
    "a vector": (lambda: jvi.infer(KEY, lambda z: norm.logpdf(z), PLANE), ValueError, ["log-joint", "scalar", "[2]"]),
    "raises": (lambda: jvi.infer(KEY, wrong_data, PLANE, DATA), KeyError, ["height"]),
    "not a space": (lambda: jvi.infer(KEY, flat, {"w": jvi.real()}), TypeError, ["space", "jvi.space"]),
    "a support": (lambda: jvi.infer(KEY, flat, jvi.real(2)), TypeError, ["wrap", "real[2]"]),
    "not a function": (lambda: jvi.infer(KEY, 3.0, PLANE), TypeError, ["log_joint", "3.0"]),
    "an old key": (lambda: jvi.infer(jax.random.PRNGKey(0), flat, PLANE), TypeError, ["jax.random.key"]),
    "NaN data": (lambda: jvi.infer(KEY, conjugate, jvi.space({"mean": jvi.real(3)}), DATA * np.nan), ValueError, ["NaN"]),
    "no time": (
        lambda: jvi.infer(KEY, funnel, jvi.space(jvi.real(4)), budget=jvi.Budget(seconds=1e-6)), TimeoutError, ["budget"]),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_posterior_is_refused_with_the_reason(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.long
def test_what_cannot_be_normalized_is_distrusted():
    posterior = jvi.infer(KEY, heavy_tailed_beyond_measure, PLANE, budget=jvi.Budget(seconds=20.0))
    assert not posterior.report.trusted
    assert posterior.report.reasons
    assert posterior.report.advice


@pytest.mark.quick
def test_no_data_and_one_datum():
    nothing = jvi.infer(KEY, lambda x, z: norm.logpdf(z) + jnp.sum(norm.logpdf(x, z)), REAL, jnp.zeros(0))
    one = jvi.infer(KEY, lambda x, z: norm.logpdf(z) + jnp.sum(norm.logpdf(x, z)), REAL, jnp.ones(1))
    assert abs(nothing.summary()["z"].mean) < 0.06
    assert abs(one.summary()["z"].mean - 0.5) < 0.06


def test_a_spent_budget_leaves_a_distrusted_result():
    def slow(z):
        return funnel(z) + 1e-9 * jnp.sum(jax.lax.fori_loop(0, 2_000, lambda _, v: jnp.sin(v), z))

    posterior = jvi.infer(KEY, slow, jvi.space(jvi.real(4)), budget=jvi.Budget(grads=8_000))
    assert not posterior.report.trusted
    assert "budget" in posterior.report.reasons[0]
    assert np.isfinite(columns(posterior.sample(KEY, 100))).all()


def test_a_budget_spent_on_many_coordinates_leaves_the_best_gaussian():
    posterior = jvi.infer(KEY, funnel, jvi.space(jvi.real(700)), budget=jvi.Budget(grads=10_000))
    assert not posterior.report.trusted
    assert "budget" in posterior.report.reasons[0]
    draws = columns(posterior.sample(KEY, 500))
    assert np.isfinite(draws).all()
    assert abs(draws[:, 1:].mean()) < 0.1


def walk(y, z):
    steps = norm.logpdf(z["path"][0]) + norm.logpdf(z["path"][1:], z["path"][:-1], 0.5).sum()
    return steps + norm.logpdf(z["shift"], 0.0, 2.0) + norm.logpdf(y, z["path"] + z["shift"], 0.8).sum()


def test_a_declared_series_is_fitted_as_such():
    length = 120
    y = np.cumsum(np.random.default_rng(0).normal(size=length))
    space = jvi.space({"path": jvi.sequence(length), "shift": jvi.real()})
    posterior = jvi.infer(KEY, walk, space, y)
    assert posterior.report.trusted, posterior.report.reasons
    assert "refine" not in [stage.name for stage in posterior.report.stages]
    # The exact posterior, by dense algebra.
    onward = np.linalg.inv(np.eye(length) - np.eye(length, k=-1)) * np.r_[1.0, np.full(length - 1, 0.5)]
    root = np.block([[onward, np.zeros((length, 1))], [np.zeros((1, length)), 2.0 * np.eye(1)]])
    seen = np.hstack([np.eye(length), np.ones((length, 1))])
    cov = np.linalg.inv(np.linalg.inv(root @ root.T) + seen.T @ seen / 0.64)
    mean, sd = cov @ seen.T @ y / 0.64, np.sqrt(np.diag(cov))
    draws = posterior.sample(KEY, 10_000)
    drawn = np.concatenate([np.asarray(draws["path"]), np.asarray(draws["shift"])[:, None]], 1)
    np.testing.assert_allclose((drawn.mean(0) - mean) / sd, 0.0, atol=0.06)
    np.testing.assert_allclose(drawn.std(0) / sd, 1.0, atol=0.05)


# Of a hundred coordinates and more, from which on what is declared is made use of.
PARENTS = (-1, *(int(np.random.default_rng(node).integers(max(0, node - 9), node)) for node in range(1, 110)))
LEAVES = [node for node in range(len(PARENTS)) if node not in PARENTS]


def branching(x, z):
    """Brownian motion down a tree: a node is its parent, moved by N(0, 0.7^2); the leaves are seen with noise of 0.5."""
    steps = norm.logpdf(z["node"][0]) + norm.logpdf(z["node"][1:], z["node"][np.array(PARENTS[1:])], 0.7).sum()
    return steps + norm.logpdf(z["shift"], 0.0, 2.0) + norm.logpdf(x, z["node"][np.array(LEAVES)] + z["shift"], 0.5).sum()


@pytest.mark.long
def test_a_declared_tree_is_fitted_to_the_exact_posterior():
    size, x = len(PARENTS), np.random.default_rng(1).normal(size=len(LEAVES)) + 1.0
    posterior = jvi.infer(KEY, branching, jvi.space({"node": jvi.tree(PARENTS), "shift": jvi.real()}), x)
    assert posterior.report.trusted, posterior.report.reasons
    assert "refine" not in [stage.name for stage in posterior.report.stages]
    # The exact posterior, by dense algebra.
    onward = np.eye(size)
    for node, parent in enumerate(PARENTS[1:], 1):
        onward[node, parent] = -1.0
    root = np.linalg.inv(onward) * np.r_[1.0, np.full(size - 1, 0.7)]
    prior = np.block([[root @ root.T, np.zeros((size, 1))], [np.zeros((1, size)), 4.0 * np.eye(1)]])
    seen = np.hstack([np.eye(size)[LEAVES], np.ones((len(LEAVES), 1))])
    cov = np.linalg.inv(np.linalg.inv(prior) + seen.T @ seen / 0.25)
    mean, sd = cov @ seen.T @ x / 0.25, np.sqrt(np.diag(cov))
    draws = posterior.sample(KEY, 10_000)
    drawn = np.concatenate([np.asarray(draws["node"]), np.asarray(draws["shift"])[:, None]], 1)
    np.testing.assert_allclose((drawn.mean(0) - mean) / sd, 0.0, atol=0.06)
    np.testing.assert_allclose(drawn.std(0) / sd, 1.0, atol=0.05)
    evidence = multivariate_normal.logpdf(x, np.zeros(len(LEAVES)), seen @ prior @ seen.T + 0.25 * np.eye(len(LEAVES)))
    assert abs(posterior.report.log_evidence - evidence) < 5.0 * posterior.report.log_evidence_se + 1e-2


def test_diagnose_tells_a_good_guide_from_a_bad_one():
    model, guide = jvi.model(conjugate), jvi.guides.MeanField(jvi.space({"mean": jvi.real(3)}))
    mean, sd, evidence = exact(DATA)
    right = jvi.objectives.Params(
        (), guide.init(KEY, None)._replace(loc=jnp.asarray(mean), log_scale=jnp.full(3, math.log(sd)))
    )
    good = jvi.diagnose(KEY, model, guide, right, jnp.asarray(DATA))
    assert good.trusted
    assert abs(good.log_evidence - evidence) < 1e-2
    narrow = jvi.objectives.Params((), right.guide._replace(log_scale=jnp.full(3, math.log(0.2 * sd))))
    bad = jvi.diagnose(KEY, model, guide, narrow, jnp.asarray(DATA))
    assert not bad.trusted
    assert bad.advice


@pytest.mark.quick
def test_the_command_line_prints_a_report(tmp_path, monkeypatch, capsys):
    example = Path(jvi.__file__).parent.parent / "examples" / "eight_schools.py"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["infer", str(example), "--plot", str(tmp_path / "marginals.png")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("TRUSTED")
    assert "tau" in shown
    assert (tmp_path / "marginals.png").stat().st_size > 10_000
    assert main(["infer", "nowhere.py"]) == 2
    (tmp_path / "script.py").write_text("x = 1\n")
    assert main(["infer", str(tmp_path / "script.py")]) == 2
    (tmp_path / "bad.py").write_text("import jvi\nspace = jvi.space(jvi.real(2))\nlog_joint = lambda z: -z[0] ** 2\n")
    assert main(["infer", str(tmp_path / "bad.py")]) == 1
    assert "improper" in sys.stderr.getvalue()
