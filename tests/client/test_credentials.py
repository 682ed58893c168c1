"""How clients trust and are trusted, as far as it shows without a server that asks."""

import asyncio
import re

import pytest
from grpc import StatusCode

from stn_client import AccessDeniedError, AsyncClient, Client, RetryPolicy, Tls
from stn_client._credentials import Access
from stn_client.cli import main
from support.scripted_service import ScriptedService, abort, reply

SECRET = "a-secret-token"

HERE = [
    "unix:/run/stn.sock",
    "unix:///run/stn.sock",
    "unix-abstract:stn",
    "localhost:50051",
    "localhost",
    "127.0.0.1:50051",
    "127.9.9.9:1",
    "[::1]:50051",
    "::1",
    "dns:///localhost:50051",
    "dns:localhost:50051",
    "ipv4:127.0.0.1:50051",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:50051",
]
ELSEWHERE = [
    "stn.example:50051",
    "192.0.2.1:50051",
    "[2001:db8::1]:50051",
    "dns:///stn.example:50051",
    "dns://127.0.0.1/stn.example:50051",
    "ipv4:127.0.0.1:1,192.0.2.1:1",
    "localhost.example:50051",
    "xds:///localhost",
    "0.0.0.0:50051",
]


@pytest.fixture(params=[Client, AsyncClient])
def kind(request):
    return request.param


def called(kind, target, **options):
    """Asks a server for its information, by a client of either kind."""

    async def awaited():
        async with AsyncClient(target, **options) as client:
            await client.server_info()

    if kind is AsyncClient:
        asyncio.run(awaited())
    else:
        with Client(target, **options) as client:
            client.server_info()


def test_a_call_without_a_token_is_explained():
    """As the server says it, with what to pass."""
    told = "authorization: expected a bearer token of this server, got none."
    assert Access("localhost:50051", None, None).explained(told) == (
        f"{told} Pass token=..., or stn --token-file: what the server's owner gave you."
    )


def test_a_target_without_a_port_is_explained():
    """Port 443 in gRPC's own words tells nobody that one is missing."""
    told = "failed to connect to all addresses; last error: ipv4:127.0.0.1:443: Connection refused"
    explained = Access("localhost", None, None).explained(told)
    assert explained.endswith(
        "443 is the port of targets without one: say host:port, as localhost:50051."
    )
    told = told.replace("443", "50051")
    assert "without one" not in Access("localhost:50051", None, None).explained(told)


@pytest.mark.parametrize("target", HERE)
def test_credentials_a_token_may_stay_on_this_machine(target):
    """Nobody hears it there."""
    with Client(target, token=SECRET):
        pass


@pytest.mark.parametrize("target", ELSEWHERE)
def test_credentials_a_token_does_not_leave_in_clear(kind, target):
    """Unless it is secured, or somebody says that something else secures it."""
    message = rf"^token: expected TLS, .* got {re.escape(target)}, where it can be overheard\."
    with pytest.raises(ValueError, match=message) as refused:
        kind(target, token=SECRET)
    assert SECRET not in str(refused.value)
    for options in ({"tls": Tls()}, {"allow_plaintext_token": True}):
        assert kind(target, token=SECRET, **options).target == target


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é", "\x00"], ids=repr)
def test_credentials_a_token_that_cannot_be_sent_is_refused(kind, token):
    """Before gRPC makes something unreadable of it."""
    with pytest.raises(ValueError, match=r"^token: expected visible ASCII characters, got others"):
        kind("localhost:1", token=token)


