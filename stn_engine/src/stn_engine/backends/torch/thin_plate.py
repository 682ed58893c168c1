"""Thin-plate splines: a fixed basis on the target lattice, linear in the parameters; section 4.

The basis B is worked out by NumPy in one thread and in one order, so that its bits depend on
nothing but the spline and the lattice: linear algebra libraries round by their count of threads.
"""

import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, cat

from stn_engine.backends._constants import constant
from stn_engine.backends.torch.lattices import compute_dtype
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.call import Call
from stn_engine.coords import source_axis, target_axis
from stn_engine.modes import is_intercepted
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.spec import Coordinates
from stn_engine.transforms import ThinPlateSpline, Transform

Pairs: TypeAlias = tuple[tuple[float, float], ...]
Array: TypeAlias = NDArray[np.float64]

MAX_KEPT_BYTES = 64 * 2**20
"""The most bytes of bases that are kept for later calls: 16 control points on 512 x 512 pixels take
half."""

CHUNK_POINTS = 1024
"""Target points whose terms are in memory, and near the processor, at a time."""

MAX_TERMS = 2**20
"""The most terms of sums over control points, for each coordinate, that are in memory at once, in
16 MiB; those of one item may be more, twice as large as its basis."""

FAR = 2.0
"""Radii from the middle of the control points at which the far field begins."""

STIFF = 2.0**60
"""Regularization, at a radius of 1, that leaves but the affine map of least squares."""


def points(problem: WarpProblem) -> Tensor:
    """Returns source points in pixels, (N, 2, P), rounded once."""
    slope, offset = _unit_change(problem)
    x = _combined(problem.transform, warp_basis(problem))
    return (x * slope + offset).to(compute_dtype(problem))


def points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Returns the gradient of the control points' source points from that of ``points``."""
    slope, _ = _unit_change(problem)
    grad = grad_points.double() * slope
    return _combined_adjoint(problem.transform, warp_basis(problem), grad)


def grid(problem: GridProblem) -> Tensor:
    """Returns the spline on the target lattice, (N, 2, Ho, Wo), rounded once."""
    x = _combined(problem.transform, _grid_basis(problem)).to(problem.output_dtype)
    return x.view(len(x), 2, *problem.output_size)


def grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Returns the gradient of the control points' source points from that of ``grid``."""
    grad = grad_grid.double().flatten(2)
    return _combined_adjoint(problem.transform, _grid_basis(problem), grad)


def _combined(transform: Transform, basis: Tensor) -> Tensor:
    """Returns B·Y, summed by a fixed tree over the control points: (N, 2, P), float64."""
    source = transform.parameters.double().transpose(1, 2)
    return cat([tree_sum(part[..., None] * basis, 2) for part in _parts(source, basis)])


def _combined_adjoint(transform: Transform, basis: Tensor, grad: Tensor) -> Tensor:
    """Returns Bᵀ times a gradient by a fixed tree over the target points: (N, K, 2)."""
    of_source = cat([tree_sum(part[:, :, None] * basis, 3) for part in _parts(grad, basis)])
    return of_source.transpose(1, 2).to(transform.parameters.dtype)


