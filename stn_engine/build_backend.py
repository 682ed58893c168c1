"""The build backend of this project: scikit-build-core, and its own kind of editable install.

Editable installs of scikit-build-core put an import hook before ``sys.path``, so that
``PYTHONPATH`` could not choose other sources any more. This one is a path to ``src``, as hatchling
makes it, with the native module beside the sources. Run as a script, it brings that module up to
date.
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import hatchling.build
from scikit_build_core.build import (
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

get_requires_for_build_editable = get_requires_for_build_wheel


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """A wheel with the path to ``src``, into which the native module is built."""
    build_native()
    return hatchling.build.build_editable(wheel_directory, config_settings, metadata_directory)


def build_native() -> None:
    """Puts the native module that a wheel would hold beside the sources."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = zipfile.ZipFile(Path(folder) / build_wheel(folder))
        for name in wheel.namelist():
            if Path(name).match("stn_engine/_cpu.*.so"):
                wheel.extract(name, "src")


if __name__ == "__main__":
    build_native()
