"""What files hold, read again when they change."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from stn_server.config import ConfigError
from stn_server.log import log

T = TypeVar("T")


class Reloaded(Generic[T]):
    """A value made from files.

    Every use looks whether the files have changed and makes the value anew if so, so that a change
    counts from the next use on. Files that make no value leave the old one in place, and the log
    and the observer are told.

    Args:
        name: What log and observer call it.
        paths: The files.
        load: Makes the value.
        observe: Told name and outcome of every change: "accepted" or "rejected".

    Raises:
        ConfigError: The files make no value at the beginning.

    Concurrency: any thread.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        load: Callable[[], T],
        observe: Callable[[str, str], None],
    ) -> None:
        self._name = name
        self._paths = paths
        self._load = load
        self._observe = observe
        self._lock = threading.Lock()
        self._seen = self._state()
        self._value = load()

    def current(self) -> T:
        """The value of this moment."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._seen = state  # first: what changes meanwhile is seen the next time
                self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
        except ConfigError as error:
            log(logging.ERROR, "change rejected", file=self._name, reason=str(error))
            self._observe(self._name, "rejected")
        else:
            log(logging.INFO, "change accepted", file=self._name)
            self._observe(self._name, "accepted")

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: str) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - once a call; a Path costs twice as much
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
