"""Ascents that drive themselves: no learning rate and no number of steps to choose."""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvi import _hosts as hosts
from jvi._keeper import EVALUATIONS, Keeper
from jvi._loops import FAR
from jvi._pace import ROWS, paced, restarted, thinned
from jvi._progress import Progress
from jvi._run import Run
from jvi._sources import Source
from jvi._spec import Recipe
from jvi._stationarity import Watch
from jvi._store import Found
from jvi._typing import Estimate, Params, PRNGKey
from jvi.schedules import Schedule
from jvi.svi import SVI, Info, NonFiniteError, State, optimizer

_RATES = tuple(10.0**i for i in range(-4, 3))  # of Adam
_FACTORS = tuple(10.0**i for i in range(-2, 7))  # of the updates of another optimizer, whose rate may be far off
_RACE = 300  # steps at each rate
_DECAY = 0.25
_HIDDEN = 4  # rates until one must have settled: ever smaller ones end all movement, wherever it is
_DRAWS, _MOST_DRAWS = 256, 4_096  # evaluations of the objective by which two sets of parameters are compared
_NO_CHANCE = 3.0  # standard errors
_FAILURES = 3  # ascents that end in non-finite steps


class Adapted(NamedTuple):
    """What an ascent that drove itself came to.

    Attributes:
      state: with averaged parameters.
      info: of the steps that led there, stacked.
      status: "converged"; "budget spent", where it was still rising; "diverged", where no learning rate led up; "regressed",
        where a smaller learning rate led down, and the parameters are those from before.
      gain: what the last change of the learning rate gained, with its standard error, in the unit of the objective.
      rates: the learning rates, one after the other.
      num_steps: gradients taken, those of the race for the learning rate and of comparisons included.

    Example:
      >>> import jax, jvi
      >>> model = jvi.model(lambda x, z: -0.5 * (z - x) ** 2)
      >>> svi = jvi.SVI(jvi.elbo(model, jvi.guides.MeanField(jvi.space(jvi.real()))))
      >>> jvi.adapt(svi, jax.random.key(0), 3.0, max_steps=400, progress=False).status
      'budget spent'
    """

    state: State
    info: Info
    status: str
    gain: Estimate
    rates: tuple[float, ...]
    num_steps: int


class _SpentError(Exception):
    """The budget is spent, or there are no more data."""


