"""Who calls: by token, else by certificate, else by host."""

import pytest

from stn_server.handlers import caller_of
from stn_server.http2.protocol import certified_name
from stn_server.tokens import UNLIMITED, Quota, Token
from support.fakes import FakeContext

PEERS = ("ipv4:192.0.2.1:1", "unix:")


@pytest.mark.parametrize(
    ("peer", "name", "transport"),
    [
        ("ipv4:192.0.2.1:1234", "ipv4:192.0.2.1", "tcp"),
        ("ipv4:192.0.2.1:9", "ipv4:192.0.2.1", "tcp"),
        ("ipv6:[2001:db8::1]:1234", "ipv6:[2001:db8::1]", "tcp"),
        ("unix:", "unix", "unix"),
        ("unix:/run/caller.sock", "unix", "unix"),
    ],
)
def test_without_a_token_a_caller_is_its_host(peer, name, transport):
    """However many connections it opens, and without a quota."""
    caller = caller_of(FakeContext(peer=peer))
    assert (caller.name, caller.transport, caller.quota) == (name, transport, UNLIMITED)


def test_a_certificate_names_its_caller():
    """TLS has verified it; where none is asked for, the host must do."""
    caller = caller_of(FakeContext(peer="ipv4:192.0.2.1:1234", name="alice"))
    assert (caller.name, caller.transport, caller.quota) == ("alice", "tcp", UNLIMITED)


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        ({"subject": ((("commonName", "alice"),),), "subjectAltName": (("DNS", "a"),)}, "alice"),
        ({"subject": ((("organizationName", "o"),), (("commonName", "alice"),))}, "alice"),
        ({"subject": (), "subjectAltName": (("DNS", "a"), ("DNS", "b"))}, "a"),
        ({"subject": ((("commonName", ""),),)}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_name_in_a_certificate_is_that_of_its_subject(certificate, name):
    """Else the first of its other names; None: none was asked for."""
    assert certified_name(certificate) == name


def test_a_token_is_the_same_caller_from_everywhere():
    """With its quota, and whatever certificate comes with it."""
    quota = Quota(max_calls=1)
    contexts = [FakeContext(peer=peer, name="bob") for peer in PEERS]
    for context in contexts:
        context.token = Token("alice", b"", quota)
    callers = [caller_of(context) for context in contexts]
    assert [(c.name, c.quota) for c in callers] == [("alice", quota)] * 2
    assert [c.transport for c in callers] == ["tcp", "unix"]
