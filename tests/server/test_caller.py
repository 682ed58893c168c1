"""Who calls: by token, else by certificate, else by host."""

import pytest

from stn_server.grpc_transport import caller_of, presented_token
from stn_server.tokens import UNLIMITED, Quota, Token
from support.fakes import FakeContext

PEERS = ("ipv4:192.0.2.1:1", "unix:")


@pytest.mark.parametrize(
    ("peer", "name", "transport"),
    [
        ("ipv4:192.0.2.1:1234", "ipv4:192.0.2.1", "tcp"),
        ("ipv4:192.0.2.1:9", "ipv4:192.0.2.1", "tcp"),
        ("ipv6:%5B2001:db8::1%5D:1234", "ipv6:%5B2001:db8::1%5D", "tcp"),
        ("unix:", "unix", "unix"),
        ("unix:/run/caller.sock", "unix", "unix"),
    ],
)
def test_without_a_token_a_caller_is_its_host(peer, name, transport):
    """However many connections it opens, and without a quota."""
    caller = caller_of(FakeContext(peer=peer))
    assert (caller.name, caller.transport, caller.quota) == (name, transport, UNLIMITED)


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        ({"x509_common_name": [b"alice"], "x509_subject_alternative_name": [b"a", b"b"]}, "alice"),
        ({"x509_subject_alternative_name": [b"a", b"b"]}, "a"),
        ({"x509_common_name": [b"\xff"]}, "\N{REPLACEMENT CHARACTER}"),
        ({"x509_common_name": [b""]}, "ipv4:192.0.2.1"),
        ({"transport_security_type": [b"ssl"]}, "ipv4:192.0.2.1"),
    ],
)
def test_a_certificate_names_its_caller(certificate, name):
    """TLS has verified it; where none is asked for, the host must do."""
    caller = caller_of(FakeContext(peer="ipv4:192.0.2.1:1234", certificate=certificate))
    assert (caller.name, caller.transport, caller.quota) == (name, "tcp", UNLIMITED)


def test_a_certificate_that_nobody_asked_for_names_nobody():
    """Nor is it looked at."""
    context = FakeContext(peer=PEERS[0], certificate={"x509_common_name": [b"alice"]})
    assert caller_of(context, certified=False).name == "ipv4:192.0.2.1"


def test_a_token_is_the_same_caller_from_everywhere():
    """With its quota, and whatever certificate comes with it."""
    quota = Quota(max_calls=1)
    reset = presented_token.set(Token("alice", b"", quota))
    try:
        certificate = {"x509_common_name": [b"bob"]}
        contexts = [FakeContext(peer=peer, certificate=certificate) for peer in PEERS]
        callers = [caller_of(context) for context in contexts]
    finally:
        presented_token.reset(reset)
    assert [(c.name, c.quota) for c in callers] == [("alice", quota)] * 2
    assert [c.transport for c in callers] == ["tcp", "unix"]
