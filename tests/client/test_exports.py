"""The public surface: what it names, what it needs, what it imports."""

import importlib
import inspect
import subprocess
import sys
import typing
from importlib.metadata import requires, version

import pytest

import stn_client
from stn_client import AsyncClient, Client, StnClientError, _transforms
from support.processes import run_python

PUBLIC_MODULES = (
    "stn_client._transforms",
    "stn_client.cli",
    "stn_client.geometry",
    "stn_client.jax",
    "stn_client.testing",
    "stn_client.torch",
    "stn_proto",
)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_exports_are_sorted_and_importable(name):
    """`__all__` is sorted, without repetition, and every name of it exists."""
    module = importlib.import_module(name)
    assert module.__all__ == sorted(set(module.__all__))
    assert [export for export in module.__all__ if not hasattr(module, export)] == []


def test_exports_name_kinds_of_transforms_last():
    """They are listed once, where they are defined; all others are sorted before them."""
    names, kinds = stn_client.__all__, _transforms.__all__
    others = names[: -len(kinds)]
    assert names == others + kinds
    assert others == sorted(set(others) - set(kinds))
    assert {hint.__name__ for hint in typing.get_args(_transforms.Transform)} <= set(kinds)


def test_exports_leave_out_nothing_public():
    """Every public name of the package that is not a module is exported."""
    names = {
        name
        for name in dir(stn_client)
        if not name.startswith("_") and not inspect.ismodule(getattr(stn_client, name))
    }
    assert names == set(stn_client.__all__)


def test_exports_are_imported_when_the_first_one_is_used():
    """Importing the package alone takes neither NumPy nor gRPC; any way to a name brings all."""
    program = """
import sys, stn_client
assert not {"numpy", "grpc", "google.protobuf"} & set(sys.modules)
assert not hasattr(stn_client, "_nothing") and "grpc" not in sys.modules
assert "Client" in dir(stn_client)
from stn_client import *
assert Client is stn_client.Client and {"numpy", "grpc"} <= set(sys.modules)
stn_client.nothing
"""
    ran = run_python("-c", program)
    assert "AttributeError: module 'stn_client' has no attribute 'nothing'" in ran.stderr


def test_version_is_that_of_the_distribution():
    """It needs none of the names."""
    program = "import sys, stn_client; print(stn_client.__version__, 'numpy' in sys.modules)"
    assert run_python("-c", program).stdout.split() == [version("stn-client"), "False"]


def named_in(hint):
    """The classes of this package in a type, at any depth."""
    if getattr(hint, "__module__", "").startswith("stn_client."):
        yield hint
    for part in typing.get_args(hint):
        for each in part if isinstance(part, list) else [part]:
            yield from named_in(each)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_exports_are_all_that_signatures_name(kind):
    """Whoever annotates code around a client needs no private module."""
    methods = [
        method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    ]
    hints = [hint for method in methods for hint in typing.get_type_hints(method).values()]
    named = {cls.__name__ for hint in hints for cls in named_in(hint)}
    assert {"Affine", "Gradients", "RetryPolicy", "WarpCallOptions", "ServerInfo"} <= named
    assert named <= set(stn_client.__all__)


def test_exports_have_every_error():
    """Whatever a call can raise can be caught by a public name."""
    classes, found = [StnClientError], set()
    while classes:
        cls = classes.pop()
        found.add(cls.__name__)
        classes += cls.__subclasses__()
    assert found <= set(stn_client.__all__)


@pytest.mark.parametrize(
    "module",
    [
        "stn_client",
        "stn_client.cli",
        "stn_client.geometry",
        "stn_client.local",
        "stn_client.testing",
    ],
)
def test_imports_are_light(module):
    """They import neither torch nor Pillow, nor the geometry of others, nor engine and server."""
    program = f"import sys, {module}; print(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = set(ran.stdout.split())
    assert {"stn_client", "sys"} <= imported
    heavy = {
        "torch",
        "jax",
        "PIL",
        "cv2",
        "scipy",
        "nibabel",
        "SimpleITK",
        "stn_engine",
        "stn_server",
    }
    assert imported & heavy == set()


def test_requirements_leave_torch_and_pillow_to_extras():
    """A plain installation of the SDK is small."""
    required = [line for line in requires("stn-client") if "extra ==" not in line]
    assert any(line.startswith("grpcio") for line in required)
    assert [line for line in required if line.startswith(("torch", "pillow", "stn-engine"))] == []
