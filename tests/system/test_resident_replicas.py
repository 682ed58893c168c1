"""Resident tensors behind a target of several replicas: where they stay, and where calls go."""

import asyncio
import contextlib
import socket
import time
from collections import Counter

import grpc
import numpy as np
import pytest
import torch

import stn_client.torch
import stn_engine
from stn_client import (
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    Tls,
    UnavailableError,
)
from stn_client._placing import by_message
from stn_client._prepared_call import CallSettings
from stn_client._replicas import Replicas
from stn_client._residents import MAX_LOSSES
from stn_client._transfers import release
from stn_client.local import LocalServer
from stn_proto.v1 import resident_pb2, tensor_pb2
from support.certificates import Authority
from support.harness import terminate
from support.names import NameServer
from support.replicas import PATIENCE_S
from support.replicas import Replicas as Servers
from support.sends import noted
from support.tokens import entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RNG = np.random.default_rng(16)
U = RNG.random((1, 3, 80, 100), np.float32)
LARGE = RNG.random((1, 3, 500, 600), np.float32)
PIECES = 4
THETA = np.array([[[0.6, 0.1, 0.05], [-0.1, 0.7, 0.1]]], np.float32)
SIZE = (48, 40)
ONCE = RetryPolicy(attempts=1)
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Two; every test leaves both of them serving."""
    with Servers(2, tmp_path_factory.mktemp("replicas")) as running:
        yield running


class Noted:
    """A client of either kind that notes where its messages went."""

    def __init__(self, target, **settings):
        self.sent = []
        super().__init__(target, **{"retry": ONCE, **settings})

    def _new_transports(self, *arguments):
        transports = super()._new_transports(*arguments)
        return noted(transports, lambda *sent: self.note(*sent))  # noqa: PLW0108 - may be replaced

    def note(self, call, progress):
        request = by_message(call, self._name)
        self.sent.append((call.method.rpartition("/")[2], progress.address, len(request)))

    def taken(self):
        """How often which method was called since this was asked before, and bytes of all."""
        sent, self.sent = self.sent, []
        return Counter(method for method, _, _ in sent), sum(size for _, _, size in sent)


class NotedClient(Noted, Client):
    """Awaited by nobody."""


class NotedAsyncClient(Noted, AsyncClient):
    """With the same notes."""


class Blocking:
    """An `AsyncClient` that is called as a `Client` is, in an event loop of its own."""

    def __init__(self, target, **settings):
        self._runner = asyncio.Runner()
        self.client = NotedAsyncClient(target, **settings)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._runner.run(self.client.close())
        self._runner.close()

    def __getattr__(self, name):
        found = getattr(self.client, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        def blocking(*arguments, **options):
            async def main():
                return await found(*arguments, **options)

            return self._runner.run(main())

        return blocking


@pytest.fixture(params=[NotedClient, Blocking], ids=["Client", "AsyncClient"])
def kind(request):
    """Either client."""
    return request.param


def warped(u=U):
    """What the engine makes of it, without a server."""
    return stn_engine.warp(torch.tensor(u), stn_engine.Affine(torch.tensor(THETA)), SIZE).numpy()


def where(tensor):
    """The addresses of the replicas that hold it, as far as the client knows."""
    return set(tensor.held.references)


def placed(stn, array, *, at=None, elsewhere=None):
    """A tensor of which a replica holds a copy, or another one than that of a given tensor.

    The first calls of a client go to whichever replica is connected first.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        found = stn.upload(array)
        if where(found) == {at} or (elsewhere is not None and where(found) != where(elsewhere)):
            return found
        stn.release(found)
    raise AssertionError(at)


def on_both(stn, targets, count=2):
    """Tensors of which each replica holds so many, in turns."""
    found = [placed(stn, U, at=target) for _ in range(count) for target in targets]
    stn.taken()
    return found


def test_calls_go_where_their_tensor_stays(replicas, kind):
    """In turns by the target, they would miss it every second time."""
    with kind(replicas.target) as stn:
        for image in on_both(stn, replicas.targets) * 3:
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
            (address,) = where(image)
            assert stn.sent[-1][1] == address
        assert stn.taken()[0] == {"Warp": 12}


def test_pieces_go_where_the_first_one_went(replicas, kind):
    """Else each upload would begin anew, again and again; and so do those of a download."""
    with kind(replicas.target) as stn:
        for _ in range(3):
            image = stn.upload(LARGE)
            assert stn.taken()[0] == {"Upload": PIECES}
            np.testing.assert_array_equal(stn.download(image), LARGE)
            assert stn.taken()[0] == {"Download": PIECES}
            assert stn.release(image) == 1
            stn.taken()


