"""Real processes over loopback: the numbers of one, errors on all of them, and no waiting for the dead."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cases_meshes import X

import jvi

WORKER, POD = Path(__file__).parent / "mesh_worker.py", Path(__file__).parent.parent / "examples" / "pod.py"


def started(count, command):
    """Processes of one device each, told who they are by `command(me, port)`."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(POD.parent.parent)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command(me, port))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for me in range(count)
    ]  # fmt: skip


def finished(processes):
    """What they printed. Whatever happens, none is left."""
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors[-3_000:]
    return [printed for printed, _ in said]


@pytest.mark.long
def test_processes_give_the_numbers_of_one_and_stop_together(tmp_path):
    counts = (1, 2, 4)
    for count in counts:
        finished(started(count, lambda me, port, count=count: (WORKER, "numbers", me, count, port, tmp_path)))
    one = dict(np.load(tmp_path / "1-0.npz"))
    for count in counts[1:]:
        for me in range(count):
            found = dict(np.load(tmp_path / f"{count}-{me}.npz"))
            for name in found:
                if found[name].dtype.kind == "f":
                    error = (64 if found[name].dtype == np.float32 else 1) * np.finfo(np.float32).eps
                    np.testing.assert_allclose(found[name], one[name], rtol=error, atol=error, err_msg=name)
            assert len(found["streamed"]) == 10  # as the first process, whose minibatches end before the others'
            assert found["ended"].tolist() == ["the iterator ended after 10 of 50 batches; the run ends there."]
            assert (len(found["epochs"]), len(found["uneven"])) == (25, 10)
            last = me == count - 1
            assert found["sits out"] == (2 if last else 0)
            assert ("batch 70 must not hold NaN" if last else f"process {count - 1} of {count} failed") in str(found["spoiled"])
            assert "rng must be the same on every process" in str(found["other key"])


@pytest.mark.long
def test_processes_resume_each_where_it_stood_and_one_goes_on_with_the_run_of_two(tmp_path):
    np.save(tmp_path / "x.npy", X)
    finished(started(2, lambda me, port: (WORKER, "broken", me, 2, port, tmp_path)))
    (said,) = finished(started(1, lambda me, port: (WORKER, "resumed", me, 1, port, tmp_path)))
    assert re.search("states of the loaders of 2 processes.*there are 1 now: start as many again", said)


@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_dies_ends_the_other(tmp_path, who, how):
    """The coordinator's end ends all too."""
    processes = started(2, lambda me, port: (WORKER, f"death:{who}:{how}", me, 2, port, tmp_path))
    other = processes[1 - who]
    try:
        _, errors = other.communicate(timeout=300)
        waited = time.time() - float((tmp_path / "died").read_text())
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    print(f"ended after {waited:.1f} s")
    assert other.returncode not in (0, None)
    # JAX's own threads may be faster than the run's error, but where a closed connection is all that there is.
    surely = (who, how) == (1, "SIGKILL")
    assert re.search("waited for another one that has ended" + ("" if surely else "|another task died"), errors)
    assert waited < 30.0  # a closed connection is seen at once, a silent one after the ten seconds of its heartbeat


@pytest.mark.long
def test_the_pod_example_runs_as_two_processes_and_goes_on(tmp_path):
    def command(me, port):
        whole = "--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id", me, "--num-steps", num_steps
        return POD, *whole, "--checkpoint", tmp_path

    for num_steps in (100, 200):
        printed, nothing = finished(started(2, command))
        assert "nats" not in nothing
        assert re.search(rf"2 processes, 2 devices, {num_steps} steps: -\d\d\.\d nats an image", printed)
    assert jvi.checkpoint.latest(tmp_path) == 200
