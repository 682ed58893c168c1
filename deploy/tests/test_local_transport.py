"""Two containers that share one folder and nothing else, as deploy/compose.local.yaml has them."""

import json
import time
from pathlib import Path

import pytest
from docker.errors import ContainerError

from stn_client import docker as server_container
from support.engine import IMAGE
from support.harness import scrape
from support.manifests import composed

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
CLIENT, CHECK = "/opt/stn/client", "/opt/stn/local_client.py"
"""Where the SDK's sources and what uses them are mounted in the client's container."""

FOLDER = "/run/stn"
TARGET = f"unix:{FOLDER}/grpc.sock"
CONNECT = f"import socket; socket.socket(socket.AF_UNIX).connect('{FOLDER}/ttrpc.sock')"


@pytest.fixture(scope="module")
def files():
    """The Compose files, as Docker Compose reads them."""
    return composed("compose.yaml", "compose.local.yaml")


@pytest.fixture
def folder(engine, files):
    """The volume that both mount; it goes when no container has it any more."""
    volume = engine.volumes.create(driver_opts=files["volumes"]["sockets"]["driver_opts"])
    yield volume.name
    volume.remove()


@pytest.fixture
def server(folder, files, start):
    """Has the settings of Compose, but listens for calls in the folder alone."""
    settings = {**files["services"]["server"]["environment"], "STN_LISTEN": TARGET}
    return start(environment=settings, volumes=[f"{folder}:{FOLDER}"])


@pytest.fixture
def run(engine, folder, files):
    """Runs Python beside the server, without a network; returns what it prints.

    The image is that of the server, which has what the SDK needs; the SDK itself is mounted.
    """
    trainer = files["services"]["trainer"]
    (sockets,) = trainer["volumes"]
    volumes = [f"{folder}:{sockets['target']}:ro"]
    volumes += [f"{ROOT}/client/src:{CLIENT}:ro", f"{ROOT}/deploy/tests/local_client.py:{CHECK}:ro"]

    def run(*arguments, user=trainer["user"], groups=tuple(trainer["group_add"])):
        container = engine.containers.run(
            IMAGE,
            list(arguments),
            entrypoint=["python"],
            environment={"PYTHONPATH": f"{CLIENT}:/opt/stn/server"},
            user=user,
            group_add=list(groups),
            volumes=volumes,
            network_mode="none",
            read_only=True,
            cap_drop=trainer["cap_drop"],
            security_opt=trainer["security_opt"],
            detach=True,
        )
        try:  # not by `remove`, which may take away what was printed before it is read
            status = container.wait()["StatusCode"]
            if status != 0:
                errors = container.logs(stdout=False, stderr=True)
                raise ContainerError(container, status, arguments, IMAGE, errors)
            return container.logs(stdout=True, stderr=False)
        finally:
            container.remove()

    return run


def received(server, transport):
    """Bytes of messages that came in by a transport."""
    name = f'stn_payload_bytes_total{{direction="received",transport="{transport}"}}'
    return scrape(server.metrics).get(name, 0.0)


def test_a_client_that_shares_only_the_folder_calls_through_arenas(server, run):
    """Without a network, an IPC or a PID namespace in common; no tensor goes by gRPC."""
    found = json.loads(run(CHECK, TARGET))
    assert found["is_right"] == [True, True, True]
    assert found["in_arenas"] == [False, True, True, True]
    assert 0 < received(server, "local") < 4096 < found["operand_bytes"]
    assert received(server, "unix") == 0
    metrics = scrape(server.metrics)
    assert metrics['stn_requests_total{code="OK",method="Warp"}'] == 1
    assert metrics['stn_requests_total{code="OK",method="WarpGradients"}'] == 1


def test_who_may_not_use_the_sockets_of_arenas_calls_by_grpc(folder, files, start, run):
    """Those of calls are open to the group, the local transport's to the server's user alone."""
    settings = files["services"]["server"]["environment"]
    settings = {**settings, "STN_LISTEN": TARGET, "STN_LOCAL_MODE": "0600"}
    server = start(environment=settings, volumes=[f"{folder}:{FOLDER}"])
    found = json.loads(run(CHECK, TARGET))
    assert found["is_right"] == [True, True, True]
    assert found["in_arenas"] == [False, False, False, False]
    assert received(server, "unix") > found["operand_bytes"]
    assert received(server, "local") == 0


def test_arenas_go_with_the_container_that_had_them(server, run):
    """Its end is the end of its connections, across namespaces, too."""
    run(CHECK, TARGET)
    give_up = time.monotonic() + 10
    while (left := scrape(server.metrics)["stn_arena_bytes"]) and time.monotonic() < give_up:
        pass
    assert left == 0


@pytest.mark.usefixtures("server")
def test_who_lacks_the_group_cannot_connect(run):
    """Another user, with the folder mounted; the server's own user can, and so does the group."""
    assert run("-c", CONNECT) == b""
    assert run("-c", CONNECT, user="65532:65532", groups=()) == b""
    with pytest.raises(ContainerError, match="PermissionError"):
        run("-c", CONNECT, groups=())


@pytest.mark.usefixtures("server")
def test_root_without_capabilities_needs_the_group_too(run):
    """Whom no permissions stop is who has CAP_DAC_OVERRIDE, and not number 0."""
    with pytest.raises(ContainerError, match="PermissionError"):
        run("-c", CONNECT, user="0:0", groups=())
    assert run("-c", CONNECT, user="0:0") == b""


def test_a_volume_without_options_is_of_no_use(engine, start):
    """Docker makes it for root: the server says so, and does not start."""
    volume = engine.volumes.create()
    try:
        with pytest.raises(server_container.ContainerError, match=r"code 2\. .*got no permission"):
            start(environment={"STN_LOCAL_DIR": FOLDER}, volumes=[f"{volume.name}:{FOLDER}"])
    finally:
        volume.remove()


@pytest.mark.usefixtures("server")
def test_a_client_cannot_take_the_place_of_the_server(run):
    """It sees the folder read-only: what answers there is the server."""
    with pytest.raises(ContainerError, match="Read-only file system"):
        run("-c", f"import os; os.unlink('{FOLDER}/ttrpc.sock')", user="65532:65532")
