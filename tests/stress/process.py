"""Servers of the stress suites as processes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_proto.v1 import server_info_pb2, service_pb2_grpc

MIB = 1024 * 1024
ESTABLISHED = "01"


class Watched:
    """What a server process holds, and whether it is well."""

    def __init__(self, process: subprocess.Popen, target: str) -> None:
        self.process = process
        self.target = target

    def resident_bytes(self) -> int:
        return self._facts()["VmRSS"]

    def open_files(self) -> int:
        """Files and sockets, but for connections that are still open on the other side, too."""
        folder = Path(f"/proc/{self.process.pid}")
        established = set()
        for table in ("tcp", "tcp6"):
            for line in (folder / "net" / table).read_text().splitlines()[1:]:
                _, _, _, state, *_, inode = line.split()[:10]
                if state == ESTABLISHED:
                    established.add(f"socket:[{inode}]")
        count = 0
        for file in (folder / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += str(file.readlink()) not in established
        return count

    def open_files_down_to(self, count: int, timeout_s: float = 10.0) -> int:
        """Open files once there are no more than so many, or those after the timeout."""
        end = time.monotonic() + timeout_s
        while (files := self.open_files()) > count and time.monotonic() < end:
            time.sleep(0.1)  # connections of killed callers are closed one by one
        return files

    def statistics(self) -> server_info_pb2.Statistics:
        with grpc.insecure_channel(self.target) as channel:
            stub = service_pb2_grpc.SpatialTransformerStub(channel)
            return stub.GetServerInfo(server_info_pb2.GetServerInfoRequest(), timeout=30).statistics

    def is_serving(self, within_s: float = 60.0) -> bool:
        """Whether calls are welcome, or soon are: injected faults turn readiness off."""
        serving = health_pb2.HealthCheckResponse.SERVING
        with grpc.insecure_channel(self.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                for reply in stub.Watch(health_pb2.HealthCheckRequest(), timeout=within_s):
                    if reply.status == serving:
                        return True
            except grpc.RpcError:
                pass
        return False

    def settled(self, timeout_s: float = 10.0) -> server_info_pb2.Statistics:
        """The statistics once nothing is inside, or those after the timeout."""
        end = time.monotonic() + timeout_s
        while True:
            left = self.statistics()
            if not left.admitted_bytes + left.queued_items + left.running_items:
                return left
            if time.monotonic() > end:
                return left

    def _facts(self) -> dict[str, int]:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        pairs = (line.split() for line in lines if line.endswith(" kB"))
        return {name.rstrip(":"): int(value) * 1024 for name, value, _unit in pairs}


class ServerProcess(Watched):
    """One of `servers.py`, running. Used as a context manager; stopping it must succeed."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("servers.py")), kind]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.targets = json.loads(process.stdout.readline())["targets"]
        super().__init__(process, self.targets[0])

    def allocated_bytes(self) -> int:
        """What its parts have taken from the C library and not given back, once it is idle."""
        self.settled()
        self.process.send_signal(signal.SIGUSR1)
        return int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.stdout.close()
        assert code == 0, f"the server ended with {code}"
