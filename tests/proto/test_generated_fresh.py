"""The committed protobuf code is what the .proto files say."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATOR = Path(".ci/generate_proto.py")
PYTHON = Path(sys.prefix) / "protoc" / "bin" / "python"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"{PYTHON} is missing: `make test` installs it"
)


def check(tree):
    """Runs the generator of a tree with --check."""
    return subprocess.run(
        [PYTHON, tree / GENERATOR, "--check"], capture_output=True, text=True, check=False
    )


@pytest.fixture
def copied_tree(tmp_path):
    """The generator and the sources of the contract, to be tampered with."""
    (tmp_path / GENERATOR).parent.mkdir()
    shutil.copy(ROOT / GENERATOR, tmp_path / GENERATOR)
    shutil.copytree(ROOT / "proto/src/stn_proto/v1", tmp_path / "proto/src/stn_proto/v1")
    return tmp_path


def test_generated_code_is_fresh():
    """`make proto` would change nothing."""
    checked = check(ROOT)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_generated_code_that_is_stale_fails_the_check(copied_tree):
    """A changed contract, a deleted and a left-over file are all named."""
    package = copied_tree / "proto/src/stn_proto/v1"
    contract = package / "tensor.proto"
    contract.write_text(contract.read_text().replace("LAYOUT_NHWC = 2", "LAYOUT_NHWC = 3"))
    (package / "server_info_pb2.pyi").unlink()
    (package / "forgotten_pb2.py").touch()
    checked = check(copied_tree)
    assert checked.returncode == 1
    expected = ("forgotten_pb2.py", "server_info_pb2.pyi", "tensor_pb2.py")
    names = ", ".join(f"stn_proto/v1/{name}" for name in expected)
    assert f"Generated code is not fresh: {names}. Run `make proto`." in checked.stderr
