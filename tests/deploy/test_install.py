"""How the image gets its packages: `deploy/install`, with a pip that is told how to end."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
INSTALL = DEPLOY / "install"


@pytest.fixture
def install(tmp_path):
    """Runs it beside a wheelhouse; pip writes its arguments down and says what it lacks."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(
        f'#!/bin/sh\necho "$*" >>{calls}\n'
        'case "$*" in *--no-index*) echo "ERROR: no torch" >&2; exit $ALONE; esac\n'
        "exit $WITH_INDEX\n"
    )
    python.chmod(0o755)

    def install(*wheels, alone=0, with_index=0):
        for name in wheels:
            (tmp_path / name).touch()
        environment = {
            "PYTHON": str(python),
            "WHEELHOUSE": str(tmp_path),
            "ALONE": str(alone),
            "WITH_INDEX": str(with_index),
        }
        command = ["/bin/sh", INSTALL, "--requirement=file with spaces"]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        start = f"-m pip install --quiet --find-links={tmp_path} "
        lines = calls.read_text().splitlines()
        assert all(line.startswith(start) for line in lines)
        return ended, [line.removeprefix(start) for line in lines]

    return install


ALONE, WITH_INDEX = "--no-index --requirement=file with spaces", "--requirement=file with spaces"


def test_a_full_wheelhouse_is_enough(install):
    """No index is asked."""
    ended, calls = install("torch-2.whl")
    assert (ended.returncode, calls) == (0, [ALONE])


def test_what_the_wheelhouse_lacks_is_said_before_an_index_is_asked(install):
    """The error of the first try is the only one that names what was missing."""
    ended, calls = install("numpy-2.whl", alone=1)
    assert (ended.returncode, calls) == (0, [ALONE, WITH_INDEX])
    first, second = ended.stderr.splitlines()
    assert first == "ERROR: no torch"
    assert second.endswith("asking an index.")


def test_both_failures_are_told_and_end_the_build(install):
    """With the exit code of the last."""
    ended, calls = install("numpy-2.whl", alone=1, with_index=3)
    assert (ended.returncode, calls) == (3, [ALONE, WITH_INDEX])
    assert "ERROR: no torch" in ended.stderr


def test_without_wheels_an_index_is_asked_at_once(install):
    """An error about a wheelhouse that nobody filled would only mislead."""
    ended, calls = install()
    assert (ended.returncode, ended.stderr, calls) == (0, "", [WITH_INDEX])


def forged(folder, name, version):
    """A wheel that calls itself a package of a lock file."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", text)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["", "-cuda", "-build"])
def test_other_bytes_than_those_of_the_lock_are_refused(tmp_path, lock):
    """By a real pip, whatever they call themselves; without the hashes it takes them."""
    text = (DEPLOY / f"requirements{lock}.lock").read_text()
    entries = re.findall(r"^[\w-]+==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", text, re.MULTILINE)
    assert "".join(entries) == re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), "all have hashes"
    entry = entries[0]
    name, version = re.match(r"([\w-]+)==(\S+)", entry).groups()
    forged(tmp_path, name.replace("-", "_"), version)
    requirements = tmp_path / "requirements"
    environment = {"PYTHON": sys.executable, "WHEELHOUSE": str(tmp_path), "PIP_NO_INDEX": "1"}

    def install(text):
        requirements.write_text(text)
        command = ["/bin/sh", INSTALL, "--no-deps", f"--requirement={requirements}"]
        command.append(f"--target={tmp_path / 'target'}")
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = install(entry)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert install(f"{name}=={version}\n").returncode == 0
