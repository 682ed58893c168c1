"""The exact unit change, as integers and as a pixel matrix."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from stn_engine import Affine, WarpProblem, WarpSpec, reference
from stn_engine.backends.torch.points import source_points
from stn_engine.coords import pixel_affine, pixel_homography, source_axis, target_axis
from support.oracles import coordinate_extent, exact_points
from support.strategies import CONVENTIONS, KINDS, VOLUME_KINDS, random_warp
from support.tolerances import COORDINATE

per_convention = pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)


@per_convention
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_axes_state_the_formulas_of_the_oracle(coordinates, align_corners, size):
    """The integer ratios are the conventions that the oracle writes out."""
    target = target_axis(size, coordinates, align_corners=align_corners)
    lattice = reference.target_coordinates(size, coordinates, align_corners=align_corners)
    stated = [float(Fraction(target.p * j + target.q, target.r)) for j in range(size)]
    assert stated == pytest.approx(lattice, abs=1e-15)
    source = source_axis(size, coordinates, align_corners=align_corners)
    for x in (-1.0, 0.25, 1.0):
        pixel = reference.source_pixels(x, size, coordinates, align_corners=align_corners)
        assert (source.u * x + source.v) / source.w == pytest.approx(pixel, abs=1e-15)


@per_convention
@pytest.mark.parametrize(
    ("output_size", "source_size"), [((7, 13), (11, 3)), ((5, 7, 13), (9, 11, 3))]
)
def test_pixel_affine_rounds_each_ratio_once(coordinates, align_corners, output_size, source_size):
    """Every coefficient is the float nearest to the exact fraction."""
    change = pixel_affine(output_size, source_size, coordinates, align_corners)
    for row, size in enumerate(reversed(source_size)):
        source = source_axis(size, coordinates, align_corners=align_corners)
        for column, written in enumerate(reversed(output_size)):
            target = target_axis(written, coordinates, align_corners=align_corners)
            scale = Fraction(source.u * target.p, source.w * target.r)
            offset = Fraction(source.u * target.q, source.w * target.r)
            assert change.scales[row][column] == float(scale)
            assert change.offsets[row][column] == float(offset)
        assert change.scale[row] == float(Fraction(source.u, source.w))
        assert change.offset[row] == float(Fraction(source.v, source.w))


@per_convention
def test_pixel_homography_composes_the_unit_changes(coordinates, align_corners):
    """Applied to theta it gives T·theta·S, with T and S from the formulas of the oracle."""
    output_size, source_size = (4, 5), (8, 3)
    theta = np.arange(1.0, 10.0).reshape(3, 3)
    change = np.asarray(pixel_homography(output_size, source_size, coordinates, align_corners))
    composed = (change @ theta.ravel()).reshape(3, 3)
    S, T = np.eye(3), np.eye(3)
    for row, axis in ((0, 1), (1, 0)):
        lattice = reference.target_coordinates(
            output_size[axis], coordinates, align_corners=align_corners
        )
        S[row, [row, 2]] = lattice[1] - lattice[0], lattice[0]
        pixels = reference.source_pixels(
            np.asarray([0.0, 1.0]), source_size[axis], coordinates, align_corners=align_corners
        )
        T[row, [row, 2]] = pixels[1] - pixels[0], pixels[0]
    assert composed == pytest.approx(T @ theta @ S, rel=1e-14)


@per_convention
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *itertools.product(KINDS, [((5, 7), (4, 6)), ((1, 9), (3, 1)), ((40, 30), (30, 40))]),
        *itertools.product(VOLUME_KINDS, [((3, 4, 5), (2, 3, 4)), ((9, 13, 11), (14, 1, 12))]),
    ],
)
def test_source_points_agree_with_the_oracle(coordinates, align_corners, sizes, kind):
    """Composed float32 coordinates stay within the coordinate tolerance of the oracle's."""
    spec = WarpSpec(coordinates=coordinates, align_corners=align_corners)
    size, output_size = sizes
    sizes = {"size": size, "output_size": output_size}
    warp = random_warp(1, kind=kind, dtype=torch.float32, spec=spec, **sizes)
    exact = exact_points(warp)
    dims = len(size)
    points = source_points(warp).view(2, dims, *output_size).movedim(1, -1)
    assert points.dtype == torch.float32
    bound = dims * COORDINATE[torch.float32] * coordinate_extent(warp)
    assert (points.double() - exact).abs().max() <= bound


@per_convention
def test_source_points_do_not_drift(coordinates, align_corners):
    """The last of 4096 columns of an identity is exactly column 4095."""
    spec = WarpSpec(coordinates=coordinates, align_corners=align_corners)
    problem = WarpProblem(torch.zeros(1, 1, 1, 4096), Affine(torch.eye(2, 3)[None]), spec=spec)
    assert torch.equal(source_points(problem)[0, 0], torch.arange(4096.0))