def test_tensors_are_released_wherever_they_are(replicas, kind):
    """A message to each replica."""
    with kind(replicas.target) as stn:
        assert stn.release(*on_both(stn, replicas.targets)) == 4
        assert stn.taken()[0] == {"Release": 2}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_replica_that_fails_to_release_stops_no_other(replicas, kind, failing):
    """What it says is raised when all have been asked, with what others say."""
    with kind(replicas.target) as stn:
        images = on_both(stn, replicas.targets, 1)
        client = getattr(stn, "client", stn)
        note, asked = client.note, []

        def fail(call, progress):
            note(call, progress)
            asked.append(progress.address)
            if len(asked) <= failing:
                raise OverloadedError(f"full {len(asked)}")

        client.note = fail
        with pytest.raises(OverloadedError, match=r"^full 1") as raised:
            stn.release(*images)
        assert sorted(asked) == sorted(replicas.targets)
        notes = [f"At {asked[1]}: full 2"][: failing - 1]
        assert getattr(raised.value, "__notes__", []) == notes


@pytest.mark.parametrize("pieces", [0, 2])
def test_a_tensor_comes_from_any_replica_that_holds_it(replicas, kind, pieces):
    """All of it, or what is missing where the first one is killed on the way."""
    with kind(replicas.target) as stn:
        larger = stn.upload(RNG.random((1, 3, 600, 700), np.float32))
        image = placed(stn, LARGE, elsewhere=larger)
        (address,) = where(image)
        stn.objective(larger, image, Affine(THETA))  # where the larger one is
        assert len(where(image)) == 2
        number = replicas.targets.index(address)
        client = getattr(stn, "client", stn)
        note = client.note
        stn.taken()

        def kill():
            replicas[number].process.kill()
            replicas[number].stop()

        def kill_on_the_way(call, progress):
            note(call, progress)
            if len(client.sent) == pieces:
                kill()

        client.note = kill_on_the_way
        if not pieces:
            kill()
        np.testing.assert_array_equal(stn.download(image), LARGE)
        asked = [one for _, one, _ in client.sent]
        (other,) = {*replicas.targets} - {address}
        assert asked == [address] * (pieces + 1) + [other] * (PIECES - pieces)
        replicas.start(number)


def test_a_pullback_goes_to_the_replica_that_kept_the_map(replicas):
    """Whichever answered the warp."""
    grad = RNG.random((1, 3, *SIZE), np.float32)
    with NotedClient(replicas.target) as stn:
        expected = stn.warp_gradients(grad, U, Affine(THETA))
        stn.taken()
        for _ in range(4):
            _, pullback = stn.vjp(U, Affine(THETA), SIZE)
            np.testing.assert_array_equal(pullback(grad).transform, expected.transform)
        methods, sent_bytes = stn.taken()
        assert methods == {"Warp": 4, "WarpGradients": 4}
        assert sent_bytes < 4 * 1.4 * U.nbytes


def test_backward_goes_to_the_replica_that_kept_the_map(replicas):
    """The same by autograd."""
    with NotedClient(replicas.target) as stn:
        for _ in range(4):
            u = torch.tensor(U, requires_grad=True)
            stn_client.torch.warp(stn, u, Affine(torch.tensor(THETA)), SIZE).sum().backward()
        methods, sent_bytes = stn.taken()
        assert methods == {"Warp": 4, "WarpGradients": 4}
        assert sent_bytes < 4 * 1.4 * U.nbytes


def test_tensors_of_two_replicas_meet_on_one(replicas, kind):
    """The smaller one is sent again, once; then both are there."""
    with kind(replicas.target) as stn:
        large = stn.upload(LARGE)
        small = placed(stn, RNG.random((1, 3, *SIZE), np.float32), elsewhere=large)
        assert where(large).isdisjoint(where(small))
        stn.taken()
        expected = stn.objective(large.array, small.array, Affine(THETA))
        stn.taken()
        for _ in range(3):
            found = stn.objective(large, small, Affine(THETA))
            np.testing.assert_array_equal(found.value, expected.value)
            np.testing.assert_array_equal(found.gradient, expected.gradient)
        assert stn.taken()[0] == {"Upload": 1, "Objective": 3}
        assert where(large) < where(small)
        assert stn.release(large, small) == 3


