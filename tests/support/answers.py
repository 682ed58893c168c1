"""Clients whose calls are answered in the process, at once, however busy the machine is.

For what a client makes of its own time. On a socket, whether an answer comes within a short timeout
is up to the machine.
"""

from __future__ import annotations

from types import SimpleNamespace


def answered(client, answer):
    """The client, of either kind, whose calls end with what `answer()` returns or raises."""
    connect = getattr(client, "_connection", None)
    if connect is None:
        client._channels = _Channels(lambda *_request, **_attempt: answer())
        return client

    async def call(*_request, **_attempt):
        return answer()

    def connection():
        connected = connect()
        connected._channels = _Channels(call)
        return connected

    client._connection = connection
    return client


class _Channels:
    """Channels that lead nowhere."""

    def __init__(self, call):
        self._link = SimpleNamespace(method=lambda _path: call)

    def link(self, _address=""):
        return self._link

    def close(self):
        return []
