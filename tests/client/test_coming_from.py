"""`client/COMING_FROM.md`: each line of another library and ours beside it give the same."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_client import Client

PAGE = (Path(__file__).parents[2] / "client/COMING_FROM.md").read_text()
ROW = re.compile(r"^\| `(.+)` \| `(.+)` \|$", re.MULTILINE)
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
TITLES = [section.splitlines()[0] for section in SECTIONS]

LEAST_PAIRS = {
    "OpenCV": 16,
    "SciPy": 9,
    "PyTorch": 8,
    "Kornia": 11,
    "torchvision": 7,
    "SimpleITK and nibabel": 8,
    "Triton": 1,
}
GREY_LEVELS = 4 * 2.0**-24 * 64 * 256
"""Four roundings of coordinates of up to 64 px, theirs and ours in float32, times the slope where
256 levels fade to nothing over one pixel."""


def code(text):
    """The Python of the only block in a part of the page."""
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture(scope="module")
def torchvision_operators():
    """Lets the wheel of torchvision be imported without CUDA.

    Its compiled operators are for torch with CUDA; of those that its import takes for granted none
    has to do with geometry.
    """
    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


@pytest.fixture
def namespace(local_server):
    """What the page has before its first section, with a server that is there."""
    before, started, variables = code(INTRODUCTION).partition("server = LocalServer()\n")
    assert started
    names = {"LocalServer": lambda: local_server}
    exec(before, names)
    with Client(local_server.target) as stn:
        exec(variables.split("\n", 1)[1], names | {"stn": stn}, names)
        yield names | {"stn": stn}


def test_the_page_has_every_library():
    """And each section no fewer pairs than it had."""
    pairs = {
        title: len(ROW.findall(section)) for title, section in zip(TITLES, SECTIONS, strict=True)
    }
    assert list(pairs) == list(LEAST_PAIRS)
    assert all(pairs[title] >= least for title, least in LEAST_PAIRS.items()), pairs


@pytest.mark.slow
@pytest.mark.parametrize("title", TITLES)
@pytest.mark.usefixtures("torchvision_operators")
def test_their_line_and_ours_give_the_same(namespace, title):
    """Values and shapes, of every row of the section."""
    section = SECTIONS[TITLES.index(title)]
    exec(code(section), namespace)
    for theirs, ours in ROW.findall(section):
        if title == "Triton" and "stn." not in ours:
            continue  # names, not lines
        expected, found = (np.asarray(eval(line, namespace)) for line in (theirs, ours))
        assert expected.shape == found.shape, theirs
        assert expected.std() > 0.1, f"{theirs}: nothing to compare"
        np.testing.assert_allclose(found, expected, rtol=0, atol=GREY_LEVELS, err_msg=theirs)
