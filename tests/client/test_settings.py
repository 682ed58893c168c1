"""Clients are their settings: how they are checked, copied, pickled, and what they keep apart."""

import asyncio
import copy
import math
import multiprocessing
import pickle

import numpy as np
import pytest

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    RetryPolicy,
    StnClientError,
    Tls,
    TransportError,
)
from stn_client import _calls as calls
from stn_proto.v1 import warp_pb2
from support.certificates import Authority
from support.scripted_service import ScriptedService, reply, serialized

MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
WARPED = serialized(warp_pb2.WarpReply, output=MAP + 1)


@pytest.fixture(params=[Client, AsyncClient])
def kind(request):
    return request.param


def token():
    return "an-importable-token"


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda client: pickle.loads(pickle.dumps(client)),
}


@pytest.mark.parametrize("through", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("secret", ["secret", token], ids=["text", "function"])
def test_settings_are_what_a_copy_is_made_of(kind, through, secret):
    """Every setting is the same, and the copy is another client of the same kind."""
    settings = {
        "timeout_s": 7.0,
        "retry": RetryPolicy(attempts=2),
        "tls": Tls(server_name="stn"),
        "token": secret,
        "allow_plaintext_token": True,
        "proxy": False,
        "max_in_flight": 3,
        "packing": False,
        "local": False,
    }
    client = kind("localhost:1", **settings)
    copied = through(client)
    assert type(copied) is kind
    assert copied is not client
    assert copied.__getstate__() == ({"target": "localhost:1", **settings}, {})
    assert copied._access.metadata() == client._access.metadata()


class Labelled(Client):
    """A client with attributes of its own, before and after those of the base, and a slot."""

    __slots__ = ("slot",)

    def __init__(self, label, *others):
        self.label = label
        super().__init__("localhost:1", timeout_s=7.0)
        self.others = others
        self.itself = self
        self.slot = ["in a slot"]


def test_a_copy_has_what_subclasses_add():
    """Through all ways, deep ones copy it deeply, and an object that holds itself stays one."""
    client = Labelled("a label", ["changes"])
    for through in WAYS.values():
        copied = through(client)
        assert (copied.label, copied.others, copied.slot) == (
            "a label",
            (["changes"],),
            ["in a slot"],
        )
        assert copied.target == "localhost:1"
        assert copied._timeout_s == 7.0
        assert copied._name != client._name
    deep = copy.deepcopy(client)
    assert deep.itself is deep
    assert deep.others[0] is not client.others[0]
    assert copy.copy(client).others[0] is client.others[0]


def test_a_copy_connects_anew():
    """It is open though the client is closed, and works after the client has worked."""
    with ScriptedService(reply(WARPED), reply(WARPED)) as service:
        client = Client(service.target)
        client.warp(MAP, IDENTITY)
        client.close()
        with copy.deepcopy(client) as copied:
            np.testing.assert_array_equal(copied.warp(MAP, IDENTITY), MAP + 1)
        with pytest.raises(TransportError, match="got a closed one"):
            client.warp(MAP, IDENTITY)


def test_a_token_that_nobody_can_import_cannot_be_pickled(kind):
    """As any lambda; a copy in this process takes it along."""
    client = kind("localhost:1", token=lambda: "t")
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(client)
    assert copy.deepcopy(client)._access.metadata() == client._access.metadata()


@pytest.mark.slow
def test_spawned_workers_take_a_client_along(local_server):
    """Under the start method spawn, arguments are pickled."""
    with Client(local_server.target) as client:
        client.server_info()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(client.warp, [MAP, IDENTITY]), MAP)


BAD_TARGETS = [
    "",
    " ",
    "two words:1",
    "host:port",
    "host:65536",
    "host:-1",
    "host:0",
    "http://host:1",
    "host:1\n",
    ":50051",
    "unix:",
    "dns:///",
    "dns:///host:99999",
    "dns:two words",
    "ipv4:host:1",
    "ipv4:127.0.0.1",
    "ipv4:127.0.0.1:1,",
    "ipv4:[127.0.0.1]:1",
    "ipv6:::1:1",
    "ipv6:[::1]:65536",
    "host:\N{ARABIC-INDIC DIGIT THREE}",
    "user@host:1",
    b"host:1",
    None,
    50051,
]
BAD = [
    *[("target", {"target": target}) for target in BAD_TARGETS],
    *[("timeout_s", {"timeout_s": value}) for value in (0, -1, math.nan, "60", True, [1])],
    *[("retry", {"retry": value}) for value in (5, "no", RetryPolicy)],
    *[("tls", {"tls": value}) for value in (True, "ca.pem", Tls)],
    *[("token", {"token": value}) for value in ("", 5, b"token", "two words", ["t"])],
    *[("max_in_flight", {"max_in_flight": value}) for value in (0, -1, 2.5, True, "8", None)],
    *[("local", {"local": value}) for value in (None, 1, "no")],
    *[("proxy", {"proxy": value}) for value in ("http://proxy:1", 1)],
    ("allow_plaintext_token", {"allow_plaintext_token": "no"}),
]


@pytest.mark.parametrize(
    "target",
    [
        "dns:h",
        "dns://192.0.2.1/h:1",
        "dns:///[::1]:1",
        "ipv4:///192.0.2.1:1,192.0.2.2:1",
        "ipv6:[::1]:1,[2001:db8::1]:2",
        "ipv6:%5B::1%5D:1",
        "[fe80::1%eth0]:1",
        "xds:///name",
    ],
)
def test_targets_are_whatever_grpc_takes(kind, target):
    """By the forms of gRPC's naming document."""
    assert kind(target).target == target


