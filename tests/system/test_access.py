"""Who gets in: TLS, mTLS, tokens, quotas, and what stands open on which address."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_database, descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from stn_client import (
    AccessDeniedError,
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    OverloadedError,
    ProtocolMismatchError,
    RetryPolicy,
    Tls,
    UnavailableError,
)
from stn_client.cli import main
from stn_client.local import LocalServer
from stn_proto.v1 import service_pb2
from stn_proto.v1.many_pb2 import Status
from stn_server.oip.service import OIP_METHODS, OIP_SERVICE
from support.bad_requests import ramp, theta, warp_request
from support.certificates import Authority
from support.harness import (
    METHOD_PREFIX,
    log_records,
    outcome_of,
    run_server_command,
    scrape,
    wait_for_record,
)
from support.many import compute_many, replies
from support.statuses import reason
from support.tokens import entry, replace

pytestmark = pytest.mark.slow

ONCE = RetryPolicy(attempts=1)
U, THETA = ramp(1, 3, 4, 5), Affine(theta(1))
SERVICE = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"]
METHODS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
METHODS += [f"/{OIP_SERVICE}/{name}" for name in OIP_METHODS]
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
GOOD, BAD = "correct-horse-battery-staple", "correct-horse-battery-stapled"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.toml"
    replace(path, entry("alice", GOOD))
    return path


def tls_flags(files, *more):
    """The flags of a server with this certificate and key."""
    certificate, key = files
    return [f"--tls-certificate={certificate}", f"--tls-key={key}", *more]


def server_info(target, **options):
    """Asks over a connection of its own."""
    with Client(target, retry=ONCE, timeout_s=30, **options) as stn:
        return stn.server_info()


def test_tls_is_spoken_on_tcp_and_not_needed_on_a_unix_socket(authority, tmp_path):
    """Who trusts the authority gets in; who speaks in clear, or expects another name, does not."""
    unix = f"unix:{tmp_path}/stn.sock"
    flags = tls_flags(authority.issue("server"), f"--listen=127.0.0.1:0,{unix}")
    tls = Tls(ca=authority.ca)

    async def awaited(target):
        async with AsyncClient(target, tls=tls) as stn:
            return await stn.warp(U, THETA)

    with LocalServer(*flags) as server:
        with Client(server.target, tls=tls) as stn:
            expected = stn.warp(U, THETA)
        assert (asyncio.run(awaited(server.target)) == expected).all()
        assert server_info(unix).ready
        with pytest.raises(UnavailableError, match=r"The server may want TLS: pass tls=Tls\("):
            server_info(server.target)
        with pytest.raises(UnavailableError, match=r"Pass Tls\(ca=\.\.\.\)"):
            server_info(server.target, tls=Tls())
        assert server_info(server.target, tls=Tls(ca=authority.ca, server_name="localhost")).ready
        with pytest.raises(UnavailableError, match=r"Pass Tls\(server_name=\.\.\.\)"):
            server_info(server.target, tls=Tls(ca=authority.ca, server_name="elsewhere"))


def test_tls_to_a_server_without_is_told_so(authority, server):
    """To one server, and to replicas; what is no matter of TLS gets no advice about it."""
    for target in (server.target, f"ipv4:{server.target}"):
        with pytest.raises(UnavailableError, match="The server may speak no TLS: leave out tls"):
            server_info(target, tls=Tls(ca=authority.ca))
    for options in ({}, {"tls": Tls(ca=authority.ca)}):
        with pytest.raises(
            UnavailableError, match=r"Connection refused\. Nobody listens there: start [^:]+$"
        ):
            server_info("127.0.0.1:1", **options)


def test_certificates_are_renewed_while_the_server_runs(authority, tmp_path):
    """New connections see the new one, open ones go on, and a broken file changes nothing."""
    log = tmp_path / "log"
    (certificate, key) = authority.issue("server")
    flags = tls_flags((certificate, key), "--listen=127.0.0.1:0,127.0.0.1:0")
    with (
        LocalServer(*flags, log=log) as server,
        Client(server.target, tls=Tls(ca=authority.ca), retry=ONCE) as before,
    ):
        assert before.server_info().ready
        successor = Authority(tmp_path, "successor")
        successor.issue("server")
        wait_for_record(log, "change accepted")
        for target in server.targets * 2:
            assert server_info(target, tls=Tls(ca=successor.ca)).ready
        with pytest.raises(UnavailableError, match="failed to connect"):
            server_info(server.target, tls=Tls(ca=authority.ca, server_name="127.0.0.1"))
        assert before.server_info().ready
        key.write_text("no key")
        wait_for_record(log, "change rejected")
        with Client(server.target, tls=Tls(ca=successor.ca, server_name="localhost")) as after:
            assert after.server_info().ready
        counts = scrape(server.metrics)
    assert counts['stn_reloads_total{file="certificates",outcome="accepted"}'] == 1
    assert counts['stn_reloads_total{file="certificates",outcome="rejected"}'] == 1
    (rejected,) = [record for record in log_records(log) if record["event"] == "change rejected"]
    assert (rejected["level"], rejected["file"]) == ("error", "certificates")
    assert rejected["reason"].startswith("tls.certificate: expected a certificate and its unencr")


def test_replicas_are_balanced_over_tls_and_with_a_token(authority, tokens):
    """Their health is watched over the same connections, and asks for no token."""
    both = "--listen=127.0.0.1:0,127.0.0.2:0"
    flags = tls_flags(authority.issue("server"), f"--auth-tokens={tokens}", both)
    tls = Tls(ca=authority.ca, server_name="localhost")
    with LocalServer(*flags) as server:
        target = f"ipv4:{','.join(server.targets)}"
        assert server_info(target, tls=tls, token=GOOD).ready
        with pytest.raises(AccessDeniedError, match="expected"):
            server_info(target, tls=tls, token=BAD)


@pytest.mark.parametrize(
    "method",
    [
        *METHODS,
        *(f"/{name}/ServerReflectionInfo" for name in REFLECTIONS),
        "/stn.v1.Unknown/Method",
    ],
)
@pytest.mark.parametrize(
    ("header", "why"),
    [
        (None, "got none."),
        ("Basic YTpi", "got none."),
        (f"Bearer {BAD}", "got an unknown one."),
        ("Bearer ", "got an unknown one."),
        (f"Bearer {GOOD} ", "got an unknown one."),
    ],
)
def test_no_method_answers_without_a_token(guarded, method, header, why):
    """Known or not, small or large: all say the same, and before they read the message."""
    metadata = [] if header is None else [("authorization", header)]
    with grpc.insecure_channel(guarded.target) as channel:
        call = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED") as refused:
            call(bytes(4_000_000), metadata=metadata, timeout=30)
    expected = f"authorization: expected a bearer token of this server, {why}"
    assert refused.value.details() == expected
    assert dict(refused.value.trailing_metadata())["x-request-id"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for a token."""
    folder = tmp_path_factory.mktemp("guarded")
    replace(folder / "tokens.toml", entry("alice", GOOD))
    with LocalServer(f"--auth-tokens={folder}/tokens.toml", log=folder / "log") as server:
        yield server


