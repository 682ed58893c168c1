"""The four projects: versions, pins, wheels, and who may import whom."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
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
@pytest.mark.parametrize("folder", PROJECTS)
def test_a_wheel_holds_one_typed_package(folder, tmp_path):
    """Nothing called `server`, `client` or `tests` reaches a user's site-packages."""
    names = wheel_names(folder, tmp_path)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {PROJECTS[folder]}
    assert f"{PROJECTS[folder]}/py.typed" in names


@pytest.mark.slow
def test_the_engine_brings_its_kernels_compiled(tmp_path):
    """The module and its stub, and of the sources those that other devices compile at run time."""
    names = wheel_names("stn_engine", tmp_path)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"stn_engine/_cpu{suffix}", "stn_engine/_cpu.pyi"} <= set(names)
    native = {name.split("/")[2] for name in names if name.startswith("stn_engine/native/")}
    assert "shared" in native
    assert "cpu" not in native


def wheel_names(folder, tmp_path):
    """What the wheel of a project holds."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT / folder)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


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
