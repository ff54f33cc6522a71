"""Base noise: how the keys of K particles are made of one key.

A key may carry more than bits to draw from: which particle it belongs to. What it is split into carries that along, so that
whatever a guide draws with `jax.random`, distrax or TFP is drawn jointly well by all particles. Every single particle's draws keep
the law that they have with `independent` noise. So estimates stay unbiased, and a lower bound of K log-weights stays one: Jensen's
inequality asks for E[mean_k w_k] = p(x), and not for independence.

Where particles judge one another they must be independent: with `gradients.score` only the ELBO takes other noise, and without
`controls.leave_one_out`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_2x32

from jvi._shuffle import shuffled
from jvi._typing import Array, PRNGKey

__all__ = ["antithetic", "independent", "sobol"]

_MOST = 21_201  # dimensions for which direction numbers are known


def independent(rng: PRNGKey, num_samples: int) -> PRNGKey:
    """Independent particles.

    Args:
      rng: key, consumed.
      num_samples: K.

    Returns:
      Keys [K].

    Example:
      >>> import jax, jvi
      >>> jvi.noise.independent(jax.random.key(0), 4).shape
      (4,)
    """
    return jax.random.split(rng, num_samples)


def antithetic(rng: PRNGKey, num_samples: int) -> PRNGKey:
    """Particles in pairs, of which the second draws the complement of the first one's random bits.

    Where the first draws a uniform number u the second draws 1 - u, so that what is computed by inverse distribution functions
    (normal, uniform, exponential and Gumbel variables) is mirrored. The noise of what is odd in the mirrored variables cancels, which
    near a Gaussian posterior is all of the location's gradient; of what is even in them it doubles. Draws by rejection (Gamma) are as
    good as independent. Of an odd number of particles the last has no partner.

    Args:
      rng: key, consumed.
      num_samples: K.

    Returns:
      Keys [K], of an implementation of their own: `jax.random.poisson` refuses it.

    Example:
      >>> import jax, jvi
      >>> keys = jvi.noise.antithetic(jax.random.key(0), 4)
      >>> eps = jax.vmap(jax.random.normal)(keys)
      >>> bool(abs(eps[0] + eps[1]) < 1e-5), bool(abs(eps[2] + eps[3]) < 1e-5)
      (True, True)

    References:
      Hammersley and Morton (1956), A New Monte Carlo Technique: Antithetic Variates.
    """
    pairs = jax.random.bits(rng, (-(-num_samples // 2), 2), jnp.uint32)
    k = jnp.arange(num_samples, dtype=jnp.uint32)
    return jax.random.wrap_key_data(jnp.column_stack([pairs[k // 2], k % 2]), impl=_ANTITHETIC)


def sobol(rng: PRNGKey, num_samples: int) -> PRNGKey:
    """Particles that together draw the points of a scrambled Sobol net: randomized quasi-Monte Carlo.

    The K draws of n numbers are K points of one n-dimensional net, scrambled anew for every key. The error of a smooth integrand
    then falls faster than 1 / sqrt(K), most where K is a power of two. Draws from different keys (the parts of a guide) are nets of
    their own, each in an order of its own, so that what they do together is as noisy as with independent particles: draw in one go
    what interacts. More than 21,201 numbers are several nets, too. Draws by rejection (Gamma) gain little.

    Args:
      rng: key, consumed.
      num_samples: K.

    Returns:
      Keys [K], of an implementation of their own: `jax.random.poisson` refuses it.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> u = jax.vmap(jax.random.uniform)(jvi.noise.sobol(jax.random.key(0), 8))
      >>> sorted(jnp.floor(8 * u).astype(int).tolist())  # one in every eighth
      [0, 1, 2, 3, 4, 5, 6, 7]

    References:
      Owen (1997), Scrambled Net Variance for Integrals of Smooth Functions; Owen (1998), Latin Supercube Sampling; Burley (2020),
      Practical Hash-Based Owen Scrambling; Joe and Kuo (2008).
    """
    both = jnp.broadcast_to(jax.random.bits(rng, (2,), jnp.uint32), (num_samples, 2))
    k = jnp.arange(num_samples, dtype=jnp.uint32)
    return jax.random.wrap_key_data(jnp.column_stack([both, k]), impl=_sobol_impl(num_samples))


def are_joint(noise: Any) -> bool:
    """Whether a noise makes particles that depend on one another; a user's own is taken to make independent ones."""
    return noise in (antithetic, sobol)


