"""The server against raw-bytes gRPC echo, against itself, and on a slow device, in one run.

Each server is a process, and one more sends the load. The contenders of a case take turns in every
round; ratios are taken within a round, then their median. Only ratios mean something: machines
differ and are noisy. The processor time that a server takes for a request is less so. A missed bar
is said, and is no failure. `--output` writes everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import grpc

from bench import report, server_cases
from bench.server_cases import Case, Contender, Quantity
from stn_client.local import LocalServer

HERE = Path(__file__).parent
MESSAGES_OF_ANY_SIZE = [("grpc.max_receive_message_length", -1)]


def main() -> None:
    run(server_cases.all_cases, "the server against echo, against itself, and on a slow device")


def run(all_cases: Callable[[Path], Iterable[Case]], about: str) -> None:
    """Measures cases as the command line asks for them."""
    options = parse_options()
    cells = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        fleet = Fleet(Path(folder), running)
        for case in all_cases(fleet.requests):
            if re.search(options.only, case.name):
                cells.append(measured(case, fleet, options))
                print_cell(cells[-1])
    if options.output:
        report.write(
            options.output,
            about,
            ("grpcio", "torch", "stn-server"),
            rounds=options.rounds,
            seconds=options.seconds,
            cells=cells,
        )


def measured(case: Case, fleet: Fleet, options) -> dict:
    """Medians over the rounds."""
    fleet.prepare(case)
    rounds = []
    for number in range(options.rounds):
        # Nobody is always the one who runs second.
        turns = list(case.contenders.items())[:: 1 if number % 2 == 0 else -1]
        rounds.append({name: fleet.load(one, options.seconds) for name, one in turns})
    return {
        "case": case.name,
        "note": case.note,
        "contenders": [
            {"name": name}
            | {of: statistics.median(seen[name][of] for seen in rounds) for of in rounds[0][name]}
            for name in case.contenders
        ],
        "findings": [finding(one, rounds) for one in case.quantities],
    }


def finding(quantity: Quantity, rounds) -> dict:
    values = [quantity.of(seen) for seen in rounds]
    value, bar = statistics.median(values), quantity.bar
    return {
        "what": quantity.what,
        "value": value,
        "least": min(values),
        "most": max(values),
        "unit": quantity.unit,
        "bar": bar,
        "at_most": quantity.at_most,
        "met": None if bar is None else value <= bar if quantity.at_most else value >= bar,
    }


class Fleet:
    """The servers and what loads them, each started when it is first needed."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.requests, self._replies = folder / "requests", folder / "replies"
        self.requests.mkdir()
        self._replies.mkdir()
        self._running = running
        self._servers: dict[str, tuple[str, int]] = {}
        self._loader = self._process("load.py")

    def prepare(self, case: Case) -> None:
        """Starts who takes part; echo learns the replies that the service gives."""
        for one in case.contenders.values():
            if one.server == "echo":
                for message in one.messages:
                    self._learn(Path(message.path).read_bytes())
            self._server(one.server)

    def load(self, contender: Contender, seconds: float) -> dict[str, float]:
        """What the callers of one contender see, and its processor time."""
        target, pid = self._server(contender.server)
        job = asdict(contender) | {"target": target, "pid": pid, "seconds": seconds}
        del job["server"]
        print(json.dumps(job), file=self._loader.stdin, flush=True)
        return json.loads(self._loader.stdout.readline())

    def _learn(self, request: bytes) -> None:
        target, _pid = self._server("null")
        with grpc.insecure_channel(target, MESSAGES_OF_ANY_SIZE) as channel:
            reply = channel.unary_unary("/stn.v1.SpatialTransformer/Warp")(request)
        (self._replies / str(len(request))).write_bytes(reply)

    def _server(self, name: str) -> tuple[str, int]:
        """Where it listens, and its process."""
        if name not in self._servers:
            self._servers[name] = self._started(name)
        return self._servers[name]

    def _started(self, name: str) -> tuple[str, int]:
        if name == "service":
            service = self._running.enter_context(LocalServer("--log-level=warning"))
            return service.target, service.process.pid
        process = self._process("servers.py", name, *([self._replies] if name == "echo" else []))
        return json.loads(process.stdout.readline())["targets"][0], process.pid

    def _process(self, script: str, *arguments) -> subprocess.Popen:
        command = [sys.executable, HERE / script, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._running.enter_context(process)
        self._running.callback(process.kill)  # before the context waits for its end
        return process


def print_cell(cell) -> None:
    print(f"\n{cell['case']}{cell['note'] and '; '}{cell['note']}")
    for one in cell["contenders"]:
        print(
            f"  {one['name']:14}{one['requests_per_s']:8.0f} requests/s"
            f"   p50 {one['p50_ms']:8.3f} ms   {one['cpu_ms']:7.3f} ms of processor time each"
        )
    for one in cell["findings"]:
        print(
            f"  {one['what']:38}{one['value']:7.2f} {one['unit']:2} "
            f"({one['least']:.2f} to {one['most']:.2f})   {verdict(one)}",
            flush=True,
        )


def verdict(one) -> str:
    if one["bar"] is None:
        return ""
    return f"{'≤' if one['at_most'] else '≥'} {one['bar']:g} {'met' if one['met'] else 'missed'}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each turn in a round")
    parser.add_argument("--only", default="", help="a pattern for the names of cases")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
