"""The command line: `python -m jvi demo`, `info`, `infer` and `resume`."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import jvi

EXAMPLES = ("eight_schools", "logistic_regression", "digits_vae", "discrete_vae")
PACKAGES = ("jax", "jaxlib", "optax", "flax", "distrax", "tfp-nightly", "chex", "orbax-checkpoint", "numpy")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 if all went well, 1 if it failed, 2 for wrong usage, 3 for an untrusted posterior."""
    parser = argparse.ArgumentParser(prog="python -m jvi", description="Variational inference in JAX, as pure functions.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="fit four models on real data and draw what they find")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures (default: demo)")
    demo.add_argument("--only", choices=EXAMPLES, action="append", help="run this example only; may be repeated")
    demo.set_defaults(run=_demo)
    commands.add_parser("info", help="show versions, devices and precision").set_defaults(run=_info)
    infer = commands.add_parser("infer", help="fit the model of a script, and print how far to trust the posterior")
    infer.add_argument("script", type=Path, help="a Python file that defines log_joint, space and, where there are data, x")
    infer.add_argument("--seed", type=int, default=0, help="of the random draws (default: 0)")
    infer.add_argument("--seconds", type=float, default=60.0, help="what it may take (default: 60)")
    infer.add_argument("--plot", type=Path, help="also draw the posterior's marginals to this file")
    infer.set_defaults(run=_infer)
    resume = commands.add_parser(
        "resume", help="show where a run stands that was kept by checkpoint=FOLDER, and how it goes on"
    )
    resume.add_argument("folder", type=Path, help="the folder of the run")
    resume.set_defaults(run=_resume)
    options = parser.parse_args(arguments)
    return options.run(options)


def _demo(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    folder = _examples_folder()
    missing = [name for name in ("matplotlib", "sklearn") if importlib.util.find_spec(name) is None]
    if folder is None or missing:
        lack = f"the packages {', '.join(missing)}" if missing else "the examples"
        console.print(f"[red]The demo needs {lack}:[/] pip install 'jvi\\[examples]'")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for name in options.only or EXAMPLES:
        example = _load(folder / f"{name}.py")
        console.print(f"[bold cyan]{(example.__doc__ or name).splitlines()[0]}")
        start = time.perf_counter()
        example.main(options.out)
        console.print(f"[dim]{time.perf_counter() - start:.1f} s, examples/{name}.py[/]\n")
    pictures = ", ".join(sorted(path.name for path in options.out.glob("*.png")))
    console.print(f"{time.perf_counter() - began:.0f} s in all. Pictures in {options.out}/: {pictures}")
    return 0


def _info(options: argparse.Namespace) -> int:
    import jax
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("jvi", jvi.__version__)
    table.add_row("python", sys.version.split()[0])
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("backend", jax.default_backend())
    kinds = [device.device_kind for device in jax.devices()]
    table.add_row("devices", ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)))
    table.add_row("processes", str(jax.process_count()))
    table.add_row("precision", "float64" if jax.config.read("jax_enable_x64") else "float32")
    Console(highlight=False).print(table)
    return 0


def _infer(options: argparse.Namespace) -> int:
    import jax

    if not options.script.is_file():
        print(f"no such file: {options.script}", file=sys.stderr)
        return 2
    script = _load(options.script)
    missing = [name for name in ("log_joint", "space") if not hasattr(script, name)]
    if missing:
        print(f"{options.script} must define {' and '.join(missing)} at its top level", file=sys.stderr)
        return 2
    try:
        posterior = jvi.infer(
            jax.random.key(options.seed), script.log_joint, script.space, getattr(script, "x", None),
            budget=jvi.Budget(seconds=options.seconds),
        )  # fmt: skip
    except (TypeError, ValueError, TimeoutError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(posterior)
    if options.plot:
        posterior.plot().savefig(options.plot, dpi=120)
    return 0 if posterior.report is not None and posterior.report.trusted else 3


def _resume(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from jvi._standing import standing

    try:
        found = standing(options.folder)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    console = Console(highlight=False)
    facts = Table("", "", show_header=False, box=None, padding=(0, 2))
    for name, value in found.facts.items():
        facts.add_row(name, value, style="bold" if name == "stands at" else None)
    console.print(facts)
    if found.rows:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("step", "bound", "saved", "ago", "size", ""):
            table.add_column(name, no_wrap=True)
        for row in found.rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    console.print()
    for line in found.advice:
        console.print(line, soft_wrap=True)
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _examples_folder() -> Path | None:
    """Of a checkout or of an installed wheel."""
    package = Path(jvi.__file__).parent
    for folder in (package.parent / "examples", package / "_examples"):
        if (folder / f"{EXAMPLES[0]}.py").is_file():
            return folder
    return None


def _load(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
