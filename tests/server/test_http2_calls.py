"""A call on a stream, without a connection: what its method waits for."""

import asyncio

import pytest

from stn_server.errors import InvalidRequestError, MessageTooLargeError
from stn_server.http2.calls import StreamContext
from stn_server.http2.frames import DEFAULT_WINDOW_BYTES
from stn_server.http2.headers import Request
from stn_server.http2.messages import PREFIX

LIMIT = 10**6


class Windows:
    """Notes what a call asks for."""

    def __init__(self):
        self.granted = []

    def grant(self, _stream_id, window_bytes):
        self.granted.append(window_bytes)


def call(channel=None):
    """One whose message has not come."""
    request = Request(path="/a.B/C", metadata=(), timeout_s=None, encoding="identity")
    channel = Windows() if channel is None else channel
    return StreamContext(channel, 1, request, "unix:", max_message_bytes=LIMIT)


@pytest.mark.parametrize("there", [1, 4, 5, 7])
def test_a_call_that_ends_amid_its_message_is_told_so(there):
    """In the prefix or behind it, whatever its method waits for."""

    async def scenario(wait):
        one = call()
        one.feed(memoryview((PREFIX.pack(0, 9) + bytes(9))[:there]))
        one.end()
        with pytest.raises(InvalidRequestError, match=r"^message: expected all of it, got the end"):
            await wait(one)

    asyncio.run(scenario(StreamContext.read))
    if there < PREFIX.size:
        asyncio.run(scenario(StreamContext.announced_bytes))


def test_what_has_not_been_admitted_gets_no_window():
    """Once its method reads, all of the message may come."""

    async def scenario():
        windows = Windows()
        one = call(windows)
        one.feed(memoryview(PREFIX.pack(0, LIMIT) + bytes(100)))
        assert await one.announced_bytes() == LIMIT
        assert windows.granted == []
        reading = asyncio.create_task(one.read())
        await asyncio.sleep(0)
        assert max(windows.granted) == LIMIT - 100 > DEFAULT_WINDOW_BYTES
        one.feed(memoryview(bytes(LIMIT - 100)))
        return await reading

    assert asyncio.run(scenario()) == bytes(LIMIT)


def test_a_message_above_the_limit_is_not_waited_for():
    """Its length is known from the prefix."""

    async def scenario():
        windows = Windows()
        one = call(windows)
        one.feed(memoryview(PREFIX.pack(0, LIMIT + 1)))
        with pytest.raises(MessageTooLargeError, match=f"at most {LIMIT} bytes, got {LIMIT + 1}"):
            await one.read()
        return windows.granted

    assert asyncio.run(scenario()) == []
