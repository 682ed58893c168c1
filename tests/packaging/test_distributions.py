"""What is handed out, as wheels and as sources: contents, licences, and the page of an index."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import nanobind
import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "proto": "stn_proto",
    "stn_engine": "stn_engine",
    "server": "stn_server",
    "client": "stn_client",
}
LICENSE = (ROOT / "LICENSE").read_bytes()

projects = pytest.mark.parametrize("folder", PROJECTS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist of a project; each is built once."""
    found = {}

    def built(folder):
        if folder not in found:
            found[folder] = tmp_path_factory.mktemp(folder)
            command = [sys.executable, "-m", "build", "--quiet", "--no-isolation"]
            command += ["--sdist", "--wheel", "--outdir", found[folder], ROOT / folder]
            subprocess.run(command, check=True)
        return found[folder]

    return built


@pytest.fixture
def wheel(built):
    """The files of a wheel."""

    def wheel(folder):
        (path,) = built(folder).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    return wheel


@pytest.fixture
def sdist(built):
    """The files of an sdist, below its one folder."""

    def sdist(folder):
        (path,) = built(folder).glob("*.tar.gz")
        with tarfile.open(path) as archive:
            return {
                member.name.split("/", 1)[1]: archive.extractfile(member).read()
                for member in archive.getmembers()
                if member.isfile()
            }

    return sdist


def metadata(files):
    """What the wheel says of itself."""
    (text,) = (files[name] for name in files if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(text)


@projects
def test_a_wheel_holds_one_typed_package(folder, wheel):
    """Nothing called `server`, `client` or `tests` reaches a user's site-packages."""
    names = wheel(folder)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {PROJECTS[folder]}
    assert f"{PROJECTS[folder]}/py.typed" in names


def test_the_engine_brings_its_kernels_compiled(wheel):
    """The module and its stub, and of the sources those that other devices compile at run time."""
    names = wheel("stn_engine")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"stn_engine/_cpu{suffix}", "stn_engine/_cpu.pyi"} <= set(names)
    native = {name.split("/")[2] for name in names if name.startswith("stn_engine/native/")}
    assert "shared" in native
    assert "cpu" not in native


