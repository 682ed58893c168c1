"""How target points are arranged in rows changes neither their values nor their gradients."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

from stn_engine import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    Similarity,
    WarpProblem,
    WarpSpec,
    grid_sample,
    warp,
    warp_gradients,
)
from stn_engine.backends.cpu import CpuBackend

CPU = CpuBackend()

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
PADDINGS = ("zeros", "border", "reflection", "fill")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
POINTS = 4320
"""More than one thread takes at a time, and no multiple of a block."""

PIXEL = {"coordinates": "pixel"}
IMAGES = ((POINTS, 1), (POINTS // 4, 4), (3, POINTS // 3), (60, 72), (POINTS // 65 + 1, 65))
VOLUMES = ((POINTS, 1, 1), (1, POINTS, 1), (POINTS // 4, 2, 2), (2, POINTS // 6, 3), (12, 18, 20))
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def uniform(seed, shape, low=0.0, high=1.0, dtype=torch.float32):
    values = torch.empty(shape, dtype=torch.float64)
    return values.uniform_(low, high, generator=torch.Generator().manual_seed(seed)).to(dtype)


def odd_points(seed, count, dimensions, side):
    """Inside, outside, on pixels, on the outermost centres, and none at all."""
    points = uniform(seed, (count, dimensions), -1.5, side + 0.5)
    points[::5] = points[::5].round()
    points[::97] = torch.nan
    points[::89] = 1e9
    return points


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("sizes", [IMAGES, VOLUMES])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_reshaped_grid_gives_the_reshaped_result(interpolation, padding, sizes, last):
    """Values and gradients, bit for bit; fewer points are the first of all."""
    options = {**PIXEL, "interpolation": interpolation, "padding": padding}
    if padding == "fill":
        options["fill"] = 0.5
    check(sizes, last, 17 if interpolation != "bicubic" else 3, torch.float32, options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", PADDINGS[:3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_reshaped_grid_of_any_dtype(dtype, padding, align_corners):
    """In normalized units, where reflection mirrors about edges or centres."""
    options = {"padding": padding, "align_corners": align_corners}
    check(IMAGES, False, 3, dtype, options)


def check(sizes, last, channels, dtype, options):
    dimensions, side = len(sizes[0]), 9
    feature_map = uniform(1, (1, channels, *(side,) * dimensions), dtype=dtype)
    points = odd_points(2, 2 * POINTS, dimensions, side)
    if "coordinates" not in options:
        points = points / side * 2 - 1
    grads = uniform(3, (1, channels, 2 * POINTS), -1.0, 1.0, dtype)
    if last:
        feature_map = feature_map.contiguous(memory_format=LAYOUTS[dimensions + 2])

    def results(size):
        count = torch.Size(size).numel()
        grid = SamplingGrid(points[:count].reshape(1, *size, dimensions))
        grad_output = grads[:, :, :count].reshape(1, channels, *size)
        if last:
            grad_output = grad_output.contiguous(memory_format=LAYOUTS[dimensions + 2])
        values = warp(feature_map, grid, **options)
        gradients = warp_gradients(grad_output, feature_map, grid, **options)
        by_grid = gradients.transform.reshape(1, count, dimensions)
        return values.flatten(2), gradients.feature_map, by_grid

    for size in sizes:
        row = (*(1,) * (dimensions - 1), torch.Size(size).numel())
        for found, expected in zip(results(size), results(row), strict=True):
            assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), size


def test_reshaped_grids_of_grey_levels():
    """uint8 has no gradients."""
    feature_map = (255 * uniform(1, (2, 3, 9, 9))).to(torch.uint8)
    points = odd_points(2, POINTS, 2, 9)
    row = warp(feature_map, SamplingGrid(points[None, None]), **PIXEL)
    for size in IMAGES[:4]:
        found = warp(feature_map, SamplingGrid(points.reshape(1, *size, 2)), **PIXEL)
        assert torch.equal(found.flatten(2), row.flatten(2))


THETA = torch.tensor([[[0.11, -0.3, 4.0], [0.2, 0.013, 1.0]]])
VOLUME_THETA = torch.tensor(
    [[[0.11, -0.3, 0.1, 4.0], [0.2, 0.013, -0.2, 1.0], [0.01, 0.2, 0.1, 2.0]]]
)
LONG, WIDE = 700, 96
"""The height of all results, and the width of those that narrow ones are compared with."""


def transform_of(kind, width):
    """In pixel units, where a transform does not depend on the size of its target."""
    if kind == "affine":
        return Affine(THETA)
    if kind == "homography":
        return Homography(torch.cat((THETA, torch.tensor([[[0.002, 0.001, 1.0]]])), 1))
    if kind == "similarity":
        return Similarity(torch.tensor([[0.1, 0.4, 2.0, 3.0]]))
    if kind == "volume affine":
        return Affine(VOLUME_THETA)
    return Flow(uniform(4, (1, LONG, WIDE, 2), -300.0, 20.0)[:, :, :width])


KINDS = ("affine", "homography", "similarity", "flow", "volume affine")


@pytest.mark.parametrize("width", [1, 5, 17, 65])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_narrow_result_is_a_part_of_a_wide_one(padding, kind, width):
    """Of every generator; gradients of the columns that are missing in it are 0 in the wide one."""
    feature_map = uniform(1, (1, 3, 40, 30) if kind != "volume affine" else (1, 3, 8, 9, 30))
    narrow, wide = (width, WIDE) if kind != "volume affine" else (min(width, 16), 20)
    rows = (LONG,) if kind != "volume affine" else (40, 7)
    options = {**PIXEL, "padding": padding}
    whole = transform_of(kind, wide)
    part = transform_of(kind, narrow)
    columns = warp(feature_map, whole, (*rows, wide), **options)[..., :narrow]
    found = warp(feature_map, part, (*rows, narrow), **options)
    assert torch.equal(found, columns)
    grad_output = torch.zeros(1, 3, *rows, wide)
    grad_output[..., :narrow] = uniform(2, (1, 3, *rows, narrow), -1.0, 1.0)
    expected = warp_gradients(grad_output, feature_map, whole, **options)
    gradients = warp_gradients(grad_output[..., :narrow], feature_map, part, **options)
    assert torch.equal(gradients.feature_map, expected.feature_map)
    if kind == "flow":
        assert torch.equal(gradients.transform, expected.transform[:, :, :narrow])
    else:  # float64 sums in another order, rounded once
        torch.testing.assert_close(gradients.transform, expected.transform, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("kind", ["affine", "flow", "grid"])
@pytest.mark.parametrize("size", [(260, 3), (40, 3, 5)])
def test_strides_change_no_bit_of_a_narrow_result(size, kind, interpolation):
    """Of G, of points and of results, whose rows may stand anywhere in memory."""
    dimensions = len(size)
    feature_map = uniform(1, (2, 4, *(7,) * dimensions))
    points = uniform(2, (2, *size, dimensions), -1.2, 1.2)
    theta = VOLUME_THETA if dimensions == 3 else THETA
    kinds = {"affine": Affine, "flow": Flow, "grid": SamplingGrid}
    parameters = theta if kind == "affine" else points
    transform = kinds[kind](parameters)
    strided = transform if kind == "affine" else kinds[kind](with_other_strides(parameters))
    grad_output = uniform(3, (2, 4, *size), -1.0, 1.0)
    options = {"padding": "border", "interpolation": interpolation}
    expected = warp(feature_map, transform, size, **options)
    out = with_other_strides(torch.zeros(2, 4, *size), gaps=False)
    problem = WarpProblem(feature_map, transform, size, WarpSpec(**options))
    for found in (warp(feature_map, strided, size, **options), *CPU.warp([problem], [out])):
        assert torch.equal(found, expected)
    left = warp_gradients(grad_output, feature_map, transform, **options)
    right = warp_gradients(with_other_strides(grad_output), feature_map, strided, **options)
    assert torch.equal(left.feature_map, right.feature_map)
    assert torch.equal(left.transform, right.transform)


def with_other_strides(tensor, *, gaps=True):
    """The same values with the axes of the lattice in reverse order, perhaps with gaps."""
    axes = [0, 1, *reversed(range(2, tensor.dim()))]
    turned = tensor.permute(axes).contiguous()
    if gaps:
        turned = turned.repeat_interleave(2, -1)[..., ::2]
    return turned.permute(axes)


@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_long_rows_have_no_slope_on_the_outermost_centres(padding, dtype):
    """As in PyTorch, also where sixteen neighbours read nothing but whole cells."""
    feature_map = uniform(1, (1, 2, 40, 40), dtype=dtype)
    pixels = torch.arange(32, dtype=dtype) + 0.5
    pixels[0] = 0.0
    points = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), -1)[None] / 39 * 2 - 1
    slopes = []
    for function in (grid_sample, F.grid_sample):
        grid = points.clone().requires_grad_()
        function(feature_map, grid, padding_mode=padding, align_corners=True).sum().backward()
        slopes.append(grid.grad)
    assert not slopes[0][:, 0, :, 1].any()
    assert not slopes[0][:, :, 0, 0].any()
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-4)
