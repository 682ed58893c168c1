"""Thin-plate splines: exact wherever their points are, refused when singular, kept in few bytes."""

import os
import signal
import threading

import mpmath
import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from stn_engine import ParameterError, ThinPlateSpline, generate_grid, generate_grid_gradients
from stn_engine.backends.torch.thin_plate import BASES, CHUNK_POINTS, MAX_TERMS, Bases
from support.strategies import random_values

UNIT = ((-0.9, -0.8), (0.7, -0.9), (0.1, 0.05), (-0.6, 0.8), (0.9, 0.6), (0.3, -0.4), (-0.2, 0.45))
DIGITS = 60


def exact_grid(spline, size):
    """The textbook system of one item in pixel units, solved and evaluated in 60 digits."""
    with mpmath.workdps(DIGITS):
        control = [(mpmath.mpf(x), mpmath.mpf(y)) for x, y in spline.control_points]
        count = len(control)
        system = mpmath.zeros(count + 3)
        for i, point in enumerate(control):
            row = exact_terms(point, control)
            for j, value in enumerate(row):
                system[i, j] = value
            for j in range(count, count + 3):
                system[j, i] = row[j]
            system[i, i] += spline.regularization
        inverse = system**-1
        lattice = [(mpmath.mpf(j), mpmath.mpf(i)) for i in range(size[0]) for j in range(size[1])]
        terms = [exact_terms(point, control) for point in lattice]
        basis = mpmath.matrix(terms) * inverse[:, :count]
        grid = basis * mpmath.matrix(spline.points[0].tolist())
        return np.array(grid.tolist(), dtype=np.float64).reshape(*size, 2)


def exact_terms(point, control):
    """U of the distance to each control point, then 1, x and y."""
    squares = [(point[0] - x) ** 2 + (point[1] - y) ** 2 for x, y in control]
    return [s * mpmath.log(s) / 2 if s else mpmath.mpf(0) for s in squares] + [1, *point]


def spline_of(control, regularization=0.0):
    """A spline in float64 that bends much, with source points as large as the control points."""
    control = np.asarray(control)
    radius = np.ptp(control, axis=0).max() / 2
    noise = 0.3 * radius * random_values(3, control.shape, torch.float64)
    points = torch.as_tensor(control - control.mean(0)) + noise
    return ThinPlateSpline(points[None], control_points=control, regularization=regularization)


@pytest.mark.parametrize("regularization", [0.0, 0.05])
@pytest.mark.parametrize(
    ("scale", "shift"),
    [(8, 0), (3.5, 4), (5e3, 5e3), (4, 1e6), (1e6, -1e9), (1e-3, 3), (1e-5, 0), (1e-4, 1e3)],
)
def test_splines_are_exact_wherever_their_control_points_are(scale, shift, regularization):
    """In units of a pixel or thousands, far off, or in a spot that most pixels are far from."""
    control = np.asarray(UNIT) * scale + shift
    spline = spline_of(control, regularization * scale**2)
    grid = generate_grid(spline, (5, 7), coordinates="pixel")[0].numpy()
    exact = exact_grid(spline, (5, 7))
    assert abs(grid - exact).max() <= 1e-12 * abs(exact).max()


@pytest.mark.parametrize("regularization", [0.0, 0.01, 3.0])
@pytest.mark.parametrize("align_corners", [False, True])
def test_splines_are_those_of_scipy(regularization, align_corners):
    """Among control points on a lattice with noise, as its interpolator of degree 1 has it."""
    side = np.linspace(-1, 1, 6)
    control = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    control += 0.05 * random_values(1, control.shape, torch.float64).numpy()
    spline = spline_of(control, regularization)
    size = (40, 61)
    grid = generate_grid(spline, size, align_corners=align_corners)[0].numpy()
    y, x = (
        np.linspace(-1, 1, n) if align_corners else (2 * np.arange(n) + 1) / n - 1 for n in size
    )
    lattice = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    interpolator = RBFInterpolator(
        control,
        spline.points[0].numpy(),
        kernel="thin_plate_spline",
        degree=1,
        smoothing=regularization,
    )
    expected = interpolator(lattice).reshape(grid.shape)
    np.testing.assert_allclose(grid, expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 2e-6])
