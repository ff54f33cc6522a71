"""Supports: bijections with the right log-determinant, finite everywhere."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln

import jvi

pytestmark = pytest.mark.quick

# support -> the entries that are free coordinates of its image, to which its density refers (None: surface measure).
TABLE = {
    "real": (jvi.real(2, 2), slice(None)),
    "positive": (jvi.positive(3), slice(None)),
    "negative": (jvi.negative(3), slice(None)),
    "interval": (jvi.interval(-1.0, 3.0, 3), slice(None)),
    "interval_far_from_zero": (jvi.interval(100.0, 101.0, 2), slice(None)),
    "lower_bounded": (jvi.lower_bounded(2.0, 2), slice(None)),
    "upper_bounded": (jvi.upper_bounded(-2.0), slice(None)),
    "unit_interval": (jvi.unit_interval(2), slice(None)),
    "simplex": (jvi.simplex(4), slice(0, 3)),
    "two_simplices": (jvi.simplex(2, 3), [0, 1, 3, 4]),
    "ordered": (jvi.ordered(3), slice(None)),
    "positive_ordered": (jvi.positive_ordered(3), slice(None)),
    "unit_vector": (jvi.unit_vector(3), None),
    "cholesky_correlation": (jvi.cholesky_correlation(3), [3, 6, 7]),
    "cholesky_covariance": (jvi.cholesky_covariance(2), [0, 2, 3]),
}
INSIDE = {
    "positive": lambda z: z > 0,
    "negative": lambda z: z < 0,
    "interval": lambda z: (z > -1) & (z < 3),
    "interval_far_from_zero": lambda z: (z > 100) & (z < 101),
    "lower_bounded": lambda z: z >= 2,
    "upper_bounded": lambda z: z <= -2,
    "unit_interval": lambda z: (z > 0) & (z < 1),
    "simplex": lambda z: z > 0,
    "positive_ordered": lambda z: z > 0,
    "cholesky_covariance": lambda z: jnp.diag(z) > 0,
    "cholesky_correlation": lambda z: jnp.diag(z) > 0,
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("x64", [False, True])
def test_constrain_is_a_bijection_with_its_log_det(name, x64):
    support, free = TABLE[name]
    space = jvi.space(support)
    with jax.enable_x64(x64):
        eps = np.finfo(np.float64 if x64 else np.float32).eps
        scale = 100.0 if name == "interval_far_from_zero" else 1.0  # its ends are 100 spacings away from zero
        jacobian_of = jax.jit(jax.jacobian(lambda u: space.constrain(u)[0].reshape(-1)))
        for seed in range(3):
            u = jax.random.normal(jax.random.key(seed), (space.size,))
            z, log_det = jax.jit(space.constrain)(u)
            back, log_det_back = space.unconstrain(z)
            np.testing.assert_allclose(back, u, atol=200 * eps * scale)
            np.testing.assert_allclose(log_det_back, -log_det, atol=200 * eps * scale)
            jacobian = jacobian_of(u)
            if free is None:
                expected = 0.5 * jnp.linalg.slogdet(jacobian.T @ jacobian)[1]
            else:
                expected = jnp.linalg.slogdet(jacobian[jnp.asarray(np.arange(jacobian.shape[0])[free])])[1]
            np.testing.assert_allclose(log_det, expected, atol=200 * eps)
            assert z.shape == support.shape
            assert z.dtype == u.dtype


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("x64", [False, True])
def test_extreme_coordinates_stay_finite_and_inside(name, x64):
    space = jvi.space(TABLE[name][0])
    with jax.enable_x64(x64):

        @jax.jit
        def constrain(u):
            z, log_det = space.constrain(u)
            slope = jax.grad(lambda u: space.constrain(u)[1])(u)
            return z, log_det, slope, jax.grad(lambda u: jnp.sum(space.constrain(u)[0]))(u)

        for size in (20.0, 100.0, 1e3, 1e10, 1e30):
            for sign in (1.0, -1.0, (-1.0) ** np.arange(space.size)):
                z, log_det, slope, through = constrain(jnp.full(space.size, size) * sign)
                assert all(bool(jnp.isfinite(value).all()) for value in (z, log_det, slope, through)), (size, sign)
                if name in INSIDE:
                    assert bool(jnp.all(INSIDE[name](z))), (size, sign, z)


@pytest.mark.parametrize(
    ("support", "density"),
    [
        (jvi.positive(), distrax.Gamma(3.0, 2.0)),
        (jvi.interval(-1.0, 3.0), distrax.Uniform(-1.0, 3.0)),
        (jvi.unit_interval(), distrax.Beta(2.0, 3.0)),
        (jvi.simplex(3), distrax.Dirichlet(jnp.array([2.0, 3.0, 1.5]))),
    ],
)
def test_a_density_moved_to_the_coordinates_still_integrates_to_one(support, density):
    space = jvi.space(support)
    grid = np.linspace(-15.0, 15.0, 401)
    points = jnp.stack([g.ravel() for g in np.meshgrid(*[grid] * space.size)], -1)

    def moved(u):
        z, log_det = space.constrain(u)
        return jnp.exp(density.log_prob(z) + log_det)

    total = jnp.sum(jax.vmap(moved)(points)) * (grid[1] - grid[0]) ** space.size
    np.testing.assert_allclose(total, 1.0, atol=1e-3)


def test_unit_vectors_and_correlations_have_the_right_total_measure():
    """With density one, the integral over the coordinates is the sphere's surface, and LKJ's known constant."""
    grid = np.linspace(-300.0, 300.0, 6001)
    space = jvi.space(jvi.unit_vector(2))
    total = jnp.sum(jnp.exp(jax.vmap(lambda u: space.constrain(u)[1])(jnp.asarray(grid)[:, None]))) * (grid[1] - grid[0])
    np.testing.assert_allclose(total, 2 * np.pi, rtol=0.01)
    space = jvi.space(jvi.cholesky_correlation(2))  # one free entry, in (-1, 1)
    total = jnp.sum(jnp.exp(jax.vmap(lambda u: space.constrain(u)[1])(jnp.asarray(grid)[:, None]))) * (grid[1] - grid[0])
    np.testing.assert_allclose(total, 2.0, rtol=1e-3)


@pytest.mark.long
def test_a_dirichlet_has_independent_stick_breaking_coordinates():
    space = jvi.space(jvi.simplex(4))
    alpha = jnp.array([2.0, 3.0, 1.5, 4.0])

    def log_density(u):
        z, log_det = space.constrain(u)
        constant = gammaln(alpha.sum()) - gammaln(alpha).sum()
        return jnp.sum((alpha - 1) * jnp.log(z)) + log_det + constant

    hessian = jax.hessian(log_density)(jnp.array([0.2, -0.4, 0.1]))
    np.testing.assert_allclose(hessian - jnp.diag(jnp.diag(hessian)), 0.0, atol=1e-5)


def test_spaces_compare_by_value_and_name_their_coordinates():
    first = jvi.space({"w": jvi.real(2), "s": jvi.positive(), "p": jvi.simplex(3)})
    assert first == jvi.space({"p": jvi.simplex(3), "s": jvi.positive(), "w": jvi.real(2)})
    assert hash(first) == hash(jvi.space({"p": jvi.simplex(3), "s": jvi.positive(), "w": jvi.real(2)}))
    assert first != jvi.space({"w": jvi.real(2), "s": jvi.negative(), "p": jvi.simplex(3)})
    assert first.names == ("p[0]", "p[1]", "s", "w[0]", "w[1]")
    assert repr(first) == "space(p: simplex[3], s: positive[], w: real[2])"
