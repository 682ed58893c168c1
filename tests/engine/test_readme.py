"""The README of the engine runs, and its support table is what the backends do."""

import re
import runpy
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import stn_engine
from stn_engine import GridProblem, Transform, WarpGradientsProblem, WarpSpec
from stn_engine.backends.torch import TorchBackend
from stn_engine.checks import FEATURE_MAP_DTYPES, GRADIENT_DTYPES
from support.backends import BACKENDS
from support.strategies import IMAGE, VOLUME, VOLUME_KINDS, random_gradients, random_warp
from support.tolerances import assert_close_in_norm, gradient_tolerance

ROOT = Path(__file__).parents[2]
README = ROOT / "stn_engine" / "README.md"
KINDS = {one.__name__: one.__name__.lower() for one in get_args(Transform)} | {
    "SamplingGrid": "grid",
    "ThinPlateSpline": "thin_plate_spline",
}
TRANSFORMS = {
    "2-D": set(KINDS),
    "3-D": {name for name, kind in KINDS.items() if kind in VOLUME_KINDS},
}
SIZES = {"2-D": IMAGE, "3-D": VOLUME}


def support_table():
    """The rows of the table, each cell a list of what it enumerates."""
    text = README.read_text(encoding="utf-8")
    table = re.search(r"<!-- table: support -->\n(.*?)\n<!-- end", text, re.DOTALL).group(1)
    head, _, *rows = (
        [cell.strip().replace("`", "").split(", ") for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    )
    return [dict(zip((name for (name,) in head), row, strict=True)) for row in rows]


def label(row):
    """Whose row it is."""
    return f"{row['backend'][0]} {row['maps'][0]}"


def named(backend_name):
    """The backend of this name."""
    (found,) = (one for one in BACKENDS if one.name == backend_name)
    return found


def problem(row, transform, mode, padding, dtype):
    """One combination that a row claims."""
    (maps,) = row["maps"]
    spec, dtype = WarpSpec(interpolation=mode, padding=padding), getattr(torch, dtype)
    return random_warp(1, kind=KINDS[transform], dtype=dtype, spec=spec, **SIZES[maps])


@pytest.mark.slow
@pytest.mark.parametrize("row", support_table(), ids=label)
def test_readme_support_table_is_what_backends_do(row):
    """Every combination that a row claims is computed for real."""
    backend = named(row["backend"][0])
    axes = row["transforms"], row["interpolation"], row["padding"], row["feature maps"]
    for combination in product(*axes):
        warp = problem(row, *combination)
        assert backend.unsupported_reasons(warp) == ()
        assert backend.warp([warp])[0].shape == warp.output_shape
        if combination[-1] in row["gradients for"]:
            gradients = random_gradients(2, warp)
            assert backend.unsupported_reasons(gradients) == ()
            assert backend.warp_gradients([gradients])[0].transform is not None


@pytest.mark.parametrize("row", support_table(), ids=label)
def test_readme_support_table_says_which_grids_are_generated(row):
    """The generator alone runs for what the last column names."""
    backend = named(row["backend"][0])
    (maps,) = row["maps"]
    everything = TRANSFORMS[maps] - {"SamplingGrid"}
    claimed = everything if row["generate_grid"] == ["all"] else row["generate_grid"]
    for transform in set(claimed) - {"none"}:
        warp = problem(row, transform, "bilinear", "zeros", "float32")
        grid = GridProblem(warp.transform, warp.output_shape[2:])
        assert backend.generate_grid([grid])[0].shape == grid.output_shape


@pytest.mark.parametrize("maps", TRANSFORMS)
def test_readme_support_table_forgets_nothing(maps):
    """The oracle computes all there is, so that its rows name every transform and option."""
    rows = [row for row in support_table() if label(row) == f"reference {maps}"]
    for column, everything in {
        "transforms": TRANSFORMS[maps],
        "interpolation": set(stn_engine.Interpolation),
        "padding": set(stn_engine.Padding),
        "feature maps": {str(dtype).removeprefix("torch.") for dtype in FEATURE_MAP_DTYPES},
        "gradients for": {str(dtype).removeprefix("torch.") for dtype in GRADIENT_DTYPES},
    }.items():
        assert {value for row in rows for value in row[column]} == everything


def test_a_backend_of_uneven_support_gets_the_rows_that_it_needs():
    """No row of the table claims a combination that the backend refuses."""

    class UnevenBackend(TorchBackend):
        """Bicubic needs borders, gradients need an affine transform and float32."""

        def unsupported_reasons(self, problem):
            if isinstance(problem, GridProblem):
                return () if isinstance(problem.transform, stn_engine.Affine) else ("no grid",)
            if isinstance(problem, WarpGradientsProblem):
                transform, dtype = problem.warp.transform, problem.warp.output_dtype
                is_simple = isinstance(transform, stn_engine.Affine) and dtype == torch.float32
                return self.unsupported_reasons(problem.warp) if is_simple else ("no gradient",)
            is_kind = isinstance(problem.transform, stn_engine.Affine | stn_engine.Flow)
            spec = problem.spec
            is_mode = spec.interpolation != "bicubic" or spec.padding == "border"
            return () if is_kind and is_mode else ("no warp",)

    generate_docs = runpy.run_path(str(ROOT / ".ci" / "generate_docs.py"))
    numbers = "float32, float64, float16, bfloat16, uint8, uint16, int16"
    everything = f"{numbers}, bool, int8, int32, uint32, int64, uint64"
    paddings = "zeros, border, reflection, fill"
    assert generate_docs["_supported"](UnevenBackend(), 2) == (
        ("`Affine`", "nearest", paddings, everything, "float32", "`Affine`"),
        ("`Affine`", "bilinear", paddings, numbers, "float32", "`Affine`"),
        ("`Affine`", "bicubic", "border", numbers, "float32", "`Affine`"),
        ("`Flow`", "nearest", paddings, everything, "none", "`Affine`"),
        ("`Flow`", "bilinear", paddings, numbers, "none", "`Affine`"),
        ("`Flow`", "bicubic", "border", numbers, "none", "`Affine`"),
    )


# torch scripts some of its own rules when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_readme_example_runs():
    """The code blocks are executed as they stand, one after the other."""
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
    assert names["slope"].shape == ()
    assert names["curvature"].shape == (1, 2, 3, 1, 2, 3)
    assert_jax_agrees_with_torch(names)


def assert_jax_agrees_with_torch(names):
    """The value of the example with JAX and both of its gradients are those of torch's own warp."""
    operands = [names[name].detach().clone().requires_grad_() for name in ("photo", "theta")]
    grid = torch.nn.functional.affine_grid(operands[1], operands[0].shape, align_corners=False)
    warped = torch.nn.functional.grid_sample(operands[0], grid, align_corners=False)
    energy = warped.square().sum()
    expected = torch.autograd.grad(energy, operands)
    assert float(names["value"]) == pytest.approx(energy.item(), rel=1e-5)
    for got, want in zip((names["grad_u"], names["grad_theta"]), expected, strict=True):
        found = torch.tensor(np.asarray(got))
        assert_close_in_norm(found, want, gradient_tolerance(want.dtype, want.dtype))


def test_readme_names_every_operation_of_the_example():
    """What the example imports is public."""
    text = README.read_text(encoding="utf-8")
    imported = re.search(r"from stn_engine import (.*)", text).group(1).split(", ")
    assert set(imported) <= set(stn_engine.__all__)
