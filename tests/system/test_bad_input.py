"""Nothing that a caller sends harms the server or its neighbours."""

import asyncio

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_client import Affine, AsyncClient
from support.bad_requests import BAD_REQUESTS, ramp, theta
from support.harness import METHOD_PREFIX, outcome_of, statistics_when_idle

SIZE = (6, 7)


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(
        server.target, options=[("grpc.max_send_message_length", -1)]
    ) as connected:
        yield connected


def failure_of(channel, method, message):
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError, match="details = ") as caught:
        channel.unary_unary(METHOD_PREFIX + method)(message, timeout=30)
    return caught.value


def fields_of(failure):
    """The path that the details of a status name: in BadRequest, or else with the reason."""
    details = dict(failure.trailing_metadata())["grpc-status-details-bin"]
    fields = []
    for detail in Status.FromString(details).details:
        message, info = BadRequest(), ErrorInfo()
        if detail.Unpack(message):
            fields += [violation.field for violation in message.field_violations]
        elif detail.Unpack(info) and "field" in info.metadata:
            fields.append(info.metadata["field"])
    return fields


def assert_serving(channel):
    """The server calls itself healthy."""
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_gets_its_status_and_field(channel, bad):
    """In the message, and in the details."""
    failure = failure_of(channel, bad.method, bad.message)
    assert failure.code() is bad.code
    assert failure.details().startswith(f"{bad.field}: {bad.text}")
    assert fields_of(failure) == [bad.field]


def test_a_message_above_the_limit_is_refused(channel, client):
    """Before it is received; the limit can be asked for."""
    limit = client.server_info().limits.max_message_bytes
    failure = failure_of(channel, "Warp", bytes(limit + 1))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details().startswith(f"message: expected at most {limit} bytes, got {limit + 1}")
    assert_serving(channel)


def test_a_reply_may_be_larger_than_the_largest_request(client):
    """Replies have a limit of their own."""
    limit = client.server_info().limits.max_message_bytes
    output = client.warp(ramp(1, 3, 4, 5), Affine(theta(1)), (400, 400))
    assert output.nbytes > limit


def test_unknown_methods_are_unimplemented(channel):
    """And nothing else happens."""
    failure = failure_of(channel, "Morph", b"")
    assert failure.code() is grpc.StatusCode.UNIMPLEMENTED


def test_good_neighbours_are_answered_as_if_alone(server, channel, client):
    """All bad requests at once, among good ones; the server stays ready and forgets nothing."""
    feature_map, transform = ramp(2, 3, 4, 5), Affine(theta())
    expected = client.warp(feature_map, transform, SIZE)

    async def scenario():
        async with (
            AsyncClient(server.target) as stn,
            grpc.aio.insecure_channel(server.target) as raw,
        ):

            async def bad_call(bad):
                return await raw.unary_unary(METHOD_PREFIX + bad.method)(bad.message)

            good = [stn.warp(feature_map, transform, SIZE) for _ in BAD_REQUESTS]
            bad = [outcome_of(bad_call(bad)) for bad in BAD_REQUESTS]
            return await asyncio.gather(asyncio.gather(*good), asyncio.gather(*bad))

    good, failures = asyncio.run(scenario())
    assert [failure.code() for failure in failures] == [bad.code for bad in BAD_REQUESTS]
    assert all(np.array_equal(result, expected) for result in good)
    assert_serving(channel)
    assert statistics_when_idle(client).failed_items == 0
