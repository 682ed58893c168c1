"""What is installed here, and which device there is."""

import importlib.metadata
import platform
import shutil
import subprocess

import torch

from gpu_check.devices import EMULATED, Findings

PACKAGES = (
    "torch",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "numpy",
    "grpcio",
    "protobuf",
)


def main() -> None:
    """One line with everything."""
    found = {name: _version(name) for name in PACKAGES}
    if not EMULATED:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    Findings("versions").add(python=platform.python_version(), **found)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
