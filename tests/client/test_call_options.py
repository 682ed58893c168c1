"""Options of single calls, what help shows of options, and what clients count."""

import asyncio
import inspect
import re
import socket
import threading
import typing
from contextlib import contextmanager

import numpy as np
import pytest
from grpc import StatusCode

from stn_client import (
    AccessDeniedError,
    Affine,
    AsyncClient,
    CallOptions,
    Client,
    ClientStatistics,
    DeadlineExceededError,
    GridCallOptions,
    InvalidRequestError,
    RetryPolicy,
    UnavailableError,
    WarpCallOptions,
    WarpOptions,
    tiling,
)
from stn_client import torch as stn_torch
from stn_client._ttrpc import CallError
from stn_proto.ttrpc import Status
from stn_proto.v1 import server_info_pb2, warp_pb2
from support.answers import answer_calls
from support.scripted_service import Hang, ScriptedService, abort, reply, serialized

MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
WARPED = reply(serialized(warp_pb2.WarpReply, output=MAP + 1))
GRADIENTS = reply(serialized(warp_pb2.WarpGradientsReply, grad_transform=IDENTITY.theta))
GRID = reply(serialized(warp_pb2.GenerateGridReply, grid=np.zeros((1, 2, 3, 2))))
AT_ONCE = RetryPolicy(attempts=3, initial_s=0)


def info(*, ready):
    return reply(server_info_pb2.GetServerInfoReply(ready=ready).SerializeToString())


@pytest.fixture(params=[Client, AsyncClient], ids=lambda kind: kind.__name__)
def connect(request):
    """Makes clients of both kinds; their methods return what the awaited ones return."""
    with asyncio.Runner() as runner:
        connected = Connect(request.param, runner)
        yield connected
        connected.close()


class Connect:
    """Makes clients of one kind whose coroutines are awaited."""

    def __init__(self, kind, runner):
        self._kind, self._runner, self._made = kind, runner, []

    def __call__(self, target, **settings):
        self._made.append(self._kind(target, **settings))
        return Waiting(self._made[-1], self.wait)

    def wait(self, result):
        """A result, or what a coroutine ends with."""
        return self._runner.run(result) if inspect.iscoroutine(result) else result

    def close(self):
        for client in self._made:
            self.wait(client.close())


class Waiting:
    """A client whose methods return what the awaited ones return."""

    def __init__(self, client, wait):
        self._client, self._wait = client, wait

    def __getattr__(self, name):
        found = getattr(self._client, name)
        if not callable(found):
            return found
        return lambda *given, **keywords: self._wait(found(*given, **keywords))


