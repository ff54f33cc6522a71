"""What an accelerator does: its matrix rate, a gradient's FLOPs, and how long it waits for the host."""

from __future__ import annotations

import glob
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax


def matrix_rate(dtype: Any, size: int = 8_192, products: int = 50) -> float:
    """FLOP/s of products of square matrices, as fast as they go."""

    @jax.jit
    def chain(a, b):
        return jax.lax.fori_loop(0, products, lambda _, b: a @ b, b)

    a = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5  # zeros would be faster, and powers stay finite
    jax.block_until_ready(chain(a, a))
    began = time.perf_counter()
    jax.block_until_ready(chain(a, a))
    return products * 2.0 * size**3 / (time.perf_counter() - began)


def flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of a call, by the compiler's count before it rewrites anything."""
    with jax.default_device(jax.devices("cpu")[0]):  # accelerators' compilers count what they rewrote, or nothing
        found: Any = jax.jit(function).lower(*jax.eval_shape(lambda: args)).cost_analysis()
    return float(found["flops"])


def busy_seconds(run: Callable[[], Any]) -> float:
    """How long the device computes during a run, by the profiler, which itself slows what the host does."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = options.host_tracer_level = 0  # following the host's calls would slow them
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            run()
        (path,) = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    return 1e-6 * covered(device_spans(events))


def device_spans(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """When kernels ran on the first device's streams: starts and ends, us."""
    named = {
        (event["name"], event["pid"], event.get("tid") if event["name"] == "thread_name" else None): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    device = min((name, pid) for (kind, pid, _), name in named.items() if kind == "process_name" and "/device:" in name)[1]
    streams = {tid for (kind, pid, tid), name in named.items() if kind == "thread_name" and pid == device and "Stream" in name}
    spans = [event for event in events if event.get("ph") == "X" and event["pid"] == device and event["tid"] in streams]
    return sorted((event["ts"], event["ts"] + event["dur"]) for event in spans)


def covered(spans: list[tuple[float, float]]) -> float:
    """The time that sorted spans cover."""
    total, end = 0.0, spans[0][0]
    for first, last in spans:
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
