"""What the image is made of: the same layers from the same sources, hashes, an SBOM."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)

SITE_PACKAGES = "/opt/stn/python/lib/python3.11/site-packages"
ROOT = Path(__file__).parents[2]
PATHS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SYFT = shutil.which("syft", path=PATHS) or "syft"

CONFIGURED = ("Env", "Entrypoint", "ExposedPorts", "Healthcheck", "Labels", "StopSignal", "User")


@pytest.fixture(scope="module")
def bill(image, tmp_path_factory):
    """The SBOM, as `make sbom` writes it."""
    path = tmp_path_factory.mktemp("sbom") / "sbom.json"
    command = [SYFT, "scan", "--quiet", "--output", f"cyclonedx-json={path}"]
    subprocess.run([*command, f"docker:{image.tags[0]}"], check=True)
    return json.loads(path.read_text())


def packages(bill, kind):
    """Versions of the packages of a kind."""
    found = (one for one in bill["components"] if one.get("purl", "").startswith(f"pkg:{kind}/"))
    return {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in found}


def locked():
    """Versions that the lock file pins."""
    text = (ROOT / "deploy/requirements.lock").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+) \\", text, re.MULTILINE))


def test_the_bill_names_what_is_locked_and_ours_and_nothing_else(bill):
    """Not pip, and no tools of a build; Debian's packages are there, too."""
    assert bill["bomFormat"] == "CycloneDX"
    found = packages(bill, "pypi")
    ours = {"stn-engine", "stn-proto", "stn-server"}
    assert {name: v for name, v in found.items() if name not in ours} == {
        name: version for name, version in locked().items() if name != "setuptools"
    }
    assert ours <= found.keys()
    assert "libc6" in packages(bill, "deb")


def test_buildkit_makes_the_same_layers(built_by_buildkit, image):
    """Another builder, from nothing: packages, bytecode, the engine and the server, to the byte."""
    again, first = built_by_buildkit, image
    assert again.id != first.id, "it was built again"
    assert again.attrs["RootFS"]["Layers"] == first.attrs["RootFS"]["Layers"]
    assert [again.attrs["Config"][key] for key in CONFIGURED] == [
        first.attrs["Config"][key] for key in CONFIGURED
    ]


LICENSED = """
import importlib.metadata
for package in importlib.metadata.distributions():
    there = [path for path in package.files if path.locate().is_file()]
    texts = [str(path).lower() for path in there if ".dist-info/" in str(path)]
    print(package.name, any("license" in text or "copying" in text for text in texts))
"""
"""Prints of every package whether the text of a licence is among its metadata."""


def test_every_package_brings_its_licence(start):
    """Ours, too: the image can be passed on as it is."""
    code, output = start().container.exec_run(["python", "-c", LICENSED])
    assert code == 0, output
    found = dict(line.split() for line in output.decode().splitlines())
    assert {"torch", "stn-engine", "stn-server", "stn-proto"} <= found.keys()
    assert set(found.values()) == {"True"}, found


RECORDED = f"""
import csv, pathlib
site = pathlib.Path("{SITE_PACKAGES}")
left = taken_out = 0
for record in site.glob("*.dist-info/RECORD"):
    for path, _, size in csv.reader(record.open()):
        left += int(size or 0) * (site / path).exists()
        taken_out += int(size or 0) * (not (site / path).exists())
print(taken_out, left)
"""
"""Prints how many bytes of what the packages list are not there, and how many are."""


def test_the_readme_says_how_large_it_is_and_what_was_taken_out(image, start):
    """Packages list what pip has installed of them; pip and setuptools come on top."""
    readme = " ".join((ROOT / "deploy/README.md").read_text().split())
    (numbers,) = re.findall(r"([\d.]+) of the ([\d.]+) GB that third-party packages have", readme)
    (size,) = re.findall(r"CI builds and runs `cpu` \(([\d.]+) GB\)", readme)
    code, output = start().container.exec_run(["python", "-c", RECORDED])
    assert code == 0, output
    taken_out, left = map(int, output.split())
    found = [taken_out / 1e9, (taken_out + left) / 1e9, image.attrs["Size"] / 1e9]
    assert [*map(float, numbers), float(size)] == pytest.approx(found, abs=0.015)


def test_the_image_is_no_larger_than_what_runs(image, start):
    """Neither pip nor headers and tests of torch; bytecode is there, as nothing is written."""
    code, output = start().container.exec_run(
        ["sh", "-c", f"cd {SITE_PACKAGES}; ls . torch; ls -d */tests"]
    )
    listed = set(output.decode().split())
    assert code != 0, "no folder of tests"
    assert {"torch", "numpy", "__init__.py", "__pycache__"} <= listed
    assert {"pip", "setuptools", "include", "test"}.isdisjoint(listed)
    assert image.attrs["Size"] < 1_000_000_000
