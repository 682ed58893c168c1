"""The SDK by the local transport, by gRPC, and torch's own RPC around `grid_sample`, side by side.

All of them serve from one other process of this host; rounds take turns. Backward passes go through
`stn_client.torch` and through torch's distributed autograd. memcpy is what merely copying operands
and results once within this process takes: no transport that copies can be faster.

Threads of torch's RPC look for work all the time, which takes a fifth of a core at either end. So
its caller is a process of its own, too, and both are stopped while it is not their turn.

    python -m bench.bench_local [--rounds 7] [--seconds 1] [--only 28x28] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.autograd
import torch.multiprocessing
from torch.distributed import rpc
from torch.nn import functional

from bench import report
from bench.bench_many import server
from stn_client import Affine, AsyncClient, Client
from stn_client.torch import warp

THETA = torch.tensor([[[0.9, 0.2, 0.05], [-0.15, 1.1, -0.1]]])
WORKERS = 16
"""Threads of torch's RPC at either end."""

WARM_UP_S = 0.1


Turn = Callable[[float], tuple[float, float]]
"""Seconds -> calls a second, and the median of a call in milliseconds."""


@dataclass(frozen=True)
class Bar:
    """What a ratio of durations has to reach."""

    what: str
    contender: str
    against: str
    at_least: float


@dataclass(frozen=True)
class Case:
    """Contenders that do the same thing."""

    name: str
    contenders: Mapping[str, Turn]
    bars: tuple[Bar, ...] = ()


def remote_warp(feature_map, theta):
    """What the process of torch's RPC computes."""
    grid = functional.affine_grid(theta, feature_map.shape, align_corners=False)
    return functional.grid_sample(feature_map, grid, align_corners=False)


def serve_rpc(port: int) -> None:
    """The process of torch's RPC."""
    torch.set_num_threads(os.cpu_count() or 1)
    _init_rpc("server", 1, port)
    rpc.shutdown()


def call_rpc(port: int, orders) -> None:
    """The process that calls it: for every order one of `RPC_CALLS` is timed."""
    torch.set_num_threads(1)
    _init_rpc("client", 0, port)
    orders.send("ready")
    while order := orders.recv():
        name, shape, callers, seconds = order
        orders.send(timed(RPC_CALLS[name](shape), callers, seconds))
    rpc.shutdown()


def forward_by_rpc(shape) -> Callable[[], object]:
    """A warp of maps of this shape."""
    u = torch.rand(shape)
    return lambda: rpc.rpc_sync("server", remote_warp, args=(u, THETA))


def both_by_rpc(shape) -> Callable[[], object]:
    """A warp of maps of this shape, and its gradients."""
    operands = differentiable(shape)
    return lambda: differentiated_by_rpc(*operands)


RPC_CALLS = {"forward": forward_by_rpc, "forward and backward": both_by_rpc}


class TorchRpc:
    """Both processes of torch's RPC, which run in their turns only."""

    def __init__(self, port: int) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._processes = [
            context.Process(target=serve_rpc, args=(port,)),
            context.Process(target=call_rpc, args=(port, theirs)),
        ]
        for process in self._processes:
            process.start()
        self._orders.recv()
        self._signal(signal.SIGSTOP)

    def timed(self, name: str, shape, callers: int, seconds: float) -> tuple[float, float]:
        """Does what `timed` does, over there."""
        self._signal(signal.SIGCONT)
        self._orders.send((name, shape, callers, seconds))
        found = self._orders.recv()
        self._signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        """Ends both."""
        self._signal(signal.SIGCONT)
        self._orders.send(None)
        for process in self._processes:
            process.join()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            os.kill(process.pid, number)


def _init_rpc(name: str, rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=WORKERS)
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


def cases(local: Client, network: Client, torch_rpc: TorchRpc) -> list[Case]:
    """The rows of the table."""

    def here(call: Callable[[], object], callers: int) -> Turn:
        return lambda seconds: timed(call, callers, seconds)

    def there(name: str, shape, callers: int) -> Turn:
        return lambda seconds: torch_rpc.timed(name, shape, callers, seconds)

    found = []
    for shape, callers, forward, both in (
        ((1, 1, 28, 28), 1, 2.5, None),
        ((1, 3, 224, 224), 1, None, None),
        ((1, 3, 224, 224), 8, 3.0, None),
        ((1, 3, 512, 512), 1, 5.0, 4.0),
    ):
        u = torch.rand(shape)
        size = "x".join(map(str, shape))
        bars = [] if forward is None else [Bar("local : torch rpc", "local", "torch rpc", forward)]
        if shape[-1] == 28:
            bars.append(Bar("local : grpc", "local", "grpc", 1 / 0.35))
        contenders = {
            "local": here(lambda u=u: warp(local, u, Affine(THETA)), callers),
            "grpc": here(lambda u=u: warp(network, u, Affine(THETA)), callers),
            "torch rpc": there("forward", shape, callers),
            "memcpy": here(lambda u=u: (u.clone(), u.clone()), callers),
        }
        found.append(Case(f"{size} forward, {callers} callers", contenders, tuple(bars)))
        bars = [] if both is None else [Bar("local : torch rpc", "local", "torch rpc", both)]
        operands = differentiable(shape)
        contenders = {
            "local": here(lambda o=operands: differentiated(local, *o), callers),
            "grpc": here(lambda o=operands: differentiated(network, *o), callers),
            "torch rpc": there("forward and backward", shape, callers),
        }
        name = f"{size} forward and backward, {callers} callers"
        found.append(Case(name, contenders, tuple(bars)))
    return found


