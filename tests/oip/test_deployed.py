"""What deploy/README.md tells those who come from Triton."""

import re
from pathlib import Path

import numpy as np

from stn_client import Affine, Client

README = (Path(__file__).parents[2] / "deploy/README.md").read_text()
DIFF = re.search(r"## Coming from Triton.*?```diff\n(.*?)```", README, re.DOTALL)[1]


def test_three_lines_change_and_the_rest_stays(server):
    """The changed program runs as it stands there, and warps as the SDK does."""
    lines = DIFF.splitlines()
    assert [line[:1] for line in lines].count("-") == [line[:1] for line in lines].count("+") == 3
    program = "\n".join(line[1:] for line in lines if line[:1] in {"", " ", "+"})
    assert "stn:50051" in program
    names = {}
    exec(program.replace("stn:50051", server.target), names)
    names["client"].close()
    with Client(server.target) as stn:
        assert np.array_equal(names["v"], stn.warp(names["u"], Affine(names["theta"])))
