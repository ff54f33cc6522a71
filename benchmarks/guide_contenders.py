"""The targets of `benchmarks.guides`, and its contenders, each a fit that goes on chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm


class Size(NamedTuple):
    """What contenders of a class share."""

    num_layers: int = 4
    hidden: tuple[int, ...] = (32, 32)
    num_bins: int = 8
    num_samples: int = 128
    rate: float = 3e-3
    num_steps: int = 8_000
    chunk: int = 500


class Target(NamedTuple):
    """A normalized log-density of `dim` coordinates."""

    name: str
    says: str
    dim: int
    log_prob: Callable[[Any], Any]
    size: Size


class Run(NamedTuple):
    """A fit in progress: take a chunk of steps; log q - log p of fresh draws; start again, with a seed."""

    chunk: Callable[[], None]
    log_ratio: Callable[[int], Any]
    restart: Callable[[int], None]


class Contender(NamedTuple):
    """A guide of a library, and the class in which it is compared."""

    kind: str
    library: str
    make: Callable[..., Any]


DRAWS = 20_000
# Draws of a MAF are made one coordinate after the other: it gets a fraction of the steps.
FEWER = {"MAF": 10}
SPREAD = 3.0


def banana(z: Any) -> Any:
    return norm.logpdf(z[0], 0.0, 2.0) + norm.logpdf(z[1], z[0] ** 2 / 4.0, 0.5)


def funnel(z: Any) -> Any:
    return norm.logpdf(z[0], 0.0, 3.0) + norm.logpdf(z[1:], 0.0, jnp.exp(0.5 * z[0])).sum()


def four_modes(z: Any) -> Any:
    places = jnp.array([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
    return jax.nn.logsumexp(norm.logpdf(z[None], places, 0.7).sum(1)) - math.log(4.0)


TARGETS = {
    "banana": Target("banana", "z0 ~ N(0, 2^2), z1 ~ N(z0^2 / 4, 0.5^2).", 2, banana, Size()),
    "funnel": Target("funnel", "Neal's, d = 10: z0 ~ N(0, 3^2), the others N(0, exp(z0)).", 10, funnel, Size()),
    "four modes": Target("four modes", "N((±2, ±2), 0.7^2), of equal weight.", 2, four_modes, Size()),
}


def build(name: str, target: Target, size: Size) -> Run:
    """The contender's fit to this target, begun anew by `restart(seed)`."""
    contender = CONTENDERS[name]
    if contender.kind == "low rank" and target.dim <= 2:
        raise NotImplementedError("two coordinates have no low rank")
    size = size._replace(chunk=size.chunk // FEWER.get(contender.kind, 1))
    return FITS[contender.library](contender.make, target, size)


def _running(init: Callable[[Any], Any], chunk: Callable[[Any, Any], Any], log_ratio: Callable[[Any, Any], Any]) -> Run:
    """A run of pure functions: `init(rng)`, `chunk(state, rng)`, `log_ratio(state, rng) -> [DRAWS]`."""
    held = {"state": init(jax.random.key(0)), "chunks": 0, "rng": jax.random.key(1)}
    evaluate = jax.jit(log_ratio)

    def go_on() -> None:
        held["chunks"] += 1
        held["state"] = jax.block_until_ready(chunk(held["state"], jax.random.fold_in(held["rng"], held["chunks"])))

    def restart(seed: int) -> None:
        start, rng = jax.random.split(jax.random.key(seed))
        held.update(state=init(start), chunks=0, rng=rng)

    return Run(go_on, lambda i: evaluate(held["state"], jax.random.fold_in(jax.random.key(2), i)), restart)


# -- jvi --------------------------------------------------------------------------------------------------------------------


def _jvi(make: Callable[..., Any], target: Target, size: Size, pathwise: bool = False) -> Run:
    import jvi

    guide = make(jvi, jvi.space(jvi.real(target.dim)), size)
    model = jvi.model(lambda x, z: target.log_prob(z))
    # By its default gradient, as by the others' theirs; or by the one that theirs is.
    gradient = jvi.gradients.pathwise if pathwise else None
    objective = jvi.elbo(model, guide, num_samples=size.num_samples, gradient=gradient)
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, size.rate))

    def chunk(state: Any, rng: Any) -> Any:
        return jvi.fit(svi, rng, (), num_steps=size.chunk, state=state, progress=False)[0]

    def log_ratio(state: Any, rng: Any) -> Any:
        draw = jax.vmap(lambda key: guide.sample_and_log_prob(state.params.guide, key, ()))
        z, log_q = draw(jax.random.split(rng, DRAWS))
        return log_q - jax.vmap(target.log_prob)(z)

    def init(rng: Any) -> Any:
        return jax.jit(svi.init)(rng, ())

    return _running(init, chunk, log_ratio)


