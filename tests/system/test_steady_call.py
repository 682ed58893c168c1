"""How much of our Python a call goes through: what a reader has to follow, and what it costs."""

import asyncio
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

import stn_engine
import stn_proto
import stn_server
from stn_client import Affine
from stn_client._calls import warp
from stn_server import http2
from stn_server.app import build
from stn_server.config import ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.server import Server
from support.bad_requests import ramp, theta
from support.harness import METHOD_PREFIX

MOST_FILES, MOST_FUNCTIONS = 15, 73
"""Of what is ours above HTTP/2, for which there are bars of its own."""
MOST_FILES_OF_HTTP2, MOST_FUNCTIONS_OF_HTTP2 = 6, 55
HTTP2 = Path(http2.__file__).parent
OURS = [Path(package.__file__).parent for package in (stn_engine, stn_proto, stn_server)]
REQUEST = warp(ramp(1, 1, 28, 28), Affine(theta(1)), (28, 28), {}).request
STEADY = 20
"""Calls after which everything that is kept is there."""


async def functions_of_a_call():
    """Functions of ours, by file, that run in the event loop's thread while it answers a call."""
    entered = set()

    def enter(frame, event, _argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and any(path.is_relative_to(package) for package in OURS):
            entered.add((path, frame.f_code.co_qualname, frame.f_code.co_firstlineno))

    config = ServerConfig(listen=("127.0.0.1:0",), metrics_listen="", device="cpu")
    server = Server(build(config))
    (target,) = (await server.start()).targets
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(METHOD_PREFIX + "Warp")
        for _ in range(STEADY):
            await call(REQUEST)
        found = []
        for _ in range(3):  # beside one of them something else may be due
            entered.clear()
            sys.setprofile(enter)
            try:
                await call(REQUEST)
                await asyncio.sleep(0)
            finally:
                sys.setprofile(None)
            found.append(set(entered))
    await server.stop(Shutdown())
    return min(found, key=len)


@pytest.mark.alone
def test_a_steady_warp_goes_through_few_files_and_functions():
    """From the first byte that a socket brings to the reply, kernels aside."""
    entered = asyncio.run(functions_of_a_call())
    below = {one for one in entered if one[0].is_relative_to(HTTP2)}
    for found, most_files, most_functions in (
        (below, MOST_FILES_OF_HTTP2, MOST_FUNCTIONS_OF_HTTP2),
        (entered - below, MOST_FILES, MOST_FUNCTIONS),
    ):
        files = sorted({str(path) for path, *_ in found})
        names = sorted(f"{path.name} {name}" for path, name, _ in found)
        assert len(files) <= most_files, files
        assert len(names) <= most_functions, names
    assert {"protocol.py", "handlers.py", "devices.py"} <= {path.name for path, *_ in entered}
