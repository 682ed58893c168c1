"""What a steady call goes through, and how the modules of the engine depend on each other."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

import stn_engine
from support.profiling import functions_entered

ENGINE = Path(stn_engine.__file__).parent
ROOT = Path(__file__).parents[2]
FEATURE_MAP = torch.rand(2, 3, 8, 9)
AFFINE = stn_engine.Affine(torch.rand(2, 2, 3))
GRID = torch.rand(2, 4, 5, 2) * 2 - 1
GRADS = torch.rand(2, 3, 8, 9)
MAX_FUNCTIONS, MAX_FILES = 40, 8
MAX_FILES_OF_A_KIND = 5
COMMENTS = re.compile(r'"""(?:.|\n)*?"""|#.*|//.*')


def entered(run):
    """The files of the Python functions that a steady call enters, once for each entry."""
    for _ in range(3):
        run()
    return [code.co_filename for code in functions_entered(run)[1:]]  # without the lambda itself


@pytest.mark.parametrize(
    "run",
    [
        lambda: stn_engine.warp(FEATURE_MAP, AFFINE),
        lambda: stn_engine.warp(FEATURE_MAP, AFFINE, (4, 5), interpolation="bicubic", fill=1.5),
    ],
    ids=["warp", "warp with options"],
)
def test_a_steady_call_goes_a_short_way(run):
    """What is computed is found by layouts; nobody works it out again."""
    files = entered(run)
    assert len(files) <= MAX_FUNCTIONS
    assert len({file for file in files if Path(file).is_relative_to(ENGINE)}) <= MAX_FILES


@pytest.mark.parametrize(
    "run",
    [
        lambda: stn_engine.warp_gradients(GRADS, FEATURE_MAP, AFFINE),
        lambda: stn_engine.grid_sample(FEATURE_MAP, GRID, align_corners=False),
    ],
    ids=["gradients", "drop-in"],
)
def test_calls_with_more_to_check_enter_as_few_functions(run):
    """A drop-in has to know what torch would take."""
    assert len(entered(run)) <= MAX_FUNCTIONS


def imports_of(path, modules):
    """The modules of the engine that one imports when it is itself imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stn_engine"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & modules) or {node.module}
    return found - {"stn_engine"}


def test_no_modules_import_each_other_in_a_circle():
    """Each can be read with those below it alone."""
    paths = {
        ".".join(("stn_engine", *path.relative_to(ENGINE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in ENGINE.rglob("*.py")
    }
    graph = {name: imports_of(path, set(paths)) for name, path in paths.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(paths) - 1


def sources_that_name(kind):
    """The source files of all four projects that a kind of transform has to be written into."""
    words = re.compile(rf'\b{kind.__name__}\b|Kind::{kind.kind.name}\b|"{kind.kind.name}"')
    for project in ("proto", "stn_engine", "server", "client"):
        for path in sorted((ROOT / project / "src").rglob("*")):
            if path.suffix in {".py", ".proto", ".h", ".cpp", ".cu", ".cuh"}:
                text = path.read_text()
                generated = "_pb2" in path.name or "enerated by" in text[:500]
                if not generated and words.search(COMMENTS.sub("", text)):
                    yield path


@pytest.mark.parametrize(
    "kind",
    [stn_engine.Attention, stn_engine.Rotation, stn_engine.Similarity, stn_engine.Translation],
)
def test_a_kind_of_known_equations_is_written_into_few_files(kind):
    """The contract, the engine's file of the kind and list of kinds, C++, and the SDK's file.

    `geometry.from_points` fits some kinds to points, and `align` and its command look for some in
    stages: neither has to know of a new one.
    """
    found = {str(path.relative_to(ROOT)) for path in sources_that_name(kind)}
    found -= {
        f"client/src/stn_client/{name}.py"
        for name in ("geometry/_points", "registration", "cli/_align")
    }
    transforms = "stn_engine/src/stn_engine/transforms"
    assert found >= {
        "proto/src/stn_proto/v1/warp.proto",
        "client/src/stn_client/_transforms.py",
        f"{transforms}/__init__.py",
        f"{transforms}/{kind.kind.name}.py",
    }
    assert len(found) <= MAX_FILES_OF_A_KIND
