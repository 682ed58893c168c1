"""What both clients know about connections."""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, cast
from weakref import WeakValueDictionary

import grpc

from stn_client._calls import server_info
from stn_client._checks import (
    FOREVER_S,
    check_count,
    check_target,
    checked_timeout_s,
)
from stn_client._credentials import Access, Tls, Token
from stn_client._errors import (
    CLASSES,
    DeadlineExceededError,
    OverloadedError,
    StnClientError,
    TransportError,
    UnavailableError,
    error_from_status,
    invalid,
    reason_of,
)
from stn_client._options import TIMEOUT_OF_CLIENT
from stn_client._prepared_call import Call, CallSettings
from stn_client._replicas import Replicas
from stn_client._residents import LOST, MAX_LOSSES
from stn_client._retry import RetryPolicy
from stn_client._server_info import ServerInfo
from stn_client._statistics import ClientStatistics, Counts

LOG = logging.getLogger("stn_client")

_TOO_LATE = "Deadline Exceeded"
"""What a call ends with whose time is over, in the words of gRPC and of the local transport."""

NOT_READY = DeadlineExceededError, OverloadedError, UnavailableError
"""What a server that is not ready, or not there, makes of calls."""

ONCE = RetryPolicy(attempts=1)

READY_PAUSE_S = 0.1
"""The pause between questions to a server that is not ready yet."""

LEAST_S = 1e-3
"""The time of a question that comes at the last moment."""

MAX_IN_FLIGHT = 256
"""Calls in flight by default. Enough to fill the batches of several devices; a quarter of what a
server admits."""

CLIENTS: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""The clients of this process by names that no other process gives."""


def register(client: object) -> str:
    """Returns names a client for as long as it exists, for graphs of torch, which hold strings."""
    name = uuid.uuid4().hex
    CLIENTS[name] = client
    return name


class BaseClient(ABC):
    """The settings of a client of either kind.

    Copies and pickles are made of the settings, and of what subclasses add: they are new clients
    that connect anew.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 60.0,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
        token: Token | None = None,
        allow_plaintext_token: bool = False,
        proxy: bool | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        local: bool = True,
        packing: bool = True,
    ) -> None:
        of_subclass = set(vars(self))
        self._settings = {name: value for name, value in locals().items() if name in _SETTINGS}
        self.target = check_target(target)
        self._timeout_s = checked_timeout_s(timeout_s)
        if not isinstance(retry, RetryPolicy | None):
            raise invalid("retry", f"expected a RetryPolicy, got {retry!r}.")
        check_count("max_in_flight", max_in_flight)
        if not isinstance(local, bool):
            raise invalid("local", f"expected True or False, got {local!r}.")
        if not isinstance(packing, bool):
            raise invalid("packing", f"expected True or False, got {packing!r}.")
        self._retry = RetryPolicy() if retry is None else retry
        self._access = Access(
            target, tls, token, allow_plaintext_token=allow_plaintext_token, proxy=proxy
        )
        self._replicas = Replicas(target)
        self._max_in_flight = int(max_in_flight)
        self._packing = packing
        self._open = True
        self._name = register(self)
        self._outage = Outage(target)
        self._counts = Counts()
        # A client with TLS wants the names of both sides proven, as no Unix socket does.
        self._is_local_wanted = local and tls is None
        self._disconnect()
        self._inner = {"_inner", *vars(self)} - of_subclass

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"  # no token, which would get into logs

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the settings, and what subclasses have of their own."""
        state: Any = object.__getstate__(self)
        attributes, slots = state if isinstance(state, tuple) else (state, {})
        own = {name: value for name, value in attributes.items() if name not in self._inner}
        return self._settings, own | slots

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        settings, own = state
        BaseClient.__init__(self, **settings)
        for name, value in own.items():
            setattr(self, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        settings, own = self.__getstate__()  # settings are never changed
        copied.__setstate__((settings, copy.deepcopy(own, memo)))
        return copied

    @abstractmethod
    def _disconnect(self) -> None:
        """Forgets all connections, so that the next call opens a new one."""

    @abstractmethod
    def _abandon(self) -> None:
        """Closes this process's copies of local sockets after a fork."""

    @abstractmethod
    def _is_busy(self) -> bool:
        """Returns whether a thread may be within gRPC for this client now."""

    @property
    def stats(self) -> ClientStatistics:
        """Statistics of this client: calls, failures, retries, bytes and durations."""
        return self._counts.snapshot()

    def _is_open(self) -> bool:
        return self._open

    def _progress(self, call: Call[Any]) -> Progress:
        """Returns the progress of a call that begins now."""
        settings = call.settings
        # None is a timeout of its own, without limit; so a mark stands for that of the client.
        of_client = settings.timeout_s is TIMEOUT_OF_CLIENT
        return Progress(
            settings.retry or self._retry,
            self._timeout_s if of_client else settings.timeout_s,
            self._is_open,
            self._access,
            self._outage,
            call,
            self._counts,
        )


