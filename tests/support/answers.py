"""Calls that are answered in the process, at once, however busy the machine is.

For what a client makes of its own time. On a socket, whether an answer comes within a short timeout
is up to the machine.
"""

from __future__ import annotations

import grpc
import grpc.aio


def answer_calls(monkeypatch, answer):
    """Lets channels lead nowhere: their calls end with what `answer()` returns or raises."""
    monkeypatch.setattr(grpc, "insecure_channel", lambda *_target, **_options: _Channel(answer))
    monkeypatch.setattr(
        grpc.aio, "insecure_channel", lambda *_target, **_options: _AsyncChannel(answer)
    )


class _Channel:
    def __init__(self, answer):
        self._answer = answer

    def unary_unary(self, _path):
        return lambda _request, **_attempt: self._answer()

    def close(self):
        """Nothing is held."""


class _AsyncChannel(_Channel):
    def unary_unary(self, _path):
        async def call(_request, **_attempt):
            return self._answer()

        return call

    async def close(self):
        """Nothing is held."""