def test_credentials_go_with_every_attempt(kind):
    """As a bearer token, beside the request id; without one, no header."""
    with ScriptedService(reply(b""), reply(b"")) as service:
        called(kind, service.target, token=SECRET)
        called(kind, service.target)
    with_token, without = (received.metadata for received in service.received)
    assert with_token["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in without
    assert with_token["x-request-id"] != without["x-request-id"]


def test_credentials_that_change_are_asked_for_before_every_attempt(kind):
    """The first call is refused and tried again, by when its token is another."""
    tokens = iter(["first", "second"])
    policy = RetryPolicy(attempts=2, initial_s=0)
    with ScriptedService(abort(StatusCode.UNAVAILABLE, "gone"), reply(b"")) as service:
        called(kind, service.target, token=lambda: next(tokens), retry=policy, local=False)
    sent = [received.metadata["authorization"] for received in service.received]
    assert sent == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("error", [ValueError("token: expected visible"), OSError("no such file")])
def test_credentials_that_cannot_be_had_end_the_call(kind, error):
    """Nothing is sent; one gets what the function raised, or what is wrong with its token."""

    def token():
        if isinstance(error, OSError):
            raise error
        return "two words"

    with ScriptedService() as service, pytest.raises(type(error), match=str(error)):
        called(kind, service.target, token=token)
    assert not service.received


def test_credentials_that_change_do_not_leave_in_clear_either(kind):
    """The function is not even asked."""
    with pytest.raises(ValueError, match=r"^token: expected TLS, .* where it can be overheard\."):
        kind("stn.example:50051", token=lambda: pytest.fail("asked"))


def test_credentials_that_a_server_does_not_know_are_not_tried_again():
    """They would be as wrong the second time."""
    script = [abort(StatusCode.UNAUTHENTICATED, "authorization: expected, got")] * 3
    policy = RetryPolicy(attempts=3, initial_s=0)
    with (
        ScriptedService(*script) as service,
        Client(service.target, token=SECRET, retry=policy) as stn,
        pytest.raises(AccessDeniedError, match="authorization: expected, got"),
    ):
        stn.server_info()
    assert len(service.received) == 1


@pytest.mark.parametrize(("given", "lacking"), [("certificate", "key"), ("key", "certificate")])
def test_tls_files_go_together(given, lacking):
    """Half a pair proves nothing."""
    with pytest.raises(ValueError, match=f"^{lacking}: expected a file beside that of"):
        Tls(**{given: "file.pem"})


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_tls_files_must_be_readable(kind, tmp_path, name):
    """When the client is made, not at the first call."""
    (tmp_path / "file").write_bytes(b"")
    files = dict.fromkeys(("ca", "certificate", "key"), tmp_path / "file")
    files[name] = tmp_path / "none.pem"
    with pytest.raises(ValueError, match=rf"^{name}: expected a readable file, got .*none\.pem"):
        kind("localhost:1", tls=Tls(**files))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--tls-ca=none.pem"], "ca: expected a readable file, got"),
        (["--tls-key=none.pem"], "certificate: expected a file beside that of"),
        (["--token-file=none"], "token-file: expected a readable text file, got"),
        (["--token-file=BINARY"], "token-file: expected a readable text file, got 'utf-8' codec"),
        (["--token-file=/dev/null"], "characters, got others or none. See stn --help."),
        (["--token-file=TOKEN", "--target=stn.example:1"], "token: expected TLS, a unix socket or"),
    ],
    ids=str,
)
def test_the_command_refuses_credentials_that_cannot_be_used(tmp_path, capsys, flags, why):
    """As every other misuse: exit code 2, and what is wrong; never the token."""
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    command = [
        flag.replace("TOKEN", f"{tmp_path}/token").replace("BINARY", f"{tmp_path}/binary")
        for flag in flags
    ]
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*command, "info"])
    shown = capsys.readouterr().err
    assert why in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    "flags", [["--tls"], ["--tls-server-name=stn"], ["--allow-plaintext-token"]], ids=str
)
def test_the_command_passes_credentials_on(tmp_path, capsys, flags):
    """With any of these the token may go; here, to a port of this machine where nobody is."""
    (tmp_path / "token").write_text(f"{SECRET}\n")
    command = ["--target=0.0.0.0:1", "--timeout=0.1", f"--token-file={tmp_path}/token"]
    assert main([*command, *flags, "info"]) == 1
    assert capsys.readouterr().err.startswith("stn: ")
