"""Registers images, or volumes: finds the transform by which one looks like another.

Both stay on the server; a step is one call of `Client.objective`, of some hundred bytes each way.
The search descends a pyramid from coarse to fine, because a blurred image has a wide basin of
attraction; normalized coordinates make one theta mean the same on every level. Maps with few
parameters come first: a translation, then a similarity, on the coarsest level; then the affine map,
or the homography, down to full size; then, if asked for, what bends. Sums of squares (and of
Huber) are descended by Levenberg and Marquardt's method, all else by Adam.

The coarse levels compare everywhere, so that the image cannot flee out of sight; the finest one
compares only where both are, so that the border does not pull. For sums of squares, the exposure
(gain and offset) at which the images fit best is fitted on every level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._arguments import check_copy
from stn_client._arrays import AnyArray, as_array, operand
from stn_client._checks import check_count
from stn_client._client import Client
from stn_client._errors import invalid
from stn_client._layouts import LAYOUTS, layout_of, with_batch
from stn_client._prepared_call import Objective
from stn_client._transforms import Affine, Flow, Homography, ThinPlateSpline
from stn_client.geometry._arguments import numbers

Array = NDArray[Any]
Found = Affine | Homography | ThinPlateSpline | Flow

STAGES = "translation", "similarity", "affine", "homography", "spline", "flow"
"""What may be looked for, in the order in which it is; `align` says more."""

_SMALLEST_PX = 16
"""Below this, an image has too few edges left to align."""

_STILL_PX = 1e-3
"""A step that moves no corner farther ends the search on a level."""

_EXPOSURES = 3
"""Number of times that the exposure is fitted on the finest level; on others it is once."""

_WHOLE = 0.999
"""The share of a pixel of a coarse level from which on it is one."""

_MOST_DAMPING = 1e8
"""Levenberg and Marquardt's method gives up there: no step makes anything better."""


@dataclass(frozen=True, slots=True)
class Step:
    """State of the search after one step.

    Attributes:
        stage: What is looked for, one of `STAGES`.
        level: Of the pyramid; 0 is full size.
        iteration: Within the stage and the level, from 0.
        loss: After the step; of "ssd" in units of the variance of the fixed image.
        theta: (1, 2, 3), of volumes (1, 3, 4), of a homography (1, 3, 3); normalized coordinates,
            fixed to moving. While something that bends is looked for, it is the map that it began
            as.
        transform: What has been found, for `Client.warp`.
    """

    stage: str
    level: int
    iteration: int
    loss: float
    theta: Array
    transform: Found


@dataclass(frozen=True, slots=True)
class _Level:
    """Two images of one size of the pyramid, on the server."""

    client: Client
    number: int
    fixed: Array
    """Standardized, and here: its exposure is fitted."""
    moving: Any
    moving_size: tuple[int, ...]
    counted: Array
    """Pixels of the fixed image that have weight, in its shape but for one channel."""
    weights: Any
    options: dict[str, Any]
    """Options of the objective."""

    def comparing(self, transform: Found) -> tuple[Callable[..., Objective], float]:
        """Returns the function that compares the images, and the factor of its losses."""
        fixed, gain = self.fixed, 1.0
        # Correlation does not see exposure; the other losses would take it for misalignment.
        if self.options["loss"] != "ncc":
            gain, offset = self._exposure(transform)
            # The fixed image takes the moving one's exposure, as it has no gradient. A squared loss
            # then is 1 / gain² of what it was, which the second value undoes.
            fixed = ((fixed - offset) / gain).astype(np.float32)
        held = self.client.upload(fixed)
        # On coarse levels all pixels count, or a map could shrink the loss by moving images apart.
        domain: Any = "all" if self.number else "overlap"
        padding: Any = "border"

        def compare(one: Found, *needs: str) -> Objective:
            return self.client.objective(
                self.moving,
                held,
                one,
                weights=self.weights,
                needs=needs,
                domain=domain,
                padding=padding,
                **self.options,
            )

        return compare, gain**2

    def _exposure(self, transform: Found) -> tuple[float, float]:
        """Returns gain and offset that bring the warped moving image closest to the fixed."""
        size = self.fixed.shape[2:]
        warped = self.client.warp(self.moving, transform, size, padding="border")
        # Padding repeats border pixels, which say nothing about exposure.
        seen = np.broadcast_to(self._covered(transform) & self.counted, self.fixed.shape)
        if seen.sum() < 2:
            return 1.0, 0.0
        image, target = warped[seen].astype(np.float64), self.fixed[seen].astype(np.float64)
        centred = image - image.mean()
        variance = centred @ centred
        gain = float(centred @ (target - target.mean()) / variance) if variance else 0.0
        if gain < 0.1:  # they do not fit yet
            return 1.0, 0.0
        return gain, float(target.mean() - gain * image.mean())

    def _covered(self, transform: Found) -> NDArray[np.bool_]:
        """Returns which pixels of the fixed image read within the moving one."""
        size = self.fixed.shape[2:]
        points = _lattice(size)
        if isinstance(transform, ThinPlateSpline):
            points = self.client.generate_grid(transform, size)[0]
        elif isinstance(transform, Flow):
            points = points + transform.displacement[0]
        else:
            flat = _mapped(transform.parameters, points.reshape(-1, len(size)).T)
            points = flat.T.reshape(points.shape)
        # The outermost pixel centres, in units where -1 and 1 are the edges of the image.
        most = 1 - 1 / np.array(self.moving_size[::-1])
        inside: NDArray[np.bool_] = np.all(np.abs(points) <= most, axis=-1)
        return inside


