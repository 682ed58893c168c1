"""The public surface, and nothing else."""

import doctest
import subprocess
import sys

import pytest

import stn_engine
from stn_engine import drop_ins, functional, transforms


def test_all_is_sorted_and_complete():
    """Every public name of the package is listed, once, in order; kinds of transforms are last."""
    names, kinds = stn_engine.__all__, transforms.__all__
    others = names[: -len(kinds)]
    assert names == others + kinds
    assert others == sorted(set(others) - set(kinds))
    assert kinds == sorted(set(kinds))
    assert set(transforms.KINDS) <= {getattr(stn_engine, name) for name in kinds}
    defined_here = {
        name
        for name, value in vars(stn_engine).items()
        if not name.startswith("_") and type(value).__name__ != "module"
    }
    assert defined_here == set(names)


def test_public_operations_have_shapes_and_conventions():
    """Every operation on tensors says what goes in, what comes out, and how it counts."""
    for name in stn_engine.__all__:
        operation = getattr(stn_engine, name)
        home = getattr(operation, "__module__", "")
        if home in {functional.__name__, drop_ins.__name__} and "ragged" not in name:
            for section in ("Shapes:", "Convention:", "Args:", "Raises:"):
                assert section in operation.__doc__, f"{name} lacks {section}"


def test_docstring_examples_run():
    """What the docstrings show is what happens."""
    outcome = doctest.testmod(functional)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.slow
def test_import_touches_no_accelerator():
    """Importing the engine initialises no CUDA context and no transport."""
    code = (
        "import sys, torch, stn_engine;"
        "assert not torch.cuda.is_initialized();"
        "assert not {'grpc', 'google.protobuf', 'prometheus_client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
