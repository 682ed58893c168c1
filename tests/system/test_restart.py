"""A server that comes back costs its callers a pause, for as long as they said they would wait."""

import logging
import threading

import numpy as np
import pytest

from stn_client import Affine, Client
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.logs import records_of

U, THETA = ramp(1, 3, 60, 80), Affine(theta(1))
CALLERS = 8


@pytest.mark.slow
def test_a_restart_costs_a_pause(tmp_path, caplog):
    """A server is killed, and another one started at its address: every call is answered.

    The log says once that calls wait, and once that they need not any more.
    """
    caplog.set_level(logging.INFO, "stn_client")
    log = tmp_path / "log"
    address = f"--listen=unix:{tmp_path}/stn.sock"  # nobody else takes it meanwhile
    with LocalServer(address, log=log) as first, Client(first.target) as stn:
        expected = stn.warp(U, THETA)
        first.process.kill()
        first.stop()
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(stn.warp(U, THETA)))
            for _ in range(CALLERS)
        ]
        for thread in threads:
            thread.start()
        with LocalServer(address, log=log):
            for thread in threads:
                thread.join()
    assert len(results) == CALLERS
    assert all(np.array_equal(result, expected) for result in results)
    awaited, back = (record.getMessage() for record in records_of(caplog, "stn_client"))
    assert awaited.startswith(f"{first.target}: expected an answer, got none (")
    assert "Calls are repeated for up to " in awaited
    assert back.startswith(f"{first.target}: answers again after ")
