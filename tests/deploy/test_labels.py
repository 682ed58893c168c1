"""What the labels of the images say, read from the Dockerfile."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def licenses():
    """The licences that the label of each target names."""
    stages = re.split(r"^FROM \S+ AS ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found = {
        stage.split()[0]: re.findall(r'image\.licenses="([^"]+)"', stage) for stage in stages[1:]
    }
    return {stage: set(texts[0].split(" AND ")) for stage, texts in found.items() if texts}


def test_the_cuda_image_names_the_licences_of_what_nvidia_adds(licenses):
    """As its packages call them themselves; what is free is named in every package alone."""
    names = (ROOT / "deploy/requirements-cuda.txt").read_text().splitlines()[1:]
    theirs = {found.get("License-Expression") or found["License"] for found in map(metadata, names)}
    assert "LicenseRef-NVIDIA-Proprietary" in theirs
    assert set(licenses) == {"cpu", "cuda"}
    assert licenses["cpu"] == {"Apache-2.0"}
    assert licenses["cuda"] == {"Apache-2.0"} | theirs