def test_calls_at_the_same_time_send_a_lost_tensor_once(replicas):
    """The others wait for it."""

    async def main():
        async with NotedAsyncClient(replicas.target, max_in_flight=4) as stn:
            image = await stn.upload(LARGE)
            (reference,) = image.held.references.values()
            assert await stn._run(release([reference], reference.address, CallSettings())) == 1
            stn.taken()
            calls = [stn.warp(image, Affine(THETA), SIZE) for _ in range(20)]
            for v in await asyncio.gather(*calls):
                np.testing.assert_array_equal(v, warped(LARGE))
            methods, _ = stn.taken()
            assert methods["Upload"] == PIECES
            assert methods["Warp"] > 20
            assert await stn.release(image) == 1

    asyncio.run(main())


def test_tensors_of_a_killed_replica_are_sent_to_another(replicas, kind):
    """Calls find out by themselves, even if they are tried only once."""
    with kind(replicas.target) as stn:
        images = on_both(stn, replicas.targets)
        replicas[1].process.kill()
        replicas[1].stop()
        for image in images:
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
        assert {address for image in images for address in where(image)} == {replicas[0].target}
        assert stn.taken()[0] == {"Upload": 2, "Warp": 6}
        assert stn.stats.failed == 0
        replicas.start(1)
        assert stn.release(*images) == 4


def test_a_replica_that_comes_back_knows_no_handle_of_before(replicas, kind):
    """At the same address. It is sent the tensor, or another one as long as it is not reached."""
    with kind(replicas.target, retry=None) as stn:
        images = on_both(stn, replicas.targets)
        assert replicas[1].stop() == 0
        replicas.start(1)
        for image in images * 2:
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
        assert 2 <= stn.taken()[0]["Upload"] <= 2 * MAX_LOSSES
        assert stn.stats.failed == 0


def test_an_upload_whose_replica_is_killed_half_way_begins_anew(replicas, kind):
    """On another one."""
    with kind(replicas.target, retry=None) as stn:
        client = getattr(stn, "client", stn)
        note, killed = client.note, []

        def kill(call, progress):
            note(call, progress)
            if len(client.sent) == 2 and not killed:
                (number,) = (n for n in range(2) if replicas[n].target == progress.address)
                replicas[number].process.kill()
                replicas[number].stop()
                killed.append(number)

        client.note = kill
        image = stn.upload(LARGE)
        (number,) = killed
        assert where(image) == {replicas[1 - number].target}
        assert stn.taken()[0] == {"Upload": 3 + PIECES}
        np.testing.assert_array_equal(stn.download(image), LARGE)
        replicas.start(number)


def test_what_is_asked_of_a_replica_that_is_gone_is_gone(replicas, kind):
    """A download says so, at once; to release it is done."""
    with kind(replicas.target, retry=None) as stn:
        images = on_both(stn, replicas.targets, 1)
        replicas[1].process.kill()
        replicas[1].stop()
        (lost,) = (image for image in images if where(image) != {replicas[0].target})
        with pytest.raises(UnavailableError, match="all"):
            stn.download(lost)
        assert stn.release(*images) == 1
        replicas.start(1)


def test_a_lame_duck_is_left_before_it_stops(replicas, kind):
    """Its tensors are sent to another one while it still serves."""
    replicas[0].stop()
    replicas.start(0, "--lifecycle-lame-duck-s=3600")
    with kind(replicas.target) as stn:
        images = on_both(stn, replicas.targets)
        terminate(replicas[0])
        while any(where(image) != {replicas[1].target} for image in images):
            for image in images:
                np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
        assert stn.stats.failed == 0
    terminate(replicas[0])
    assert replicas[0].process.wait(timeout=60) == 0
    replicas[0].stop()
    replicas.start(0)


def test_a_handle_of_another_replica_is_not_found(replicas):
    """To callers that do not go where it says."""
    with NotedClient(replicas.target) as stn, contextlib.ExitStack() as channels:
        image = stn.upload(U)
        (reference,) = image.held.references.values()
        assert reference.address in {replicas[0].target, replicas[1].target}
        for number in range(2):
            target = replicas[number].target
            channel = channels.enter_context(grpc.insecure_channel(target))
            download = channel.unary_unary("/stn.v1.SpatialTransformer/Download")
            request = resident_pb2.DownloadRequest(
                resident=tensor_pb2.ResidentRef(handle=reference.handle), byte_count=4
            ).SerializeToString()
            if target == reference.address:
                assert resident_pb2.DownloadReply.FromString(download(request)).byte_count
            else:
                with pytest.raises(grpc.RpcError, match="expected the handle of a resident"):
                    download(request)