class ReadyWait:
    """The time that is left for a server to become ready."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = checked_timeout_s(timeout_s)
        self._began_s = time.monotonic()

    def inquiry(self) -> Call[ServerInfo]:
        """Returns the call that asks the server about itself, repeated until it answers."""
        # The caller asked to wait: so it is repeated whatever the client's own policy says.
        return server_info({"timeout_s": self._remaining_s()}, RetryPolicy(max_s=READY_PAUSE_S))

    def pause_s(self) -> float:
        """Returns the pause before a server that is not ready is asked again.

        Raises:
            DeadlineExceededError: The time is up.
        """
        remaining_s = self._remaining_s()
        if remaining_s is not None and remaining_s <= READY_PAUSE_S:
            raise DeadlineExceededError(
                f"timeout_s: expected a ready server within {self._timeout_s:g} s, got one that "
                "answers and takes no calls. Its log says why."
            )
        return READY_PAUSE_S

    def _remaining_s(self) -> float | None:
        if self._timeout_s is None:
            return None
        left_s = self._timeout_s - (time.monotonic() - self._began_s)
        # A call takes no timeout of 0.
        return max(left_s, LEAST_S)


_SETTINGS = ("target", *(BaseClient.__init__.__kwdefaults__ or ()))
"""Names of the settings."""


class Outage:
    """Logs once that calls wait for a server, and once that it is back.

    Args:
        target: gRPC target.
        now: A clock in seconds.

    Attributes:
        ended: Number of outages that are over.

    Concurrency: thread-safe.
    """

    def __init__(self, target: str, now: Callable[[], float] = time.monotonic) -> None:
        self.ended = 0
        self._target = target
        self._now = now
        self._is_on = False
        self._since_s = 0.0
        # Held while the log is written, so that lines come in the order of what they tell; of the
        # thread, as what writes the log may be a caller of this server itself.
        self._lock = threading.RLock()

    def goes_on(self, error: StnClientError, remaining_s: float | None, ended: int) -> None:
        """Notes that a call found no server and will be repeated within its time.

        Args:
            error: What it found.
            remaining_s: Its time; None: without limit.
            ended: What the attribute was when the attempt began. One that began in an outage that
                is over by now says nothing of another.
        """
        with self._lock:
            if self._is_on or ended != self.ended:
                return
            self._is_on = True
            self._since_s = self._now()
            within = "without limit" if remaining_s is None else f"for up to {remaining_s:.1f} s"
            LOG.warning(
                "%s: expected an answer, got none (%s). Calls are repeated %s.",
                self._target,
                error,
                within,
            )

    def is_over(self) -> None:
        """Notes that a call was answered."""
        if self._is_on:  # hardly ever, so that calls take no lock for it
            self._end()

    def _end(self) -> None:
        with self._lock:
            if not self._is_on:  # another thread's call was answered first
                return
            self._is_on = False
            self.ended += 1
            lasted_s = self._now() - self._since_s
            LOG.warning("%s: answers again after %.1f s.", self._target, lasted_s)


class Progress:
    """A call's attempts: its deadline, and what follows a failure.

    Args:
        policy: When to try again.
        timeout_s: For all attempts and pauses together; None: any.
        is_open: Whether the client has not been closed yet.
        access: Says what is sent with an attempt, and what a failure may mean.
        outage: Told what becomes of attempts.
        call: What is called; None: something of no size, in no way of its own.
        counts: Told what becomes of the call.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float | None,
        is_open: Callable[[], bool],
        access: Access | None = None,
        outage: Outage | None = None,
        call: Call[Any] | None = None,
        counts: Counts | None = None,
    ) -> None:
        settings = CallSettings() if call is None else call.settings
        self._call = call
        self._calls = 1 if call is None else call.count
        self._counts = Counts() if counts is None else counts
        self._began_s = time.monotonic()
        self._is_answered = False
        self._losses = 0
        self.is_local = False
        """Whether the last attempt went by the local transport."""
        self.address = ""
        """The replica to which alone the last attempt went; empty: to any."""
        self._metadata = settings.metadata
        self._policy = policy
        self._is_open = is_open
        self._timeout_s = timeout_s
        self.deadline_s = math.inf if timeout_s is None else self._began_s + timeout_s
        """Deadline as an instant of `time.monotonic`; infinity: none."""
        self._attempt = 0
        self._access = Access("localhost", None, None) if access is None else access
        self._outage = Outage("server") if outage is None else outage
        self._outages_ended = 0
        """How many were over when the last attempt began."""
        self._failure: StnClientError | None = None
        self._request_id = settings.request_id
        self._sent_id = ""
        """Request id of the last attempt."""

    @property
    def request_id(self) -> str:
        """What errors and the server's log call this call; random, unless its caller chose it."""
        # Made when it is asked for: in a packet only the lead's is, and random bytes are a call of
        # the system.
        if self._request_id is None:
            self._request_id = os.urandom(8).hex()
        return self._request_id

    def start(self) -> dict[str, Any]:
        """Begins an attempt; returns the keyword arguments of the gRPC call.

        Raises:
            TransportError: The client is closed, or cannot work in this process.
            InvalidRequestError: The token cannot be sent.
        """
        # Refused in words: with gRPC's locks held by threads that are not here, it would hang.
        if _fork.amid_calls:
            raise TransportError(
                "client: expected a process that was forked while no call was under way, got one "
                "whose parent was calling: gRPC does not work here. Use multiprocessing's start "
                'method "spawn" or "forkserver", or fork before the first call.',
                request_id=self.request_id,
            )
        if not self._is_open():
            raise self._closed()
        self._sent_id = self.request_id
        self._begin_attempt()
        # Asked at every attempt: a token may have been renewed since the last one.
        given = *self._access.metadata(), *self._metadata
        metadata = (("x-request-id", self.request_id), *given)
        return {"timeout": self.remaining_s(), "metadata": metadata}

    def _begin_attempt(self) -> None:
        self._attempt += 1
        self._outages_ended = self._outage.ended
        if self._attempt == 1:
            self._counts.begin(self._calls)
        else:
            self._counts.repeat()

    def join(self, lead: Progress, index: int) -> None:
        """Begins an attempt in a message with others.

        Args:
            lead: The call whose attempt the message is, which has begun it.
            index: Of this call in the message.
        """
        if lead is not self:
            self._begin_attempt()
        self._sent_id = f"{lead.request_id}.{index}"

    def pause_s(self, failure: grpc.RpcError) -> float:
        """Returns the pause before the next attempt.

        Raises:
            StnClientError: There is no next attempt.
        """
        error = self._error(cast("grpc.Call", failure))
        remaining_s = self.remaining_s()
        pause_s = self._policy.pause_s(error, self._attempt, remaining_s, random.random)
        if self.address and isinstance(error, UnavailableError):
            pause_s = None  # what the call names has gone with that replica
        if pause_s is None:
            if isinstance(error, DeadlineExceededError) and self._failure is not None:
                # That the time was over says little; what it was spent on is in the failure before.
                error.add_note(f"The attempt before that ended with: {self._failure}")
            raise error from failure
        if not self._is_open():  # which is what ended the call
            raise self._closed() from failure
        # Kept for the note above, should the next attempt end with the deadline.
        self._failure = error
        if isinstance(error, UnavailableError):
            self._outage.goes_on(error, remaining_s, self._outages_ended)
        # Clocks of the system refuse sleeps that are longer.
        return min(pause_s, FOREVER_S)

    def loses(self, failure: grpc.RpcError) -> bool:
        """Returns whether an attempt failed because tensors of the call are no longer there.

        The server evicted them, or the replica that held them is gone. They count as gone then. One
        that is lost again and again goes with its call.
        """
        if self._call is None or not self._call.residents:
            return False
        status = cast("grpc.Call", failure)
        is_gone = self.address and CLASSES[status.code()] is UnavailableError
        if not is_gone and reason_of(failure) != LOST:
            return False
        self._losses += 1
        self._call.forget(for_good=self._losses >= MAX_LOSSES)
        return True

    def upload_settings(self) -> CallSettings:
        """Returns how a tensor that the call needs is uploaded: once, and within its time."""
        remaining_s = self.remaining_s()
        left_s = None if remaining_s is None else max(remaining_s, LEAST_S)
        # Not again: the call has its own retries, and brings along what could not be uploaded.
        return CallSettings(left_s, self._metadata, retry=ONCE)

    def succeed(self) -> None:
        """Notes that the call was answered."""
        self._is_answered = True
        self._outage.is_over()

    def end(self) -> None:
        """Notes that the call is over, answered or not."""
        if not self._attempt:  # it was never begun, such as with a closed client
            return
        if not self._is_answered:
            self._counts.fail(self._calls)
            return
        # From when the call was made, turns and pauses included: what its caller has waited.
        duration_s = time.monotonic() - self._began_s
        operands_bytes = self._call.sent_bytes if self._call else 0
        results_bytes = self._call.envelope.all_results_bytes if self._call else 0
        self._counts.finish(
            duration_s, operands_bytes, results_bytes, local=self.is_local, calls=self._calls
        )

    def remaining_s(self) -> float | None:
        """Returns what is left of the call's time; None: no limit."""
        if self._timeout_s is None:
            return None
        return max(0.0, self.deadline_s - time.monotonic())

    def no_turn(self) -> DeadlineExceededError:
        """Returns the error of a call whose time was over before it was sent."""
        # No attempt has begun it, and a failure that was never begun would not add up.
        self._counts.begin(self._calls)
        self._counts.fail(self._calls)
        return DeadlineExceededError(
            f"timeout_s: expected a result within {self._timeout_s:g} s, got no turn: as many "
            "calls of this client as max_in_flight allows were under way all the time. Give it "
            "more time, or fewer calls.",
            request_id=self.request_id,
        )

    def _closed(self) -> TransportError:
        return TransportError(
            "client: expected an open connection, got a closed one. Make a new client.",
            request_id=self.request_id,
        )

    def _error(self, failure: grpc.Call) -> StnClientError:
        metadata: Any = failure.trailing_metadata() or ()
        details = self._access.explained(failure.details() or "")
        if details == _TOO_LATE and self._timeout_s is not None:  # gRPC says no more than this
            expected = f"expected a result within {self._timeout_s:g} s, got none ({details})"
            details = f"timeout_s: {expected}. Give it more time, or send less at a time."
        return error_from_status(failure.code(), details, metadata, self._sent_id)


