"""Values made from files, made again when the files change, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from stn_server.events import Events
from stn_server.tuning import LOOK_S

T = TypeVar("T")


class Reloaded(Generic[T]):
    """A value made from files.

    Files that make no value leave the old one in place.

    Args:
        name: The name of the value, for listeners.
        paths: The files.
        load: Makes the value.
        events: Listeners of changes.

    Raises:
        ConfigError: The files make no value at the beginning.

    Concurrency: `current` in any thread, `look` in one.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        load: Callable[[], T],
        events: Events,
    ) -> None:
        self._name = name
        self._paths = paths
        self._load = load
        self._events = events
        self._read = self._found = self._state()
        self._value = load()

    def current(self) -> T:
        """Returns the present value, without a look at the files."""
        return self._value

    def look(self, *, anyway: bool = False) -> None:
        """Makes the value anew if the files have changed, or if that was asked for.

        They may be written one after the other, and piece by piece: what has changed since the
        last look is left for the next one.
        """
        state, last = self._state(), self._found
        self._found = state
        if not anyway and (state == self._read or state != last):
            return
        self._read = state  # first: what changes meanwhile is seen the next time
        try:
            self._value = self._load()
        except Exception as error:  # noqa: BLE001 - whatever is in a file, others are looked after
            self._tell("rejected", str(error))
        else:
            self._tell("accepted")

    def _tell(self, outcome: str, reason: str = "") -> None:
        for tell in self._events.file_changed:
            tell(self._name, outcome, reason)

    def _state(self) -> list[tuple[int, ...] | None]:
        return [_identity(path) for path in self._paths]


class Watch:
    """Watches the files of values, at regular intervals and whenever it is asked to.

    Args:
        events: Listeners of changes.
        look_s: The time between two looks.
    """

    def __init__(self, events: Events, look_s: float = LOOK_S) -> None:
        self._events = events
        self._look_s = look_s
        self._values: list[Reloaded[Any]] = []
        self._asked = threading.Event()
        self._stopped = False

    def value(self, name: str, paths: Sequence[str], load: Callable[[], T]) -> Reloaded[T]:
        """Makes a value that is watched once the watch has been started; see `Reloaded`."""
        value = Reloaded(name, paths, load, self._events)
        self._values.append(value)
        return value

    def start(self) -> None:
        """Begins to look for changes of files."""
        # A daemon, since a file system that does not answer must not hold up the end.
        threading.Thread(target=self._run, daemon=True, name="stn-files").start()

    def read_again(self) -> None:
        """Asks for all files to be read soon, changed or not, and returns immediately."""
        self._asked.set()

    def stop(self) -> None:
        """Asks the watching thread to end, and returns without waiting for it."""
        self._stopped = True
        self._asked.set()

    def _run(self) -> None:
        while True:
            asked = self._asked.wait(self._look_s)
            # Before the look: what is asked for meanwhile may be of files that were read already.
            self._asked.clear()
            if self._stopped:
                return
            for value in self._values:
                value.look(anyway=asked)


def _identity(path: str) -> tuple[int, ...] | None:
    """Returns facts that change whenever a file is written or replaced; None if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
