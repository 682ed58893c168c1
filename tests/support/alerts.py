"""Alert rules in which a minute is a second, and the load that brings incidents about."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading

from stn_client import Affine, AsyncClient, RetryPolicy, StnClientError
from support.bad_requests import theta
from support.manifests import DEPLOY

RULES = DEPLOY / "prometheus/alerts.yaml"
FIRING = 'ALERTS{{alertname="{}",alertstate="firing"}}'
ONCE = {"retry": RetryPolicy(attempts=1), "packing": False}
THETA = Affine(theta(1))


def fast_rules(folder):
    """The alert rules, in which every minute is a second."""
    text = re.sub(r"(\[|for: )(\d+)m\b", r"\1\2s", RULES.read_text())
    assert not re.search(r"\dm\b", text)
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def wait_for(prometheus, *names):
    """Returns when these alerts fire."""
    for name in names:
        prometheus.wait_for(f"count({FIRING.format(name)}) >= bool 1", 1)


@contextlib.contextmanager
def load(target, u, callers):
    """So many calls at a time until it is left, whatever becomes of each."""
    done = threading.Event()

    async def call(stn):
        while not done.is_set():
            with contextlib.suppress(StnClientError):
                await stn.warp(u, THETA)

    async def all_calls():
        options = {**ONCE, "local": False, "max_in_flight": callers, "timeout_s": 60}
        async with AsyncClient(target, **options) as stn:
            await asyncio.gather(*(call(stn) for _ in range(callers)))

    thread = threading.Thread(target=lambda: asyncio.run(all_calls()))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