class _Fork:
    """Handlers that make the clients of this process usable after a fork.

    gRPC makes itself usable in a child, but only if no thread was calling it at that moment: locks
    that were held then are held for ever. A child gets new connections, or, if anybody was calling,
    an error in place of calls that would hang.
    """

    def __init__(self) -> None:
        self.amid_calls = False
        """Whether this process was forked from one that was calling."""
        self._busy = False
        self._abandoned: list[Any] = []
        os.register_at_fork(before=self._before, after_in_child=self._in_child)

    def _before(self) -> None:
        # For gRPC, whose own handler comes next: what it finds busy is of no use in the child.
        self._busy = _is_any_busy()

    def _in_child(self) -> None:
        # Once more, of the memory as it was at the fork: handlers of others let threads run.
        self.amid_calls = self.amid_calls or self._busy or _is_any_busy()
        for client in _base_clients():
            # Kept: ending a connection would send GOAWAY by the socket that the parent still uses.
            self._abandoned.append(dict(vars(client)))
            client._abandon()  # noqa: SLF001
            client._disconnect()  # noqa: SLF001
            # Their locks may have been held by threads of the
            # parent; and the child has done nothing yet.
            client._counts = Counts()  # noqa: SLF001
            client._outage = Outage(client.target)  # noqa: SLF001


def _is_any_busy() -> bool:
    return any(client._is_busy() for client in _base_clients())  # noqa: SLF001


def _base_clients() -> list[BaseClient]:
    # Of a copy: another thread may make a client meanwhile.
    clients = [reference() for reference in CLIENTS.valuerefs()]
    return [client for client in clients if isinstance(client, BaseClient)]


_fork = _Fork()
