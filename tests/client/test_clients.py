"""Both clients against a scripted server on a real socket."""

import asyncio
import inspect
import socket

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc import StatusCode

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ProtocolMismatchError,
    RetryPolicy,
    SamplingGrid,
    UnavailableError,
)
from stn_proto.v1 import server_info_pb2, warp_pb2
from support.scripted_service import (
    PATIENCE_S,
    Hang,
    ScriptedService,
    abort,
    reply,
    serialized,
)

MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
WARPED = serialized(warp_pb2.WarpReply, output=MAP + 1)
GRADIENTS = serialized(
    warp_pb2.WarpGradientsReply, grad_feature_map=MAP, grad_transform=IDENTITY.theta
)
AT_ONCE = RetryPolicy(attempts=3, initial_s=0)
MANY = 10_000
"""Answers for calls that are made until something has happened."""


class Blocking:
    """Makes clients of one kind, and waits for whatever their methods return."""

    def __init__(self, kind, runner):
        self.kind, self._runner = kind, runner
        self._clients = []

    def connect(self, target, **options):
        client = self.kind(target, **options)
        self._clients.append(client)
        return client

    def wait(self, result):
        """A result, or what a coroutine ends with."""
        return self._runner.run(result) if inspect.iscoroutine(result) else result

    def close(self):
        for client in self._clients:
            self.wait(client.close())


@pytest.fixture(params=[Client, AsyncClient], ids=lambda kind: kind.__name__)
def blocking(request):
    """Both kinds of clients behind one way to call them."""
    with asyncio.Runner() as runner:
        made = Blocking(request.param, runner)
        yield made
        made.close()


def test_client_calls_every_method(blocking):
    """Each method reaches the RPC of its name, and returns what its reply holds."""
    info = server_info_pb2.GetServerInfoReply(name="stn")
    grid = np.zeros((1, 2, 3, 2))
    with ScriptedService(
        reply(WARPED),
        reply(GRADIENTS),
        reply(serialized(warp_pb2.GenerateGridReply, grid=grid)),
        reply(serialized(warp_pb2.GenerateGridGradientsReply, grad_transform=IDENTITY.theta)),
        reply(info.SerializeToString()),
    ) as service:
        client = blocking.connect(service.target)
        np.testing.assert_array_equal(blocking.wait(client.warp(MAP, SamplingGrid(grid))), MAP + 1)
        gradients = blocking.wait(client.warp_gradients(MAP, MAP, IDENTITY))
        np.testing.assert_array_equal(gradients.transform, IDENTITY.theta)
        np.testing.assert_array_equal(blocking.wait(client.generate_grid(IDENTITY, (2, 3))), grid)
        grid_gradients = blocking.wait(client.generate_grid_gradients(grid, IDENTITY))
        np.testing.assert_array_equal(grid_gradients, IDENTITY.theta)
        assert blocking.wait(client.server_info()).name == info.name
    called = [call.method.removeprefix("/stn.v1.SpatialTransformer/") for call in service.received]
    assert called == [
        "Warp",
        "WarpGradients",
        "GenerateGrid",
        "GenerateGridGradients",
        "GetServerInfo",
    ]


def test_client_repeats_a_lost_call_as_it_was(blocking):
    """After UNAVAILABLE the same bytes are sent again under the same request id."""
    unavailable = abort(StatusCode.UNAVAILABLE)
    with ScriptedService(unavailable, unavailable, reply(WARPED)) as service:
        client = blocking.connect(service.target, retry=AT_ONCE)
        np.testing.assert_array_equal(blocking.wait(client.warp(MAP, IDENTITY)), MAP + 1)
    first, *again = service.received
    assert len(again) == 2
    assert first.request
    for call in again:
        assert (call.request, call.request_id) == (first.request, first.request_id)


def test_client_takes_turns_over_replicas_and_repeats_a_lost_call_elsewhere(blocking):
    """Two addresses, of which one loses its first call once both have had some."""

    def answer(context):
        both = quick.received and len(failing.received) > 1
        return (abort(StatusCode.UNAVAILABLE) if both else reply(WARPED))(context)

    answers = [reply(WARPED)] * MANY
    with ScriptedService(*answers) as quick, ScriptedService(*[answer] * MANY) as failing:
        target = f"ipv4:{quick.target},{failing.target}"
        client = blocking.connect(target, retry=AT_ONCE)
        while not (lost := lost_calls(quick, failing)):
            np.testing.assert_array_equal(blocking.wait(client.warp(MAP, IDENTITY)), MAP + 1)
    assert len(lost) == 1


