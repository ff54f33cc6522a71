"""Where in a composition something is: errors that name a part by its path, parts that are found by theirs, what guides lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jvi._typing import Data, Params
from jvi.guides.functions import Guide


@contextmanager
def part(name: str | int) -> Iterator[None]:
    """Within it, an error is one of the guide's part `name`, or of its component number `name`, and says so.

    A ValueError or TypeError begins with the path; other errors, whose messages are not ours, have a note with it.

    Example:
      >>> from jvi.guides._places import part
      >>> with part("a"), part(0), part("b"):
      ...     raise ValueError("there is no such thing.")
      Traceback (most recent call last):
      ValueError: guide.a[0].b: there is no such thing.
    """
    try:
        yield
    except Exception as error:
        step = f"[{name}]" if isinstance(name, int) else f".{name}"
        # JAX's own subclasses format their messages themselves.
        named = type(error) in (TypeError, ValueError) and len(error.args) == 1
        inner, message = vars(error).get("in_guide", ("", error.args[0] if named else None))
        vars(error)["in_guide"] = (step + inner, message)
        if named:
            error.args = (f"guide{step}{inner}: {message}",)
        else:
            if inner:
                error.__notes__.remove(_note(inner))
            error.add_note(_note(step + inner))
        raise


def check_guide(guide: Any) -> Any:
    """Return `guide` if it is one.

    Raises:
      TypeError: if it is none.
    """
    if not isinstance(guide, Guide) or isinstance(guide, type):
        raise TypeError(f"a guide must have the methods init and sample_and_log_prob, got {guide!r}.")
    return guide


def has(guide: Any, name: str) -> None:
    """Begin with this the property of a combinator, that it be absent where the guide inside lacks it.

    Raises:
      AttributeError: if the guide has no such method.
    """
    getattr(guide, name)


def opened(guide: Any, params: Params, x: Data) -> tuple[Any, Params, Data]:
    """The guide whose parts have parameters of their own, with its parameters, and what it sees."""
    while hasattr(guide, "opened"):
        guide, params, x = guide.opened(params, x)
    return guide, params, x


def with_part(guide: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """The guide with the part at `path` changed; with no path, itself changed.

    Raises:
      ValueError: if there is no such part; the message lists those that there are.
    """
    if not path:
        return change(guide)
    if not hasattr(guide, "with_part"):
        raise ValueError(f"there is no part {path[0]!r}, because this guide is not made of named parts: {guide!r}.")
    return guide.with_part(path, change)


def _note(path: str) -> str:
    return f"in guide{path}"
