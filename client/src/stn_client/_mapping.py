"""What `map` of both clients has in common: how far it looks ahead, and its progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Protocol

from stn_client._errors import invalid
from stn_client._prepared_call import Call
from stn_client._sending import MAX_CALLS, packed_bytes
from stn_client._stacking import are_alike, most_in_stack

CHUNKS_AHEAD = 4
"""Chunks of calls that are made and whose results nobody has taken yet: two messages under way, one
that waits, one that is read."""


class Bar(Protocol):
    """The part of a progress bar's interface that is used."""

    def update(self, count: int) -> Any:
        """Adds to the number of finished calls."""


class _NoBar:
    def update(self, count: int) -> None:
        """Does nothing, as no progress is shown."""


@contextmanager
def progress_bar(calls: Iterable[Any], *, shown: bool) -> Iterator[Bar]:
    """Returns a progress bar on standard error.

    Raises:
        InvalidRequestError: It is to be shown, and tqdm is not installed.
    """
    if not shown:
        yield _NoBar()
        return
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise invalid("progress", "expected the package tqdm, got none. Install it.") from error
    with tqdm(total=len(calls) if isinstance(calls, Sized) else None, unit="call") as bar:
        yield bar


def checked(calls: Iterable[Any]) -> Iterator[Call[Any]]:
    """Yields the calls, each checked to be one.

    Raises:
        InvalidRequestError: One is something else, as a result or a coroutine.
    """
    for position, call in enumerate(calls):
        if not isinstance(call, Call):
            expected = "expected a call as of stn_client.calls.warp"
            raise invalid(f"calls[{position}]", f"{expected}, got {type(call).__name__}.")
        yield call


def placed(error: Exception, position: int) -> Exception:
    """Returns the error of a call, with a note of which call it is."""
    error.add_note(f"It is the error of calls[{position}].")
    return error


def chunks(calls: Iterable[Call[Any]], *, stacks: bool) -> Iterator[list[Call[Any]]]:
    """Yields calls in order: small ones in lists as long as a message, others alone or stacked.

    Args:
        calls: Calls of any methods.
        stacks: Whether large ones that are alike, one behind the other, may come together.
    """
    chunk: list[Call[Any]] = []
    most = 0
    for call in calls:
        if len(chunk) >= most or not _goes_with(chunk[0], call):
            if chunk:
                yield chunk
            chunk = []
            most = MAX_CALLS if packed_bytes(call) else most_in_stack(call) if stacks else 1
        chunk.append(call)
    if chunk:
        yield chunk


def is_stack(chunk: Sequence[Call[Any]]) -> bool:
    """Returns whether the calls of a chunk are sent as one."""
    return len(chunk) > 1 and not packed_bytes(chunk[0])


def _goes_with(first: Call[Any], call: Call[Any]) -> bool:
    if packed_bytes(first):
        return packed_bytes(call) > 0
    return are_alike(first, call)