def _flow_of(name: str) -> Callable[..., Any]:
    def make(jvi: Any, space: Any, size: Size) -> Any:
        options = {"num_bins": size.num_bins} if name == "NeuralSpline" else {}
        kind = getattr(jvi.guides, name)
        return kind(space, num_layers=size.num_layers, hidden=size.hidden, init_scale=1.0, **options)

    return make


def _mixture(jvi: Any, space: Any, size: Size) -> Any:
    if not hasattr(jvi.guides, "Mixture"):
        raise NotImplementedError("this jvi has no Mixture")
    return jvi.guides.Mixture((jvi.guides.FullRank(space),) * 8, spread=SPREAD)


# -- NumPyro ----------------------------------------------------------------------------------------------------------------


def _numpyro(make: Callable[..., Any], target: Target, size: Size) -> Run:
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    def model() -> None:
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (target.dim,)))
        numpyro.factor("target", target.log_prob(z))

    guide = make(autoguide, model, size, target.dim)
    svi = SVI(model, guide, numpyro.optim.Adam(size.rate), Trace_ELBO(num_particles=size.num_samples))

    @jax.jit
    def chunk(state: Any, rng: Any) -> Any:
        return jax.lax.scan(lambda state, _: svi.update(state), state, length=size.chunk)[0]

    def log_ratio(state: Any, rng: Any) -> Any:
        q = guide.get_posterior(svi.get_params(state))
        if isinstance(q, dist.TransformedDistribution):
            z, intermediates = q.sample_with_intermediates(rng, (DRAWS,))
            log_q = q.log_prob(z, intermediates)
        else:
            z = q.sample(rng, (DRAWS,))
            log_q = q.log_prob(z)
        return log_q - jax.vmap(target.log_prob)(z)

    return _running(lambda rng: svi.init(jax.random.PRNGKey(jax.random.bits(rng) >> 1)), chunk, log_ratio)


# -- FlowJAX ----------------------------------------------------------------------------------------------------------------


def _flowjax(make: Callable[..., Any], target: Target, size: Size) -> Run:
    import equinox as eqx
    import paramax
    from flowjax import bijections, flows
    from flowjax.distributions import StandardNormal
    from flowjax.train.losses import ElboLoss

    def parts(rng: Any) -> Any:
        flow = make(flows, bijections, StandardNormal((target.dim,)), size, rng)
        return eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))

    static = parts(jax.random.key(0))[1]
    loss, adam = ElboLoss(target.log_prob, size.num_samples), optax.adam(size.rate)

    @jax.jit
    def chunk(state: Any, rng: Any) -> Any:
        def step(state: Any, key: Any) -> Any:
            params, moments = state
            value, grads = eqx.filter_value_and_grad(loss)(params, static, key)
            updates, moments = adam.update(grads, moments, params)
            return (eqx.apply_updates(params, updates), moments), value

        return jax.lax.scan(step, state, jax.random.split(rng, size.chunk))[0]

    def log_ratio(state: Any, rng: Any) -> Any:
        z, log_q = eqx.combine(state[0], static).sample_and_log_prob(rng, (DRAWS,))
        return log_q - jax.vmap(target.log_prob)(z)

    def init(rng: Any) -> Any:
        params = parts(rng)[0]
        return params, adam.init(params)

    return _running(init, chunk, log_ratio)


