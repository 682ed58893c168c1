"""The service against raw-bytes gRPC echo of the same messages, side by side in one run.

Three servers take turns, each in its own process, loaded from another process: echo, the service
without numerics (what wire, validation, queue and batching add), and the service as it is. All
three keep freed memory alike. Only the ratios mean something; machines differ and are noisy.
`--output` writes everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench import report
from stn_client import Affine
from stn_client._calls import warp
from stn_client.local import LocalServer

HERE = Path(__file__).parent
SHAPES = ((1, 1, 28, 28), (1, 3, 224, 224))
CONCURRENCIES = (1, 32)
SERVERS = ("echo", "null", "service")


def main() -> None:
    options = parse_options()
    cells = []
    with tempfile.TemporaryDirectory() as folder, Fleet() as fleet:
        for shape in SHAPES:
            request = write_request(Path(folder), shape)
            for concurrency in CONCURRENCIES:
                rounds = [
                    {
                        name: load(fleet.targets[name], request, concurrency, options.seconds)
                        for name in SERVERS
                    }
                    for _ in range(options.rounds)
                ]
                cells.append(summarize(shape, concurrency, rounds))
                print_cell(cells[-1])
    if options.output:
        title = "service against raw-bytes gRPC echo"
        report.write(options.output, title, ("grpcio", "torch", "stn-server"), cells=cells)


class Fleet:
    """The three servers, running."""

    def __enter__(self):
        self.service = LocalServer("--log-level=warning")
        self.targets = {"service": self.service.target}
        self.processes = [self.start(name) for name in SERVERS if name != "service"]
        return self

    def start(self, name):
        command = [sys.executable, str(HERE / "servers.py"), name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.targets[name] = json.loads(process.stdout.readline())["targets"][0]
        return process

    def __exit__(self, *_exception):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()
        self.service.stop()


def write_request(folder: Path, shape) -> Path:
    """The bytes that the SDK sends for a warp of a random feature map."""
    feature_map = np.random.default_rng(0).random(shape, np.float32)
    theta = np.array([[[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]], np.float32)
    path = folder / "x".join(map(str, shape))
    path.write_bytes(warp(feature_map, Affine(theta), None, {}).request)
    return path


def load(target: str, request: Path, concurrency: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, HERE / "load.py", target, request, str(concurrency), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def summarize(shape, concurrency, rounds) -> dict:
    """Medians over the rounds; ratios are taken within a round, then their median."""
    cell = {"shape": list(shape), "concurrency": concurrency}
    for name in SERVERS:
        for quantity in ("requests_per_s", "p50_ms"):
            cell[f"{name}_{quantity}"] = statistics.median(r[name][quantity] for r in rounds)
    for name in SERVERS[1:]:
        cell[f"{name}_throughput_ratio"] = ratio(rounds, name, "requests_per_s")
        cell[f"{name}_latency_ratio"] = ratio(rounds, name, "p50_ms")
    return cell


def ratio(rounds, name: str, quantity: str) -> float:
    return statistics.median(r[name][quantity] / r["echo"][quantity] for r in rounds)


def print_cell(cell) -> None:
    shape = "x".join(map(str, cell["shape"]))
    print(f"\n{shape} float32, {cell['concurrency']} at a time")
    for name in SERVERS:
        line = f"  {name:8} {cell[f'{name}_requests_per_s']:8.0f} requests/s"
        line += f"  p50 {cell[f'{name}_p50_ms']:8.3f} ms"
        if name != "echo":
            line += f"   {cell[f'{name}_throughput_ratio']:.2f} x the throughput of echo,"
            line += f" {cell[f'{name}_latency_ratio']:.2f} x its latency"
        print(line)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of load in each round")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
