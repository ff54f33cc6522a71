"""Contenders in processes of their own, asked for one run after the other, so that whatever else the machine does falls on all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent


class Worker:
    """A process that answers requests, one line each: `python -m MODULE --worker ARGS`, which ends in `serve`.

    Raises:
      RuntimeError: if the process dies, with the last line that it wrote.
    """

    def __init__(self, module: str, *args: str, num_devices: int = 1) -> None:
        command = [sys.executable, "-W", "ignore", "-m", module, "--worker", *args]
        # An accelerator's memory is shared by all that wait; as many devices as asked for are made of a CPU.
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": flags.strip()}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._answer()

    def ask(self, request: int | str) -> dict[str, Any]:
        """What the process answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError((self._process.stderr.read().strip() or "no answer").splitlines()[-1])
        return json.loads(line)


def serve(answer: Callable[[str], dict[str, Any]]) -> int:
    """Answer every line of the input, until it ends."""
    if "jax" in sys.modules:  # start the backend, which is no contender's doing
        import jax

        jax.block_until_ready(jax.device_put(np.zeros(1)))
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)
    return 0
