"""A Docker engine and a base image for the tests of the container suite."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

IMAGE, BASE = "stn-test/server", "stn-test/base"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,ca-certificates"
BEGINNING = 1
PATIENCE_S = 60.0
PAUSE_S = 0.05


@contextlib.contextmanager
def running_engine(folder):
    """The URL of an engine: of the one that the environment names, else of one started here."""
    named = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if _answers(named):
        yield named
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise RuntimeError(
            "docker: expected an engine that answers, or dockerd and root to start one, got "
            "neither. apt install docker.io, or let DOCKER_HOST name an engine."
        )
    url = f"unix://{folder}/docker.sock"
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(_command(folder, url), stdout=log, stderr=log)
    try:
        _wait_for(url, process, folder / "dockerd.log")
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        _remove(folder)


def import_base(engine):
    """Makes a bare Debian with Python: no public image can be pulled without a network."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    command += ["bookworm", "-", MIRROR]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        engine.api.import_image_from_stream(process.stdout, repository=BASE)
    if process.returncode:
        raise RuntimeError(f"mmdebstrap: expected a file system, got code {process.returncode}.")
    return BASE


def containers_of_the_image(engine):
    """Those of the image under test, running or not; an engine may have others."""
    return engine.containers.list(all=True, filters={"ancestor": IMAGE})


def wait_for_event(engine, container, name):
    """Returns once something has happened to a container, be it before the call."""
    for event in engine.events(since=BEGINNING, filters={"container": container.id}, decode=True):
        if event["status"] == name:
            return


def _command(folder, url):
    """An engine of its own, without the networks that would need the rights of a firewall."""
    flags = [f"--host={url}", f"--data-root={folder}/data", f"--exec-root={folder}/exec"]
    flags += [f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    return ["dockerd", *flags]


def _answers(url):
    """Whether somebody listens; whoever names an engine elsewhere is believed.

    The SDK would do, but it leaves a socket open for each attempt that is refused.
    """
    if not url.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(url.removeprefix("unix://")) == 0


def _wait_for(url, process, log):
    """Returns once the engine listens; it answers later what is asked earlier."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(url):
            return
        pause.wait(PAUSE_S)
    raise RuntimeError(f"dockerd: expected it to answer, got this log:\n{log.read_text()}")


def _remove(folder):
    """What an engine leaves: mounts of namespaces, and gigabytes of layers."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in mounts:
        if Path(mount).is_relative_to(folder):
            subprocess.run(["umount", mount], check=True)
    shutil.rmtree(folder)
