"""The oracle against hand-derived numbers and against torch.nn.functional."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stn_engine import Attention, Rotation, Similarity, Translation, WarpSpec, reference
from support.oracles import REFERENCE, settled_warp, torch_gradients, torch_warp
from support.strategies import INTERPOLATIONS, KINDS, random_gradients
from support.tolerances import GRADIENT, assert_close_in_norm

PIXELS = {"coordinates": "pixel"}


def pixel_grid(points):
    """A sampling grid (1, H', W', 2) from nested lists of (x, y)."""
    return np.asarray(points, dtype=np.float64)[None]


def test_sampler_adjoint_worked_case_of_five_samples():
    """The pixel in column 2 of row 1 receives exactly the five products of G and equation (4)."""
    # Rows of V, columns of V; dx and dy in the comments are distances to the next integer.
    grid = pixel_grid(
        [
            [(1.25, 1.5), (2.75, 0.125)],  # upper right: dy·(1-dx)    lower left: (1-dy)·dx
            [(1.875, 1.25), (2.5, 1.75)],  # upper right: dy·(1-dx)    upper left: dy·dx
            [(2.25, 1.0625), (5.0, 5.0)],  # upper left: dy·dx         far away
        ]
    )
    G = np.asarray([[[[2.0, 3.0], [5.0, 7.0], [11.0, 13.0]]]])
    U = np.zeros((1, 1, 4, 5))
    grad_U, _ = reference.sampler_adjoint(G, U, grid, reference.Sampling(**PIXELS))
    received = (
        2.0 * (0.5 * 0.25)
        + 3.0 * (0.125 * 0.25)
        + 5.0 * (0.75 * 0.875)
        + 7.0 * (0.25 * 0.5)
        + 11.0 * (0.9375 * 0.75)
    )
    assert grad_U[0, 0, 1, 2] == received


def test_sampler_value_of_equation_1():
    """At (0.25, 0.5) the four weights are dy·dx = 3/8, 1/8, 3/8 and 1/8."""
    U = np.asarray([[[[8.0, 16.0], [32.0, 64.0]]]])
    V = reference.sampler(U, pixel_grid([[(0.25, 0.5)]]), reference.Sampling(**PIXELS))
    assert V.item() == 8 * 3 / 8 + 16 / 8 + 32 * 3 / 8 + 64 / 8


@pytest.mark.parametrize(
    ("subgradient", "point", "expected"),
    [
        # U = [[1, 2, 4], [8, 16, 32], [64, 128, 256]]; cell [1, 2] x [1, 2] has UL 16, UR 32,
        # LL 128, LR 256.
        ("right", (1.0, 1.0), (16.0, 112.0)),  # UR - UL and LL - UL
        ("zero", (1.0, 1.0), (0.0, 0.0)),
        ("right", (1.0, 1.5), (72.0, 112.0)),  # ½·(256-128) + ½·(32-16); LL - UL
        ("zero", (1.0, 1.5), (0.0, 112.0)),
        ("right", (1.25, 1.0), (16.0, 140.0)),  # UR - UL; ¼·(256-32) + ¾·(128-16)
        ("zero", (1.25, 1.0), (16.0, 0.0)),
        ("right", (2.0, 1.0), (-32.0, 224.0)),  # right of the last column lies the padding 0
        ("zero", (2.0, 1.0), (0.0, 0.0)),
    ],
)
def test_sampler_adjoint_subgradient_rules(subgradient, point, expected):
    """Equations (2) and (3) at integers, by both rules."""
    U = np.asarray([[[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]]]])
    options = reference.Sampling(subgradient=subgradient, **PIXELS)
    _, grad_grid = reference.sampler_adjoint(
        np.ones((1, 1, 1, 1)), U, pixel_grid([[point]]), options
    )
    assert tuple(grad_grid.ravel()) == expected


def test_sampler_value_of_cubic_convolution():
    """Half-way Keys' weights are -3/32, 19/32, 19/32 and -3/32."""
    U = np.asarray([[[[32.0, 64.0, 96.0, 256.0]]]])
    options = reference.Sampling(interpolation="bicubic", **PIXELS)
    V = reference.sampler(U, pixel_grid([[(1.5, 0.0)]]), options)
    assert V.item() == -3 * 1 + 19 * 2 + 19 * 3 - 3 * 8


