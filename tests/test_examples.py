"""The examples run, say what they should, and draw; so do the plots and the command line."""

from __future__ import annotations

import gzip
import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import jvi
from jvi import plots
from jvi.__main__ import main

FOLDER = Path(jvi.__file__).parent.parent / "examples"
LENGTHS = {"image_vae": 260, "pod": 60}  # lines; of all others 100


def load(name):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def relaxed():
    """Examples are users' code, and distrax promotes ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield Console(file=io.StringIO(), width=100)


def pictures(folder):
    found = list(folder.glob("*.png"))
    assert all(path.stat().st_size > 5_000 for path in found)
    return {path.name for path in found}


@pytest.mark.long
def test_eight_schools(tmp_path, relaxed):
    verdicts = load("eight_schools").main(tmp_path, relaxed)
    mean_field, full_rank = verdicts["mean-field"], verdicts["full-rank"]
    error = np.hypot(mean_field.elbo.standard_error, full_rank.elbo.standard_error)
    assert full_rank.elbo.value > mean_field.elbo.value - 3 * error  # the richer family
    assert full_rank.elbo.value < full_rank.log_evidence.value
    gap = abs(mean_field.log_evidence.value - full_rank.log_evidence.value)  # of one model: both estimate the same number
    assert gap < 4 * np.hypot(mean_field.log_evidence.standard_error, full_rank.log_evidence.standard_error)
    assert pictures(tmp_path) == {"eight_schools_trace.png", "eight_schools_marginals.png", "eight_schools_khat.png"}


@pytest.mark.long
def test_logistic_regression(tmp_path, relaxed):
    sd = load("logistic_regression").main(tmp_path, relaxed)
    assert np.median(sd["mean-field"] / sd["full-rank"]) < 0.75
    assert "NOT RELIABLE" in relaxed.file.getvalue()
    assert len(pictures(tmp_path)) == 2


@pytest.mark.long
def test_digits_vae(tmp_path, relaxed):
    bounds = load("digits_vae").main(tmp_path, relaxed, num_steps=600)
    values = [bounds[k].value for k in (1, 5, 50, 500)]
    assert values == sorted(values)
    assert -30 < values[-1] < -10
    assert pictures(tmp_path) == {"digits_vae.png"}


@pytest.mark.long
def test_discrete_vae(tmp_path, relaxed):
    bounds = load("discrete_vae").main(tmp_path, relaxed, num_steps=300)
    values = [bounds[k].value for k in (1, 50, 500)]
    assert values == sorted(values)
    assert -28 < values[-1] < -15
    assert pictures(tmp_path) == {"discrete_vae.png"}


@pytest.mark.long
def test_posterior_collapse(tmp_path, relaxed):
    found = load("posterior_collapse").main(tmp_path, relaxed, num_steps=900)
    (_, plain_kl, few), (_, warm_kl, more), (_, free_kl, some) = found.values()
    assert plain_kl.sum() < 1.0
    assert warm_kl.sum() > 3.0
    assert more > few
    assert some > few
    assert free_kl.sum() > 3.5  # the floor is at 4, on average over the images that it was trained on
    assert pictures(tmp_path) == {"posterior_collapse.png"}


@pytest.mark.long
def test_mixture_guide(tmp_path, relaxed):
    found = load("mixture_guide").main(tmp_path, relaxed, num_steps=1_500)
    log_evidence, exact = found["exact"]
    (narrow, _, one), (wide, weighted, four) = found["mean-field"], found["mixture"]
    assert max(one.values()) > 0.99
    assert (
        narrow.value < np.log(max(exact.values())) + log_evidence
    )  # one mode's share is all that a bound from within can have
    assert log_evidence - 0.01 < wide.value < log_evidence + 3 * wide.standard_error
    assert abs(weighted.value - log_evidence) < 4 * weighted.standard_error + 1e-3  # and the grid's own error
    # Shares of 20,000 draws have standard errors of 0.0035 at most; the fit's own are of that size.
    np.testing.assert_allclose([four[sign] for sign in exact], list(exact.values()), atol=0.02)
    assert pictures(tmp_path) == {"mixture_guide.png"}


@pytest.mark.long
def test_boosting(tmp_path, relaxed):
    found = load("boosting").main(tmp_path, relaxed, num_steps=200, most=3)
    values, errors = (np.array([getattr(of, name) for of in found["bounds"]]) for name in ("value", "standard_error"))
    assert len(values) == 3
    assert np.all(np.diff(values) > np.hypot(errors[1:], errors[:-1]))  # what is kept has gained
    # Four modes, of which one component can have one: less than a half of the mass, whichever it is.
    assert values[0] < found["exact"] - np.log(2.0)
    assert values[0] + 1.0 < values[-1] < found["exact"]
    assert pictures(tmp_path) == {"boosting.png"}


@pytest.mark.long
def test_ancestors(tmp_path, relaxed):
    bounds, sds = load("ancestors").main(tmp_path, relaxed, num_steps=1_500)
    np.testing.assert_allclose(bounds["tree"].value, bounds["exact"], atol=0.01)
    assert bounds["mean-field"].value < bounds["exact"] - 10.0
    np.testing.assert_allclose(sds["tree"], sds["exact"], rtol=0.06)  # 4,000 draws: 1.1 % of standard error
    assert np.min(sds["mean-field"] / sds["exact"]) < 0.3
    assert pictures(tmp_path) == {"ancestors.png"}


@pytest.mark.long
def test_stochastic_volatility(tmp_path, relaxed):
    found = load("stochastic_volatility").main(tmp_path, relaxed, small=True, num_steps=1_000)
    (flat, flat_se, *_), (chain, chain_se, share, ratio) = found["mean-field"], found["Markov"]
    assert chain - flat > 5.0 + 4.0 * (flat_se + chain_se)
    # Of a hundred days the posterior of the shock's scale is skewed, and the path's means follow its mean.
    assert share > 0.5
    assert 0.8 < ratio < 1.1
    assert pictures(tmp_path) == {"stochastic_volatility.png"}


@pytest.mark.long
def test_amortized_sets(tmp_path, relaxed):
    example = load("amortized_sets")
    some = {"full-rank": example.FITS["full-rank"]}  # each of the others would be compiled for itself
    scores = example.main(tmp_path, relaxed, num_steps=200, num_test=32, depth=1, fits=some)
    errors, ratios = ({name: float(np.mean(score[i])) for name, score in scores.items()} for i in (0, 1))
    assert abs(ratios["full-rank"] - 1.0) < 0.1
    assert errors["refined"] < 0.5 * errors["full-rank"]
    assert abs(ratios["refined"] - 1.0) < 0.05
    assert pictures(tmp_path) == {"amortized_sets.png"}


@pytest.mark.long
def test_image_vae(tmp_path, relaxed, monkeypatch):
    """All levels, schedules and floors at once, on digits, because there is no Fashion-MNIST in an empty folder."""
    example = load("image_vae")
    monkeypatch.setattr(example, "FASHION", tmp_path)
    options = "--ladder --warm-up 50 --free-bits 0.5 --steps 200 --chunk-size 50 --num-test 100 --num-few 10"
    found = example.main(tmp_path, relaxed, options.split())
    assert "digits instead" in relaxed.file.getvalue()
    one, fifty = (found["bounds"][k, 100].value for k in (1, 50))
    assert -35 < one < fifty < -15
    assert found["gain"].value > 0.0
    assert sum(int(each.number) for each in found["active"].values()) > 0
    assert pictures(tmp_path) == {"image_vae.png"}


@pytest.mark.long
def test_image_vae_in_bfloat16_by_dreg_leaves_metrics_and_a_checkpoint(tmp_path, relaxed, monkeypatch):
    example = load("image_vae")
    monkeypatch.setattr(example, "FASHION", tmp_path)
    options = "--objective dreg --num-samples 2 --precision bfloat16 --steps 100 --num-test 100 --num-few 2"
    kept = ["--checkpoint", str(tmp_path / "run"), "--metrics", str(tmp_path / "events")]
    found = example.main(tmp_path, relaxed, [*options.split(), *kept])
    one, fifty = (found["bounds"][k, 100].value for k in (1, 50))
    assert -35 < one < fifty < -15
    assert {leaf.dtype for leaf in jax.tree.leaves(found["params"])} == {np.dtype(np.float32)}
    assert jvi.checkpoint.latest(tmp_path / "run") == 100
    (events,) = (tmp_path / "events").glob("events.out.tfevents.*")
    assert b"train/bound" in events.read_bytes()


@pytest.mark.quick
def test_image_vae_reads_idx_files_and_says_what_is_wrong(tmp_path, relaxed):
    example = load("image_vae")
    images = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    content = np.array([2051, 2, 4, 3], ">i4").tobytes() + images.tobytes()
    for name in example.FILES:
        (tmp_path / name).write_bytes(gzip.compress(content))
    for found in example.load(tmp_path, relaxed):
        np.testing.assert_array_equal(found, images)
    (tmp_path / example.FILES[1]).write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(SystemExit, match="cut short"):
        example.load(tmp_path, relaxed)
    (tmp_path / example.FILES[0]).unlink()
    with pytest.raises(SystemExit, match="train-images"):
        example.load(tmp_path, relaxed)
    with pytest.raises(SystemExit):
        example.parse(["--objective", "iwae", "--free-bits", "1"])


@pytest.mark.long
def test_deep_markov_model(tmp_path, relaxed):
    found = load("deep_markov_model").main(tmp_path, relaxed, num_steps=300, num_test=40)
    (*_, lost, _), (*_, less, _) = found.values()
    assert less.value > -3.0 * less.standard_error  # a divergence
    assert less.value + 3.0 * np.hypot(less.standard_error, lost.standard_error) < lost.value
    assert pictures(tmp_path) == {"deep_markov_model.png"}


@pytest.mark.quick
def test_examples_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) <= LENGTHS.get(path.stem, 100), path.name


@pytest.mark.quick
def test_plots_of_one_and_of_several(tmp_path):
    rng = np.random.default_rng(0)
    info = jvi.Info(*rng.normal(size=(3, 1_000)), finite=rng.uniform(size=1_000) < 0.9)
    draws = {"a": rng.normal(size=300), "b": {"c": rng.normal(size=(300, 2))}}
    figures = [
        plots.trace(info),
        plots.trace({"one": info, "two": info}),
        plots.marginals(draws, reference={"a": (0.0, 1.0)}),
        plots.pairs({"one": draws, "two": draws}),
        plots.khat_tail(rng.normal(size=1_000)),
        plots.khat_tail({"one": rng.normal(size=1_000)}),
    ]
    titles = [axes.get_title() for axes in figures[2].axes]
    assert titles == ["a", "b.c[0]", "b.c[1]"]
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
    assert len(pictures(tmp_path)) == 6
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.trace(info._replace(finite=np.zeros(1_000, bool)))


@pytest.mark.quick
def test_the_command_line(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert jax.__version__ in shown
    assert "float32" in shown
    for arguments, code in ((["--help"], 0), (["demo", "--help"], 0), (["nonsense"], 2), ([], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "jvi", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo" in done.stdout


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    from jvi._progress import Progress

    model = jvi.model(lambda x, z: -0.5 * z**2)
    svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))))
    jvi.fit(svi, jax.random.key(0), num_steps=50)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    assert Progress(10, True).shown
    assert not Progress(10, False).shown
    jvi.fit(svi, jax.random.key(0), num_steps=5_000)
    assert "bound" in capsys.readouterr().err
