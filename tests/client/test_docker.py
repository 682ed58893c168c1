"""`ServerContainer` where no engine is needed: what it asks for, and what it says when it cannot.

The suite in deploy/tests starts real containers.
"""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from stn_client.cli import main
from stn_client.docker import ContainerError, ServerContainer, logs, stop


class RecordingContainer:
    """A container that is ready at once, and publishes ports as an engine does."""

    name, status = "stn", "running"

    def __init__(self):
        self.calls = []
        self.ports = {
            "50051/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}],
            "9464/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32769"}],
        }

    def start(self):
        self.calls.append("start")

    def reload(self):
        pass

    def logs(self, **_options):
        return b"ready"

    def stop(self, timeout):
        self.calls.append(f"stop within {timeout}")

    def wait(self):
        return {"StatusCode": 3}

    def remove(self, **_options):
        self.calls.append("remove")


@pytest.fixture
def created(monkeypatch):
    """What an engine was asked to create, and the container it made of it."""
    found = SimpleNamespace(container=RecordingContainer())

    def create(image, **options):
        found.image, found.options = image, options
        return found.container

    containers = SimpleNamespace(create=create, get=lambda _name: found.container)
    engine = SimpleNamespace(containers=containers, close=lambda: None)
    monkeypatch.setattr("docker.from_env", lambda: engine)
    return found


def test_ports_are_published_on_the_loopback_interface_only(created):
    """Any free port unless one is named; the addresses are what the engine chose."""
    server = ServerContainer(metrics_port=9000)
    assert created.options["ports"] == {
        "50051/tcp": ("127.0.0.1", None),
        "9464/tcp": ("127.0.0.1", 9000),
    }
    assert server.target == "127.0.0.1:32768"
    assert server.metrics == "http://127.0.0.1:32769/metrics"


def test_containers_are_locked_down_unless_told_otherwise(created):
    """Options of the SDK win, settings reach the server."""
    ServerContainer(environment={"STN_THREADS": "2"}, read_only=False, mem_limit="1g")
    assert created.image == "stn-server:cpu"
    asked = {name: created.options[name] for name in ("read_only", "cap_drop", "security_opt")}
    assert asked == {
        "read_only": False,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    assert created.options["environment"] == {"STN_THREADS": "2"}
    assert created.options["mem_limit"] == "1g"


@pytest.mark.parametrize(
    ("gpus", "wanted"), [("all", {"Count": -1}), ("0,1", {"DeviceIDs": ["0", "1"]})]
)
def test_gpus_are_requested_by_count_or_id(created, gpus, wanted):
    """As `docker run --gpus` would."""
    ServerContainer(gpus=gpus)
    assert created.options["device_requests"] == [
        {"Driver": "", "Capabilities": [["gpu"]], **wanted}
    ]


def test_leaving_stops_in_order(created):
    """Time for the server's own grace, then the container goes; stop() tells the exit code."""
    with ServerContainer():
        pass
    assert created.container.calls == ["start", "stop within 35", "remove"]
    assert ServerContainer().stop(timeout_s=5) == 3


def test_the_command_passes_settings_volumes_and_memory_on(created, monkeypatch, tmp_path):
    """Folders by their whole path, volumes by their name, variables with a value or as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STN_LOG_LEVEL", "debug")
    given = ["--env=STN_THREADS=2", "--env=OTEL_X=a=b", "--env", "STN_LOG_LEVEL"]
    given += ["--volume=./settings:/etc/stn:ro", "--volume", "sockets:/run/stn", "--memory=2g"]
    assert main(["up", *given]) == 0
    assert created.options["environment"] == {
        "STN_THREADS": "2",
        "OTEL_X": "a=b",
        "STN_LOG_LEVEL": "debug",
    }
    volumes = [f"{tmp_path}/settings:/etc/stn:ro", "sockets:/run/stn"]
    assert created.options["volumes"] == volumes
    assert created.options["mem_limit"] == "2g"


def test_without_them_nothing_is_asked_for(created):
    """No limit, no volume, no setting."""
    assert main(["up"]) == 0
    found = {name: created.options[name] for name in ("environment", "volumes", "mem_limit")}
    assert found == {"environment": {}, "volumes": [], "mem_limit": None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--env=STN_NOWHERE", "--env STN_NOWHERE: expected a variable of this process, got none."),
        ("--volume=settings", "--volume settings: expected FROM:TO"),
        ("--volume=settings:inside", "--volume settings:inside: expected FROM:TO"),
    ],
)
def test_what_cannot_be_passed_on_is_said(created, capsys, given, said):
    """In the words of the option, before anything is created."""
    assert main(["up", given]) == 1
    assert capsys.readouterr().err.startswith(f"stn: {said}")
    assert not hasattr(created, "options")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_while_the_engine_creates_leaves_no_container(created, monkeypatch, number, code):
    """The engine makes it all the same, and answers; a second signal does not stop the removal."""

    def create(_image, **_options):
        os.kill(os.getpid(), number)
        return created.container

    def remove(**_options):
        os.kill(os.getpid(), number)
        created.container.calls.append("remove")

    engine = SimpleNamespace(containers=SimpleNamespace(create=create), close=lambda: None)
    monkeypatch.setattr("docker.from_env", lambda: engine)
    monkeypatch.setattr(created.container, "remove", remove)
    before = signal.getsignal(number)
    assert exit_code(["up"]) == code
    assert created.container.calls[-1] == "remove"
    assert signal.getsignal(number) == before


def exit_code(arguments):
    """How the command ends, whether it returns or not."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


NO_ENGINE = r"docker: expected an engine that answers, got .*DOCKER_HOST"


@pytest.mark.parametrize(
    "act",
    [ServerContainer, lambda: stop("stn"), lambda: list(logs("stn"))],
    ids=["up", "down", "logs"],
)
def test_without_an_engine_the_error_says_so(monkeypatch, act):
    """Port 1 is privileged and unused."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(ContainerError, match=NO_ENGINE):
        act()


@pytest.mark.parametrize("command", ["up", "down", "logs"])
def test_commands_without_an_engine_exit_with_one(monkeypatch, capsys, command):
    """The message goes to standard error."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert main([command]) == 1
    assert capsys.readouterr().err.startswith("stn: docker: expected an engine that answers")


def test_without_the_sdk_the_error_says_how_to_get_it(monkeypatch):
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(
        ContainerError, match=r"Docker SDK, got none\. .*pip install '\./client\[do"
    ):
        ServerContainer()