def _flowjax_of(name: str, *, spline: bool = False, invert: bool = False) -> Callable[..., Any]:
    def make(flows: Any, bijections: Any, base: Any, size: Size, rng: Any) -> Any:
        bend = bijections.RationalQuadraticSpline(knots=size.num_bins, interval=5.0) if spline else None
        widths = {"flow_layers": size.num_layers, "nn_width": size.hidden[0], "nn_depth": len(size.hidden)}
        return getattr(flows, name)(rng, base_dist=base, invert=invert, transformer=bend, **widths)

    return make


FITS = {"jvi": _jvi, "jvi, pathwise": partial(_jvi, pathwise=True), "NumPyro": _numpyro, "FlowJAX": _flowjax}
LIBRARIES = {"jvi": "jvi", "jvi, pathwise": "jvi", "NumPyro": "numpyro", "FlowJAX": "flowjax"}
CONTENDERS = {
    "jvi MeanField": Contender(
        "diagonal Gaussian", "jvi", lambda jvi, space, size: jvi.guides.MeanField(space, init_scale=1.0)
    ),
    "jvi FullRank": Contender("Gaussian", "jvi", lambda jvi, space, size: jvi.guides.FullRank(space, init_scale=1.0)),
    "AutoMultivariateNormal": Contender(
        "Gaussian", "NumPyro", lambda guides, model, size, dim: guides.AutoMultivariateNormal(model, init_scale=1.0)
    ),
    "jvi LowRank": Contender("low rank", "jvi", lambda jvi, space, size: jvi.guides.LowRank(space, rank=2, init_scale=1.0)),
    "AutoLowRankMVN": Contender(
        "low rank",
        "NumPyro",
        lambda guides, model, size, dim: guides.AutoLowRankMultivariateNormal(model, init_scale=1.0, rank=2),
    ),
    "jvi RealNVP": Contender("affine coupling", "jvi", _flow_of("RealNVP")),
    "jvi RealNVP, pathwise": Contender("affine coupling", "jvi, pathwise", _flow_of("RealNVP")),
    "FlowJAX coupling": Contender("affine coupling", "FlowJAX", _flowjax_of("coupling_flow")),
    "jvi NeuralSpline": Contender("spline coupling", "jvi", _flow_of("NeuralSpline")),
    "jvi NeuralSpline, pathwise": Contender("spline coupling", "jvi, pathwise", _flow_of("NeuralSpline")),
    "FlowJAX spline": Contender("spline coupling", "FlowJAX", _flowjax_of("coupling_flow", spline=True)),
    "jvi InverseAutoregressive": Contender("IAF", "jvi", _flow_of("InverseAutoregressive")),
    "FlowJAX IAF": Contender("IAF", "FlowJAX", _flowjax_of("masked_autoregressive_flow")),
    "AutoIAFNormal": Contender(
        "IAF",
        "NumPyro",
        lambda guides, model, size, dim: guides.AutoIAFNormal(model, num_flows=size.num_layers, hidden_dims=list(size.hidden)),
    ),
    "jvi MaskedAutoregressive": Contender("MAF", "jvi", _flow_of("MaskedAutoregressive")),
    "FlowJAX MAF": Contender("MAF", "FlowJAX", _flowjax_of("masked_autoregressive_flow", invert=True)),
    "AutoBNAFNormal": Contender(
        "BNAF",
        "NumPyro",
        lambda guides, model, size, dim: guides.AutoBNAFNormal(
            model, num_flows=1, hidden_factors=[max(8, width // dim) for width in size.hidden]
        ),
    ),
    "jvi Mixture": Contender("mixture", "jvi", _mixture),
}
