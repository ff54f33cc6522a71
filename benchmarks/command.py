"""The command line of a benchmark, as its table quotes it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def command_line(module: str, arguments: Sequence[str] | None = None) -> str:
    """What was typed, by default into this process, without `--out` and folders that another machine does not have.

    Args:
      module: the benchmark's name.
      arguments: what came after it.

    Example:
      >>> command_line("benchmarks.scaling", ["--axis", "K", "--out", "table.md"])
      'python -m benchmarks.scaling --axis K'
    """
    kept, given = [], iter(sys.argv[1:] if arguments is None else arguments)
    for argument in given:
        if argument == "--out":
            next(given, None)
        elif not argument.startswith("--out="):
            option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
            kept.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(["python", "-m", module, *kept])
