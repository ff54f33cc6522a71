"""One call ahead: a thread of its own makes it while the caller does something else."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Any


class Ahead:
    """At most one call at a time, by a thread that lives as long as the call.

    Attributes:
      stopping: whether the call should come to its end, because nobody waits for it any more.

    Example:
      >>> from jvi._prefetch import Ahead
      >>> ahead = Ahead()
      >>> ahead.begin(max, 3, 5)
      >>> ahead.busy, ahead.result(), ahead.busy
      (True, 5, False)
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._stop = Event()
        self._found: Any = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether there is a call whose result was not asked for."""
        return self._thread is not None

    @property
    def stopping(self) -> bool:
        """Whether the call should come to its end."""
        return self._stop.is_set()

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin `function(*args)`."""
        # A daemon, so that a call that never returns does not keep the interpreter from ending.
        self._thread = Thread(target=self._call, args=(function, args), name="jvi-input", daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """What the call returned, or raised."""
        self._join()
        found, error, self._found, self._error = self._found, self._error, None, None
        if error is not None:
            raise error
        return found

    def stop(self) -> None:
        """Ask the call to end, wait until it has, and forget it."""
        self._stop.set()
        self._join()
        self._stop.clear()
        self._found = self._error = None

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self._found = function(*args)
        except BaseException as error:  # SystemExit too: a thread would swallow it
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
