"""POSIX shared memory that callers have registered, so that tensors need not be sent.

The server never maps it: its owner may shrink it at any time, and a process that
reads a mapped page which is gone ends. It is read into memory of the server's own, and results are
written to it, through a descriptor that is kept; what is gone by then is an error of that one call.
What is read is a copy, so that nothing changes between its check and its use.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from stn_server.config import OipConfig
from stn_server.errors import (
    InvalidRequestError,
    QueueFullError,
    RegionExistsError,
    RegionNotFoundError,
    UnsupportedError,
)
from stn_server.tuning import ARENAS_FULL_RETRY_S

FOLDER = "/dev/shm"  # noqa: S108 - where shm_open has its objects
"""The folder in which objects of POSIX shared memory are files."""

MAX_NAME_CHARS = 255

_KEY_FORM = re.compile(r"/*(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]{0,253})")

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Region:
    """A part of an object of shared memory, usable as long as it is referenced, registered or not.

    Args:
        key: Name of the object, with any number of slashes before it.
        offset: The position in the object at which the region begins.
        size_bytes: The number of its bytes.

    Raises:
        RegionNotFoundError: There is no such object that this server may read and write.
        InvalidRequestError: It is no region of that object.
    """

    def __init__(self, key: str, offset: int, size_bytes: int) -> None:
        form = _KEY_FORM.fullmatch(key)
        if form is None:
            expected = "expected the name of an object of POSIX shared memory, got something else."
            raise InvalidRequestError("key", f"{expected} Letters, digits and `_.-` make one.")
        self.key, self.offset, self.size_bytes = key, offset, size_bytes
        try:
            self._descriptor = os.open(f"{FOLDER}/{form['name']}", _FLAGS)
        except OSError:
            raise RegionNotFoundError("key") from None
        weakref.finalize(self, os.close, self._descriptor)
        state = os.fstat(self._descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise RegionNotFoundError("key")
        self.object = state.st_dev, state.st_ino
        """Tells objects apart, which may have several regions."""
        if not 1 <= size_bytes <= state.st_size - offset:
            expected = f"expected a region of at least 1 byte within {state.st_size} bytes"
            got = f"got {size_bytes} bytes at {offset}. Make the object as large first."
            raise InvalidRequestError("byte_size", f"{expected}, {got}")

    @property
    def is_linked(self) -> bool:
        """Whether others can still open the object."""
        return os.fstat(self._descriptor).st_nlink > 0

    def read(self, field: str, offset: int, memory: memoryview) -> None:
        """Fills memory with the bytes of the region from an offset on.

        Raises:
            InvalidRequestError: The object ends before; `field` names what was to be read.
        """
        position = self.offset + offset
        with _errors_of(field):
            while memory:
                count = os.preadv(self._descriptor, [memory], position)
                if count == 0:
                    raise _gone(field)
                position, memory = position + count, memory[count:]

    def write(self, field: str, offset: int, data: bytes) -> None:
        """Writes data into the region from an offset on.

        Raises:
            InvalidRequestError: The object ends before; `field` names what was to be written.
        """
        position, left = self.offset + offset, memoryview(data)
        with _errors_of(field):
            if os.fstat(self._descriptor).st_size < position + len(data):
                raise _gone(field)
            while left:
                count = os.pwritev(self._descriptor, [left], position)
                position, left = position + count, left[count:]


class Regions:
    """The regions of all callers.

    Args:
        config: Says whether regions are allowed, and how many.

    Concurrency: belongs to one event loop, but for what regions do themselves.
    """

    def __init__(self, config: OipConfig) -> None:
        self._config = config
        self._regions: dict[tuple[str, str], Region] = {}

    @property
    def count(self) -> int:
        """The number of registered regions."""
        return len(self._regions)

    def require_free(self, owner: str, name: str) -> None:
        """Raises an error unless a caller may register a region under this name.

        Raises:
            UnsupportedError: The server takes no shared memory.
            InvalidRequestError: It is no name.
            RegionExistsError: The caller has one of this name.
            QueueFullError: There are as many as may be.
        """
        if not self._config.shared_memory:
            raise UnsupportedError("key", "shared memory", ("raw_input_contents",))
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            expected = f"expected 1 to {MAX_NAME_CHARS} characters, got {len(name)}."
            raise InvalidRequestError("name", expected)
        if (owner, name) in self._regions:
            raise RegionExistsError("name")
        if self.count >= self._config.max_regions:
            # Those whose objects are unlinked: their callers have mostly gone.
            self._regions = {key: one for key, one in self._regions.items() if one.is_linked}
        limit = self._config.max_regions
        if self.count >= limit:
            what = "regions of shared memory"
            raise QueueFullError(what, limit, self.count + 1, ARENAS_FULL_RETRY_S)

    def register(self, owner: str, name: str, region: Region) -> None:
        """Registers a region for a caller; raises what `require_free` does."""
        self.require_free(owner, name)
        self._regions[owner, name] = region

    def unregister(self, owner: str, name: str) -> None:
        """Removes a region of a caller, or all of its regions if the name is empty.

        Calls that use it go on. There need be none of this name.
        """
        for key in [key for key in self._regions if key[0] == owner and name in {"", key[1]}]:
            del self._regions[key]

    def of(self, owner: str) -> dict[str, Region]:
        """Returns the regions of a caller by their names."""
        return {name: region for (whose, name), region in self._regions.items() if whose == owner}

    def find(self, owner: str, field: str, name: str) -> Region:
        """Returns the region that a caller has registered under a name.

        Raises:
            RegionNotFoundError: It has none, even if another caller has.
        """
        region = self._regions.get((owner, name))
        if region is None:
            raise RegionNotFoundError(field)
        return region


@contextmanager
def _errors_of(field: str) -> Iterator[None]:
    """Turns errors of the system into errors of the caller's field, without the system's text."""
    try:
        yield
    except OSError as error:
        raise _gone(field) from error


def _gone(field: str) -> InvalidRequestError:
    expected = "expected as many bytes of shared memory as were registered, got fewer."
    return InvalidRequestError(field, f"{expected} Do not shrink it while it is registered.")