@contextmanager
def nobody():
    """An address where nobody listens, and nobody else can."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


def test_request_id_and_metadata_travel_with_every_attempt(connect):
    """Under the names of the contract, beside what the SDK sends itself."""
    options = {"request_id": "job-7.a_B", "metadata": {"tenant": "blue", "x-empty": ""}}
    with ScriptedService(abort(StatusCode.UNAVAILABLE), WARPED, GRADIENTS, GRID) as service:
        client = connect(service.target, retry=AT_ONCE)
        client.warp(MAP, IDENTITY, **options)
        client.warp_gradients(MAP, MAP, IDENTITY, needs=["transform"], **options)
        client.generate_grid(IDENTITY, (2, 3), **options)
    assert len(service.received) == 4
    for call in service.received:
        assert call.request_id == "job-7.a_B"
        assert (call.metadata["tenant"], call.metadata["x-empty"]) == ("blue", "")


def test_request_id_is_that_of_errors(connect):
    """So that a caller finds the call in the log by a name of its own."""
    with ScriptedService(abort(StatusCode.INTERNAL)) as service:
        client = connect(service.target)
        with pytest.raises(Exception, match="as scripted") as caught:
            client.warp(MAP, IDENTITY, request_id="mine")
    assert caught.value.request_id == "mine"


def test_options_of_a_pullback_are_those_of_its_warp(connect):
    """Both calls of a vjp go the same way."""
    with ScriptedService(WARPED, GRADIENTS) as service:
        _, pullback = connect(service.target).vjp(MAP, IDENTITY, request_id="both")
        connect.wait(pullback(MAP))
    assert [call.request_id for call in service.received] == ["both", "both"]


def test_timeout_of_a_call_wins_over_that_of_the_client(connect):
    """Shorter, the call ends by it; None, it has no deadline though the client has."""
    remaining = []

    def note_time(context):
        remaining.append(context.time_remaining())
        return serialized(warp_pb2.WarpReply, output=MAP)

    with ScriptedService(Hang()) as service:
        client = connect(service.target, timeout_s=500.0)
        with pytest.raises(DeadlineExceededError, match=r"^timeout_s: .* within 0\.2 s, got none"):
            client.warp(MAP, IDENTITY, timeout_s=0.2)
    with ScriptedService(note_time, note_time) as service:
        client = connect(service.target, timeout_s=500.0)
        client.warp(MAP, IDENTITY)
        client.warp(MAP, IDENTITY, timeout_s=None)
    of_client, unlimited = remaining
    assert 400 < of_client < 600  # gRPC rounds up
    assert unlimited is None or unlimited > 1e6


INVALID = {
    "no time": ({"timeout_s": 0}, "timeout_s: expected more than 0, or None for no limit, got 0."),
    "time as text": ({"timeout_s": "1"}, "timeout_s: expected a number of seconds, got '1'."),
    "negative time": ({"timeout_s": -1.0}, "timeout_s: expected at least 0, got -1.0."),
    "pairs": ({"metadata": [("a", "b")]}, "metadata: expected a dict of texts, got [('a', 'b')]."),
    "capitals": (
        {"metadata": {"Tenant": "a"}},
        'metadata: expected names of lower-case letters, digits, "_", "." and "-", got \'Tenant\'.',
    ),
    "a name of gRPC": (
        {"metadata": {"grpc-timeout": "1"}},
        (
            'metadata: expected no names that begin with "grpc-" or end with "-bin", '
            "got 'grpc-timeout'."
        ),
    ),
    "bytes": (
        {"metadata": {"a": b"b"}},
        "metadata: expected printable ASCII text for 'a', got b'b'.",
    ),
    "a line": (
        {"metadata": {"a": "b\n"}},
        "metadata: expected printable ASCII text for 'a', got 'b\\n'.",
    ),
    "a token": (
        {"metadata": {"authorization": "Bearer a"}},
        "metadata: expected other names, got 'authorization'. Give the client a token.",
    ),
    "an id": (
        {"metadata": {"x-request-id": "a"}},
        "metadata: expected other names, got 'x-request-id'. Use request_id.",
    ),
    "a header of HTTP": (
        {"metadata": {"connection": "close"}},
        (
            "metadata: expected other names, got 'connection'. It is one of HTTP, which gRPC sends "
            "itself or does not allow."
        ),
    ),
    "more than servers take": (
        {"metadata": {"b" * 8: "x" * 6104, "a": ""}},
        "metadata: expected at most 6144 bytes, 32 for each entry among them, got 6177.",
    ),
    "an id with a space": (
        {"request_id": "a b"},
        'request_id: expected up to 64 letters, digits, "_", "." and "-", got \'a b\'.',
    ),
    "no id": (
        {"request_id": ""},
        'request_id: expected up to 64 letters, digits, "_", "." and "-", got \'\'.',
    ),
}


@pytest.mark.parametrize(("options", "message"), INVALID.values(), ids=INVALID)
def test_options_that_cannot_be_are_refused_before_anything_is_sent(connect, options, message):
    """In the words of the caller, by every method."""
    client = connect("127.0.0.1:1")
    calls = [
        lambda: client.warp(MAP, IDENTITY, **options),
        lambda: client.generate_grid(IDENTITY, (2, 3), **options),
        lambda: client.server_info(**options),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match=f"^{re.escape(message)}$"):
            call()
    assert client.stats == ClientStatistics()


def test_ready_is_what_the_server_says(connect):
    """Asked once, whatever the policy says about repeating."""
    with ScriptedService(
        info(ready=True), info(ready=False), abort(StatusCode.UNAVAILABLE)
    ) as service:
        client = connect(service.target, retry=AT_ONCE)
        assert [client.is_ready() for _ in range(3)] == [True, False, False]
    assert len(service.received) == 3


def test_ready_is_false_without_a_server_or_an_answer(connect):
    """Neither is an error, as that is what was asked."""
    with nobody() as target:
        assert connect(target).is_ready() is False
    with ScriptedService(Hang()) as service:
        assert connect(service.target).is_ready(timeout_s=0.2) is False


def test_ready_raises_what_waiting_cannot_help(connect):
    """A token that the server does not know."""
    denied = abort(StatusCode.UNAUTHENTICATED)
    with ScriptedService(denied, denied) as service:
        client = connect(service.target)
        with pytest.raises(AccessDeniedError, match="as scripted"):
            client.is_ready()
        with pytest.raises(AccessDeniedError, match="as scripted"):
            client.wait_until_ready()
    with pytest.raises(InvalidRequestError, match="timeout_s: expected a number of seconds"):
        client.is_ready(timeout_s="1")
    with pytest.raises(InvalidRequestError, match="timeout_s: expected more than 0"):
        client.wait_until_ready(0)


def test_waiting_ends_when_the_server_is_ready(connect):
    """After it was not there, and then not ready; whatever the policy says about repeating."""
    script = abort(StatusCode.UNAVAILABLE), info(ready=False), info(ready=True)
    with ScriptedService(*script) as service:
        assert connect(service.target, retry=RetryPolicy(attempts=1)).wait_until_ready(60.0) is None
    assert len(service.received) == 3


def test_waiting_ends_with_its_time(connect, monkeypatch):
    """The error tells a server that is not ready from one that is not there."""
    not_ready = server_info_pb2.GetServerInfoReply(ready=False).SerializeToString()
    answer_calls(monkeypatch, lambda: not_ready)
    with pytest.raises(DeadlineExceededError, match=r"ready server within 0\.25 s, got one"):
        connect("localhost:1", local=False).wait_until_ready(0.25)

    def nobody_there():
        raise CallError(Status(code=StatusCode.UNAVAILABLE.value[0], message="nobody there"))

    answer_calls(monkeypatch, nobody_there)
    with pytest.raises(UnavailableError, match="nobody there"):
        connect("localhost:1", local=False).wait_until_ready(0.25)


def test_statistics_count_calls_attempts_and_bytes(connect):
    """Results and operands in bytes of tensors; failures have no duration."""
    lost = abort(StatusCode.UNAVAILABLE)
    with ScriptedService(lost, lost, WARPED, WARPED, abort(StatusCode.INTERNAL)) as service:
        client = connect(service.target, retry=AT_ONCE)
        assert client.stats == ClientStatistics()
        assert client.stats.mean_s == 0
        client.warp(MAP, IDENTITY)
        client.warp(MAP, IDENTITY, (4, 3))
        with pytest.raises(Exception, match="as scripted"):
            client.warp(MAP, IDENTITY)
    stats = client.stats
    assert (stats.finished, stats.failed, stats.pending, stats.repeated) == (2, 1, 0, 2)
    assert stats.operands_bytes == 2 * (MAP.nbytes + IDENTITY.theta.nbytes)
    assert stats.results_bytes == MAP.nbytes + 4 * 3 * 4
    assert 0 < stats.longest_s < stats.total_s
    assert stats.mean_s == stats.total_s / 2
    assert stats.local == 0


def test_statistics_know_calls_under_way():
    """Of another thread, and no more when they have ended."""
    hang = Hang()
    with ScriptedService(hang) as service, Client(service.target) as client:
        caller = threading.Thread(target=lambda: client.is_ready(timeout_s=60.0))
        caller.start()
        assert hang.entered.wait(10)
        assert client.stats.pending == 1
        client.close()
        caller.join(10)
    assert client.stats.pending == 0
    assert client.stats.failed == 1


def test_statistics_know_the_local_transport(local_server):
    """All calls but the first question, which finds it, go by it here."""
    with Client(local_server.target) as client:
        client.warp(MAP, IDENTITY)
        client.warp(MAP, IDENTITY)
        assert (client.stats.finished, client.stats.local) == (2, 2)
    with Client(local_server.target, local=False) as client:
        client.warp(MAP, IDENTITY)
        assert (client.stats.finished, client.stats.local) == (1, 0)


def test_statistics_of_a_copy_begin_anew(connect):
    """It is a client of its own."""
    with ScriptedService(WARPED) as service:
        client = connect(service.target)
        client.warp(MAP, IDENTITY)
        copied = client.__deepcopy__({})
        assert (client.stats.finished, copied.stats.finished) == (1, 0)


SHOWN = [
    (Client.warp, WarpCallOptions),
    (Client.warp_gradients, WarpCallOptions),
    (Client.vjp, WarpCallOptions),
    (Client.generate_grid, GridCallOptions),
    (Client.generate_grid_gradients, GridCallOptions),
    (Client.server_info, CallOptions),
    (AsyncClient.warp, WarpCallOptions),
    (stn_torch.warp, WarpOptions),
    (stn_torch.SpatialTransformer, WarpOptions),
    (tiling.warp, WarpOptions),
]


@pytest.mark.parametrize(("function", "options"), SHOWN, ids=lambda value: value.__qualname__)
def test_help_shows_every_option_with_its_default(function, options):
    """As keywords with types, and nothing that is not a name."""
    shown = inspect.signature(function).parameters
    hints = typing.get_type_hints(options)
    assert {name for name, one in shown.items() if one.annotation == hints.get(name)} == set(hints)
    for name in hints:
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default is not inspect.Parameter.empty
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())


def test_shown_defaults_are_what_none_given_means(connect):
    """Given as they are shown, they make the same request."""
    shown = inspect.signature(Client.warp).parameters
    defaults = {name: shown[name].default for name in typing.get_type_hints(WarpCallOptions)}
    assert defaults.pop("fill") == 0.0  # beside padding "fill" alone
    with ScriptedService(WARPED, WARPED) as service:
        client = connect(service.target)
        client.warp(MAP, IDENTITY)
        client.warp(MAP, IDENTITY, **defaults)
    first, second = service.received
    assert first.request == second.request