class Drive:
    """One ascent that drives itself.

    A race chooses the learning rate. At each rate the ascent goes on until it has settled, or its noise hides whether it rises; then
    the parameters are averaged for as long again as it took to see that, and the next, smaller rate starts from the average, until
    one that has settled gains nothing more.

    References:
      Welandawe, Andersen, Vehtari and Huggins (2024), A Framework for Improving the Reliability of Black-Box Variational Inference.
    """

    def __init__(
        self,
        svi: SVI,
        source: Source,
        beta: Any,
        max_steps: int,
        seconds: float,
        tolerance: float,
        keeper: Keeper | None = None,
    ) -> None:
        self.own = svi.optimizer == SVI.optimizer
        inner = optimizer(optax.adam, 1.0, b2=0.99) if self.own else svi.optimizer
        self.rates = _RATES if self.own else _FACTORS
        self.svi, self.given = SVI(svi.objective, Recipe(paced, (inner,)), svi.max_skipped), svi
        self.source, self.beta, self.tolerance, self.keeper = source, beta, tolerance, keeper
        self.max_steps, self.until, self.taken = max_steps, perf_counter() + seconds, 0
        self.annealed = int(beta.num_steps) if isinstance(beta, Schedule) else 0
        self.used: list[float] = []
        self.run: Run
        self.state: State  # the last one: those before it are donated

    def all(self, rng: PRNGKey, state: State | None, progress: bool) -> Adapted:
        """Race, then ascend; or go on where an ascent stood that was broken off."""
        self.state = self.source.init(self.svi, rng)
        if state is not None:
            self.state = self.state._replace(params=_copy(state.params), rng=jnp.copy(state.rng), step=jnp.copy(state.step))
        with self.keeper or nullcontext():
            found = self.keeper.open(self.trees(self.state.params)) if self.keeper else None
            return self.ascend(found, progress)

    def ascend(self, found: Found | None, progress: bool) -> Adapted:
        """To the end."""
        last, status, gain, failures = _copy(self.state.params), "budget spent", Estimate(np.nan, np.nan), 0
        if self.keeper is not None and found is not None:
            last, gain, failures = self.resume(self.keeper, found)
            if found.record["status"]:
                return self.adapted(found.trees["state"], found.record["status"], gain)
        try:
            if found is None:
                self.race()
            self.run.progress = Progress(self.max_steps, progress and hosts.speaks(self.source.mesh))
            with self.run.progress:
                while status == "budget spent":
                    self.keep(last, None, gain, failures)
                    try:
                        mean, settled = self.settle()
                    except NonFiniteError as error:
                        failures += 1
                        status = "diverged" if failures == _FAILURES else status
                        self.state = error.state
                        self.go_on(last, 0.1)
                        continue
                    gain = self.compare(last, mean)
                    if gain.value < -max(_NO_CHANCE * gain.standard_error, self.tolerance):
                        status = "regressed" if len(self.used) > 1 else "diverged"
                    else:
                        last, enough = mean, gain.value + 2.0 * gain.standard_error < self.tolerance
                        if settled and enough and len(self.used) > 1:
                            status = "converged"
                        else:
                            self.go_on(mean, _DECAY if settled or len(self.used) < _HIDDEN else 1.0)
        except _SpentError:
            last = self.better(last)
        self.keep(last, status, gain, failures)
        return self.adapted(self.trees(last)["state"], status, gain)

    def adapted(self, state: State, status: str, gain: Estimate) -> Adapted:
        """What came of it."""
        return Adapted(state, self.run.info(), status, gain, tuple(self.used), self.taken)

    def trees(self, params: Params) -> dict[str, State]:
        """The state that `params` would be returned in, and the one to go on from."""
        opt_state = self.given.opt_init(params) if self.own else self.state.opt_state.inner
        return {"state": self.state._replace(params=params, opt_state=opt_state), "ascent": self.state}

    def keep(self, last: Params, status: str | None, gain: Estimate, failures: int) -> None:
        """Save, between two learning rates or, with a status, at the end."""
        if self.keeper is None or (self.taken == self.keeper.last and not status):
            return
        taken = self.taken
        bounds = self.evaluated(last, EVALUATIONS)
        self.taken = taken  # what is only looked at costs nothing of the budget
        trees = self.trees(last)
        record = {"status": status, "gain": [float(gain.value), float(gain.standard_error)], "failures": failures}
        record |= {"rates": self.used, "taken": taken, "num_steps": None}
        self.keeper.save(taken, self.run, {"state": trees["state"]} if status else trees, bounds, record, bool(status))

    def resume(self, keeper: Keeper, found: Found) -> tuple[Params, Estimate, int]:
        """Stand where `keep` was called, and what it was told."""
        record = found.record
        self.used, self.taken, self.state = record["rates"], record["taken"], found.trees.get("ascent", found.trees["state"])
        self.run = self._run(self.max_steps, self.state)
        keeper.go_on(self.run, self.state, record, self.max_steps - record["done"])
        if keeper.stacks is not None and not record["status"]:
            keeper.stacks.seek(hosts.own_position(self.source.mesh, record["positions"]))
        return found.trees["state"].params, Estimate(*record["gain"]), record["failures"]

    def race(self) -> None:
        """A few steps at each learning rate, from the smallest on, until they lead to lower bounds again."""
        start, best = self.state, -np.inf
        chosen: tuple[Run, State, float] | None = None
        for rate in self.rates:
            self.state = _paced(_copy(start), rate)
            self.run = lane = self._run(self.max_steps, self.state)
            try:
                self.steps(_RACE)
            except NonFiniteError:
                break
            tail = lane.info().bound[-_RACE // 3 :]
            if not np.isfinite(tail).all():
                break
            score, error = float(np.mean(tail)), float(np.std(tail) / np.sqrt(len(tail)))
            if score < best - _NO_CHANCE * error:
                break
            if score > best:
                best, chosen = score, (lane, self.state, rate)
        if chosen is None:
            chosen = self._run(self.max_steps, start), _paced(start, self.rates[0]), self.rates[0]
        self.run, self.state, rate = chosen
        self.used.append(rate)

    def settle(self) -> tuple[Params, bool]:
        """Go on until the ascent has settled, or cannot be seen to rise; the average of the parameters from then on, and which."""
        self.state = self.state._replace(opt_state=restarted(self.state.opt_state))
        self.run.progress.note = f"rate {self.used[-1]:.2g}, "
        self.steps(max(self.annealed - int(self.state.step), 0))  # a bound that moves with beta does not settle
        begun, watch = self.run.done, Watch(self.tolerance)
        while not (watch.settled or watch.hidden):
            self.steps(watch.next - (self.run.done - begun))
            pace = self.state.opt_state
            trace = np.asarray(pace.trace)[: int(pace.steps) // int(pace.every)]
            watch.look(np.asarray(self.run.info().bound[begun:]), trace)
        self.state = self.state._replace(opt_state=restarted(self.state.opt_state))
        self.steps(self.run.done - begun)
        return _copy(self.state.opt_state.mean), watch.settled

    def go_on(self, params: Params, factor: float) -> None:
        """From these parameters, at another learning rate."""
        rate = factor * self.used[-1]
        self.used.append(rate)
        self.state = _paced(self.state._replace(params=_copy(params)), rate)

    def steps(self, count: int) -> None:
        """Take steps.

        Raises:
          _SpentError: if the budget ends before.
        """
        end = self.run.done + count
        while self.run.done < end:
            pace = self.state.opt_state
            if int(pace.steps) // int(pace.every) == ROWS:
                self.state = self.state._replace(opt_state=thinned(pace))
                continue
            left = self.max_steps - self.taken
            if left < 1 or perf_counter() > self.until:
                raise _SpentError
            before = self.run.done
            room = ROWS * int(pace.every) - int(pace.steps)
            new = self.source.advance(self.run, self.state, min(end - before, left, room))
            if new is None:
                raise _SpentError
            self.state = new
            self.taken += self.run.done - before

    def compare(self, before: Params, after: Params) -> Estimate:
        """What `after` gains on `before`: the mean difference of bounds from the same keys and data."""
        draws = _DRAWS
        while True:
            new, old = self.evaluated(after, draws), self.evaluated(before, draws)
            if not (np.isfinite(new).all() and np.isfinite(old).all()):
                return Estimate(np.inf if np.isfinite(new).all() else -np.inf, 0.0)
            gain = Estimate(float(np.mean(new - old)), float(np.std(new - old, ddof=1) / np.sqrt(draws)))
            if 4.0 * gain.standard_error < max(self.tolerance, abs(gain.value)) or draws >= _MOST_DRAWS:
                return gain
            draws *= 4

    def evaluated(self, params: Params, draws: int) -> np.ndarray:
        """Bounds [draws] at `params`, by steps of length zero: they run the program that is there."""
        state = _paced(_copy(self.state._replace(params=params, step=jnp.asarray(FAR, jnp.int32))), 0.0)
        run = self._run(draws, state)
        try:
            while run.done < draws:
                state = self.source.evaluate(run, state, draws - run.done)
        except NonFiniteError:
            return np.full(draws, -np.inf)
        self.taken += draws
        bounds = run.info().bound.astype(float)
        return np.where(np.isnan(bounds), -np.inf, bounds)

    def better(self, last: Params) -> Params:
        """The best of the parameters from before and those of the ascent that was broken off."""
        pace = self.state.opt_state
        for params in (_copy(self.state.params), _copy(pace.mean)) if self.run.done and int(pace.steps) else ():
            gain = self.compare(last, params)
            last = params if gain.value > gain.standard_error else last
        return last

    def _run(self, num_steps: int, state: State) -> Run:
        return Run(self.svi, num_steps, state, self.beta, None, 1, False, self.source.mesh)


def _paced(state: State, rate: float) -> State:
    pace = restarted(state.opt_state)._replace(rate=jnp.asarray(rate, float))
    return state._replace(opt_state=pace, skipped_in_a_row=jnp.zeros((), jnp.int32))


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
