"""The types of the public surface, as mypy and pyright see them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_typing_of_the_client_is_what_its_users_rely_on():
    """Mypy --strict accepts every right use and refuses every wrong one of the typing file."""
    command = [sys.executable, "-m", "mypy", "tests/typing/client_api.py"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_typing_is_the_same_for_pyright():
    """Pyright accepts and refuses the same; basedpyright is pyright with its own JavaScript."""
    command = [Path(sys.executable).with_name("basedpyright"), "--pythonpath", sys.executable]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "0 errors" in checked.stdout
