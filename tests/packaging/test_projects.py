"""The four projects: versions, pins, and who may import whom."""

import ast
import json
import os
import re
import shlex
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
README = (ROOT / "README.md").read_text()


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


def test_torch_is_bounded_by_what_was_tested():
    """The engine calls torch in private: the next release of torch needs a look first."""
    pinned = next(
        line.removeprefix("torch==")
        for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    major, minor = map(int, pinned.split(".")[:2])
    (bounds,) = [one for one in metadata("stn_engine")["dependencies"] if one.startswith("torch")]
    assert bounds.endswith(f",<{major}.{minor + 1}")


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
    assert "8 kept, 0 broken" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "folder"),
    [("stn", "client"), ("stn-server", "server"), ("python -m stn_engine.warm", "stn_engine")],
)
def test_help_speaks_to_users(command, folder):
    """In a sentence of its own: docstrings speak to who reads the source, and in its markup."""
    program, *arguments = command.split()
    result = subprocess.run(
        [Path(sys.executable).parent / program, *arguments, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = " ".join(result.stdout.split())
    assert shown.startswith(f"usage: {command} ")
    assert "`" not in shown
    for path in (ROOT / folder / "src").rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert not docstring or docstring.splitlines()[0] not in shown, path


def handed_out():
    """The documents, and the sources whose messages say what to do."""
    listed = ["git", "ls-files", "*.md", "*/src/*.py", "client/examples/*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name: (ROOT / name).read_text() for name in names.splitlines()}


def test_nobody_is_sent_to_an_index_for_what_is_not_there():
    """Every `pip install` names folders of the checkout, and extras that they have, or Ray."""
    installed = re.compile(r"pip install(?! 'ray\[serve\]')((?: '?\./[\w\[\]]+'?)*)")
    found = {
        place
        for name, text in handed_out().items()
        for call in installed.finditer(text)
        for place in call[1].split() or [f"nothing in {name}"]
    }
    assert "'./client[images]'" in found
    for place in found:
        folder, extra = re.fullmatch(r"'?\./(\w+)(?:\[(\w+)\])?'?", place).groups()
        assert folder in PROJECTS, place
        assert extra is None or extra in metadata(folder)["optional-dependencies"], place


def test_no_extra_is_named_as_if_it_were_on_an_index():
    """`stn-engine[cuda]` and its like."""
    names = [name for name, text in handed_out().items() if re.search(r"stn-\w+\[", text)]
    assert names == []


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("client", {"stn-proto", "stn-client"}),
        ("server", {"stn-proto", "stn-engine", "stn-server"}),
    ],
)
def test_what_the_readme_says_to_install_is_complete(folder, names):
    """The lines of its table, as pip resolves them beside what others bring, without any index."""
    (line,) = re.findall(rf"^\| .* `pip install ([^`]*\./{folder}\b[^`]*)`", README, re.MULTILINE)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index"]
    command += ["--no-build-isolation", "--report=-", *shlex.split(line)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    chosen = json.loads(result.stdout)["install"]
    assert {entry["metadata"]["name"] for entry in chosen} == names