def test_a_token_opens_everything(guarded):
    """Calls, reflection, and what is not there."""
    with Client(guarded.target, token=GOOD, retry=ONCE) as stn:
        assert stn.warp(U, THETA).shape == U.shape
        assert stn.server_info().ready
    metadata = [("authorization", f"Bearer {GOOD}")]
    with grpc.insecure_channel(guarded.target) as channel:
        assert SERVICE.full_name in services_of(channel, metadata)
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            channel.unary_unary("/stn.v1.Unknown/Method")(b"", metadata=metadata)


def test_health_needs_no_token(guarded):
    """Probes have none."""
    with grpc.insecure_channel(guarded.target) as channel:
        assert is_serving(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=30
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def is_serving(channel):
    """What a probe asks."""
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def services_of(channel, metadata=(), reflection=REFLECTIONS[0]):
    """The services that reflection lists."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = reflect(channel, request, metadata, reflection)
    return [service.name for service in reply.list_services_response.service]


def reflect(channel, request, metadata=(), reflection=REFLECTIONS[0]):
    """What reflection answers; the messages of both versions are the same bytes."""
    method = channel.stream_stream(
        f"/{reflection}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return list(method(iter([request]), metadata=metadata, timeout=30))


@pytest.mark.parametrize("reflection", REFLECTIONS)
def test_tools_of_both_versions_find_every_service_and_its_description(server, reflection):
    """As they do: a list, then the files that describe what is on it, each by itself."""
    with grpc.insecure_channel(server.target) as channel:
        names = services_of(channel, reflection=reflection)
        assert set(names) == {
            SERVICE.full_name,
            OIP_SERVICE,
            "grpc.health.v1.Health",
            *REFLECTIONS,
        }
        files = descriptor_database.DescriptorDatabase()
        for name in names:
            asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            (reply,) = reflect(channel, asked, reflection=reflection)
            for file in reply.file_descriptor_response.file_descriptor_proto:
                files.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
        pool = descriptor_pool.DescriptorPool(files)
        found = [[m.name for m in pool.FindServiceByName(name).methods] for name in names]
    assert dict(zip(names, found, strict=True)) == {
        SERVICE.full_name: [method.name for method in SERVICE.methods],
        OIP_SERVICE: list(OIP_METHODS),
        "grpc.health.v1.Health": ["Check", "List", "Watch"],
        **{name: ["ServerReflectionInfo"] for name in REFLECTIONS},
    }
    stream = pool.FindServiceByName(REFLECTIONS[0]).methods[0]
    assert stream.input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"


def test_tokens_change_while_the_server_runs(tokens, tmp_path):
    """Soon after the file did; a broken file leaves the old ones, and says so without telling them.

    The log names the token of a call that failed, and no file or token ever appears in it.
    """
    log = tmp_path / "log"
    with (
        LocalServer(f"--auth-tokens={tokens}", "--log-level=debug", log=log) as server,
        Client(server.target, token=GOOD, retry=ONCE, local=False) as alice,
        Client(server.target, token=BAD, retry=ONCE, local=False) as bob,
    ):
        assert alice.server_info().ready
        with pytest.raises(AccessDeniedError, match="got an unknown one"):
            bob.server_info()
        replace(tokens, entry("bob", BAD))
        wait_for_record(log, "change accepted")
        assert bob.server_info().ready
        with pytest.raises(AccessDeniedError, match="got an unknown one") as denied:
            alice.server_info()
        assert denied.value.reason == "UNKNOWN_TOKEN"
        tokens.write_text(f'[carol]\nsha256 = "{GOOD}"')
        wait_for_record(log, "change rejected")
        assert bob.server_info().ready
        with grpc.insecure_channel(server.target) as channel:
            warp = channel.unary_unary(METHOD_PREFIX + "Warp")
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                warp(b"no request", metadata=[("authorization", f"Bearer {BAD}")])
        tokens.unlink()
        wait_for_record(log, "change rejected", 2)
        assert bob.server_info().ready
        counts = scrape(server.metrics)
    assert counts['stn_reloads_total{file="tokens",outcome="accepted"}'] == 1
    assert counts['stn_reloads_total{file="tokens",outcome="rejected"}'] == 2
    assert counts['stn_refused_total{reason="UNKNOWN_TOKEN"}'] == 2
    records = log_records(log)
    rejections = [r["reason"] for r in records if r["event"] == "change rejected"]
    assert rejections[0].startswith("carol.sha256: expected 64 hexadecimal digits")
    assert rejections[1].startswith("auth.tokens: expected a readable file, got")
    failures = [r for r in records if r["event"] == "request failed"]
    callers = [(r["caller"], r["code"]) for r in failures]
    stranger = ("ipv4:127.0.0.1", "UNAUTHENTICATED")
    assert callers == [stranger, stranger, ("bob", "INVALID_ARGUMENT")]
    assert all(r["request_id"] for r in failures)
    assert GOOD not in log.read_text()


QUOTAS = {
    "calls": ({"max_calls": 2}, "expected at most 2 calls in flight for this token, got more"),
    "bytes": ({"max_bytes": 1500}, "expected at most 1500 bytes in flight for this token"),
    "rate": ({"calls_per_s": 0.001}, "expected at most 0.001 calls a second for this token"),
}
"""Of tokens that are called as they are spelt."""

OCCUPIED = {"calls": 2, "bytes": 2, "rate": 1}
"""How many calls each of them may have in a window."""


async def one_too_many(target):
    """Fills the quota of every token with calls that wait for the window, then asks once more.

    What ends the window is a last call, which is more than a batch takes.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def connect(token):
            client = AsyncClient(target, token=token, retry=ONCE, packing=False)
            return await stack.enter_async_context(client)

        clients = {name: await connect(name) for name in QUOTAS}
        occupied = [name for name, count in OCCUPIED.items() for _ in range(count)]
        calls = [asyncio.create_task(clients[name].warp(U, THETA)) for name in occupied]
        other = await connect(GOOD)
        while (await other.server_info()).statistics.queued_items < len(calls):
            pass
        refusals = {name: await outcome_of(stn.warp(U, THETA)) for name, stn in clients.items()}
        await asyncio.gather(other.warp(U, THETA, (40, 40)), *calls)
    return refusals


def test_a_quota_stops_its_token_and_no_other(tmp_path):
    """At once, with the time to come again, while others are served beside it."""
    path = tmp_path / "tokens.toml"
    limited = [entry(name, name, **quota) for name, (quota, _) in QUOTAS.items()]
    replace(path, entry("alice", GOOD), *limited)
    flags = ["--batching-window-s=3600", "--batching-max-batch-samples=1000"]
    with LocalServer(f"--auth-tokens={path}", *flags) as server:
        refusals = asyncio.run(one_too_many(server.target))
        assert scrape(server.metrics)['stn_refused_total{reason="QUOTA_EXCEEDED"}'] == len(QUOTAS)
        assert server_info(server.target, token=GOOD).statistics.finished_items == 6
    for name, (_, message) in QUOTAS.items():
        assert isinstance(refusals[name], OverloadedError)
        assert message in str(refusals[name])
    assert [refusals[name].retry_after_s for name in ("calls", "bytes")] == [0.05, 0.05]
    assert refusals["rate"].retry_after_s == pytest.approx(1000, rel=0.02)


async def many_at_once(target, token):
    """Which calls of one message a token is let in with, by its reasons."""
    message = compute_many(*[("Warp", warp_request())] * 4).SerializeToString()
    async with grpc.aio.insecure_channel(target) as channel:
        ask = channel.unary_unary("/stn.v1.SpatialTransformer/ComputeMany")
        found = replies(await ask(message, metadata=[("authorization", f"Bearer {token}")]))
    return [reason(one) if isinstance(one, Status) else "OK" for one in found]


def test_each_call_of_a_message_counts_for_the_quota(tmp_path):
    """The first takes the place of its message; those beyond the quota fail alone."""
    path = tmp_path / "tokens.toml"
    quotas = {"calls": {"max_calls": 2}, "bytes": {"max_bytes": 3500}, "rate": {"calls_per_s": 3}}
    replace(path, *(entry(name, name, **quota) for name, quota in quotas.items()))
    with LocalServer(f"--auth-tokens={path}") as server:
        found = {name: asyncio.run(many_at_once(server.target, name)) for name in quotas}
        again = asyncio.run(many_at_once(server.target, "calls"))
    refused = "QUOTA_EXCEEDED"
    assert found["calls"] == again == ["OK"] * 2 + [refused] * 2
    assert found["bytes"] == ["OK"] * 2 + [refused] * 2  # operands and results of each: 1,536 bytes
    assert found["rate"] == ["OK"] * 3 + [refused]


class Fortress:
    """A server with everything that can be asked of callers, and an address without it."""

    def __init__(self, folder):
        self.authority = Authority(folder, "authority")
        tokens, self.token = folder / "tokens.toml", folder / "token"
        replace(tokens, entry("alice", GOOD))
        self.token.write_text(f"{GOOD}\n")
        self.admin = f"unix:{folder}/admin.sock"
        self.files = self.authority.issue("caller")
        flags = tls_flags(self.authority.issue("server"), f"--tls-client-ca={self.authority.ca}")
        flags += [f"--auth-tokens={tokens}", f"--admin-listen={self.admin}"]
        self.server = LocalServer(*flags, "--reflection=admin_listen", log=folder / "log")
        self.target = self.server.target

    def tls(self, files):
        """What a caller with these files knows."""
        certificate, key = files
        return Tls(ca=self.authority.ca, certificate=certificate, key=key)


@pytest.fixture(scope="module")
def fortress(tmp_path_factory):
    built = Fortress(tmp_path_factory.mktemp("fortress"))
    with built.server:
        yield built


def test_mtls_asks_for_a_certificate_of_the_right_authority(fortress, tmp_path):
    """None, and one that somebody else signed, are turned away."""
    ours = fortress.tls(fortress.files)
    assert server_info(fortress.target, tls=ours, token=GOOD).ready
    stranger = fortress.tls(Authority(tmp_path, "stranger").issue("strange"))
    for tls in (Tls(ca=fortress.authority.ca), stranger):
        with pytest.raises(
            UnavailableError, match=r"failed to connect|Socket closed|recvmsg|alert"
        ):
            server_info(fortress.target, tls=tls, token=GOOD)


def test_a_certificate_names_its_caller(authority, tmp_path):
    """In the log, as in whatever else tells callers apart."""
    log = tmp_path / "log"
    alice = authority.issue("alice")
    flags = tls_flags(authority.issue("server"), f"--tls-client-ca={authority.ca}")
    tls = Tls(ca=authority.ca, certificate=alice[0], key=alice[1])
    with (
        LocalServer(*flags, "--log-level=debug", log=log) as server,
        Client(server.target, tls=tls, retry=ONCE) as stn,
        pytest.raises(InvalidRequestError, match="output_size"),
    ):
        stn.warp(U, THETA, output_size=(10**6, 1))
    (failed,) = [record for record in log_records(log) if record["event"] == "request failed"]
    assert failed["caller"] == "alice"


def test_a_certificate_is_no_token(fortress):
    """Where both are asked for, both are needed."""
    with pytest.raises(AccessDeniedError, match="got none"):
        server_info(fortress.target, tls=fortress.tls(fortress.files))


def test_probes_and_tools_have_an_address_of_their_own(fortress):
    """In clear and without a token, and with nothing else on it; reflection only there."""
    with grpc.insecure_channel(fortress.admin) as channel:
        assert is_serving(channel)
        assert SERVICE.full_name in services_of(channel)
    with pytest.raises(ProtocolMismatchError, match="expected one of this server, got"):
        server_info(fortress.admin, token=GOOD)
    credentials = fortress.tls(fortress.files).credentials()
    with (
        grpc.secure_channel(fortress.target, credentials) as channel,
        pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"),
    ):
        services_of(channel, [("authorization", f"Bearer {GOOD}")])


def test_the_command_takes_certificates_and_tokens_from_files(fortress, tmp_path, capsys):
    """With them it is answered; without, it says what is missing."""
    certificate, key = fortress.files
    flags = [f"--tls-ca={fortress.authority.ca}", f"--tls-certificate={certificate}"]
    command = [f"--target={fortress.target}", *flags, f"--tls-key={key}"]
    assert main([*command, f"--token-file={fortress.token}", "info"]) == 0
    assert "ready: true" in capsys.readouterr().out
    marked = tmp_path / "token"  # as editors of Windows write it
    marked.write_text(Path(fortress.token).read_text() + "\r\n", encoding="utf-8-sig")
    assert main([*command, f"--token-file={marked}", "info"]) == 0
    capsys.readouterr()
    assert main([*command, "info"]) == 1
    refused = capsys.readouterr().err
    assert "expected a bearer token of this server, got none. Pass token=..., or stn --" in refused


def test_what_is_switched_off_does_not_answer():
    """No reflection, no metrics, no admin address."""
    with LocalServer("--reflection=off", "--metrics-listen=") as server:
        assert server_info(server.target).ready
        assert server.metrics == ""
        with (
            grpc.insecure_channel(server.target) as channel,
            pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"),
        ):
            services_of(channel)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls-certificate=none", "--tls-key=none"], "tls.certificate: expected a certificate"),
        (["--auth-tokens=none", "--listen=0.0.0.0:0"], "auth.tokens: expected TLS, unix sockets"),
    ],
    ids=str,
)
def test_a_server_that_could_not_keep_its_promise_does_not_start(flags, reason):
    """Exit code 2 and one line, as for every wrong configuration."""
    ended = run_server_command("--listen=127.0.0.1:0", "--metrics-listen=", *flags)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith(f"stn-server: {reason}")
