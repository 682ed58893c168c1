"""Who calls: by token, else by host."""

import pytest

from stn_server.caller import caller_of, presented_token
from stn_server.tokens import UNLIMITED, Quota, Token
from support.fakes import FakeContext


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


def test_a_token_is_the_same_caller_from_everywhere():
    """With its quota."""
    quota = Quota(max_calls=1)
    reset = presented_token.set(Token("alice", b"", quota))
    try:
        callers = [caller_of(FakeContext(peer=p)) for p in ("ipv4:192.0.2.1:1", "unix:")]
    finally:
        presented_token.reset(reset)
    assert [(c.name, c.quota) for c in callers] == [("alice", quota)] * 2
    assert [c.transport for c in callers] == ["tcp", "unix"]
