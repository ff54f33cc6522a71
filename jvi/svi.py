"""Stochastic variational inference as `init` and `step`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvi import _tree, bounds, sharding
from jvi._checks import check_count
from jvi._spec import Recipe, spec
from jvi._typing import Array, Data, PRNGKey, PyTree, Scalar
from jvi.objectives.training import trains

__all__ = ["SVI", "FitError", "Info", "NonFiniteError", "State", "cosine_adam", "optimizer"]

# Folded into a run's key where steps fold in 0, 1, 2, ...
INIT, ORDER = 0xFFFFFFFF, 0xFFFFFFFE
_STILL = (
    "a network of this objective has a training mode, and would be fitted as it is outside of training: without dropout, its running "
    "statistics held as they are. Fit jvi.objectives.training(objective); ignore this where you mean to hold them."
)
_LARGE = 2**20  # entries of a leaf that is worth a kernel


class State(NamedTuple):
    """What a run carries from step to step: arrays only.

    Attributes:
      params: the objective's parameters.
      opt_state: the optimizer's state.
      rng: the run's key. It never changes; step t draws from `fold_in(rng, t)`.
      step: steps taken, int32 [].
      skipped: steps that were not finite and left `params` and `opt_state` as they were, int32 [].
      skipped_in_a_row: the same, since the last finite step, int32 [].
    """

    params: Any
    opt_state: PyTree
    rng: PRNGKey
    step: Array
    skipped: Array
    skipped_in_a_row: Array


class Info(NamedTuple):
    """What a step reports, about the parameters it started from; [N] each when stacked over steps.

    Attributes:
      bound: the objective, in its own unit (nats, or nats per datum).
      grad_norm: Euclidean norm of its gradient.
      ess: effective sample size of the K log-weights, between 1 and K; the mean over examples.
      finite: whether the step was finite and so was taken.
    """

    bound: Array | np.ndarray
    grad_norm: Array | np.ndarray
    ess: Array | np.ndarray
    finite: Array | np.ndarray


class FitError(RuntimeError):
    """A run that could not go on. Nothing is lost: it carries what was reached.

    Attributes:
      state: the run's state after its last step.
      info: what was reported until then, stacked.
    """

    def __init__(self, message: str, state: State, info: Info) -> None:
        super().__init__(message)
        self.state, self.info = state, info


class NonFiniteError(FitError):
    """A run met too many non-finite steps in a row; its message names the leaves and terms that went bad."""


def optimizer(factory: Callable[..., optax.GradientTransformation], *args: Any, **kwargs: Any) -> Recipe:
    """An optimizer as a recipe, which compares by value: `optimizer(optax.adam, 1e-3)`.

    Args:
      factory: returns an optax transformation.
      args, kwargs: its arguments, hashable.

    Raises:
      TypeError: if `factory` is not a function, or an argument cannot be hashed.

    Example:
      >>> import jvi, optax
      >>> jvi.optimizer(optax.adam, 1e-3) == jvi.optimizer(optax.adam, 1e-3)
      True
    """
    if isinstance(factory, optax.GradientTransformation) or not callable(factory):
        raise TypeError(f"factory must be a function such as optax.adam, followed by its arguments; got {factory!r}.")
    return Recipe(factory, args, tuple(sorted(kwargs.items())))


def cosine_adam(learning_rate: float = 0.05, num_steps: int = 5_000) -> optax.GradientTransformation:
    """Adam with its learning rate taken to zero along a half cosine, so that the last iterates hold little gradient noise.

    Its second moment forgets in 100 steps. Over 1,000, Adam's usual, the large gradients of the first steps hold the last ones
    back: on a conjugate Gaussian with 10,000 data the fitted sd is then up to 25 % too large.

    Args:
      learning_rate: at the first step; about the distance that a parameter moves in one step.
      num_steps: at which the rate is zero: the run's length.

    Example:
      >>> import jvi
      >>> fast = jvi.optimizer(jvi.svi.cosine_adam, 0.1, num_steps=1_000)
      >>> fast.function.__name__
      'cosine_adam'

    References:
      Kingma and Ba (2015), Adam; Loshchilov and Hutter (2017), SGDR.
    """
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps), b2=0.99)


@spec
class SVI:
    """Maximization of an objective by stochastic gradients.

    A step whose bound or gradient is not finite is skipped: it leaves the parameters and the optimizer's moments as they were, and
    is counted. So is one whose learning rate is not finite; entries of an update that are not finite are not applied. After
    `max_skipped` of them in a row `jvi.fit` stops and says what was not finite.

    Warns where a network of the objective has a training mode, which only `jvi.objectives.training(objective)` takes.

    Attributes:
      objective: what to maximize.
      optimizer: a recipe made by `jvi.optimizer`, or a ready optax transformation, which compares by identity, so that a new
        one compiles anew.
      max_skipped: how many steps in a row may be non-finite.

    Raises:
      TypeError: if `objective` or `optimizer` is not one.
      ValueError: if `max_skipped` is less than 1.

    Example:
      >>> import jax, jvi, optax
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))), jvi.optimizer(optax.adam, 0.1))
      >>> state = svi.init(jax.random.key(0), 3.0)
      >>> state, info = jax.jit(svi.step)(state, 3.0)
      >>> int(state.step), bool(info.finite)
      (1, True)
    """

    objective: Any
    optimizer: Recipe | optax.GradientTransformation = Recipe(cosine_adam)
    max_skipped: int = 20

    def __post_init__(self) -> None:
        if not callable(self.objective) or not hasattr(self.objective, "init"):
            raise TypeError(f"objective must be made by jvi.elbo or one of its siblings, got {self.objective!r}.")
        if not isinstance(self.optimizer, (Recipe, optax.GradientTransformation)):
            raise TypeError(f"optimizer must be jvi.optimizer(optax.adam, 1e-3) or the like, got {self.optimizer!r}.")
        check_count(self.max_skipped, "max_skipped")
        if trains(self.objective):
            warnings.warn(_STILL, stacklevel=4)

    def init(self, rng: PRNGKey, x: Data) -> State:
        """The state before the first step.

        Args:
          rng: key; the run's own.
          x: data, as `step` will get them.
        """
        params = self.objective.init(jax.random.fold_in(rng, INIT), x)
        # A weakly typed leaf would change its type after the first step, and have that step traced twice.
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
        # Arrays of their own: fits donate the state, and no buffer can be donated twice.
        step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
        return State(params, self.opt_init(params), rng, step, skipped, in_a_row)

    def opt_init(self, params: Any) -> PyTree:
        """The optimizer's state before its first step."""
        return self._transformation().init(params)

    def step(self, state: State, x: Data, *, beta: Any = 1.0) -> tuple[State, Info]:
        """One step of ascent.

        Args:
          state: from `init` or the last step.
          x: data.
          beta: weight of the KL term, a scalar, for annealing.

        Returns:
          The next state, and what happened, about the parameters in `state`.
        """
        rng = jax.random.fold_in(state.rng, state.step)
        params, opt_state, in_a_row, info = self.advance(
            state.params, state.opt_state, state.skipped_in_a_row, rng, x, beta=beta
        )
        return State(params, opt_state, state.rng, state.step + 1, state.skipped + (in_a_row > 0), in_a_row), info

    def advance(
        self, params: Any, opt_state: PyTree, in_a_row: Array, rng: PRNGKey, x: Data, *, beta: Any = 1.0, allowed: Any = True
    ) -> tuple[Any, PyTree, Array, Info]:
        """What `step` does to the parameters, the optimizer's state and the count of skipped steps in a row; and what happened.

        Where `allowed` is false the step is not taken, nor counted.
        """

        def objective(params: Any) -> tuple[Scalar, Any]:
            return self.objective(sharding.everywhere(params), rng, x, beta=beta)

        (bound, aux), grads = jax.value_and_grad(objective, has_aux=True)(params)
        grads = sharding.as_stored(grads)
        grad_norm = _norm(grads)

        def take() -> tuple[Any, PyTree, Array]:
            # optax minimizes; nothing else in jvi is negated.
            upper = getattr(self.objective, "upper", False)
            descent, loss = (grads, bound) if upper else (jax.tree.map(jnp.negative, grads), -bound)
            updates, moments = self._transformation().update(descent, opt_state, params, value=loss)
            # An update of finite gradients is not finite because its learning rate is not, which one entry shows, or in single
            # entries, which are left alone: a second pass over all entries is not paid for.
            one = jnp.isfinite(jnp.ravel(jax.tree.leaves(updates)[0])[0])
            updates = jax.tree.map(lambda update: jnp.where(jnp.isfinite(update), update, 0.0), updates)
            ascended = optax.apply_updates(params, updates)
            if hasattr(self.objective, "absorb"):
                ascended = self.objective.absorb(ascended, aux)
            return ascended, moments, jnp.where(one, 0, in_a_row + 1)

        def keep() -> tuple[Any, PyTree, Array]:
            return params, opt_state, in_a_row + allowed

        taken = jnp.isfinite(bound) & jnp.isfinite(grad_norm) & allowed
        params, opt_state, in_a_row = _either(taken, take, keep)
        return params, opt_state, in_a_row, Info(bound, grad_norm, _mean_ess(aux.log_w), in_a_row == 0)

    def _transformation(self) -> optax.GradientTransformationExtraArgs:
        ready = self.optimizer.build() if isinstance(self.optimizer, Recipe) else self.optimizer
        return optax.with_extra_args_support(ready)


