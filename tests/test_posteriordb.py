"""The shared reference posteriors: the log-joints written for them obey Stein's identity, and `infer` gets the hard kinds right."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jvi
from benchmarks.posteriordb import judge, resampled
from benchmarks.posteriordb_models import load, names

ROOT = Path(__file__).parent.parent.parent / "shared" / "posteriordb"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="the shared reference posteriors are not here")
ENTRIES = names(ROOT) if ROOT.is_dir() else []


def latents(entry, draws):
    """Latents [S, ...] of reference rows [S, P], whose entries are those of the latent in another order."""
    if "noncentered" in entry.name:
        mu, tau = draws[:, 8], draws[:, 9]
        return {"mu": mu, "t": (draws[:, :8] - mu[:, None]) / tau[:, None], "tau": tau}
    some = entry.space.constrain(jnp.zeros(entry.space.size))[0]
    flat, unravel = ravel_pytree(some)
    order = jax.jacobian(lambda flat: entry.columns(unravel(flat)))(flat)
    return jax.vmap(lambda row: unravel(order.T @ row))(draws)


@pytest.mark.parametrize("name", ENTRIES)
def test_log_joints_have_a_mean_gradient_of_zero_at_the_reference_draws(name, float64):
    """E[grad log p(u)] = 0 under the posterior; each coordinate within 5 standard errors, from the means of the ten chains."""
    entry = load(ROOT, name)

    def log_density(u):
        z, log_det = entry.space.constrain(u)
        return entry.log_joint(entry.x, z) + log_det

    u = jax.vmap(lambda z: entry.space.unconstrain(z)[0])(latents(entry, jnp.asarray(entry.reference.draws)))
    grads = np.asarray(jax.lax.map(jax.grad(log_density), u, batch_size=100))
    assert np.isfinite(grads).all()
    chains = np.stack([grads[entry.reference.chain == chain].mean(0) for chain in np.unique(entry.reference.chain)])
    # With ten means a t-statistic has heavy tails: its 1e-5 quantile is 8 standard errors.
    assert (np.abs(chains.mean(0)) < 8.0 * chains.std(0, ddof=1) / np.sqrt(len(chains)) + 1e-12).all()


@pytest.mark.parametrize(
    "name",
    ["earnings-earn_height", "eight_schools-eight_schools_centered", "low_dim_gauss_mix-low_dim_gauss_mix"],
)
def test_infer_is_accurate_and_trusted_on_each_kind_of_geometry(name):
    entry = load(ROOT, name)
    posterior = jvi.infer(jax.random.key(0), entry.log_joint, entry.space, entry.x)
    with jax.enable_x64(True):
        columns = np.asarray(jax.vmap(entry.columns)(posterior.sample(jax.random.key(1), 10_000)))
    found = judge(entry, columns)
    assert found["accurate"], found
    assert posterior.report.trusted
    again = jvi.infer(jax.random.key(2), entry.log_joint, entry.space, resampled(entry.x, 0))
    assert np.isfinite(again.report.log_evidence)