@pytest.mark.parametrize(("name", "arguments"), BAD, ids=repr)
def test_settings_are_checked_when_they_are_given(kind, name, arguments):
    """Each error is the SDK's own and names the argument."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected ") as caught:
        kind(**{"target": "localhost:1", **arguments})
    assert [field for field, _ in caught.value.violations] == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempts", 2.5),
        ("attempts", True),
        ("attempts", "3"),
        ("initial_s", "1"),
        ("initial_s", math.inf),
        ("max_s", None),
    ],
)
def test_policies_are_checked_when_they_are_made(name, value):
    """Beside numbers that are out of range: see test_retry.py."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected a "):
        RetryPolicy(**{name: value})


def test_a_duration_beyond_floats_is_refused():
    """It would overflow in the middle of a call."""
    with pytest.raises(InvalidRequestError, match="timeout_s: expected a number that fits a float"):
        Client("localhost:1", timeout_s=10**400)


@pytest.mark.parametrize("timeout_s", [None, math.inf, 1e300])
def test_infinity_is_no_limit(timeout_s):
    """As None is."""
    with (
        ScriptedService(reply(WARPED)) as service,
        Client(service.target, timeout_s=timeout_s) as client,
    ):
        np.testing.assert_array_equal(client.warp(MAP, IDENTITY), MAP + 1)
        assert client._progress(calls.server_info({})).start()["timeout"] is None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths by what the files hold."""
    folder = tmp_path_factory.mktemp("files")
    authority = Authority(folder, "authority")
    certificate, key = authority.issue("one")
    _, other_key = authority.issue("other")
    _, locked_key = authority.issue("locked", b"password")
    contents = {"text": b"no certificate", "empty": b"", "binary": bytes(range(256))}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    made = {"ca": authority.ca, "certificate": certificate, "key": key, "folder": folder}
    made |= {"other key": other_key, "locked key": locked_key, "nothing": folder / "nothing"}
    return made | {name: folder / name for name in contents}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *[("ca", {"ca": what}) for what in ("text", "empty", "binary", "key")],
        *[("ca", {"ca": what}) for what in ("folder", "nothing")],
        *[
            ("certificate, key", {"certificate": "certificate", "key": what})
            for what in ("text", "empty", "other key", "locked key", "certificate")
        ],
        ("certificate, key", {"certificate": "binary", "key": "key"}),
        ("key", {"certificate": "certificate", "key": "nothing"}),
    ],
    ids=repr,
)
def test_tls_files_hold_what_they_should(kind, files, name, given):
    """Said when the client is made, where gRPC would say "Failed to create security handshaker"."""
    tls = Tls(**{argument: files[what] for argument, what in given.items()})
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected "):
        kind("localhost:1", tls=tls)


def test_tls_files_that_hold_what_they_should_are_taken(kind, files):
    """As paths and as text."""
    tls = Tls(ca=str(files["ca"]), certificate=files["certificate"], key=files["key"])
    assert kind("localhost:1", tls=tls).target == "localhost:1"


@pytest.mark.parametrize("value", [5, b"\0", ["ca.pem"], "a\0b"], ids=repr)
def test_tls_paths_are_paths(kind, value):
    """Anything else is no file that could be read."""
    with pytest.raises(InvalidRequestError, match=r"^ca: expected a readable file, got"):
        kind("localhost:1", tls=Tls(ca=value))


@pytest.mark.parametrize("value", ["", "two words", 5], ids=repr)
def test_tls_names_are_names(value):
    """What certificates hold."""
    with pytest.raises(InvalidRequestError, match=r"^server_name: expected a host name, got"):
        Tls(server_name=value)


@pytest.mark.parametrize("made", [5, None, b"token"], ids=repr)
def test_a_token_function_returns_text(made):
    """Said at the call, when it is asked; nothing is sent."""
    with (
        ScriptedService() as service,
        Client(service.target, token=lambda: made) as client,
        pytest.raises(InvalidRequestError, match=f"^token: .* got {type(made).__name__}"),
    ):
        client.server_info()
    assert not service.received


def test_errors_are_named_as_users_import_them():
    """Not by the private module they are written in."""
    classes = [StnClientError]
    for cls in classes:
        assert cls.__module__ == "stn_client"
        classes += cls.__subclasses__()
    assert len(classes) > 8


def test_an_async_client_works_in_one_loop_after_the_other():
    """As scripts call asyncio.run again and again; then closed in a third."""
    with ScriptedService(*[reply(WARPED)] * 3) as service:
        client = AsyncClient(service.target)
        for _ in range(3):
            np.testing.assert_array_equal(asyncio.run(client.warp(MAP, IDENTITY)), MAP + 1)
        asyncio.run(client.close())
        with pytest.raises(TransportError, match="got a closed one"):
            asyncio.run(client.warp(MAP, IDENTITY))


def test_an_async_client_works_in_two_loops_at_a_time():
    """Each has a connection of its own; closing in one ends both."""

    async def scenario(client):
        await client.warp(MAP, IDENTITY)
        await asyncio.to_thread(lambda: asyncio.run(client.warp(MAP, IDENTITY)))
        await client.warp(MAP, IDENTITY)
        await client.close()

    with ScriptedService(*[reply(WARPED)] * 3) as service:
        asyncio.run(scenario(AsyncClient(service.target)))
    assert len(service.received) == 3
