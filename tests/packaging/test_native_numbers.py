"""The numbers that C++ shares with Python are those of Python."""

import subprocess
import sys
from pathlib import Path

import pytest

from stn_engine import spec
from stn_engine.transforms import KINDS

ROOT = Path(__file__).parents[2]


def test_the_header_is_fresh():
    """Whoever adds a choice generates it anew."""
    command = [sys.executable, str(ROOT / ".ci/generate_native.py"), "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "choices", [spec.Interpolation, spec.Padding, spec.Unit, spec.Storage, spec.Family]
)
def test_numbers_are_not_given_twice(choices):
    """A table would not know which one is meant."""
    assert len({choice.number for choice in choices}) == len(choices)


def test_every_kind_has_a_name_and_a_number_of_its_own():
    """Kernels choose by them."""
    assert len({one.kind.name for one in KINDS}) == len(KINDS)
    assert len({one.kind.number for one in KINDS}) == len(KINDS)


def test_values_are_what_callers_write():
    """A number beside it does not change a choice."""
    assert spec.Interpolation("bilinear") is spec.Interpolation.BILINEAR
    assert (spec.Padding.FILL, f"{spec.Padding.FILL}") == ("fill", "fill")
    assert spec.Interpolation.BICUBIC.number == 2