def _carrying(name: str, bits: Any) -> Any:
    """Keys that are threefry's, and a word that they hand on."""

    def plain(key: Array) -> PRNGKey:
        return jax.random.wrap_key_data(key[:2], impl="threefry2x32")

    def seed(seed: Array) -> Array:
        return jnp.append(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")), jnp.uint32(0))

    def split(key: Array, shape: tuple[int, ...]) -> Array:
        data = jax.random.key_data(jax.random.split(plain(key), shape))
        return jnp.concatenate([data, jnp.broadcast_to(key[2:], (*shape, 1))], -1)

    def fold_in(key: Array, data: Any) -> Array:
        return jnp.append(jax.random.key_data(jax.random.fold_in(plain(key), data)), key[2])

    def random_bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
        return bits(plain(key), key[2], width, shape)

    return define_prng_impl(
        key_shape=(3,), seed=seed, split=split, random_bits=random_bits, fold_in=fold_in, name=f"jvi_{name}", tag=name
    )


def _complemented(key: PRNGKey, flag: Array, width: int, shape: tuple[int, ...]) -> Array:
    bits = jax.random.bits(key, shape, f"uint{width}")
    return bits ^ (jnp.zeros((), bits.dtype) - flag.astype(bits.dtype))


_ANTITHETIC = _carrying("antithetic", _complemented)


@functools.cache
def _sobol_impl(num_samples: int) -> Any:
    return _carrying(f"sobol{num_samples}", functools.partial(_netted, num_samples))


def _netted(num_samples: int, key: PRNGKey, k: Array, width: int, shape: tuple[int, ...]) -> Array:
    """Bits of what particle `k` of `num_samples` draws: a point of a net, or side by side, of several nets."""
    sizes = [len(block) for block in np.array_split(np.arange(math.prod(shape)), -(-math.prod(shape) // _MOST) or 1)]
    keys = [key] if len(sizes) == 1 else jax.random.split(key, len(sizes))
    value = jnp.concatenate([_point(num_samples, key, k, size) for key, size in zip(keys, sizes, strict=True)])
    if width <= 32:
        return (value >> (32 - width)).astype(f"uint{width}").reshape(shape)
    low = jax.random.bits(jax.random.fold_in(key, k), value.shape, jnp.uint32)
    return ((value.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)).reshape(shape)


def _point(num_samples: int, key: PRNGKey, k: Array, size: int) -> Array:
    """A point of a net [size], scrambled and chosen by the key."""
    words = threefry_2x32(jax.random.key_data(key), jnp.arange(2 * size + 2, dtype=jnp.uint32))
    k = shuffled(words[:2], jnp.uint32(0), k, num_samples).astype(jnp.uint32)
    value = jnp.zeros(size, jnp.uint32)
    for b, row in enumerate(_directions(size, (num_samples - 1).bit_length())):
        value ^= jnp.asarray(row) * ((k >> b) & 1)
    return _reversed(_scrambled(value, words[2 : size + 2], words[size + 2 :]))


def _scrambled(value: Array, add: Array, multiply: Array) -> Array:
    """Every bit flipped by a hash of those below it: nested scrambling, of bits in reversed order."""
    # The sum with uniform bits is uniform, and what follows can be undone: so is the result, exactly.
    value = (value ^ (value * jnp.uint32(0x3D20ADEA))) + add
    value = value * (multiply | jnp.uint32(1))
    for factor in (0x05526C56, 0x53A22864):
        value = value ^ (value * jnp.uint32(factor))
    return value


def _reversed(value: Any) -> Any:
    """32 bits, the last first."""
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        value = ((value >> shift) & np.uint32(mask)) | ((value & np.uint32(mask)) << shift)
    return (value >> 16) | (value << 16)


@functools.lru_cache(maxsize=64)
def _directions(size: int, bits: int) -> np.ndarray:
    """Direction numbers [bits, size], uint32 with their bits reversed: the points whose Gray code has one bit set."""
    if size == 0:
        return np.zeros((bits, 0), np.uint32)
    from scipy.stats import qmc  # takes longer to import than all of jvi

    net, rows = qmc.Sobol(size, scramble=False, bits=32), []
    for b in range(bits):
        net.fast_forward(2 ** (b + 1) - 1 - net.num_generated)
        rows.append(net.random(1)[0])
    return _reversed((np.reshape(rows, (bits, size)) * 2.0**32).astype(np.uint32))
