"""`stn_client.docker` and `stn up`, `logs`, `down` against a real engine."""

import signal
import subprocess
import sys

import pytest

from stn_client import Client
from stn_client.cli import main
from stn_client.docker import ContainerError, ServerContainer
from support.engine import IMAGE, containers_of_the_image, wait_for_event

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("image")]


def test_a_server_lives_as_long_as_its_context(engine):
    """Ready inside; afterwards nothing is left."""
    with ServerContainer(IMAGE, network="host") as server, Client(server.target) as stn:
        assert stn.server_info().ready
    assert containers_of_the_image(engine) == []


def test_the_command_starts_reads_and_stops(engine, capsys):
    """What `up` prints leads to the server; after `down` the name is free."""
    where = ["--network=host", "--port=0", "--metrics-port=0"]
    assert main(["up", f"--image={IMAGE}", *where]) == 0
    target, metrics = (line.split()[1] for line in capsys.readouterr().out.splitlines())
    assert metrics.endswith("/metrics")
    assert main([f"--target={target}", "info"]) == 0
    assert "ready: true" in capsys.readouterr().out
    assert main(["logs"]) == 0
    assert '"event": "serving"' in capsys.readouterr().out
    assert main(["down"]) == 0
    assert main(["down"]) == 1
    assert "stn: container: expected one, got No such container: stn" in capsys.readouterr().err
    assert containers_of_the_image(engine) == []


@pytest.mark.parametrize("moment", ["create", "start"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing_behind(engine, moment, number):
    """Whether the container is there already or runs: it goes with the command that made it."""
    name = f"stn-{moment}-{number.name}"  # the engine takes one that begins so, too
    program = "import sys; from stn_client.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "up", f"--image={IMAGE}", f"--name={name}"]
    command += ["--network=host", "--port=0", "--metrics-port=0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for_event(engine, name, moment)
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert containers_of_the_image(engine) == []


def test_the_command_gives_the_server_settings_files_and_memory(engine, tmp_path):
    """As `docker run` would."""
    (tmp_path / "stn.toml").write_text("threads = 1\n")
    tmp_path.chmod(0o755)  # the server is another user
    where = ["--network=host", "--port=0", "--metrics-port=0"]
    given = ["--env=STN_CONFIG=/etc/stn/stn.toml", f"--volume={tmp_path}:/etc/stn:ro"]
    given += ["--memory=1g"]
    assert main(["up", f"--image={IMAGE}", *where, *given]) == 0
    (container,) = containers_of_the_image(engine)
    log = container.logs().decode()
    assert main(["down"]) == 0
    assert container.attrs["HostConfig"]["Memory"] == 1024**3
    assert '"threads": 1' in log
    assert '"memory_limit_bytes": 1073741824.0' in log


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image": "stn-test/none"}, r"image: expected one on the engine, .* docker build"),
        ({"gpus": "all"}, r"gpus: expected an engine with the NVIDIA .* Leave gpus out"),
        ({"environment": {"STN_THREADS": "x"}}, r"exit code 2\. Its log ends: .*STN_THREADS"),
        (
            {"environment": {"STN_DEVICE": "cuda:0"}},
            r"code 2\. .*device: .* cpu, got cuda:0, which",
        ),
        ({"environment": {"STN_THREAD": "2"}}, r"exit code 2\. .*Did you mean STN_THREADS"),
        ({"command": ["--thread=2"]}, r"exit code 2\. .*Did you mean --threads"),
        ({"mem_limit": "60m", "memswap_limit": "60m"}, r"exit code 137\. Its log ends: $"),
        ({"timeout_s": 0.0}, r"expected it to be ready in time, got none"),
        ({"network": "bridge"}, r'port 50051 .*, got none: .* Try network="host"'),
        ({"mem_limit": 1}, r"docker: expected a container, got .*memory"),
    ],
)
def test_what_cannot_be_started_says_why(engine, options, match):
    """The message has what to do, and no container is left."""
    with pytest.raises(ContainerError, match=match):
        ServerContainer(**{"image": IMAGE, "network": "host", **options})
    assert containers_of_the_image(engine) == []
