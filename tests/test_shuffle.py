import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jvi._shuffle import shuffled

KEY = jax.random.bits(jax.random.key(3), (2,))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1_000, 65_536, 100_003])
def test_every_number_comes_once(size):
    order = shuffled(KEY, jnp.asarray(7), jnp.arange(size), size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [5, 10])
@pytest.mark.parametrize("over", ["epochs", "keys"])
def test_places_and_pairs_of_places_are_uniform(over, size):
    count, false_alarm = 50_000, 1e-3  # of each of the 16 tests
    epochs = jnp.arange(count) if over == "epochs" else jnp.zeros(count, int)
    keys = jnp.tile(KEY, (count, 1)) if over == "epochs" else jax.random.bits(jax.random.key(5), (count, 2))
    orders = np.asarray(jax.jit(jax.vmap(lambda key, epoch: shuffled(key, epoch, jnp.arange(size), size)))(keys, epochs))
    places = np.stack([np.bincount(orders[:, i], minlength=size) for i in range(size)])
    # The sum of S random permutation matrices, centred, has covariance S / (n - 1) (I - J / n) x (I - J / n).
    statistic = np.sum((places - count / size) ** 2) * (size - 1) / count
    assert statistic < scipy.stats.chi2.isf(false_alarm, (size - 1) ** 2)
    for i, j in ((0, 1), (0, size // 2), (3, size - 1)):
        pairs = np.bincount(orders[:, i] * size + orders[:, j], minlength=size**2).reshape(size, size)
        assert (np.diag(pairs) == 0).all()
        off, expected = pairs[~np.eye(size, dtype=bool)], count / (size * (size - 1))
        assert np.sum((off - expected) ** 2) / expected < scipy.stats.chi2.isf(false_alarm, off.size - 1)
