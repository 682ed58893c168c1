"""Clients on the host of their server take its local transport; nobody notices but by the clock."""

import asyncio
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from stn_client import (
    AccessDeniedError,
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
)
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.harness import scrape
from support.tokens import entry, replace

U, TRANSFORM = ramp(2, 3, 4, 5), Affine(theta())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own, so that it can be counted what it was asked."""
    log = tmp_path_factory.mktemp("local") / "server.log"
    with LocalServer(log=log) as running:
        yield running


def moved(server, transport):
    """Bytes of messages with tensors that came in by a transport."""
    name = f'stn_payload_bytes_total{{direction="received",transport="{transport}"}}'
    return scrape(server.metrics).get(name, 0.0)


def test_a_client_takes_the_local_transport(server, caplog):
    """Without being told; results are those by gRPC, and it says so in the log for developers."""
    before = moved(server, "local"), moved(server, "tcp")
    with caplog.at_level(logging.DEBUG, "stn_client"), Client(server.target) as stn:
        output = stn.warp(U, TRANSFORM)
    after = moved(server, "local"), moved(server, "tcp")
    assert after[0] > before[0]
    assert after[1] == before[1]
    with Client(server.target, local=False) as stn:
        assert np.array_equal(stn.warp(U, TRANSFORM), output)
    assert moved(server, "tcp") > after[1]
    (record,) = (r for r in caplog.records if "local transport" in r.message)
    assert record.levelno == logging.DEBUG


def test_an_asynchronous_client_takes_it_too(server):
    """Many calls at once on one connection, each with its own answer."""

    async def scenario():
        async with AsyncClient(server.target) as stn:
            await stn.server_info()
            maps = [ramp(1, 1, 3, 3) + n for n in range(64)]
            identity = Affine(np.eye(2, 3, dtype=np.float32)[None])
            calls = [stn.warp(one, identity, coordinates="pixel") for one in maps]
            for one, output in zip(maps, await asyncio.gather(*calls), strict=True):
                assert np.array_equal(output, one)

    before = moved(server, "local")
    asyncio.run(scenario())
    assert moved(server, "local") > before


def test_threads_share_one_connection(server):
    """Each gets the answer to its own calls, whoever reads it."""
    identity = Affine(np.eye(2, 3, dtype=np.float32)[None])
    wrong = []

    def call(n):
        for k in range(50):
            one = np.full((1, 1, 2, 2 + n), 100 * n + k, np.float32)
            if not np.array_equal(stn.warp(one, identity, coordinates="pixel"), one):
                wrong.append((n, k))

    with Client(server.target) as stn:
        threads = [threading.Thread(target=call, args=[n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_errors_are_those_by_grpc(server):
    """Class, text, violations, reason and code; the request id is the client's own."""
    found = []
    for local in (True, False):
        with Client(server.target, local=local) as stn:
            stn.server_info()
            with pytest.raises(InvalidRequestError, match=r"^output_size: expected") as caught:
                stn.warp(U, TRANSFORM, (1, 40_000))
            error = caught.value
            found.append((str(error), error.violations, error.reason, error.code))
            assert len(error.request_id) == 16
    assert found[0] == found[1]


def test_a_timeout_is_a_timeout(tmp_path):
    """While the device is busy with nothing else."""
    once = {"timeout_s": 0.5, "retry": RetryPolicy(attempts=1)}
    with (
        LocalServer("--batching-window-s=5", log=tmp_path / "log") as slow,
        Client(slow.target, **once) as stn,
    ):
        with pytest.raises((TimeoutError, OverloadedError), match=r"(?i)deadline"):
            stn.warp(U, TRANSFORM)
        assert stn.server_info(timeout_s=60).ready  # the connection goes on


def test_without_the_folder_calls_go_by_grpc(tmp_path, caplog):
    """As in a container that does not share it, which it says; and when it is there again, not."""
    log = tmp_path / "log"
    with LocalServer(log=log) as alone, Client(alone.target) as stn:
        folder = Path(stn.server_info().local_dir)
        moved_away = folder.with_name(folder.name + "-away")
        folder.rename(moved_away)
        with caplog.at_level(logging.DEBUG, "stn_client"), Client(alone.target) as other:
            assert other.warp(U, TRANSFORM).shape == U.shape
        assert moved(alone, "local") == 0
        (record,) = (r for r in caplog.records if "without a local transport" in r.message)
        assert record.levelno == logging.DEBUG
        moved_away.rename(folder)
        with Client(alone.target) as other:
            assert other.warp(U, TRANSFORM).shape == U.shape
        assert moved(alone, "local") > 0


def test_another_server_in_the_folder_is_not_taken(tmp_path):
    """Its identity is another one."""
    with LocalServer(log=tmp_path / "1") as asked, LocalServer(log=tmp_path / "2") as other:
        with Client(asked.target) as stn:
            folder = Path(stn.server_info().local_dir)
        with Client(other.target) as stn:
            theirs = Path(stn.server_info().local_dir)
        (folder / "ttrpc.sock").unlink()
        (folder / "ttrpc.sock").symlink_to(theirs / "ttrpc.sock")
        with Client(asked.target) as stn:
            assert stn.warp(U, TRANSFORM).shape == U.shape
        assert moved(other, "local") == 0
        assert moved(asked, "tcp") > 0


def test_a_server_that_comes_back_is_called_locally_again(tmp_path):
    """First by gRPC, when that has found it; nobody is told of the change but the log."""
    folder = tmp_path / "sockets"
    folder.mkdir()
    flags = [f"--local-dir={folder}", f"--listen=unix:{tmp_path}/grpc.sock"]
    with LocalServer(*flags, log=tmp_path / "1") as first:
        stn = Client(first.target)
        assert stn.warp(U, TRANSFORM).shape == U.shape
        assert moved(first, "local") > 0
    with LocalServer(*flags, log=tmp_path / "2") as second, stn:
        stn._transports()._discovery._next_s = 0.0  # as if a second had passed
        assert stn.warp(U, TRANSFORM).shape == U.shape
        stn._transports()._discovery._next_s = 0.0
        assert stn.warp(U, TRANSFORM).shape == U.shape
        assert moved(second, "local") > 0
    assert list(folder.iterdir()) == []


def test_a_token_goes_along(tmp_path):
    """Without a known one no call is answered, as by gRPC; quotas count by it."""
    tokens = tmp_path / "tokens.toml"
    replace(tokens, entry("alice", "secret", max_bytes=600))
    with (
        LocalServer(f"--auth-tokens={tokens}", log=tmp_path / "log") as guarded,
        Client(guarded.target, token="secret") as stn,
    ):
        assert stn.warp(ramp(1, 1, 2, 2), TRANSFORM).shape == (2, 1, 2, 2)
        assert moved(guarded, "local") > 0
        with pytest.raises(InvalidRequestError, match="for this token") as caught:
            stn.warp(U, TRANSFORM)
        assert caught.value.reason == "QUOTA_TOO_SMALL"
        stn._access.metadata = lambda: (("authorization", "Bearer other"),)
        with pytest.raises(AccessDeniedError, match=r"^authorization: expected a bearer token"):
            stn.warp(U, TRANSFORM)


def test_a_server_that_ends_leaves_no_file(tmp_path):
    """Neither its sockets nor the folder that LocalServer made for them."""
    with LocalServer(log=tmp_path / "log") as running:
        with Client(running.target) as stn:
            folder = Path(stn.server_info().local_dir)
        assert {one.name for one in folder.iterdir()} >= {"ttrpc.sock"}
    assert not folder.exists()