@pytest.mark.parametrize("subgradient", ["right", "zero"])
def test_sampler_value_at_integers_is_the_pixel(subgradient):
    """Both rules read U itself at an integer point."""
    U = np.asarray([[[[1.0, 2.0], [4.0, 8.0]]]])
    options = reference.Sampling(subgradient=subgradient, **PIXELS)
    V = reference.sampler(U, pixel_grid([[(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]]), options)
    assert V.ravel().tolist() == [2.0, 4.0, 8.0]


def test_sampler_value_in_a_volume():
    """At (1/4, 1/2, 3/4) the last voxel of eight weighs 1/4·1/2·3/4, the first 3/4·1/2·1/4."""
    U = np.zeros((1, 1, 2, 2, 2))
    U[0, 0, 0, 0, 0], U[0, 0, 1, 1, 1] = 32.0, 64.0
    points = pixel_grid([[[(0.25, 0.5, 0.75)]]])
    V = reference.sampler(U, points, reference.Sampling(**PIXELS))
    assert V.item() == 32 * 3 / 32 + 64 * 3 / 32


def test_sampler_adjoint_in_a_volume():
    """At (1/4, 1/2, 3/4) of U = 16·x·y·z + 2·z: slopes 16yz, 16xz and 16xy + 2, times G = 2."""
    U = np.zeros((1, 1, 2, 2, 2))
    U[0, 0, 1] = [[2.0, 2.0], [2.0, 18.0]]
    points = pixel_grid([[[(0.25, 0.5, 0.75)]]])
    G = np.full((1, 1, 1, 1, 1), 2.0)
    grad_U, grad_grid = reference.sampler_adjoint(G, U, points, reference.Sampling(**PIXELS))
    assert grad_grid.ravel().tolist() == [2 * 6.0, 2 * 3.0, 2 * 4.0]
    # Weights by plane, row and column: (1/4, 3/4) x (1/2, 1/2) x (3/4, 1/4), times G.
    plane = [[3 / 4, 1 / 4], [3 / 4, 1 / 4]]
    assert grad_U[0, 0].tolist() == (np.asarray([plane, plane]) * [[[1 / 4]], [[3 / 4]]]).tolist()


def test_affine_generator_in_3d_takes_x_y_z_1():
    """Plane 1, row 2, column 3: (x_t, y_t, z_t, 1) = (3, 2, 1, 1)."""
    theta = np.arange(1.0, 13.0).reshape(1, 3, 4)
    grid = reference.affine_generator(theta, (2, 3, 4), "pixel", align_corners=False)
    assert grid[0, 1, 2, 3].tolist() == [3 + 4 + 3 + 4, 15 + 12 + 7 + 8, 27 + 20 + 11 + 12]
    grad_grid = np.zeros_like(grid)
    grad_grid[0, 1, 2, 3] = (1.0, 10.0, 100.0)
    grad_theta = reference.affine_generator_adjoint(grad_grid, "pixel", align_corners=False)
    assert grad_theta[0].tolist() == [[3, 2, 1, 1], [30, 20, 10, 10], [300, 200, 100, 100]]


def test_affine_generator_is_equation_5():
    """In pixel coordinates x = θ1·j + θ2·i + θ5 and y = θ3·j + θ4·i + θ6."""
    theta = np.asarray([[[2.0, 3.0, 5.0], [7.0, 11.0, 13.0]]])
    grid = reference.affine_generator(theta, (2, 3), "pixel", align_corners=False)
    assert grid[0, 1, 2].tolist() == [2 * 2 + 3 * 1 + 5, 7 * 2 + 11 * 1 + 13]


def test_affine_generator_adjoint_is_equations_6_and_7():
    """Two points of the grid, weighted by their column, their row and one."""
    grad_grid = np.zeros((1, 2, 3, 2))
    grad_grid[0, 1, 2] = (10.0, 100.0)
    grad_grid[0, 0, 1] = (1.0, -1.0)
    grad_theta = reference.affine_generator_adjoint(grad_grid, "pixel", align_corners=False)
    assert grad_theta[0].tolist() == [[21.0, 10.0, 11.0], [199.0, 100.0, 99.0]]


def test_homography_generator_is_a_quotient():
    """At p = (2, 1, 1): X = 13, Y = 23 and W = 4; at W = 0 the point is not finite."""
    theta = np.asarray([[[2.0, 4.0, 5.0], [6.0, 8.0, 3.0], [1.0, 3.0, -1.0]]])
    grid = reference.homography_generator(theta, (2, 3), "pixel", align_corners=False)
    assert grid[0, 1, 2].tolist() == [13 / 4, 23 / 4]
    assert not np.isfinite(grid[0, 0, 1]).any()


def test_homography_generator_adjoint_is_section_4():
    """One point p = (2, 1, 1) with W = 4, x = 13/4, y = 23/4 and gradient (4, 8)."""
    theta = np.asarray([[[2.0, 4.0, 5.0], [6.0, 8.0, 3.0], [1.0, 3.0, -1.0]]])
    grad_grid = np.zeros((1, 2, 3, 2))
    grad_grid[0, 1, 2] = (4.0, 8.0)
    grad_grid[0, 0, 1] = (np.inf, 7.0)  # no finite point
    grad_theta = reference.homography_generator_adjoint(
        grad_grid, theta, "pixel", align_corners=False
    )
    # gx/W = 1, gy/W = 2, -(4·13/4 + 8·23/4)/4 = -59/4
    assert grad_theta[0].tolist() == [[2.0, 1.0, 1.0], [4.0, 2.0, 2.0], [-29.5, -14.75, -14.75]]


def test_flow_generator_adds_to_the_lattice():
    """Row 1, column 2 displaced by (10, 20)."""
    displacement = np.zeros((1, 2, 3, 2))
    displacement[0, 1, 2] = (10.0, 20.0)
    grid = reference.flow_generator(displacement, "pixel", align_corners=False)
    assert (grid[0, 1, 2].tolist(), grid[0, 1, 1].tolist()) == ([12.0, 21.0], [1.0, 1.0])


def test_thin_plate_spline_generator_is_the_textbook_system():
    """Four corners of a square: by symmetry w = (w, -w, -w, w) and the affine part is known."""
    control = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    points = np.asarray([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 4.0]]])
    grid = reference.thin_plate_spline_generator(
        points, control, 0.5, (1, 1), "pixel", align_corners=False
    )
    # x has the data (1, 0, 0, 1) = 1/2 + 1/2·(1, -1, -1, 1): with U(1) = 0 and U(√2) = log 2 the
    # system reads (λ + log 2)·w = 1/2, and at the corner (0, 0) x = 1 - λ·w.
    w = 0.5 / (0.5 + np.log(2))
    assert grid[0, 0, 0, 0] == pytest.approx(1 - 0.5 * w, abs=1e-14)


