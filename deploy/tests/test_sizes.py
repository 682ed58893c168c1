"""Sizes that follow from the limits of a container, and hold at their edge."""

import contextlib
import json
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stn_client import Affine, Client, OverloadedError, RetryPolicy
from support.bad_requests import theta
from support.harness import scrape
from support.manifests import DEPLOY, all_objects, quantity_bytes

README = (DEPLOY / "README.md").read_text()
pytestmark = pytest.mark.timeout(600)

CALLERS = 24
SHAPE = (1, 3, 4096, 4096)
"""Of float32 that has 201 MB, and as many pixels as a call may have."""


def sized(server):
    """What the server's log says of it."""
    lines = server.container.logs(stdout=False).decode().splitlines()
    (found,) = (line for line in map(json.loads, lines) if line["event"] == "serving")
    return found


def test_the_log_says_what_the_limits_became(start):
    """Half a core is one thread; half a gibibyte calls of a few megabytes."""
    server = start(mem_limit=2**29, memswap_limit=2**29, cpu_period=100_000, cpu_quota=50_000)
    found = sized(server)
    assert (found["threads"], found["memory_limit_bytes"]) == (1, 2**29)
    assert found["max_message_bytes"] == 32 * 2**20
    with Client(server.target) as stn:
        assert stn.server_info().limits.max_message_bytes == found["max_message_bytes"]


@pytest.fixture
def folder(tmp_path):
    """Made as the README says, with the same path outside of the server's container as inside."""
    path = tmp_path / "stn"
    (command,) = re.findall(r"`(install -d [^`]+) /run/stn`", README)
    subprocess.run([*command.split(), path], check=True)
    return path


@pytest.mark.parametrize("overlay", ["cpu", "sidecar", "node"])
def test_more_callers_than_fit_are_refused_and_nothing_is_killed(start, folder, overlay):
    """24 callers of 201 MB, each with as large a result, at the memory of an overlay.

    Where it has arenas, two callers hold four of them meanwhile, which leaves one for all others.
    """
    objects = all_objects(overlay)
    limit_bytes = quantity_bytes(objects.server["resources"]["limits"]["memory"])
    settings = {k: v for k, v in objects.environment.items() if k.startswith("STN_LOCAL_")}
    if settings:
        settings["STN_LOCAL_DIR"] = str(folder)
        settings["STN_LISTEN"] = f"unix:{folder}/grpc.sock"
    server = start(
        mem_limit=limit_bytes,
        memswap_limit=limit_bytes,
        environment=settings,
        volumes=[f"{folder}:{folder}"],
    )
    feature_map = np.zeros(SHAPE, np.float32)

    def call(_number):
        with Client(server.target, retry=RetryPolicy(attempts=1)) as stn:
            try:
                return stn.warp(feature_map, Affine(theta(1))).nbytes
            except OverloadedError:
                return 0

    with contextlib.ExitStack() as held:
        clients = [held.enter_context(Client(server.target)) for _ in range(2)]
        kept = [stn.warp(feature_map, Affine(theta(1))) for stn in clients]
        arena_bytes = scrape(server.metrics).get("stn_arena_bytes", 0)
        assert arena_bytes == (4 * feature_map.nbytes if settings else 0)
        with ThreadPoolExecutor(CALLERS) as callers:
            results = Counter(callers.map(call, range(CALLERS)))
        assert all(one.nbytes == feature_map.nbytes for one in kept)
    server.container.reload()
    assert server.container.attrs["State"]["OOMKilled"] is False
    assert results[feature_map.nbytes] > 0
    assert results.total() == CALLERS
    assert call(0) == feature_map.nbytes, "and it goes on"
    assert server.stop() == 0
