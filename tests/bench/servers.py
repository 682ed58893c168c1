"""What the service is measured against and by; run as a process: `servers.py echo|null|device`.

echo: raw-bytes gRPC on the stack that the service stands on, with the same options and memory. It
answers every message with the reply that the service gave to one of that length: `echo FOLDER`
finds them in files with that length as their name.
null: the whole service but the numerics: results are the feature maps themselves.
device: as null, on a device that takes 2 ms a launch, whatever is in it.

Prints its address as `stn-server` does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache
from pathlib import Path

import grpc
import grpc.aio
import uvloop

from stn_server.app import build
from stn_server.config import ServerConfig
from stn_server.memory import relax_collector, retain_freed_memory
from stn_server.server import Server
from stn_server.service import SERVICE
from support.fakes import feature_maps

LAUNCH_S = 2e-3
CONFIG = ServerConfig(listen=("127.0.0.1:0",), metrics_listen="")


class NullRunner:
    """Computes nothing: every output is the feature map."""

    def run_inline(self, batch):
        return feature_maps(batch)

    async def run(self, batch):
        return feature_maps(batch)

    def close(self):
        pass


class Device(NullRunner):
    """Waits as for a device, and leaves the processor to others."""

    def __init__(self, launch_s):
        self._launch_s = launch_s

    def run_inline(self, _batch):
        return None

    async def run(self, batch):
        await asyncio.sleep(self._launch_s)
        return await super().run(batch)


async def serve_echo(folder: str) -> None:
    @cache
    def reply(length: int) -> bytes:
        return Path(folder, str(length)).read_bytes()

    async def echo(message, _context):
        return reply(len(message))

    largest = ("grpc.max_receive_message_length", CONFIG.limits.max_message_bytes)
    server = grpc.aio.server(options=[largest, ("grpc.max_send_message_length", -1)])
    method = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Warp": method}),)
    )
    port = server.add_insecure_port(CONFIG.listen[0])
    await server.start()
    await announce(f"127.0.0.1:{port}")


async def serve_null() -> None:
    await serve(NullRunner())


async def serve_device() -> None:
    await serve(Device(LAUNCH_S))


async def serve(runner, config: ServerConfig = CONFIG) -> None:
    """The service around a runner, until it is killed."""
    server = Server(build(config, runner))
    await announce((await server.start()).targets[0])


async def announce(target: str) -> None:
    """Says that it is ready, and serves until it is killed."""
    relax_collector()
    print(json.dumps({"targets": [target], "metrics": ""}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    retain_freed_memory(CONFIG.retained_bytes)
    kinds = {"echo": serve_echo, "null": serve_null, "device": serve_device}
    uvloop.run(kinds[kind](*arguments))