def align(  # noqa: PLR0913 - each is a choice of its own
    client: Client,
    fixed: AnyArray,
    moving: AnyArray,
    *,
    stages: str | Sequence[str] | None = None,
    loss: Literal["ssd", "huber", "ncc"] = "ssd",
    delta: float = 1.0,
    weights: AnyArray | None = None,
    iterations: int = 80,
    learning_rate: float = 0.02,
    control_points: ArrayLike | None = None,
    smoothness: float = 0.1,
    layout: Literal["NCHW", "NHWC", "CHW", "HWC", "HW"] | None = None,
) -> Iterator[Step]:
    """Returns an iterator over the steps of a search; the transform of the last is the result.

    With it, `client.warp(moving, transform, fixed's size)` looks like `fixed`. Arguments are
    checked at once; nothing is computed before the first step is asked for, and whoever has seen
    enough may stop.

    Shapes:
        fixed     (1, C, [D,] H, W)      any real dtype
        moving    (1, C, [D2,] H2, W2)   any real dtype
        weights   ([D,] H, W)            any real dtype, with or without axes of length 1

    Args:
        client: Where everything is computed.
        fixed: The image to match: an array as `Client.warp` takes it, or an image of Pillow.
        moving: The image to warp, likewise.
        stages: What to look for, each beginning where the one before ended, in the order of
            `STAGES`, or one of them; None: "translation", of images "similarity", and "affine",
            and with control points "spline". "similarity", "homography" and "spline" are of images
            only.
        loss: How images are compared, as of `Client.objective`; "ncc" where tissues or cameras
            differ by more than exposure.
        delta: Of "huber", in units of the standard deviation of the fixed image.
        weights: How much each pixel of the fixed image counts, such as a mask; None: all alike.
        iterations: The most steps of a stage on each level of the pyramid.
        learning_rate: Of Adam on the coarsest level, in normalized units; halved on each finer one.
        control_points: Those of a `ThinPlateSpline`, (K, 2), in normalized coordinates of `fixed`.
        smoothness: Weight of the mean squared derivatives of a flow, in px a px.
        layout: Order of the axes of both images, as of `Client.warp`; None: that of an image of
            Pillow, else "NCHW".

    Returns:
        Every step, each as soon as it is done.

    Raises:
        InvalidRequestError: An image has another shape, is constant, so that there is nothing to
            align, or holds numbers that are not finite; weights are those of another image; or
            stages make no sense.
        StnClientError: As the methods of `Client`.

    Example:
        >>> *_, last = align(stn, fixed, moving)
        >>> aligned = stn.warp(moving, last.transform, fixed.shape[2:])
    """
    target, source = _image("fixed", fixed, layout), _image("moving", moving, layout)
    if source.ndim != target.ndim or source.shape[1] != target.shape[1]:
        kind = "a volume" if target.ndim == 5 else "an image"
        expected = f"expected {kind} of {target.shape[1]} channels, as fixed"
        raise invalid("moving", f"{expected}, got (N, C, ...) = {source.shape}. Convert one.")
    counted = None if weights is None else _weights(weights, target.shape[2:])
    check_count("iterations", iterations)
    chosen = _checked(stages, target.ndim - 2, control_points)
    images = [_standardized("fixed", target, counted), _standardized("moving", source, None)]

    def steps() -> Iterator[Step]:
        levels = _levels(client, images, counted, {"loss": loss, "delta": delta})
        yield from _stages(levels, chosen, iterations, learning_rate, control_points, smoothness)

    return steps()