def both_loopbacks(host, port, **_options):
    """What gRPC makes of localhost, and most systems do."""
    assert host == "localhost"
    return [
        (None, None, None, "", ("127.0.0.1", port)),
        (None, None, None, "", ("::1", port, 0, 0)),
    ]


def test_replicas_prove_the_name_of_the_target(tmp_path, kind):
    """By TLS, with tokens; on two addresses of one name, which is all that certificates are for."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(entry("alice", TOKEN))
    flags = (
        f"--tls-certificate={certificate}",
        f"--tls-key={key}",
        f"--auth-tokens={tokens}",
        "--metrics-listen=",
    )
    with contextlib.ExitStack() as running:
        first = running.enter_context(LocalServer("--listen=127.0.0.1:0", *flags))
        port = first.target.rpartition(":")[2]
        second = running.enter_context(LocalServer(f"--listen=[::1]:{port}", *flags))
        stn = running.enter_context(
            kind(f"dns:///localhost:{port}", tls=Tls(ca=authority.ca), token=TOKEN)
        )
        client = getattr(stn, "client", stn)
        client._replicas = Replicas(client.target, resolve=both_loopbacks)
        client._disconnect()
        images = on_both(stn, [first.target, second.target])
        for image in images:
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
            assert {stn.sent[-1][1]} == where(image)
        assert stn.taken()[0] == {"Warp": 4}


def test_an_impostor_at_the_address_of_a_replica_is_sent_nothing(tmp_path):
    """Its certificate is of another authority: the call goes elsewhere, and succeeds."""
    authority = Authority(tmp_path, "authority")
    right, wrong = (
        [f"--tls-certificate={certificate}", f"--tls-key={key}"]
        for certificate, key in (
            authority.issue("server"),
            Authority(tmp_path, "others").issue("impostor"),
        )
    )
    tls = Tls(ca=authority.ca, server_name="localhost")
    with (
        Servers(2, tmp_path, *right) as replicas,
        NotedClient(replicas.target, tls=tls) as stn,
    ):
        images = on_both(stn, replicas.targets, 1)
        replicas[1].stop()
        replicas.start(1, *wrong)
        for image in images:
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
            assert where(image) == {replicas[0].target}


@pytest.fixture
def foreign():
    """A host that no target has; it answers nobody."""
    with socket.create_server(("127.0.0.9", 0)) as listening:
        listening.settimeout(0)
        yield listening


def test_an_address_that_the_target_does_not_stand_for_gets_no_call(foreign, kind):
    """Nor a token, nor even a connection; calls go by the target."""
    host, port = foreign.getsockname()
    with (
        LocalServer(f"--residents-address={host}:{port}") as server,
        kind(f"ipv4:{server.target}", token=TOKEN) as stn,
    ):
        image = stn.upload(LARGE)
        assert where(image) == {f"{host}:{port}"}
        np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped(LARGE))
        np.testing.assert_array_equal(stn.download(image), LARGE)
        assert stn.release(image) == 1
        assert {address for _, address, _ in stn.sent} == {""}
        with pytest.raises(BlockingIOError):
            foreign.accept()


def test_a_name_of_a_name_server_of_its_own_is_not_looked_up(replicas, kind):
    """The system might know another host by it: calls go in turns, and send again what is lost."""
    with NameServer(*replicas.hosts) as names, kind(names.target(replicas.port)) as stn:
        image = stn.upload(U)
        for _ in range(4):
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
        image = stn.upload(U)
        others = (stn.upload(U) for _ in range(1000))
        other = next(one for one in others if where(one) != where(image))
        expected = stn.objective(U, U, Affine(THETA)).value
        stn.taken()
        np.testing.assert_array_equal(stn.objective(image, other, Affine(THETA)).value, expected)
        assert stn.taken()[0]["Upload"] <= 2 * MAX_LOSSES


def test_one_server_is_called_as_ever(replicas, kind):
    """By its own channel, whatever address it tells; a call that finds nobody is tried again."""
    with kind(replicas[0].target, local=False) as stn:
        image = stn.upload(LARGE)
        assert where(image) == {replicas[0].target}
        np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped(LARGE))
        assert {address for _, address, _ in stn.sent} == {""}
        assert stn.release(image) == 1
        with pytest.raises(InvalidRequestError, match="tensor: expected a tensor on the server"):
            stn.download(image)