def lost_calls(one, other):
    """Ids of calls that both replicas were asked for."""
    return {call.request_id for call in one.received} & {call.request_id for call in other.received}


def test_client_gives_every_call_its_own_id(blocking):
    """The ids of two calls of one client differ."""
    with ScriptedService(reply(WARPED), reply(WARPED)) as service:
        client = blocking.connect(service.target)
        for _ in range(2):
            blocking.wait(client.warp(MAP, IDENTITY))
    first, second = service.received
    assert first.request_id != second.request_id


def test_client_waits_as_an_overloaded_server_asks(blocking):
    """The second attempt comes no sooner than the pushback says."""
    pushback = RetryInfo(retry_delay=Duration(nanos=30_000_000))
    full = abort(StatusCode.RESOURCE_EXHAUSTED, "full", pushback)
    with ScriptedService(full, reply(WARPED)) as service:
        client = blocking.connect(service.target, retry=AT_ONCE)
        np.testing.assert_array_equal(blocking.wait(client.warp(MAP, IDENTITY)), MAP + 1)
    first, second = service.received
    assert second.instant_s - first.instant_s >= 0.03


def test_client_raises_the_last_overload(blocking):
    """When the attempts are used up, the caller learns what the server said last."""
    full = abort(StatusCode.RESOURCE_EXHAUSTED, "full", RetryInfo(retry_delay=Duration(nanos=1000)))
    with ScriptedService(full, full, full, full) as service:
        client = blocking.connect(service.target, retry=AT_ONCE)
        with pytest.raises(OverloadedError, match="full") as caught:
            blocking.wait(client.warp(MAP, IDENTITY))
    assert (caught.value.retry_after_s, len(service.received)) == (1e-6, 3)
    assert caught.value.request_id == service.received[0].request_id
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_client_does_not_repeat_an_invalid_request(blocking):
    """The violations of the details arrive, after one attempt."""
    violation = BadRequest.FieldViolation(field="output_size", description="expected less.")
    details = BadRequest(field_violations=[violation])
    invalid = abort(StatusCode.INVALID_ARGUMENT, "output_size: expected less.", details)
    with ScriptedService(invalid, reply(WARPED)) as service:
        client = blocking.connect(service.target, retry=AT_ONCE)
        with pytest.raises(InvalidRequestError, match=r"output_size: expected less\.") as caught:
            blocking.wait(client.warp(MAP, IDENTITY))
    assert caught.value.violations == (("output_size", "expected less."),)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    assert len(service.received) == 1


def test_client_timeout_ends_a_call_that_hangs(blocking):
    """The timeout raises, tells the server, and is not tried again."""
    hang, got = Hang(), r"within 0\.2 s, got none \(Deadline Exceeded\)\."
    with ScriptedService(*[hang] * MANY) as service:
        client = blocking.connect(service.target, timeout_s=0.2, retry=AT_ONCE)
        while not hang.entered.is_set():  # the time of a call may be over on its way
            with pytest.raises(TimeoutError, match=rf"^timeout_s: .* {got}") as caught:
                blocking.wait(client.warp(MAP, IDENTITY))
            assert type(caught.value) is DeadlineExceededError
        assert hang.gone.wait(PATIENCE_S)
    ids = [call.request_id for call in service.received]
    assert len(ids) == len(set(ids))


def test_client_without_a_server_says_unavailable(blocking):
    """A refused connection is UnavailableError when the attempts are used up."""
    with socket.socket() as unused:  # bound, but not listening: nobody else can take the port
        unused.bind(("127.0.0.1", 0))
        client = blocking.connect(f"127.0.0.1:{unused.getsockname()[1]}", retry=AT_ONCE)
        with pytest.raises(UnavailableError, match="Connection refused") as caught:
            blocking.wait(client.server_info())
    assert caught.value.code is StatusCode.UNAVAILABLE


def test_client_of_a_server_without_the_method_says_so(blocking):
    """An older server is a protocol mismatch."""
    with ScriptedService() as service:
        client = blocking.connect(service.target)
        with pytest.raises(ProtocolMismatchError, match="the script has ended"):
            blocking.wait(client.warp(MAP, IDENTITY))