def test_the_engine_needs_nothing_but_the_system(built, tmp_path):
    """Its wheel gets a name that says which C library is new enough, and no library is added."""
    (path,) = built("stn_engine").glob("*.whl")
    programs = Path(sys.executable).parent
    command = [programs / "auditwheel", "repair", "--plat=auto", f"--wheel-dir={tmp_path}", path]
    environment = {"PATH": f"{programs}:{os.defpath}"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (repaired,) = tmp_path.glob("*.whl")
    assert re.search(r"-(many|musl)linux_\d+_\d+_\w+\.whl$", repaired.name)
    before, after = (set(zipfile.ZipFile(one).namelist()) for one in (path, repaired))
    assert {name for name in after if not name.endswith("/")} == before


@pytest.mark.parametrize("folder", ["proto", "client"])
def test_wheels_of_the_sdk_are_pure_python(folder, built):
    """They install everywhere without a compiler."""
    (path,) = built(folder).glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        assert {Path(name).suffix for name in archive.namelist()} <= {
            ".py",
            ".pyi",
            ".proto",
            ".typed",
            ".html",
            ".txt",
            "",
        }


def required(name, extras=()):
    """The distributions that one needs to be installed, at any depth."""
    found, queue = {}, [(name, frozenset(extras))]
    while queue:
        name, extras = queue.pop()
        one = distribution(name)
        found[canonicalize_name(name)] = one
        for requirement in map(Requirement, one.requires or ()):
            wanted = [{"extra": extra} for extra in (*extras, "")]
            is_new = canonicalize_name(requirement.name) not in found
            if is_new and (
                requirement.marker is None or any(map(requirement.marker.evaluate, wanted))
            ):
                queue.append((requirement.name, frozenset(requirement.extras)))
    return found


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of an environment with the wheels of the SDK and what they require alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = {
        name: one for name, one in required("stn-client").items() if not name.startswith("stn-")
    }
    for one in others.values():
        for top in {file.parts[0] for file in one.files if file.parts[0] not in {"..", "google"}}:
            (packages / top).symlink_to(one.locate_file(top))
        for file in one.files:  # `google` belongs to several
            if file.parts[0] == "google":
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(one.locate_file(file))
    wheels = [path for project in ("proto", "client") for path in built(project).glob("*.whl")]
    command = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-index"]
    subprocess.run([*command, *wheels], check=True)  # which finds what they require
    return folder / "bin/python"


IMPORTED = """
import sys, time
started = time.process_time()
import stn_client
stn_client.Client
print(time.process_time() - started, stn_client.__version__, stn_client.__file__)
"""


@pytest.mark.alone
def test_the_sdk_is_imported_in_time_where_nothing_else_is_installed(installed):
    """Under 0.3 s of a processor; the least of a few, as the first one also compiles."""
    isolated = [installed, "-I", "-c", IMPORTED]
    told = [
        subprocess.run(isolated, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    assert min(float(seconds) for seconds, *_ in told) < 0.3
    assert told[0][1] == distribution("stn-client").version
    assert Path(told[0][2]).is_relative_to(installed.parents[1])


def test_the_sdk_works_where_nothing_else_is_installed(installed):
    """Calls and the command, but for what extras are needed for, which say so."""
    program = """
import numpy as np
from stn_client import Affine
from stn_client.testing import StubClient
assert StubClient().warp(np.ones((4, 5)), Affine(np.eye(2, 3)), layout="HW").shape == (4, 5)
"""
    subprocess.run([installed, "-I", "-c", program], check=True)
    command = installed.with_name("stn")
    told = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"stn {distribution('stn-client').version}\n"
    extras = {
        "images": ["warp", "a.png", "b.png"],
        "terminal": ["top", "--count=1"],
        "playground": ["playground"],
    }
    for extra, arguments in (*extras.items(), ("terminal", ["completion", "bash"])):
        refused = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert f"expected it, got none. In the checkout: pip install './client[{extra}]'" in (
            refused.stderr
        )


@projects
def test_sources_hold_what_builds_them_and_nothing_built(folder, sdist):
    """Neither a build folder nor a native module; LICENSE and README at the top."""
    names = set(sdist(folder))
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith("build/")]


@projects
def test_licences_travel(folder, wheel, sdist):
    """Every licence that the metadata name is in both, and the first is that of the tree."""
    files, sources = wheel(folder), sdist(folder)
    said = metadata(files)
    named = said.get_all("License-File")
    (info,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    assert {name: files[f"{info}/licenses/{name}"] for name in named} == {
        name: sources[name] for name in named
    }
    assert sources["LICENSE"] == LICENSE
    others = (
        {"licenses/nanobind.txt", "licenses/robin-map.txt"} if folder == "stn_engine" else set()
    )
    assert set(named) == {"LICENSE"} | others
    also = " AND BSD-3-Clause AND MIT" if others else ""
    assert said["License-Expression"] == f"Apache-2.0{also}"


def test_notices_are_those_of_what_is_compiled_in():
    """Word for word as nanobind brings them: its own, and that at the head of its hash map."""
    (name,) = (file for file in distribution("nanobind").files if file.name == "LICENSE")
    notices = ROOT / "stn_engine/licenses"
    assert (notices / "nanobind.txt").read_text() == name.locate().read_text()
    folder = Path(nanobind.__file__).parent / "ext"
    assert [path.name for path in folder.iterdir()] == ["robin_map"], "a new one needs its notice"
    header = (folder / "robin_map/include/tsl/robin_map.h").read_text()
    comment = re.sub(r"^ ?\* ?", "", header.split("/**")[1].split("*/")[0], flags=re.MULTILINE)
    assert (notices / "robin-map.txt").read_text().split() == comment.split()


@projects
def test_metadata_say_who_for_whom_and_what(folder, wheel):
    """Words of the index where it has its own."""
    said = metadata(wheel(folder))
    assert said["Author"] == "Spatial transformers as a service"
    assert said["Keywords"]
    assert "Operating System :: POSIX :: Linux" in said.get_all("Classifier")
    assert set(said.get_all("Classifier")) <= classifiers


@projects
def test_the_page_of_an_index_is_the_readme_without_dead_links(folder, wheel):
    """Only addresses lead anywhere from there; examples and tables are as they were."""
    page = metadata(wheel(folder)).get_payload(decode=True).decode()
    readme = (ROOT / folder / "README.md").read_text()

    assert links(page) == {target for target in links(readme) if ":" in target}
    assert code(page) == code(readme)


def tokens(markdown):
    """Every token, those within lines, too."""
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        yield token
        yield from token.children or ()


def links(markdown):
    """Where links and pictures lead."""
    found = {token.attrs.get("href") or token.attrs.get("src") for token in tokens(markdown)}
    return found - {None}


def code(markdown):
    """All that is set as code, in order."""
    kinds = {"fence", "code_block", "code_inline"}
    return [token.content for token in tokens(markdown) if token.type in kinds]
