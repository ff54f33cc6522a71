"""Real processes over loopback: the same numbers as one, errors on all of them, and no waiting for the dead."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).parent / "mesh_worker.py"
POD = Path(__file__).parent.parent / "examples" / "pod.py"


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(*args):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, *map(str, args)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def started(task, count, out):
    port = free_port()
    return [start(WORKER, task, me, count, port, out) for me in range(count)]


def done(processes, timeout=120):
    """What they wrote; all are stopped, whatever happens."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors[-3_000:]
    return [output for output, _ in said]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("processes")
    for count in (1, 2, 4):
        done(started("numbers", count, out))
    return {path.stem: dict(np.load(path)) for path in out.glob("*.npz")}