def differentiable(shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands with gradients."""
    return torch.rand(shape).requires_grad_(), THETA.clone().requires_grad_()


def differentiated(client, feature_map, theta):
    """A warp and its gradients by the service."""
    output = warp(client, feature_map, Affine(theta))
    return torch.autograd.grad(output.sum(), (feature_map, theta))


def differentiated_by_rpc(feature_map, theta):
    """The same by torch's distributed autograd."""
    with torch.distributed.autograd.context() as context:
        output = rpc.rpc_sync("server", remote_warp, args=(feature_map, theta))
        torch.distributed.autograd.backward(context, [output.sum()])
        return torch.distributed.autograd.get_gradients(context)


def timed(call: Callable[[], object], callers: int, seconds: float) -> tuple[float, float]:
    """Calls a second of so many threads together, and the median of a call in milliseconds."""
    durations_s: list[float] = []

    def run(end: float) -> None:
        while (started := time.perf_counter()) < end:
            call()
            durations_s.append(time.perf_counter() - started)

    for length_s in (WARM_UP_S, seconds):
        durations_s.clear()
        began = time.perf_counter()
        threads = [threading.Thread(target=run, args=[began + length_s]) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent_s = time.perf_counter() - began
    return len(durations_s) / spent_s, statistics.median(durations_s) * 1e3


def measure(case: Case, rounds: int, seconds: float) -> dict:
    """Medians over rounds that take turns."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in case.contenders}
    for number in range(rounds):
        for name in list(case.contenders)[:: 1 if number % 2 == 0 else -1]:
            seen[name].append(case.contenders[name](seconds))
    contenders = {
        name: {
            "calls_per_s": statistics.median(rate for rate, _ in values),
            "p50_ms": statistics.median(p50 for _, p50 in values),
        }
        for name, values in seen.items()
    }
    findings = []
    for bar in case.bars:
        ratios = [a[0] / b[0] for a, b in zip(seen[bar.contender], seen[bar.against], strict=True)]
        value = statistics.median(ratios)
        findings.append({"what": bar.what, "value": value, "bar": bar.at_least})
    return {"case": case.name, "contenders": contenders, "findings": findings}


async def in_flight(target: str, *, local: bool, seconds: float, calls: int = 33) -> float:
    """Calls a second of one client with so many small calls on their way."""
    u, transform = torch.rand(1, 1, 28, 28).numpy(), Affine(THETA.numpy())
    async with AsyncClient(target, local=local) as stn:
        await stn.warp(u, transform)
        count, began = 0, time.perf_counter()

        async def caller() -> None:
            nonlocal count
            while time.perf_counter() < began + seconds:
                await stn.warp(u, transform)
                count += 1

        await asyncio.gather(*(caller() for _ in range(calls)))
        return count / (time.perf_counter() - began)


def print_cell(cell) -> None:
    print(f"\n{cell['case']}")
    for name, one in cell["contenders"].items():
        print(f"  {name:12}{one['calls_per_s']:10.0f} calls/s   p50 {one['p50_ms']:8.3f} ms")
    for one in cell["findings"]:
        met = "met" if one["value"] >= one["bar"] else "missed"
        print(f"  {one['what']:20}{one['value']:7.2f} x   bar {one['bar']:.2f} {met}", flush=True)


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    with ExitStack() as running:
        torch_rpc = running.enter_context(closing(TorchRpc(port=29511)))
        target = running.enter_context(server())
        local = running.enter_context(Client(target))
        network = running.enter_context(Client(target, local=False))
        cells = []
        for case in cases(local, network, torch_rpc):
            if re.search(options.only, case.name):
                cells.append(measure(case, options.rounds, options.seconds))
                print_cell(cells[-1])
        flights = {
            name: statistics.median(
                asyncio.run(in_flight(target, local=way, seconds=options.seconds))
                for _ in range(options.rounds)
            )
            for name, way in (("local", True), ("grpc", False))
        }
        print("\n33 small calls in flight:", {k: round(v) for k, v in flights.items()}, "calls/s")
    if options.output:
        packages = ("torch", "numpy", "grpcio", "protobuf")
        findings = {"cells": cells, "in_flight": flights, "rounds": options.rounds}
        report.write(options.output, "local", packages, **findings)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn in a round")
    parser.add_argument("--only", default="", help="a pattern for the names of cases")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
