"""The channels of a client, and which replicas it calls directly."""

import asyncio
import gc
import socket
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, DeadlineExceededError
from stn_client._channels import MAX_REPLICAS, Channels, open_channel
from stn_client._credentials import Access
from stn_client._replicas import Replicas
from stn_proto.v1 import resident_pb2, tensor_pb2
from support.scripted_service import Hang, ScriptedService, reply

PATIENCE_S = 10.0


def name_service(*addresses):
    """As `socket.getaddrinfo`; notes what it was asked."""
    asked = []

    def resolve(host, port, **_options):
        asked.append((host, port))
        if not addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(None, None, None, "", (address, port)) for address in addresses]

    return resolve, asked


LISTS = [
    ("ipv4:10.0.0.1:5,10.0.0.2:6", ["10.0.0.1:5", "10.0.0.2:6"], ["10.0.0.1:6", "10.0.0.3:5"]),
    ("ipv6:[fd00:0::1]:5", ["[fd00::1]:5"], ["fd00::1:5", "[fd00::2]:5"]),
    ("ipv6:%5Bfd00::1%5D:5", ["[fd00::1]:5"], []),
    ("10.0.0.1:5", [], ["10.0.0.1:5"]),
    ("unix:/run/stn.sock", [], ["unix:/run/stn.sock", "unix:/run/docker.sock", ""]),
]


@pytest.mark.parametrize(("target", "reached", "others"), LISTS, ids=[one[0] for one in LISTS])
def test_the_addresses_of_a_list_are_called(target, reached, others):
    """Exactly these; of one server none, as it has its own channel."""
    resolve, asked = name_service("10.0.0.1")
    replicas = Replicas(target, resolve)
    for address in reached:
        assert replicas.reached(address) == address
    for address in others:
        assert replicas.reached(address) == ""
        assert not replicas.is_due(address)
    assert asked == []


NAMES = [
    ("dns:///stn:50051", ("stn", 50051), "stn:50051"),
    ("dns:stn:50051", ("stn", 50051), "stn:50051"),
    ("dns:///stn", ("stn", 443), "stn"),
    ("dns:///[fd00::1]:5", ("fd00::1", 5), "[fd00::1]:5"),
    ("dns:///[fd00::1]", ("fd00::1", 443), "[fd00::1]"),
    ("dns:///fd00::1", ("fd00::1", 443), "fd00::1"),
]


@pytest.mark.parametrize(("target", "question", "authority"), NAMES, ids=[one[0] for one in NAMES])
def test_the_addresses_of_a_name_are_called(target, question, authority):
    """The system is asked, once, and replicas go by the name."""
    resolve, asked = name_service("10.0.0.1", "10.0.0.2")
    replicas = Replicas(target, resolve)
    address, port = "10.0.0.2", question[1]
    assert replicas.authority == authority
    assert replicas.reached(f"{address}:{port}") == ""
    assert replicas.is_due(f"{address}:{port}")
    replicas.look_up(PATIENCE_S)
    assert replicas.reached(f"{address}:{port}") == f"{address}:{port}"
    assert replicas.reached(f"10.0.0.3:{port}") == ""
    assert replicas.reached(f"10.0.0.2:{port + 1}") == ""
    assert not replicas.is_due("10.0.0.3:50051")
    assert asked == [question]


@pytest.mark.parametrize(
    ("target", "is_balanced"),
    [
        ("stn:50051", False),
        ("unix:/run/stn/grpc.sock", False),
        ("dns:///stn:50051", True),
        ("ipv4:10.0.0.1:50051,10.0.0.2:50051", True),
    ],
)
def test_a_server_that_is_named_alone_is_one(target, is_balanced):
    """The first address that answers is called, unless gRPC is told to let calls take turns."""
    stack = SimpleNamespace(insecure_channel=lambda _target, options: dict(options))
    options = open_channel(stack, target, Access(target, None, None))
    assert ("round_robin" in options.get("grpc.service_config", "")) == is_balanced


def test_a_name_service_of_its_own_is_not_asked():
    """Only gRPC can, and does not tell what it said."""
    replicas = Replicas("dns://10.0.0.53:53/stn:50051", name_service("10.0.0.1")[0])
    assert not replicas.is_due("10.0.0.1:50051")
    assert replicas.authority == ""


