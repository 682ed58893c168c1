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
USUAL = "unix:///var/run/docker.sock"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,ca-certificates"
BEGINNING = 1
PATIENCE_S = 60.0
PAUSE_S = 0.05


@contextlib.contextmanager
def running_engine(folder, usual=USUAL, patience_s=PATIENCE_S):
    """The URL of an engine that the environment names, or the machine's, or else one of its own.

    An engine that is named is believed to answer; the SDK says so if it does not. One that is
    started here leaves nothing behind.

    Raises:
        RuntimeError: There is none and none can be started; with the log, if there is one.
    """
    named = os.environ.get("DOCKER_HOST") or (usual if _answers(usual) else None)
    if named:
        yield named
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise RuntimeError(
            "docker: expected an engine that answers, or dockerd and root to start one, got "
            "neither. apt install docker.io, or let DOCKER_HOST name an engine."
        )
    url, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(_command(folder, url), stdout=output, stderr=output)
    try:
        _wait_for(url, process, log, patience_s)
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
    """Waits until something has happened to a container, by name or id, be it before the call.

    Returns:
        What the engine says of it besides, by name: the `exitCode` of who dies, say.
    """
    events = engine.events(since=BEGINNING, filters={"container": container}, decode=True)
    return next(event["Actor"]["Attributes"] for event in events if event["status"] == name)


def _command(folder, url):
    """An engine of its own, without the networks that would need the rights of a firewall."""
    flags = [f"--host={url}", f"--data-root={folder}/data", f"--exec-root={folder}/exec"]
    flags += [f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    return ["dockerd", *flags]


def _answers(url):
    """Whether somebody listens on a Unix socket.

    The SDK would do, but it leaves a socket open for each attempt that is refused.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(url.removeprefix("unix://")) == 0


def _wait_for(url, process, log, patience_s):
    """Returns once the engine listens; it answers later what is asked earlier."""
    pause, deadline = threading.Event(), time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(url):
            return
        pause.wait(PAUSE_S)
    state = "none" if process.poll() is None else f"exit code {process.returncode}"
    raise RuntimeError(
        f"dockerd: expected an answer within {patience_s:g} s, got {state}. Its log:\n"
        f"{log.read_text()}"
    )


def _remove(folder):
    """What an engine leaves: mounts of namespaces, and gigabytes of layers."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in mounts:
        if Path(mount).is_relative_to(folder):
            subprocess.run(["umount", mount], check=True)
    shutil.rmtree(folder)