def non_finite_error(svi: SVI, state: State, x: Data, info: Info, beta: Any = 1.0) -> NonFiniteError:
    """Replay the last step that `state` skipped, which its unchanged parameters and key allow, and name what was not finite."""
    step = int(state.step) - 1
    rng = jax.random.fold_in(state.rng, step)
    names: list[str] = []
    if hasattr(svi.objective, "terms"):
        terms = svi.objective.terms(state.params, rng, x)
        bad = {name: int(jnp.sum(~jnp.isfinite(value))) for name, value in terms.items()}
        names += [f"the {name} ({bad[name]} of {terms[name].size} draws)" for name in terms if bad[name]]
    grads = jax.grad(svi.objective, has_aux=True)(state.params, rng, x, beta=beta)[0]
    names += _tree.non_finite(grads, "the gradient by params")
    what = ", ".join(names) or "only the norm of the gradient or of the update, which overflowed"
    message = (
        f"{int(state.skipped_in_a_row)} steps in a row were not finite, the last one step {step}. Not finite there: {what}. "
        "The parameters in this error's `state` are those of the last finite step. A term that is not finite points at a log "
        "or a division by zero in it; if only gradients are, look for a jnp.where around one; if the run went well before, "
        "take a smaller learning rate."
    )
    return NonFiniteError(message, state, info)