def _stages(
    levels: Sequence[_Level],
    chosen: Sequence[str],
    iterations: int,
    learning_rate: float,
    control_points: ArrayLike | None,
    smoothness: float,
) -> Iterator[Step]:
    """Yields the steps of all stages, each from where the one before ended."""
    transform: Found = Affine(_identity(levels[0].fixed).astype(np.float64))
    matrices = [stage for stage in chosen if stage in STAGES[:4]]
    for stage in matrices:
        if stage == "homography":
            last_row = [[[0.0, 0.0, 1.0]]]
            transform = Homography(np.concatenate([transform.parameters, last_row], axis=1))
        # The coarsest level tells the next stage where to begin; only the last one is refined.
        for level in reversed(levels if stage == matrices[-1] else levels[-1:]):
            for step in _search(level, stage, transform, iterations, learning_rate, len(levels)):
                transform = step.transform
                yield step
    theta = transform.parameters
    for stage in [stage for stage in chosen if stage not in matrices]:
        finest = levels[:2] if stage == "spline" else levels
        for level in reversed(finest):
            transform = _bent(level.client, stage, theta, transform, control_points, level)
            penalty = smoothness if stage == "flow" else 0.0
            rate = learning_rate / 2 ** (len(levels) - 1 - level.number)
            for step in _by_adam(level, stage, transform, iterations, rate, penalty):
                transform = step.transform
                yield replace(step, theta=theta)


def _checked(
    stages: str | Sequence[str] | None, dims: int, control_points: ArrayLike | None
) -> list[str]:
    """Returns the stages in order, checked."""
    if isinstance(stages, str):
        stages = [stages]
    flat = ("similarity", "homography", "spline")
    if stages is None:
        of_images = ["similarity"] if dims == 2 else []
        bends = [] if control_points is None else ["spline"]
        stages = ["translation", *of_images, "affine", *bends]
    expected = f"expected some of {', '.join(STAGES)}, one of the first four among them"
    # An array and a tensor say that they can be iterated over, whatever is in them.
    if not isinstance(stages, Iterable) or hasattr(stages, "shape"):
        raise invalid("stages", f"{expected}, got {stages!r}.")
    stages = list(stages)
    chosen = [stage for stage in STAGES if stage in stages]
    if len(chosen) != len(stages) or not set(chosen) & set(STAGES[:4]):
        raise invalid("stages", f"{expected}, got {stages}.")
    for stage in chosen:
        if dims != 2 and stage in flat:
            name = "control_points" if stage == "spline" else "stages"
            own = ", ".join(one for one in STAGES if one not in flat)
            raise invalid(name, f"expected stages of volumes, {own}, got {stage!r}.")
    if ("spline" in chosen) != (control_points is not None):
        expected = 'expected some for stage "spline", and none without it'
        raise invalid("control_points", f"{expected}, got {control_points!r}.")
    if control_points is not None:
        shape = numbers("control_points", control_points).shape
        if len(shape) != 2 or shape[0] < 3 or shape[1] != 2:
            expected = "expected at least three points (x, y), (K, 2)"
            raise invalid("control_points", f"{expected}, got shape {shape}.")
    return chosen


