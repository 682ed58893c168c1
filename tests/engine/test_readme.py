"""The README of the engine runs, and its support table is what the backends say and do."""

import re
from pathlib import Path
from typing import get_args

import torch

import stn_engine
from stn_engine import Interpolation, Padding, Transform, WarpGradientsProblem, WarpSpec, dispatch
from stn_engine.checks import FEATURE_MAP_DTYPES, GRADIENT_DTYPES
from support.strategies import VOLUME_KINDS, random_gradients, random_warp

SMALL_VOLUME = {"batch": (1, 1), "channels": 1, "size": (2, 2, 2), "output_size": (1, 2, 1)}
README = Path(__file__).parents[2] / "stn_engine" / "README.md"
KINDS = {one.__name__: one.__name__.lower() for one in get_args(Transform)} | {
    "SamplingGrid": "grid",
    "ThinPlateSpline": "thin_plate_spline",
}


def names(dtypes):
    return [str(dtype).removeprefix("torch.") for dtype in dtypes]


def on_meta(problem):
    transform = problem.transform.with_parameters(problem.transform.parameters.to("meta"))
    return type(problem)(problem.feature_map.to("meta"), transform)


def supported(backend, kind, sizes, dtype, spec):
    """The results of a backend for one cell of the table, computed for real."""
    warp = random_warp(1, kind=kind, dtype=dtype, spec=spec, **sizes)
    assert backend.unsupported_reasons(warp) == ()
    assert backend.warp([warp])[0].shape == warp.output_shape
    if dtype in GRADIENT_DTYPES:
        problem = random_gradients(2, warp)
        assert isinstance(problem, WarpGradientsProblem)
        assert backend.warp_gradients([problem])[0].transform is not None
    return True


def row(backend):
    """One line of the table, from what the backend actually computes."""
    transforms = [one.__name__ for one in get_args(Transform)]
    of_volumes = [name for name in transforms if KINDS[name] in VOLUME_KINDS]
    assert all(
        supported(backend, KINDS[kind], sizes, dtype, WarpSpec(interpolation=mode, padding=padding))
        for kinds, sizes in ((transforms, {}), (of_volumes, SMALL_VOLUME))
        for kind in kinds
        for dtype in FEATURE_MAP_DTYPES
        for mode in Interpolation
        for padding in Padding
    )
    anywhere = not backend.unsupported_reasons(on_meta(random_warp(1)))
    cells = (
        f"`{backend.name}`",
        "any" if anywhere else "cpu",
        ", ".join(f"`{name}`" for name in transforms),
        ", ".join(f"`{name}`" for name in of_volumes),
        ", ".join(Interpolation),
        ", ".join(Padding),
        ", ".join(names(FEATURE_MAP_DTYPES)),
        ", ".join(names(GRADIENT_DTYPES)),
    )
    return "| " + " | ".join(cells) + " |"


def test_readme_support_table_is_what_backends_do():
    """Every row is regenerated from running every combination it claims."""
    text = README.read_text(encoding="utf-8")
    table = re.search(r"<!-- support table.*?-->\n(.*?)\n<!-- end", text, re.DOTALL).group(1)
    assert table.splitlines()[2:] == [row(backend) for backend in dispatch.BACKENDS]


def test_readme_example_runs():
    """The code block is executed as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["zoomed"].shape == (1, 3, 32, 32)
    assert names["theta"].grad.shape == (1, 2, 3)
    assert names["gradients"].feature_map.shape == (1, 3, 48, 64)
    assert (names["small"].shape, names["large"].shape) == ((2, 1, 8, 8), (1, 3, 48, 64))
    assert names["small"].dtype == torch.uint8


def test_readme_names_every_operation_of_the_example():
    """What the example imports is public."""
    text = README.read_text(encoding="utf-8")
    imported = re.search(r"from stn_engine import (.*)", text).group(1).split(", ")
    assert set(imported) <= set(stn_engine.__all__)