def _parts(items: Tensor, basis: Tensor) -> Sequence[Tensor]:
    """Yields items whose terms are in memory together: as many as ``MAX_TERMS`` allows, or one."""
    count = max(1, MAX_TERMS // max(1, basis.numel()))
    return [items[first : first + count] for first in range(0, max(1, len(items)), count)]


def warp_basis(problem: WarpProblem) -> Tensor:
    """Returns B transposed, (K, P), float64: the spline is B times its points."""
    spec, size = problem.spec, problem.output_shape[2:]
    unit = spec.coordinates, spec.align_corners
    return BASES.get(*_settings(problem.transform), size, *unit, problem.feature_map.device)


def warp_basis_of(call: Call) -> Tensor:
    """Returns the ``warp_basis`` of a call of a warp, or of its gradients."""
    spec, size = call.spec, call.output_shape[2:]
    settings = cast("tuple[Pairs, float]", call.settings)
    return BASES.get(*settings, size, spec.coordinates, spec.align_corners, call.device)


def _grid_basis(problem: GridProblem) -> Tensor:
    transform, size = problem.transform, problem.output_shape[1:-1]
    unit = problem.coordinates, problem.align_corners
    return BASES.get(*_settings(transform), size, *unit, transform.parameters.device)


def _settings(transform: Transform) -> tuple[Pairs, float]:
    spline = cast("ThinPlateSpline", transform)
    return cast("Pairs", spline.control_points), spline.regularization


class Bases:
    """The bases used last, as many as fit into so many bytes.

    Concurrency: any thread may use it. Two that miss the same basis both make it.

    Args:
        max_bytes: Of all that are kept, on whatever device; a larger one is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Empties the cache, and replaces its lock."""
        self._lock = Lock()
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self.kept_bytes = 0
        """The bytes of all that are kept now."""

    def get(self, *description: Any) -> Tensor:
        """Returns ``_basis`` of a description, never to be written to."""
        if is_intercepted():
            return _basis(*description)
        with self._lock:
            if description in self._kept:
                self._kept.move_to_end(description)
                return self._kept[description]
        basis = _basis(*description)
        with self._lock:
            if basis.nbytes <= self._max_bytes and description not in self._kept:
                self._kept[description] = basis
                self.kept_bytes += basis.nbytes
                while self.kept_bytes > self._max_bytes:
                    self.kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return basis


BASES = Bases(MAX_KEPT_BYTES)

# A thread that holds the lock when a process is forked is not there to release it in the child.
os.register_at_fork(after_in_child=BASES.clear)


def _basis(
    control_points: Pairs,
    regularization: float,
    size: tuple[int, int],
    coordinates: Coordinates | str,
    align_corners: bool,  # noqa: FBT001 - a key of the cache, as all are
    device: torch.device,
) -> Tensor:
    """Returns B transposed, (K, P): how far each control point's source point moves every point.

    It takes 8·K·P bytes, and 16·(K + 3)² while it is made.
    """
    control = np.array(control_points).T
    # Splines do not change with the unit, but sums do: about their middle, with a radius of 1,
    # control points lose no digit to where they are and how large.
    middle = control.mean(1, keepdims=True)
    radius = float(np.hypot(*(control - middle)).max())
    control = (control - middle) / radius
    weights = _weights(control, min(regularization / radius / radius, STIFF))

    height, width = size
    y, x = (
        (np.arange(n) * axis.p + axis.q) / axis.r
        for n in size
        for axis in [target_axis(n, coordinates, align_corners=align_corners)]
    )
    target = np.stack((np.tile(x, height), np.repeat(y, width)))
    target = (target - middle) / radius
    basis = np.empty((control.shape[1], target.shape[1]))
    for first in range(0, target.shape[1], CHUNK_POINTS):
        part = np.s_[:, first : first + CHUNK_POINTS]
        # Not a product of matrices, whose libraries have a mind of their own about the order.
        np.einsum("jk,kp->jp", weights, _terms(target[part], control), out=basis[part])
    # A tensor born in inference mode could not be saved for a backward pass later on.
    with torch.inference_mode(mode=False), torch.no_grad():
        return torch.tensor(basis, device=device)


def _weights(control: Array, regularization: float) -> Array:
    """Returns (K, K + 3), by which the terms of a point are multiplied to get B transposed."""
    count = control.shape[1]
    system = np.zeros((count + 3, count + 3))
    system[:, :count] = _terms(control, control)
    system[:count, count:] = system[count:, :count].T
    system[np.diag_indices(count)] += regularization
    # The system is symmetric: B transposed is its inverse times the terms.
    return _inverse(system)[:count]


def _inverse(matrix: Array) -> Array:
    """Returns the inverse, by elimination with pivots, row by row."""
    count = len(matrix)
    rows = np.concatenate((matrix, np.eye(count)), 1)
    for k in range(count):
        # The largest one: the diagonal of a spline's system is 0 without regularization.
        pivot = k + int(abs(rows[k:, k]).argmax())
        rows[[k, pivot]] = rows[[pivot, k]]
        rows[k] /= rows[k, k]
        factors = rows[:, k].copy()
        factors[k] = 0.0
        rows -= factors[:, None] * rows[k]
    return rows[:, count:]


def _terms(at: Array, control: Array) -> Array:
    """Returns U(|p - c_k|) for every k, then 1, x and y, for points (2, P): (K + 3, P).

    U(r) = r²·log r. Far away, where U is large and all but the same for every k, what is the same
    is left out: as sum w_k = sum w_k·c_k = 0, so is the sum of w_k·(|p - c_k|² - |c_k|²), and
    U(|p - c_k|) - (|p - c_k|² - |c_k|²)·log |p| has no large terms that must cancel.
    """
    squared = (at[0] - control[0][:, None]) ** 2 + (at[1] - control[1][:, None]) ** 2
    radial = squared * np.log(np.maximum(squared, 1e-300)) / 2  # 0 at 0
    far = np.hypot(*at) > FAR
    if far.any():
        points = at[:, far]
        square = (points**2).sum(0)
        own = (control**2).sum(0)[:, None]
        inner = control[0][:, None] * points[0] + control[1][:, None] * points[1]
        # Of |p - c_k|² / |p|², whose digits after the 1 count.
        logarithm = np.log1p((own - 2 * inner) / square)
        radial[:, far] = (squared[:, far] * logarithm + own * np.log(square)) / 2
    return np.concatenate((radial, np.ones((1, at.shape[1])), at))


def _unit_change(problem: WarpProblem) -> tuple[Tensor, Tensor]:
    """Returns the slope and offset from source points to pixels, (2, 1) each."""
    spec, (height, width) = problem.spec, problem.feature_map.shape[2:]
    axes = [
        source_axis(size, spec.coordinates, align_corners=spec.align_corners)
        for size in (width, height)
    ]
    device = problem.feature_map.device
    slope = constant(tuple((axis.u / axis.w,) for axis in axes), torch.float64, device)
    return slope, constant(tuple((axis.v / axis.w,) for axis in axes), torch.float64, device)