def test_splines_of_near_points_have_the_digits_that_their_distance_leaves(distance):
    """The system is as ill-conditioned as one over the distance squared, in radii."""
    control = (*UNIT, (UNIT[0][0] + distance, UNIT[0][1]))
    spline = spline_of(np.asarray(control) * 4)
    grid = generate_grid(spline, (5, 5), coordinates="pixel")[0].numpy()
    exact = exact_grid(spline, (5, 5))
    rounding = np.finfo(np.float64).eps / distance**2
    assert abs(grid - exact).max() <= rounding * abs(spline.points).max()


@pytest.mark.parametrize("regularization", [1e30, 1.7e308])
@pytest.mark.parametrize("scale", [1.0, 1e-150])
def test_endless_regularization_leaves_the_affine_map_of_least_squares(scale, regularization):
    """Where the weights of the spline vanish, NumPy's least squares has what is left."""
    control = np.asarray(UNIT) * scale
    spline = ThinPlateSpline(
        random_values(2, (1, len(UNIT), 2), torch.float64),
        control_points=control,
        regularization=regularization,
    )
    grid = generate_grid(spline, (1, 1))[0, 0, 0]  # the target point (0, 0)
    ones = np.ones((len(UNIT), 1))
    affine, *_ = np.linalg.lstsq(np.hstack((UNIT, ones)), spline.points[0].numpy(), rcond=None)
    np.testing.assert_allclose(grid.numpy(), affine[2], rtol=1e-11)


def refused(control, match, regularization=0.0):
    points = torch.zeros(1, len(control), 2)
    with pytest.raises(ParameterError, match=match) as caught:
        ThinPlateSpline(points, control_points=control, regularization=regularization)
    assert caught.value.argument == "control_points"


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e4, 0), (1, 2**20), (2.0**-40, 0)])
def test_control_points_that_are_near_to_each_other_are_refused(scale, shift):
    """By their distance in parts of the radius, which is 1.2 here; both are named."""
    base = np.asarray(UNIT)
    for place, step in ((0, (9e-7, 0)), (3, (0, -9e-7)), (6, (6e-7, 6e-7))):
        near = np.concatenate((base, base[place, None] + step)) * scale + shift
        one, other = (rf"\({x!r}, {y!r}\)" for x, y in near[[place, -1]].tolist())
        refused(
            near.tolist(),
            rf"^control_points: .*, got {one} at {place} and {other} at 7, nearer to each other "
            r"than 1e-06 of their radius\. Pass",
        )
        apart = np.concatenate((base, base[place, None] + 2 * np.asarray(step))) * scale + shift
        assert spline_of(apart).basis_size == 8


def test_regularization_allows_control_points_that_are_near_to_each_other():
    """As soon as it weighs more than their distance squared, but never of equal ones."""
    near = (*UNIT, (UNIT[2][0] + 1e-8, UNIT[2][1]))
    refused(near, "nearer to each other than", 1e-14)
    spline = spline_of(np.asarray(near) * 4, 1e-3)
    grid = generate_grid(spline, (4, 4), coordinates="pixel")[0].numpy()
    exact = exact_grid(spline, (4, 4))
    assert abs(grid - exact).max() <= 1e-11 * abs(exact).max()
    refused((*UNIT, UNIT[2]), r"got \(0.1, 0.05\) at 2 and \(0.1, 0.05\) at 7, nearer", 10.0)


@pytest.mark.parametrize("width", [0.0, 1e-9, 4e-7])
@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
def test_control_points_that_are_all_but_on_one_line_are_refused(angle, width):
    """A band of less than 1e-6 of the radius; the ends of the line are named."""
    along = np.asarray((3.0, 1.0, 2.0, 9.0, 4.0))
    across = width * 4 * np.asarray((1, -1, 1, -1, 1))
    turn = np.exp(1j * angle)
    control = [(z.real, z.imag) for z in turn * (along + 1j * across)]
    refused(control, r"at 1 and .* at 3, the ends of a line that all points are on up to 1e-06 of")
    refused(control, "the ends of a line", regularization=100.0)
    broad = [(z.real, z.imag) for z in turn * (along + 1j * (across + 4e-5 * (along == 2)))]
    assert spline_of(broad).basis_size == 5