def test_theta_of_few_parameters():
    """The matrices of section 4, entry by entry."""
    c, s = np.cos(0.5), np.sin(0.5)
    of = lambda *values: np.asarray([values])  # noqa: E731 - an abbreviation
    attention = Attention.oracle(of(2.0, 3.0, 4.0))
    similarity = Similarity.oracle(of(2.0, 0.5, 3.0, 4.0))
    translation = Translation.oracle(of(3.0, 4.0))
    rotation = Rotation.oracle(of(0.5))
    assert attention[0].tolist() == [[2, 0, 3], [0, 2, 4]]
    assert similarity[0].tolist() == [[2 * c, -2 * s, 3], [2 * s, 2 * c, 4]]
    assert translation[0].tolist() == [[1, 0, 3], [0, 1, 4]]
    assert rotation[0].tolist() == [[c, -s, 0], [s, c, 0]]


def test_target_coordinates_of_every_convention():
    """Three target pixels: centres at ±2/3 and 0, at ±1 and 0, or at 0, 1, 2."""
    edges = reference.target_coordinates(3, "normalized", align_corners=False)
    centres = reference.target_coordinates(3, "normalized", align_corners=True)
    alone = reference.target_coordinates(1, "normalized", align_corners=True)
    pixels = reference.target_coordinates(3, "pixel", align_corners=False)
    assert edges == pytest.approx([-2 / 3, 0, 2 / 3])
    assert (centres.tolist(), alone.tolist()) == ([-1.0, 0.0, 1.0], [0.0])
    assert pixels.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("batch", [(2, 2), (1, 3), (3, 1)])
def test_reference_agrees_with_torch(kind, interpolation, padding, align_corners, batch):
    """Value and gradients of both oracles agree in float64, away from cell edges."""
    spec = WarpSpec(interpolation=interpolation, padding=padding, align_corners=align_corners)
    problem = random_gradients(7, settled_warp(kind=kind, batch=batch, spec=spec))
    output = REFERENCE.warp([problem.warp])[0]
    assert_close_in_norm(output, torch_warp(problem.warp), GRADIENT[torch.float64])
    gradients = REFERENCE.warp_gradients([problem])[0]
    by_map, by_transform = torch_gradients(problem)
    assert_close_in_norm(gradients.feature_map, by_map, GRADIENT[torch.float64])
    assert_close_in_norm(gradients.transform, by_transform, GRADIENT[torch.float64])


def test_reference_imports_nothing_of_the_engine():
    """The oracle can be wrong only on its own."""
    (folder,) = reference.__path__
    texts = [path.read_text(encoding="utf-8") for path in Path(folder).glob("*.py")]
    lines = [line for text in texts for line in text.splitlines()]
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert {name for name in imported if not name.startswith("stn_engine.reference.")} == {
        "collections.abc",
        "dataclasses",
        "itertools",
        "math",
        "numpy",
        "numpy.typing",
        "typing",
    }
