"""The command `python -m stn_server.probe [ADDRESS]`: exits with 0 if a server there is ready.

Without an address it asks `admin_listen`, or else the first of `listen`, as the environment sets
them: the health check of a container. It speaks no TLS, which is what `admin_listen` is for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_server.config import is_unix, split_address
from stn_server.settings import load

TIMEOUT_S = 3.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - recognised, not bound


def main(
    arguments: Sequence[str] = tuple(sys.argv[1:]), environment: Mapping[str, str] = os.environ
) -> int:
    """Asks once; writes the reason to standard error if the exit code is 1."""
    if arguments:
        address = arguments[0]
    else:
        config = load((), environment)
        address = config.admin_listen or config.listen[0]
    try:
        status = _ask(_reachable(address))
    except grpc.RpcError as error:
        status = error.code().name
    if status != "SERVING":
        print(f"{address}: expected SERVING, got {status}.", file=sys.stderr)  # noqa: T201
    return int(status != "SERVING")


def _reachable(address: str) -> str:
    """Returns the address by which to call a server that listens on an address."""
    if is_unix(address):
        return address
    host, port = split_address("listen", address)
    return f"{EVERYWHERE.get(host, host)}:{port}"


def _ask(target: str) -> str:
    """Returns the name of the status that the health service reports for the whole server."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


if __name__ == "__main__":
    sys.exit(main())