def test_bases_do_not_depend_on_the_number_of_threads():
    """The same bits with one, two and three, as a server and its callers may have them."""
    side = np.linspace(-1, 1, 8)
    control = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    spline, size = spline_of(control), (30, CHUNK_POINTS // 10)
    grids = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            settings = spline.settings
            description = *settings, size, "normalized", False, torch.device("cpu")
            grids.append(Bases(0).get(*description))
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(grids[0], grids[1])
    assert torch.equal(grids[0], grids[2])


def basis_of(bases, points, control=UNIT):
    """A basis of 8·K·points bytes."""
    return bases.get(control, 0.0, (1, points), "pixel", False, torch.device("cpu"))


def test_kept_bases_are_bounded_in_bytes():
    """The ones used last stay, as many as fit; one that is too large is made every time."""
    item_bytes = 8 * len(UNIT)
    bases = Bases(10 * item_bytes)
    first, second = basis_of(bases, 4), basis_of(bases, 5)
    assert bases.kept_bytes == 9 * item_bytes
    assert basis_of(bases, 4) is first
    basis_of(bases, 3)  # one too many: the 5 are those used longest ago
    assert bases.kept_bytes == 7 * item_bytes
    assert basis_of(bases, 4) is first
    assert basis_of(bases, 5) is not second
    large = basis_of(bases, 11)
    assert basis_of(bases, 11) is not large
    assert bases.kept_bytes <= 10 * item_bytes


def test_bases_can_be_made_by_many_threads():
    """What each of them finds is right, and the count of bytes that of what is kept."""
    bases, size = Bases(100 * 8 * len(UNIT)), 40
    wanted = [basis_of(Bases(0), size, UNIT[:k]) for k in range(3, 8)]
    errors = []

    def work(first):
        for k in range(first, first + 20):
            found = basis_of(bases, size, UNIT[: 3 + k % 5])
            if not torch.equal(found, wanted[k % 5]):
                errors.append(k)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [basis_of(bases, size, UNIT[: 3 + k]) for k in range(5)]
    assert not errors
    assert bases.kept_bytes <= 100 * 8 * len(UNIT)
    assert all(torch.equal(one, other) for one, other in zip(kept, wanted, strict=True))


def test_the_bases_of_calls_are_kept_for_later_ones():
    """A training loop makes no basis twice: the same spline of other points shares it."""
    spline = spline_of(np.asarray(UNIT) * 1.25)
    generate_grid(spline, (6, 6))
    kept_bytes = BASES.kept_bytes
    other = spline.with_parameters(spline.points + 1)
    assert torch.allclose(generate_grid(other, (6, 6)), generate_grid(spline, (6, 6)) + 1)
    assert BASES.kept_bytes == kept_bytes
    description = *other.settings, (6, 6), "normalized", False, torch.device("cpu")
    assert BASES.get(*description) is BASES.get(*description)
    assert BASES.kept_bytes == kept_bytes


def test_a_forked_process_makes_bases_of_its_own():
    """Even if another thread was at the cache meanwhile, and so holds its lock for ever."""
    basis_of(BASES, 4)
    with BASES._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits
            kept_bytes = BASES.kept_bytes
            basis_of(BASES, 4)
            os._exit(0 if kept_bytes == 0 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_large_grids_are_those_of_their_items():
    """Their sums are taken of a few items at a time, to the same bits as those of one."""
    size = (50, 100)
    count = MAX_TERMS // (len(UNIT) * size[0] * size[1]) + 1
    spline = spline_of(np.asarray(UNIT) * 2)
    points = spline.points + random_values(4, (count, len(UNIT), 2), torch.float64)
    grad = random_values(5, (count, *size, 2), torch.float64)
    many = spline.with_parameters(points)
    grids, gradients = generate_grid(many, size), generate_grid_gradients(grad, many)
    for n in range(0, count, 7):
        one = spline.with_parameters(points[n : n + 1])
        assert torch.equal(grids[n], generate_grid(one, size)[0])
        assert torch.equal(gradients[n], generate_grid_gradients(grad[n : n + 1], one)[0])
