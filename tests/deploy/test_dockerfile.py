"""How the image starts the server, run without an image."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"

SHOW = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"


def entrypoint():
    """The words of the one ENTRYPOINT."""
    (words,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    return json.loads(words)


def test_signals_are_held_back_while_python_starts():
    """All that the server handles, and no others; it lets them through itself."""
    *before, python, flag, module = entrypoint()
    assert (python, flag, module) == ("python", "-m", "stn_server")
    command = [*before, sys.executable, "-c", SHOW]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    handled = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    assert shown == [str(int(number)) for number in handled]


def test_what_is_passed_on_is_made_of_a_base_that_cannot_move():
    """By its digest."""
    (base,) = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\S+@sha256:[0-9a-f]{64}", base)


def test_what_a_fresh_checkout_lacks_is_copied_by_a_pattern():
    """BuildKit of Docker 20.10 wants every folder that is named before a pattern begins."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    folders = {source.split("/")[0] for line in lines for source in line.split()[:-1]}
    assert {"dis[t]", "wheelhous[e]"} <= folders
    assert not folders & ignored