def _search(
    level: _Level,
    stage: str,
    transform: Any,
    iterations: int,
    rate: float,
    count: int,
) -> Iterator[Step]:
    """Yields the steps of a map that is a matrix, on one level."""
    basis = _basis(stage, level)
    if level.options["loss"] == "ncc":
        # Rates are steps in the unit of an image: a finer level starts closer, and moves less.
        pace = rate / 2 ** (count - 1 - level.number)
        yield from _by_adam(level, stage, transform, iterations, pace, basis=basis)
        return
    for _ in range(1 if level.number else _EXPOSURES):
        before = transform
        for step in _by_gauss_newton(level, stage, transform, basis, iterations):
            transform = step.transform
            yield step
        if _moved_px(transform.parameters - before.parameters, level) < _STILL_PX:
            return


def _by_gauss_newton(
    level: _Level, stage: str, transform: Any, basis: Array, iterations: int
) -> Iterator[Step]:
    """Yields steps of Levenberg and Marquardt's method on the parameters of a stage."""
    compare, scale = level.comparing(transform)
    needs = "gradient", "gauss_newton"
    found = compare(transform, *needs)
    # Nearly Gauss-Newton from the start; each failure damps
    # ten times as much, each success a tenth.
    damping = 1e-4
    for iteration in range(iterations):
        gradient = basis.T @ np.asarray(found.gradient, np.float64).ravel()
        hessian = basis.T @ np.asarray(found.gauss_newton)[0] @ basis
        diagonal = np.diag(hessian).copy()
        diagonal[diagonal <= 0] = 1.0  # nothing depends on it, and its gradient is 0
        while True:
            # Marquardt's scaling: parameters of different units are damped alike.
            damped = hessian + damping * np.diag(diagonal)
            # lstsq, not solve: without texture in some direction the matrix is nearly singular.
            step = -basis @ np.linalg.lstsq(damped, gradient, rcond=None)[0]
            moved = replace(transform, theta=transform.theta + step.reshape(transform.theta.shape))
            tried = compare(moved, *needs)
            # A map that reads nothing of the moving image has no loss, and must not win.
            is_better = tried.count[0] > 0 and tried.value[0] < found.value[0]
            still = _moved_px(step.reshape(transform.theta.shape), level) < _STILL_PX
            if is_better or still or damping > _MOST_DAMPING:
                break
            damping *= 10
        if is_better:
            # The floor lets damping grow again within a few tries when steps begin to fail.
            transform, found, damping = moved, tried, max(damping / 10, 1e-8)
        value = float(found.value[0]) * scale
        yield Step(stage, level.number, iteration, value, transform.theta, transform)
        if still or not is_better:
            return


def _by_adam(
    level: _Level,
    stage: str,
    transform: Any,
    iterations: int,
    rate: float,
    smoothness: float = 0.0,
    basis: Array | None = None,
) -> Iterator[Step]:
    """Yields steps of Adam (Kingma and Ba, 2015), with a rate that falls to zero."""
    compare, scale = level.comparing(transform)
    mean: Any = 0.0
    square: Any = 0.0
    for iteration in range(iterations):
        found = compare(transform, "gradient")
        gradient = np.asarray(found.gradient, np.float64)
        value = float(found.value[0]) * scale
        if smoothness:
            penalty, of_penalty = _roughness(transform.parameters)
            value, gradient = value + smoothness * penalty, gradient + smoothness * of_penalty
        if basis is not None:  # only along what the stage may change
            gradient = (basis @ np.linalg.pinv(basis) @ gradient.ravel()).reshape(gradient.shape)
        pace = rate * (1 - iteration / iterations)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        # Corrects the bias of the means, which began at 0.
        first, second = mean / (1 - 0.9 ** (iteration + 1)), square / (1 - 0.99 ** (iteration + 1))
        if stage == "flow":  # one scale for all pixels: those without edges follow the others
            second = second.mean()
        moved = transform.parameters - pace * first / (np.sqrt(second) + 1e-12)
        transform = _with(transform, moved.astype(transform.parameters.dtype))
        yield Step(stage, level.number, iteration, value, transform.parameters, transform)


def _with(transform: Any, parameters: Array) -> Any:
    """Returns the same kind of transform with other parameters."""
    names = {ThinPlateSpline: "points", Flow: "displacement"}
    return replace(transform, **{names.get(type(transform), "theta"): parameters})


