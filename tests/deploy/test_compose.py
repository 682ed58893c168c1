"""The files for Docker Compose, as it reads them."""

import re
import subprocess
from pathlib import Path

import pytest

from stn_server.settings import load
from support.manifests import DEPLOY, PROGRAMS, composed


@pytest.fixture(scope="module")
def services():
    """Those of one server."""
    return composed("compose.yaml")["services"]


def test_the_readme_says_who_reads_them():
    """By its minor release."""
    command = [PROGRAMS / "docker-compose", "version", "--short"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (said,) = re.findall(r"with Docker Compose ([\d.]+)\.\s", (DEPLOY / "README.md").read_text())
    assert version.startswith(f"{said}.")


def test_what_is_mounted_exists(services):
    """An absent source would become an empty folder."""
    binds = [
        volume
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert len(binds) == 3
    assert all(Path(volume["source"]).exists() and volume["read_only"] for volume in binds)


def test_only_this_machine_can_reach_it(services):
    """Every published port is on the loopback interface."""
    ports = [port for service in services.values() for port in service["ports"]]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert [port["target"] for port in services["server"]["ports"]] == [50051]


def test_services_are_pinned_bounded_and_locked_down(services):
    """Digests, memory and capabilities."""
    for name, service in services.items():
        pinned = name == "server" or re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", service["image"])
        assert pinned, "by what a tag meant when it was chosen"
        assert int(service["mem_limit"]) > 0
        assert service["cap_drop"] == ["ALL"]
    assert services["server"]["read_only"]
    assert services["server"]["pull_policy"] == "build", "its name is nobody's in a registry"


def test_logs_do_not_fill_the_disk(services):
    """Of each service, 100 MB at most."""
    for service in services.values():
        assert service["logging"] == {
            "driver": "json-file",
            "options": {"max-size": "20m", "max-file": "5"},
        }


def test_the_server_has_time_to_stop(services):
    """Lame duck and grace fit into what Compose waits."""
    lifecycle = load((), services["server"]["environment"]).lifecycle
    assert services["server"]["stop_grace_period"] == "40s"
    assert lifecycle.lame_duck_s + lifecycle.grace_s < 40


def test_replicas_share_no_port_of_the_machine(services):
    """Two could not both have it. All else stays as it is."""
    server = composed("compose.yaml", "compose.replicas.yaml")["services"]["server"]
    assert server.pop("deploy")["replicas"] == 3
    expected = {name: value for name, value in services["server"].items() if name != "ports"}
    assert server == expected