def test_a_name_service_without_an_answer_leaves_what_was_known():
    """Nothing, here."""
    resolve, asked = name_service()
    replicas = Replicas("dns:///stn:50051", resolve)
    replicas.look_up(PATIENCE_S)
    assert replicas.reached("10.0.0.1:50051") == ""
    assert not replicas.is_due("10.0.0.1:50051")
    assert len(asked) == 1


def test_a_slow_name_service_is_waited_for_no_longer_than_the_call_has_time():
    """Its answer counts for later calls; meanwhile nobody asks again."""
    answered, asked = threading.Event(), []

    def resolve(_host, port, **_options):
        asked.append(port)
        answered.wait(PATIENCE_S)
        return [(None, None, None, "", ("10.0.0.1", port))]

    replicas = Replicas("dns:///stn:5", resolve)
    for _ in range(2):
        replicas.look_up(0.01)
        assert replicas.reached("10.0.0.1:5") == ""
    answered.set()
    replicas.look_up(PATIENCE_S)
    assert replicas.reached("10.0.0.1:5") == "10.0.0.1:5"
    assert asked == [5]


def test_a_call_that_waits_for_a_name_service_takes_no_more_time_than_it_has():
    """What is left then counts, not what was left before: here nothing, by either client."""
    answered, left_s = threading.Event(), []
    told = resident_pb2.UploadReply(
        resident=tensor_pb2.ResidentRef(handle=bytes(16), address="10.0.0.1:5")
    ).SerializeToString()
    u, transform = np.ones((1, 1, 2, 2), np.float32), Affine(np.eye(2, 3)[None])

    def resolve(*_question, **_options):
        answered.wait(PATIENCE_S)
        return []

    def hang(context):
        left_s.append(context.time_remaining())
        return Hang()(context)

    with ScriptedService(reply(told), hang) as service:
        target = f"dns:///{service.target}"
        with Client(target) as stn:
            stn._replicas = Replicas(target, resolve)
            stn._disconnect()
            image = stn.upload(u)
            with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
                stn.warp(image, transform, timeout_s=0.1)

    async def main(target):
        async with AsyncClient(target) as stn:
            stn._replicas = Replicas(target, resolve)
            stn._disconnect()
            image = await stn.upload(u)
            with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
                await stn.warp(image, transform, timeout_s=0.1)
            answered.set()

    # A service of its own: what a client sent in its last moment may reach the first one late.
    with ScriptedService(reply(told), hang) as service:
        asyncio.run(main(f"dns:///{service.target}"))
    assert max(left_s, default=0) < 0.05


def channels_to(target):
    """As those of a client."""
    return Channels(grpc, target, Access(target, None, None), Replicas(target))


def is_closed(channel):
    """Whether gRPC refuses to call."""
    try:
        channel.unary_unary("/any").future(b"").cancel()
    except ValueError:
        return True
    return False


def test_channels_to_replicas_are_bounded():
    """One too many closes the least recently used, once no call holds it."""
    channels = channels_to("127.0.0.1:1")
    oldest, second = channels.link("127.0.0.2:1"), channels.link("127.0.0.2:2")
    common = channels.link()
    for port in range(3, MAX_REPLICAS + 1):
        channels.link(f"127.0.0.2:{port}")
    assert channels.link("127.0.0.2:1") is oldest  # used again, and so not the next one to go
    of_second = second.channel
    channels.link("127.0.0.3:1")
    assert not is_closed(of_second)
    del second
    gc.collect()
    assert is_closed(of_second)
    assert not is_closed(oldest.channel)
    assert channels.link() is common
    channels.close()


def test_all_channels_are_closed_with_their_client():
    """To replicas, too; none is opened afterwards."""
    channels = channels_to("127.0.0.1:1")
    links = [channels.link(), channels.link("127.0.0.2:1"), channels.link("[::1]:1")]
    channels.close()
    assert all(is_closed(link.channel) for link in links)
    assert channels.link("127.0.0.2:3") is links[0]
