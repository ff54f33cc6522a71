"""Where a run stands, read from its folder alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from jvi._store import DAMAGED, DamagedError, Store
from jvi._typing import Estimate

_WIDE = 60  # characters of a description
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 0.0))


class Standing(NamedTuple):
    """What there is to say of a run.

    Attributes:
      facts: what it is and how far it is, by name.
      rows: a checkpoint each: number, bound, when saved, how long ago, size, remark.
      advice: how to go on, in sentences.
    """

    facts: dict[str, str]
    rows: list[tuple[str, ...]]
    advice: list[str]


def standing(folder: Path) -> Standing:
    """Where the run in a folder stands.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if it holds no run.
    """
    store = Store(folder)
    about = store.about()
    if about is None:
        raise FileNotFoundError(
            f"there is no run in {store.folder}: it is {'empty' if store.folder.exists() else 'not there'}."
        )
    records: dict[int, dict[str, Any]] = {}
    broken: list[int] = []
    for step in store.steps():
        try:
            records[step] = store.record(step)
        except DamagedError:
            broken.append(step)
    facts = {"folder": str(store.folder)}
    if "run" in about:
        facts |= {name: _short(about["run"].get(name, "")) for name in ("objective", "optimizer", "data", "key")}
    scored = {step: record["score"] for step, record in records.items() if "score" in record}
    best = max(scored, key=lambda step: (scored[step], step)) if scored else None
    last = max(records, default=None)
    rows = []
    for step, record in records.items():
        remarks = [name for name, which in (("best", best), ("newest", last)) if which == step]
        bound = str(Estimate(record["bound"], record["standard_error"])) if "bound" in record else ""
        rows.append((f"{step:,}", bound, *_when(record.get("saved")), _size(store.size(step)), ", ".join(remarks)))
    rows += [(f"{step:,}", "", "", "", _size(store.size(step)), "cannot be read") for step in broken]
    advice = []
    if "run" in about:
        facts["stands at"] = _progress(records[last]) if last is not None else "the beginning: there is no checkpoint yet"
        if last is not None:
            facts["ran on"] = f"{records[last]['devices']}, jax {records[last]['jax']}"
        facts["now"] = "a process runs in this folder" if store.busy() else "no process runs in this folder"
        advice += _advice(store, records[last] if last is not None else None)
    if records:
        choice = ", best=True" if best is not None else ""
        what = "The best state so far" if best is not None else "The newest state"
        advice.append(f"{what}: jvi.checkpoint.restore({str(folder)!r}, svi.init(rng, x){choice})")
    if aside := sorted(path.name for path in store.folder.glob(f"{DAMAGED}*")):
        advice.append(f"Set aside, since they could not be read whole: {', '.join(aside)}. They may be deleted.")
    return Standing(facts, rows, advice)


def _progress(record: dict[str, Any]) -> str:
    skipped = f", {record['skipped']:,} of them skipped" if record["skipped"] else ""
    total = record["num_steps"]
    if total is None:
        rates = ", ".join(f"{rate:.2g}" for rate in record["rates"])
        how = record["status"] or "under way"
        return f"{record['done']:,} steps{skipped}; {how}; learning rates {rates}; {record['taken']:,} gradients in all"
    return f"step {record['done']:,} of {total:,} ({record['done'] / total:.0%}){skipped}"


def _advice(store: Store, record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["Start the same program again: it begins anew."]
    if record["num_steps"] is None and record["status"]:
        return ["The run has ended. The same program, started again, returns at once what it came to."]
    if record["num_steps"] is not None and record["ended"]:
        early = " (its callback ended it)" if record["done"] < record["num_steps"] else ""
        return [f"The run has ended{early}. Started again with a larger num_steps, it goes on from here."]
    if store.busy():
        return ["Should it be broken off: start the same program again, and it goes on from the newest checkpoint."]
    return ["Start the same program again, with the same folder: it goes on from the newest checkpoint."]


def _short(text: str) -> str:
    return text if len(text) <= _WIDE else text[: _WIDE - 4] + " ..."


def _when(seconds: float | None) -> tuple[str, str]:
    if seconds is None:
        return "", ""
    ago = max(time.time() - seconds, 0.0)
    unit, length = next((unit, length) for unit, length in _UNITS if ago >= length)
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)), f"{ago / (length or 1):.0f} {unit}"


def _size(num_bytes: int) -> str:
    value, units = float(num_bytes), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while value >= 1_024 and (larger := next(units, None)) is not None:
        value, unit = value / 1_024, larger
    return f"{value:.3g} {unit}" if value < 1_000 else f"{value:,.0f} {unit}"
