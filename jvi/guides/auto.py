"""A guide chosen from a space and from what depends on what in a log-joint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.csgraph import connected_components

from jvi import _tree
from jvi._spec import spec
from jvi._typing import Array, Data, Latent, Params, PRNGKey, Scalar
from jvi.guides.amortize import amortize, num_params
from jvi.guides.block_diagonal import BlockDiagonal
from jvi.guides.compose import product, sequence
from jvi.guides.functions import Guide
from jvi.guides.gaussian import FullRank
from jvi.guides.low_rank import LowRank
from jvi.guides.markov import Markov
from jvi.guides.tree import Tree
from jvi.models import Model, model
from jvi.models.densities import WithoutData
from jvi.spaces import Space, space

_DENSE = 300  # coordinates of a block up to which its covariance is dense
_PROBED = 1_000  # coordinates up to which the curvature is looked at
_RANK = 10
_LEADERS = 20  # coordinates up to which a chain or tree follows all others
_SERIES = 8  # entries from which a latent is worth a chain


@spec
class Joined:
    """A guide of a flat dict of latents, some of which one part draws together. Made by `auto`."""

    inner: Any
    together: tuple[str, ...]
    reparameterized: ClassVar[bool] = True

    def init(self, rng: PRNGKey, x: Data) -> Params:
        """Initial parameters by part."""
        return self.inner.init(rng, x)

    def sample_and_log_prob(self, params: Params, rng: PRNGKey, x: Data) -> tuple[Latent, Scalar]:
        """One draw and its log-density."""
        z, log_q = self.inner.sample_and_log_prob(params, rng, x)
        return {**z.pop("others"), **z}, log_q

    def log_prob(self, params: Params, x: Data, z: Latent) -> Scalar:
        """log q(z), nats."""
        others = {name: z[name] for name in self.together}
        apart = {name: value for name, value in z.items() if name not in self.together}
        return self.inner.log_prob(params, x, {"others": others, **apart})


@spec
class Leading:
    """What a linked part sees: the coordinates of the others."""

    space: Space

    def __call__(self, x: Data) -> Array:
        """Of `(x, earlier draws)`."""
        return self.space.unconstrain(x[1]["others"])[0]


def auto(log_joint: Any, space: Space, x: Data = None, *, report: Callable[[str], Any] | None = print) -> Guide:
    """A sensible guide for a log-joint over a space, and why.

    A latent that is declared by `jvi.sequence` or `jvi.tree`, or whose entries depend on their neighbours alone, gets a `Markov` or
    `Tree` guide, whose numbers follow the other latents where these are few. Coordinates that fall apart into independent blocks get
    one block each; what is small enough a dense covariance; what is not, diagonal plus low rank. What depends on what is read off the
    curvature at three random points, for spaces of up to 1,000 coordinates.

    Of a learned model, that is the curvature at the parameters that its `init` makes, those that are zero moved off it: a last layer
    that starts at zero hides what its network depends on. For a posterior of every datum, amortize the guide:
    `amortize(auto(model, space, x_0), network)`, with `num_params(guide, x_0)` outputs.

    Args:
      log_joint: a model, learned or not, or `(x, z) -> scalar` (`(z) -> scalar` where `x` is None).
      space: where the latents live.
      x: data, as the log-joint takes them: one datum of a model that is fitted by `jvi.per_example`.
      report: what is told the reasons, a line each; None for nobody.

    Raises:
      TypeError: if `log_joint` is neither, or `space` no space.
      ValueError: if the log-joint does not take the parameters, the data and a draw of the space, or is not one number.

    Example:
      >>> import jax, jax.numpy as jnp, jvi
      >>> def log_joint(z):
      ...     steps = z["path"][1:] - z["path"][:-1]
      ...     return -jnp.sum(z["path"] ** 2) - jnp.sum(steps**2) / z["scale"] - z["scale"]
      >>> guide = jvi.guides.auto(log_joint, jvi.space({"path": jvi.real(50), "scale": jvi.positive()}))
      path: its 50 entries depend on their neighbours alone, given the others: Markov, linear in the other coordinates, 1
      scale: FullRank of 1 coordinate
    """
    if not isinstance(space, Space):
        raise TypeError(f"space must be made by jvi.space, as in jvi.space({{'w': jvi.real(3)}}); got {space!r}.")
    told = report or (lambda line: None)
    found = _checked(log_joint, space, x)
    linked = _dependence(found, space, x) if space.size <= _PROBED else None
    if linked is None:
        told(f"{space.size:,} coordinates: more than {_PROBED:,}, so that the curvature was not looked at")
    series = _series(space, linked)
    if series:
        return _with_series(space, series, told)
    return _plain(space, linked, told)


def _plain(space: Space, linked: np.ndarray | None, told: Callable[[str], Any]) -> Guide:
    if linked is not None:
        count, owner = connected_components(linked, directed=False)
        groups = tuple(tuple(np.flatnonzero(owner == i).tolist()) for i in range(count))
        if count > 1 and max(map(len, groups)) <= _DENSE:
            told(f"{_counted(space.size)} in {count:,} blocks that do not depend on each other: BlockDiagonal")
            return BlockDiagonal(space, groups)
    if space.size <= _DENSE:
        told(f"{_counted(space.size)}, which depend on each other: FullRank")
        return FullRank(space)
    told(f"{_counted(space.size)}, too many for a dense covariance: LowRank of rank {_RANK}")
    return LowRank(space, rank=_RANK)


def _with_series(whole: Space, series: dict[str, tuple[Guide, str]], told: Callable[[str], Any]) -> Guide:
    supports = dict(zip(sorted(_names(whole)), whole.supports, strict=True))
    rest = {name: support for name, support in supports.items() if name not in series}
    others = space(rest) if rest else None
    follow = others is not None and others.size <= _LEADERS
    parts: dict[str, Guide] = {}
    for name, (guide, why) in series.items():
        told(f"{name}: {why}" + (f", linear in the other coordinates, {others.size}" if follow and others else ""))
        if follow and others is not None:
            slopes = nn.Dense(num_params(guide), use_bias=False, kernel_init=nn.initializers.zeros)
            guide = amortize(guide, slopes, inputs=Leading(others))
        parts[name] = guide
    if others is None:
        return product(**parts)
    chosen: Guide = FullRank(others) if others.size <= _DENSE else LowRank(others, rank=_RANK)
    told(f"{', '.join(rest)}: {type(chosen).__name__} of {_counted(others.size)}")
    return Joined((sequence if follow else product)(others=chosen, **parts), tuple(rest))


def _series(space: Space, linked: np.ndarray | None) -> dict[str, tuple[Guide, str]]:
    """Guides, and why, of the latents that are chains or trees; none where latents are not a flat dict."""
    names = _names(space)
    found: dict[str, tuple[Guide, str]] = {}
    start = 0
    for name, support in zip(sorted(names), space.supports, strict=True) if names else ():
        own = slice(start, start + support.size)
        start += support.size
        if support.parents is not None:
            count, dim = len(support.parents), support.shape[1] if len(support.shape) > 1 else None
            is_chain = support.parents == tuple(range(-1, count - 1))
            guide: Guide = Markov(count, dim) if is_chain else Tree(support.parents, dim)
            found[name] = guide, f"declared a {'sequence' if is_chain else 'tree'} of {count:,}: {type(guide).__name__}"
        elif linked is not None and support.bijector is None and len(support.shape) == 1 and support.size >= _SERIES:
            band = np.triu(linked[own, own], 1)
            rows, columns = np.nonzero(band)
            if len(rows) and np.all(columns - rows == 1):
                why = f"its {support.size} entries depend on their neighbours alone, given the others: Markov"
                found[name] = Markov(support.size), why
    return found


def _names(space: Space) -> list[str]:
    """Names of the latents of a flat dict."""
    tree = jax.tree.unflatten(space.treedef, [0] * len(space.supports))
    flat = isinstance(tree, dict) and all(isinstance(leaf, int) for leaf in tree.values())
    return [str(name) for name in tree] if flat else []


def _checked(log_joint: Any, space: Space, x: Data) -> Any:
    """The log-joint as a model, once it is known to take what it will be given."""
    if not isinstance(log_joint, Model) and (not callable(log_joint) or hasattr(log_joint, "init")):
        raise TypeError(f"log_joint must be a model or a function; got {log_joint!r}.")
    function: Any = log_joint
    found: Any = log_joint if isinstance(log_joint, Model) else model(function if x is not None else WithoutData(function))
    z = jax.eval_shape(lambda u: space.constrain(u)[0], jnp.zeros(space.size))
    try:
        jax.eval_shape(lambda z: found.log_joint(found.init(jax.random.key(0), x), x, z), z)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"the log-joint must take data of {_tree.shapes(x)} and a draw of {_tree.shapes(z)}; it says {type(error).__name__}: "
            f"{error} Hand over one datum in place of a batch, the x that its init looks at, or jvi.learned(init, log_joint) for a "
            "function that takes parameters."
        ) from error
    return found


def _dependence(found: Model, space: Space, x: Data) -> np.ndarray:
    """Whether the log-density's mixed second derivatives differ from zero [D, D]."""
    params = _off_zero(found.init(jax.random.key(0), x))

    def slope(u: Array) -> Array:
        def density(u: Array) -> Scalar:
            z, log_det = space.constrain(u)
            return found.log_joint(params, x, z) + log_det

        return jax.grad(density)(u)

    points = jnp.asarray(0.5 * np.random.default_rng(0).normal(size=(3, space.size)), float)
    curvature = np.stack(
        [np.asarray(jax.vmap(lambda e, u=u: jax.jvp(slope, (u,), (e,))[1])(jnp.eye(space.size))) for u in points]
    )
    scale = np.sqrt(np.abs(np.einsum("nii->ni", curvature)))
    curvature = np.abs(curvature) > 1e-6 * scale[:, :, None] * scale[:, None, :]
    return np.any(curvature | ~np.isfinite(scale)[:, :, None], 0)


def _off_zero(params: Params) -> Params:
    """Parameters that are zero moved to small numbers."""
    leaves, tree = jax.tree.flatten(params)
    moved = [
        jnp.where(leaf == 0.0, 0.1 * jax.random.normal(jax.random.key(i), jnp.shape(leaf)), leaf)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        else leaf
        for i, leaf in enumerate(leaves)
    ]
    return tree.unflatten(moved)


def _counted(size: int) -> str:
    return f"{size:,} coordinate{'s' if size > 1 else ''}"
