"""Rows of the table of laws: flows."""

from __future__ import annotations

import flow_maps
import jax.numpy as jnp
import numpy as np
from cases_core import LOG_EVIDENCE, MIXED, Case

import jvi


def _flow_of(guide, layers, seed, x=None, scale=0.1, **kwargs):
    """Random parameters, and the log-joint of which the flow is then the posterior, as `flow_maps` writes it."""
    params = flow_maps.filled(guide, seed, scale, x)

    def log_joint(x, z):
        u = jnp.ravel(z)
        return flow_maps.log_density(guide, params, u, layers(guide, params, x), **kwargs) + LOG_EVIDENCE

    return Case(guide, params, log_joint, x)


def _affine_couplings(guide, params, x):
    return flow_maps.coupling_layers(guide, params, None if x is None else jnp.ravel(x), flow_maps.affine)


def _spline_couplings(guide, params, x):
    return flow_maps.coupling_layers(guide, params, None, flow_maps.spline)


def _autoregressions(guide, params, x):
    return flow_maps.autoregressive_layers(guide, params, None if x is None else jnp.ravel(x))


def _first(x):
    return x[1]["a"]


_FLOW = {"num_layers": 2, "hidden": (5,), "activation": jnp.tanh}
_R3, _R2 = jvi.space(jvi.real(3)), jvi.space(jvi.real(2))
_CONTEXT = np.array([0.5, -1.0])
CASES = {
    "neural_spline": _flow_of(jvi.guides.NeuralSpline(_R3, num_bins=3, **_FLOW), _spline_couplings, 2),
    "inverse_autoregressive_conditional": _flow_of(
        jvi.guides.InverseAutoregressive(_R3, context=jnp.ravel, **_FLOW), _autoregressions, 3, _CONTEXT
    ),
    "masked_autoregressive": _flow_of(jvi.guides.MaskedAutoregressive(_R3, **_FLOW), _autoregressions, 4, reads_draws=True),
}
_NVP = jvi.guides.RealNVP(jvi.space(MIXED), context=jnp.ravel, **_FLOW)
_NVP_PARAMS = flow_maps.filled(_NVP, 5, 0.1, _CONTEXT)
_IAF = jvi.guides.InverseAutoregressive(_R2, context=_first, **_FLOW)
_EARLIER = flow_maps.filled(jvi.guides.RealNVP(_R2, **_FLOW), 6, 0.1)
_LATER = flow_maps.filled(_IAF, 7, 0.1, (None, {"a": np.zeros(2)}))


def _mixed_flow(x, z):
    u = jnp.stack([jnp.log(z["a"]), jnp.log(z["b"]) - jnp.log1p(-z["b"]), z["c"]])
    log_det = -jnp.log(z["a"]) - jnp.log(z["b"]) - jnp.log1p(-z["b"])
    return flow_maps.log_density(_NVP, _NVP_PARAMS, u, _affine_couplings(_NVP, _NVP_PARAMS, x)) + log_det + LOG_EVIDENCE


def _flow_after_flow(x, z):
    first = jvi.guides.RealNVP(_R2, **_FLOW)
    before = flow_maps.log_density(first, _EARLIER, z["a"], _affine_couplings(first, _EARLIER, None))
    return before + flow_maps.log_density(_IAF, _LATER, z["b"], _autoregressions(_IAF, _LATER, z["a"])) + LOG_EVIDENCE


CASES |= {
    "real_nvp_constrained_conditional": Case(_NVP, _NVP_PARAMS, _mixed_flow, _CONTEXT),
    "flow_after_flow": Case(
        jvi.guides.sequence(a=jvi.guides.RealNVP(_R2, **_FLOW), b=_IAF), {"a": _EARLIER, "b": _LATER}, _flow_after_flow
    ),
}


# a ~ N(m, 0.8^2) and z | a ~ N(1.5 a + 0.4 x, 0.5^2): z's marginal, and a given z, by coordinate.
