"""The four projects: versions, pins, and who may import whom."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "proto": "stn_proto",
    "stn_engine": "stn_engine",
    "server": "stn_server",
    "client": "stn_client",
}


def metadata(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def test_versions_are_equal():
    """The four distributions are released together."""
    assert len({metadata(folder)["version"] for folder in PROJECTS}) == 1


def test_internal_pins_are_exact():
    """A server never runs with the engine of another release."""
    version = metadata("proto")["version"]
    pins = [
        dependency
        for folder in PROJECTS
        for dependency in metadata(folder)["dependencies"]
        if dependency.startswith("stn-")
    ]
    assert pins
    assert all(pin.endswith(f"=={version}") for pin in pins)


def test_changelog_has_an_entry_for_the_version():
    """What a release changes is written down."""
    version = metadata("proto")["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("package", PROJECTS.values())
def test_other_sources_can_stand_in_front(package, tmp_path):
    """Editable installs are plain paths: PYTHONPATH decides."""
    (tmp_path / f"{package}.py").write_text("MINE = True")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", f"import {package}; assert {package}.MINE"]
    subprocess.run(command, env=environment, check=True)


@pytest.mark.slow
def test_import_directions_hold():
    """The import contracts of the root pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "7 kept, 0 broken" in result.stdout
