"""Memory under more than may be inside: `python -m stress.memory`.

As many callers as asked for send the largest message at the same time, each on a connection of its
own. Then as many send all of it but the end, and wait. Prints the server's resident memory beside
its bar: idle + 2 x max_admitted_bytes + retained_bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import numpy as np
import uvloop

from stn_client import Affine
from stn_client._calls import warp
from stn_client.local import LocalServer
from stress.process import MIB, Watched
from stress.report import Report
from support.bad_requests import theta
from support.harness import METHOD_PREFIX, scrape
from support.raw_http2 import RawCall

WARP = METHOD_PREFIX + "Warp"
ROW_PX = 1024
PATIENCE_S = 0.2
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]


class Peak:
    """The most that a server holds while the context lasts."""

    def __init__(self, server: Watched) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.resident_bytes = 0

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.resident_bytes = max(self.resident_bytes, self._server.resident_bytes())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self._over.set()
        self._thread.join()


def largest_message(limit_bytes: int) -> bytes:
    """A warp of a map that just fits, to a small result."""
    rows = (limit_bytes - 4096) // (4 * ROW_PX)
    feature_map = np.zeros((1, 1, rows, ROW_PX), np.float32)
    return warp(feature_map, Affine(theta(1)), (8, 8), {}).request


async def send_all(target: str, callers: int, message: bytes) -> Counter[str]:
    """All at the same time; how they ended."""

    async def call(number: int) -> str:
        own = [*OPTIONS, ("grpc.channel_id", number)]
        async with grpc.aio.insecure_channel(target, own) as channel:
            warp = channel.unary_unary(WARP)(message, timeout=120)
            return (await warp.code()).name

    return Counter(await asyncio.gather(*(call(number) for number in range(callers))))


def stall(target: str, callers: int, size_bytes: int, upload_s: float) -> Counter[str]:
    """All but the end of what they send comes."""

    def call(_number: int) -> str:
        raw = RawCall(target, WARP)
        raw.send(size_bytes, size_bytes - 1, PATIENCE_S)
        ended = raw.ended(2 * upload_s + 10)  # one for its turn, one for itself
        raw.close()
        if not ended:
            return "never"
        return "late" if b"grpc-status\x014" in raw.trailers else "refused"

    with ThreadPoolExecutor(callers) as pool:
        return Counter(pool.map(call, range(callers)))


def measure(callers: int, message_bytes: int, admitted_bytes: int, retained_bytes: int) -> Report:
    report, upload_s = Report(), 2.0
    message = largest_message(message_bytes)
    flags = [
        f"--limits-max-message-bytes={message_bytes}",
        f"--limits-max-output-bytes={message_bytes}",
        f"--batching-max-admitted-bytes={admitted_bytes}",
        f"--retained-bytes={retained_bytes}",
        f"--limits-upload-s={upload_s}",
        "--log-level=warning",
    ]
    with LocalServer(*flags) as local:
        server = Watched(local.process, local.target)
        idle = server.resident_bytes()
        bar = idle + 2 * admitted_bytes + retained_bytes
        report.note(callers=callers, idle_mib=idle / MIB, bar_mib=bar / MIB)
        with Peak(server) as peak:
            ended = uvloop.run(send_all(local.target, callers, message))
        judge(report, "all", peak, ended, bar)
        report.promise("all: some are answered", ended["OK"] > 0)
        report.promise("all: answered or refused", ended.keys() <= {"OK", REFUSED})
        with Peak(server) as peak:
            ended = stall(local.target, callers, message_bytes, upload_s)
        judge(report, "stalled", peak, ended, bar)
        report.promise("stalled: every one is ended", not ended["never"] and ended["late"] > 0)
        left = server.settled()
        report.promise("nothing is left", left.admitted_bytes == 0)
        counted = scrape(local.metrics)['stn_refused_total{reason="UPLOAD_TIMEOUT"}']
        report.promise("stalled: counted", counted == ended["late"])
    return report


REFUSED = "RESOURCE_EXHAUSTED"


def judge(report: Report, name: str, peak: Peak, ended: Counter[str], bar: int) -> None:
    report.note(**{f"{name}_peak_mib": peak.resident_bytes / MIB, name: dict(ended)})
    report.promise(f"{name}: memory stays below the bar", peak.resident_bytes <= bar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--message-mib", type=int, default=61)
    parser.add_argument("--admitted-mib", type=int, default=256)
    parser.add_argument("--retained-mib", type=int, default=64)
    options = parser.parse_args()
    sizes = options.message_mib, options.admitted_mib, options.retained_mib
    measure(options.callers, *(size * MIB for size in sizes)).finish()


if __name__ == "__main__":
    main()