def _bent(
    client: Client,
    stage: str,
    theta: Array,
    transform: Any,
    control_points: ArrayLike | None,
    level: _Level,
) -> Any:
    """Returns the transform with which a bending stage begins on a level."""
    if stage == "spline":
        if isinstance(transform, ThinPlateSpline):
            return transform
        control = np.asarray(control_points)
        points = _mapped(theta, control.T).T.astype(np.float32)
        return ThinPlateSpline(points[None], control_points=control)
    size = level.fixed.shape[2:]
    if isinstance(transform, Flow):
        field = np.moveaxis(transform.displacement, -1, 1)
        identity = Affine(np.eye(len(size), len(size) + 1)[None])
        # Displacements are normalized, so that they hold for a finer level as they are.
        resized = client.warp(np.ascontiguousarray(field), identity, size, padding="border")
        return Flow(np.ascontiguousarray(np.moveaxis(resized, 1, -1)))
    if isinstance(transform, ThinPlateSpline):
        grid: Array = client.generate_grid(transform, size)
        return Flow((grid - _lattice(size)).astype(np.float32))
    points = _lattice(size)
    mapped = _mapped(theta, points.reshape(-1, len(size)).T).T.reshape(points.shape)
    return Flow((mapped - points).astype(np.float32)[None])


def _roughness(displacement: Array) -> tuple[float, Array]:
    """Returns the mean squared derivatives of a flow, in px a px, and their gradient."""
    gradient = np.zeros(displacement.shape)
    total = 0.0
    sizes = np.array(displacement.shape[1:-1][::-1]) / 2  # of x, y and z in px
    for axis in range(1, displacement.ndim - 1):
        difference = np.diff(displacement, axis=axis) * sizes
        count = max(1, difference.size)
        total += float((difference**2).sum()) / count
        pulled = 2 * difference * sizes / count
        before, after = [slice(None)] * displacement.ndim, [slice(None)] * displacement.ndim
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        gradient[tuple(before)] -= pulled
        gradient[tuple(after)] += pulled
    return total, gradient


def _basis(stage: str, level: _Level) -> Array:
    """Returns (K, M): the derivative of the K numbers of theta by the M parameters of a stage."""
    size = level.fixed.shape[2:]
    dims = len(size)
    if stage == "homography":
        # The last entry of a homography stays 1: only eight of its nine numbers are free.
        return np.eye(9, 8)
    numbers = np.eye(dims * (dims + 1))
    if stage == "affine":
        return numbers
    shifts = numbers[:, dims :: dims + 1]
    if stage == "translation":
        return shifts
    (height, width), (rows, columns) = size, level.moving_size
    # In px, a turn is rigid; theta has units of half an image, those of fixed and of moving.
    scale = [width / columns, 0, 0, 0, height / rows, 0]
    turn = [0, -height / columns, 0, width / rows, 0, 0]
    return np.column_stack([scale, turn, shifts])


def _moved_px(step: Array, level: _Level) -> float:
    """Returns how far a change of theta moves a corner at most, in px of the moving image."""
    dims = len(level.moving_size)
    rows = np.abs(step[0]).sum(1)[:dims]
    return float((rows * np.array(level.moving_size[::-1]) / 2).max())


def _mapped(theta: Array, points: Array) -> Array:
    """Applies a matrix, (1, D, D + 1) or (1, 3, 3), to points, (D, N)."""
    dims = len(points)
    found = theta[0, :, :dims] @ points + theta[0, :, dims:]
    return found if len(found) == dims else found[:dims] / found[dims]


def _lattice(size: Sequence[int]) -> Array:
    """Returns normalized coordinates x, y and z of pixel centres, ([D,] H, W, 2 or 3)."""
    axes = [(2 * np.arange(count) + 1) / count - 1 for count in size]
    return np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1)


