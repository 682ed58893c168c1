"""What a project imports it declares itself, and it declares nothing else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECTS = ("proto", "stn_engine", "server", "client")
OURS = {"stn_proto", "stn_engine", "stn_server", "stn_client"}
UNSEEN = {"stn_engine": {"nvidia-cuda-nvrtc"}}
"""What is declared for cuda-core, which loads it and does not require it."""


ELSEWHERE = {"ray"}
"""What an example shows beside us, and is installed in an environment of its own."""


@pytest.fixture(scope="module")
def owners():
    """The distribution of every module that is installed, by files, for packages share `google`."""
    return {
        ".".join((*parents, *names)): canonicalize_name(distribution.name)
        for distribution in distributions()
        for file in distribution.files or ()
        if file.suffix in {".py", ".so"}
        for *parents, name in [file.parts]
        for names in [() if name == "__init__.py" else (name.split(".")[0],)]
    }


def imported(folder):
    """The full names that the sources and examples of a project import from others."""
    for path in (ROOT / folder).rglob("*.py"):
        if path.relative_to(ROOT / folder).parts[0] not in {"src", "examples"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner(owners, name):
    """Who brings a module, or the module that an imported name stands in."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(owners[prefix] for prefix in prefixes if prefix in owners)


def declared(folder, extras=None):
    """The names of what a project requires, of others; with some extras, or all."""
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    optional = project.get("optional-dependencies", {})
    lines = chain(
        project["dependencies"],
        *(lines for extra, lines in optional.items() if extras is None or extra in extras),
    )
    names = {canonicalize_name(Requirement(line).name) for line in lines}
    return {name for name in names if not name.startswith("stn-")}


@pytest.mark.parametrize("folder", PROJECTS)
def test_what_is_imported_is_declared(folder, owners):
    """Nothing is there only because a dependency happens to bring it, and nothing for nobody."""
    ignored = OURS | ELSEWHERE | sys.stdlib_module_names
    names = {name for name in imported(folder) if name.split(".")[0] not in ignored}
    assert {owner(owners, name) for name in names} == declared(folder) - UNSEEN.get(folder, set())


def test_names_that_packages_share_are_told_apart(owners):
    """The check above knows whose `google` it is."""
    assert owner(owners, "google.rpc.status_pb2.Status") == "googleapis-common-protos"
    assert owner(owners, "google.protobuf.message.Message") == "protobuf"


def test_the_image_installs_what_the_server_declares():
    """`deploy/requirements.txt`, with the extras that are in the image."""
    lines = (ROOT / "deploy/requirements.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    needed = declared("proto", ()) | declared("stn_engine", ()) | declared("server", ("otel",))
    assert listed == needed
    lines = (ROOT / "deploy/requirements-cuda.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    assert listed == declared("stn_engine", ("cuda",)) - declared("stn_engine", ())


LOCKS = {
    "requirements.lock": ("requirements.txt",),
    "requirements-cuda.lock": ("requirements.txt", "requirements-cuda.txt"),
    "requirements-build.lock": ("requirements-build.txt",),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_image_is_built_of_versions_with_hashes(lock):
    """All that the lists name, as `.ci/constraints.txt` pins it; pip refuses any other bytes."""
    text = (ROOT / "deploy" / lock).read_text()
    entries = re.findall(
        r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}\b.*\n)+)", text, re.MULTILINE
    )
    lines = [line for line in text.splitlines() if line[:1] not in {"#", " "}]
    assert len(entries) == len(lines), "each has a hash"
    versions = {canonicalize_name(name): version.split("+")[0] for name, version, _ in entries}
    for names in LOCKS[lock]:
        listed = (ROOT / "deploy" / names).read_text().splitlines()
        assert {canonicalize_name(one) for one in listed if one[:1] != "#"} <= versions.keys()
    constraints = (ROOT / ".ci/constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(k): v for k, v in (line.split("==") for line in constraints)}
    common = versions.keys() & pinned.keys()
    assert {name: versions[name] for name in common} == {name: pinned[name] for name in common}


@pytest.mark.parametrize("project", ["proto", "client"])
def test_protobuf_is_asked_for_as_generated_code_needs_it(project):
    """No older than its generator, and no more than one major version newer, as protobuf wants."""
    generated = (ROOT / "proto/src/stn_proto/v1/warp_pb2.py").read_text()
    made_by = re.search(r"Domain\.PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+),", generated).groups()
    metadata = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]
    assert f"protobuf>={'.'.join(made_by)},<{int(made_by[0]) + 2}" in metadata["dependencies"]
