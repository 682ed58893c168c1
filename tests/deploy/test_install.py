"""How the image gets its packages: `deploy/install`, with a pip that is told how to end."""

import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[2] / "deploy/install"


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