def test_client_refuses_bad_arguments_without_a_call(blocking):
    """What the SDK itself can tell never reaches the wire."""
    with ScriptedService(reply(WARPED)) as service:
        client = blocking.connect(service.target)
        with pytest.raises(InvalidRequestError, match="padding: expected one of"):
            blocking.wait(client.warp(MAP, IDENTITY, padding="mirror"))
    assert service.received == []


def test_client_pullback_asks_for_the_gradients_of_the_same_warp(blocking):
    """Vjp warps once; its pullback sends the same operands and options with grad_output."""
    with ScriptedService(reply(WARPED), reply(GRADIENTS), reply(GRADIENTS)) as service:
        client = blocking.connect(service.target)
        output, pullback = blocking.wait(client.vjp(MAP, IDENTITY, (2, 3), padding="border"))
        np.testing.assert_array_equal(output, MAP + 1)
        gradients = [blocking.wait(pullback(grad)) for grad in (MAP * 2, MAP * 3)]
        np.testing.assert_array_equal(gradients[1].feature_map, MAP)
    warp = warp_pb2.WarpRequest.FromString(service.received[0].request)
    pulled = [warp_pb2.WarpGradientsRequest.FromString(c.request) for c in service.received[1:]]
    assert warp.output_size == [2, 3]
    for request, scale in zip(pulled, (2, 3), strict=True):
        assert request.payloads[0] == (MAP * scale).tobytes()
        assert request.payloads[1:] == warp.payloads
        assert request.spec == warp.spec


def test_client_pullback_takes_gradients_of_its_output_alone(blocking):
    """One of another size is that of another warp, which `warp_gradients` computes."""
    with ScriptedService(reply(WARPED)) as service:
        client = blocking.connect(service.target)
        _, pullback = blocking.wait(client.vjp(MAP, IDENTITY))
        with pytest.raises(
            InvalidRequestError, match=r"^grad_output: expected shape .* as the out"
        ):
            blocking.wait(pullback(MAP[..., :1]))
    assert len(service.received) == 1


def test_client_pullback_of_a_map_beyond_all_memory_is_refused(blocking):
    """It would be copied for both calls; so it is refused before."""
    with ScriptedService() as service:
        client = blocking.connect(service.target)
        endless = np.broadcast_to(np.float32(1), (1, 1, 10**6, 10**6))
        with pytest.raises(InvalidRequestError, match=r"^feature_map: expected at most 2147483647"):
            blocking.wait(client.vjp(endless, IDENTITY))
    assert service.received == []


def test_client_takes_replies_and_requests_above_the_limit_of_grpc(blocking):
    """Messages of more than gRPC's 4 MiB come through: the server decides about sizes."""
    large = np.zeros((1, 1, 1024, 1100), np.float32)
    with ScriptedService(reply(serialized(warp_pb2.WarpReply, output=large))) as service:
        client = blocking.connect(service.target)
        with pytest.raises(InvalidRequestError, match=r"^SERVER: Received message larger"):
            blocking.wait(client.warp(large, IDENTITY))  # this server has the default limit
        assert blocking.wait(client.warp(MAP, IDENTITY)).shape == large.shape


def public_methods(kind):
    """Public methods of a class by name."""
    return {n: f for n, f in inspect.getmembers(kind, inspect.isfunction) if n[0] != "_"}


def test_clients_have_the_same_methods_with_the_same_parameters():
    """AsyncClient is Client, awaited: same names, same parameters, coroutines throughout.

    `map` gives results one after the other, and is iterated over instead.
    """
    sync, awaited = public_methods(Client), public_methods(AsyncClient)
    assert set(sync) == set(awaited)
    for name in sync:
        of_sync, of_awaited = inspect.signature(sync[name]), inspect.signature(awaited[name])
        assert of_sync.parameters == of_awaited.parameters, name
        if name == "map":
            assert inspect.isgeneratorfunction(sync[name])
            assert inspect.isasyncgenfunction(awaited[name])
            continue
        assert inspect.iscoroutinefunction(awaited[name]), name
        if name != "vjp":  # its pullback is awaited, too
            assert of_sync.return_annotation == of_awaited.return_annotation, name
    made = (inspect.signature(kind).parameters for kind in (Client, AsyncClient))
    assert next(made) == next(made)