def _levels(
    client: Client, images: Sequence[Array], weights: Array | None, options: dict[str, Any]
) -> list[_Level]:
    """Returns the pyramid, from fine to coarse."""
    pyramids = [_pyramid(client, image) for image in images]
    count = min(map(len, pyramids))
    masks: list[Any] = [None] * count
    if weights is not None:
        # A pixel of a coarse level counts if all that it is made of does.
        counted = _pyramid(client, (weights > 0).astype(np.float32))
        blurred = _pyramid(client, weights.astype(np.float32))
        masks = [w * (c > _WHOLE) for w, c in zip(blurred, counted, strict=True)]
    return [
        _Level(
            client,
            number,
            fixed,
            client.upload(moving),
            moving.shape[2:],
            np.ones((1,) * fixed.ndim, bool) if mask is None else mask > 0,
            None if mask is None else client.upload(mask),
            options,
        )
        for number, (fixed, moving, mask) in enumerate(zip(*pyramids, masks, strict=False))
    ]


def _identity(image: Array) -> Array:
    """Returns the theta that leaves an image, or a volume, as it is."""
    dims = image.ndim - 2
    return np.eye(dims, dims + 1, dtype=np.float32)[None]


def _image(name: str, given: AnyArray, layout: str | None) -> Array:
    """Returns an image or a volume as (1, C, [D,] H, W), its numbers as float32 or float64."""
    found = operand(name, given)
    order = layout_of(layout, found.layout)
    array = with_batch(name, _numbers(name, found.array), order)
    if array.ndim not in {4, 5} or len(array) != 1 or 0 in array.shape:
        got = f"got shape {found.array.shape}"
        raise invalid(name, f"expected one image {LAYOUTS[order].shape}, N = 1, {got}.")
    return np.moveaxis(array, -1, 1) if LAYOUTS[order].on_wire == "NHWC" else array


def _weights(given: AnyArray, size: tuple[int, ...]) -> Array:
    """Returns weights as (1, 1, [D,] H, W)."""
    array = _numbers("weights", as_array("weights", given))
    if [one for one in array.shape if one != 1] != [one for one in size if one != 1]:
        got = f"got shape {array.shape}"
        raise invalid("weights", f"expected one for each pixel of fixed, {size}, {got}.")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() > 0):
        got = f"got numbers from {array.min()} to {array.max()}"
        raise invalid("weights", f"expected finite numbers of at least 0, some above it, {got}.")
    # Only their ratios matter, and sums of very large ones would be infinite.
    return np.ldexp(array, -_exponent(array)).reshape(1, 1, *size)


def _numbers(name: str, array: Array) -> Array:
    """Returns an array as float32 or, where that could lose digits, float64."""
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise invalid(name, f"expected real numbers, got {array.dtype}. Cast it.")
    check_copy(name, array)
    return array.astype(np.float32 if array.itemsize < 4 or array.dtype == "f4" else np.float64)


def _standardized(name: str, image: Array, weights: Array | None) -> Array:
    """Returns an image with mean 0 and variance 1 where it counts, and 0 elsewhere."""
    counted = np.broadcast_to(True if weights is None else weights > 0, image.shape)
    seen = image[counted]
    if not np.isfinite(seen).all():
        advice = "Replace them; those of fixed may have the weight 0 instead."
        raise invalid(name, f"expected finite numbers, got some that are not. {advice}")
    # Squares of very large numbers would be infinite, and those of very small ones 0.
    exponent = _exponent(seen)
    seen = np.ldexp(seen, -exponent)
    if seen.std() == 0:
        where = "everywhere" if weights is None else "wherever weights are above 0"
        raise invalid(name, f"expected edges to align, got {image[counted][0]} {where}.")
    scaled = (np.ldexp(image, -exponent) - seen.mean()) / seen.std()
    return np.where(counted, scaled, 0).astype(np.float32)


def _exponent(numbers: Array) -> int:
    """Returns the exponent of the least power of 2 that is above all magnitudes."""
    return int(np.frexp(np.abs(numbers).max())[1])


def _pyramid(client: Client, image: Array) -> list[Array]:
    """Returns the image, then half of it, and so on; halving is a warp, too."""
    levels = [image]
    while min(levels[-1].shape[2:]) >= 2 * _SMALLEST_PX:
        half = tuple((size + 1) // 2 for size in levels[-1].shape[2:])
        levels.append(client.warp(levels[-1], Affine(_identity(image)), half, padding="border"))
    return levels