def _either(condition: Array, take: Callable[[], PyTree], keep: Callable[[], PyTree]) -> PyTree:
    # A branch copies nothing, and costs a CPU a third of what selecting does (1.05 against 1.20 of an unguarded step); on a GPU
    # it makes the host wait for the condition, at every step.
    def branch() -> PyTree:
        return jax.lax.cond(condition, take, keep)

    return jax.lax.platform_dependent(cpu=branch, default=lambda: _tree.where(condition, take(), keep()))


def _norm(grads: PyTree) -> Scalar:
    """The Euclidean norm of all entries."""

    def at_once() -> Scalar:
        # A sum over each leaf is a kernel or two, for a small network a sixth of a GPU's step; the barrier keeps them from
        # being summed apart.
        leaves = jax.tree.leaves(grads)
        joined = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves if leaf.size < _LARGE] or [jnp.zeros(1)])
        return optax.tree.norm((jax.lax.optimization_barrier(joined), [leaf for leaf in leaves if leaf.size >= _LARGE]))

    if sharding.parted():
        return optax.tree.norm(grads)
    return jax.lax.platform_dependent(cpu=lambda: optax.tree.norm(grads), default=at_once)


def _mean_ess(log_w: Array) -> Scalar:
    if log_w.shape[-1] == 1:
        return jnp.ones((), log_w.dtype)
    ess = bounds.ess
    for _ in range(log_w.ndim - 1):
        ess = jax.vmap(ess)
    return jnp.mean(ess(log_w))
