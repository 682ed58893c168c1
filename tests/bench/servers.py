"""What the service is measured against; run as a process: `servers.py echo|null`.

echo: raw-bytes gRPC that returns what it received, on the stack that the service stands on.
null: the whole service but the numerics: results are the feature maps themselves.

Prints its address as `stn-server` does.
"""

from __future__ import annotations

import asyncio
import json
import sys

import grpc
import grpc.aio
import uvloop

from stn_server.app import Server
from stn_server.config import ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.memory import retain_freed_memory

METHOD_SERVICE = "stn.v1.SpatialTransformer"


class NullRunner:
    """Computes nothing: every output is the feature map."""

    async def run(self, batch):
        return [getattr(item.problem.bind(), "feature_map", None) for item in batch.items]

    def close(self):
        pass


async def serve_echo() -> None:
    async def echo(message, _context):
        return message

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(METHOD_SERVICE, {"Warp": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await asyncio.Event().wait()


async def serve_null() -> None:
    config = ServerConfig(listen=("127.0.0.1:0",), metrics_listen="")
    shutdown = Shutdown()
    addresses = await Server(config, runner=NullRunner()).start()
    announce(addresses.targets[0])
    await shutdown.asked()


def announce(target: str) -> None:
    print(json.dumps({"targets": [target], "metrics": ""}), flush=True)


if __name__ == "__main__":
    retain_freed_memory(ServerConfig().retained_bytes)
    uvloop.run({"echo": serve_echo, "null": serve_null}[sys.argv[1]]())
