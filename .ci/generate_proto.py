"""Regenerates the committed protobuf code; with `--check`, fails when it is not fresh.

The path of a .proto file below proto/src mirrors its import path, so that generated imports are
right without post-processing.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).parents[1] / "proto" / "src"


def generate(into: Path) -> list[Path]:
    """Compiles every .proto below SOURCE into `into`; returns the files, relative to it."""
    protos = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.proto"))
    command = ["protoc", f"-I{SOURCE}", f"-I{files('grpc_tools') / '_proto'}"]
    messages = [*command, f"--python_out={into}", f"--pyi_out={into}", *protos]
    services = [*command, f"--grpc_python_out={into}", "stn_proto/v1/service.proto"]
    for arguments in (messages, services):
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed; its message stands above.")
    return sorted(path.relative_to(into) for path in into.rglob("*_pb2*.py*") if path.is_file())


def stale() -> list[Path]:
    """Returns the committed files that differ from what the .proto files say."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        committed = {path.relative_to(SOURCE) for path in SOURCE.rglob("*_pb2*.py*")}
        committed = {path for path in committed if path.suffix in {".py", ".pyi"}}
        differing = {
            path
            for path in fresh
            if path not in committed
            or not filecmp.cmp(Path(folder) / path, SOURCE / path, shallow=False)
        }
        return sorted(differing | (committed - set(fresh)))


def main() -> None:
    """Generates, or checks with `--check`."""
    if "--check" not in sys.argv[1:]:
        generate(SOURCE)
    elif differing := stale():
        names = ", ".join(map(str, differing))
        raise SystemExit(f"Generated code is not fresh: {names}. Run `make proto`.")


if __name__ == "__main__":
    main()
