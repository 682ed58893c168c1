"""Aligns images, or volumes, by gradient descent; every forward and backward is remote.

The loss is the mean squared difference of the images at the exposure (gain and offset) at which
they fit best. It descends a pyramid from coarse to fine, because a blurred image has a wide basin
of attraction; normalized coordinates make one theta mean the same on every level. The coarse
levels compare everywhere, so that the image cannot flee out of sight; the finest one compares only
pixels that are wholly covered, so that the border does not pull. An affine map comes first; then,
given control points, the spline that begins as this map, on the two finest levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._client import Client
from stn_client._errors import invalid
from stn_client._transforms import Affine, ThinPlateSpline

Array = NDArray[Any]

_SMALLEST_PX = 16
"""Below this, an image has too few edges left to align."""


_COVERED = 0.999
"""A pixel that the border of the moving image touches would pull at it, so it does not count."""


_ROUNDING = 1e-12
"""Loss that rounding leaves of images that fit: its gradient points nowhere."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where the descent stands.

    Attributes:
        level: Of the pyramid; 0 is full size.
        iteration: Within the level, from 0.
        loss: Mean squared difference before the step, in units of variance.
        theta: (1, 2, 3), of volumes (1, 3, 4), after the step; normalized coordinates, fixed to
            moving. While a spline is looked for, it is the affine map that it began as.
        transform: What the step has found, for `Client.warp`: the `Affine` of theta, or the spline.
        warped: The moving image before the step, standardized, (1, C, [D,] H, W) of this level.
    """

    level: int
    iteration: int
    loss: float
    theta: Array
    transform: Affine | ThinPlateSpline
    warped: Array


def align(
    client: Client,
    fixed: Array,
    moving: Array,
    *,
    iterations: int = 80,
    learning_rate: float = 0.02,
    control_points: ArrayLike | None = None,
) -> Iterator[Step]:
    """An iterator over the steps of a search, the transform of whose last one is the result.

    With it, `client.warp(moving, transform, fixed's size)` looks like `fixed`. Nothing is computed
    before the first step is asked for; whoever has seen enough may stop.

    Shapes:
        fixed    (1, C, [D,] H, W)      float32
        moving   (1, C, [D2,] H2, W2)   float32

    Args:
        client: Where every warp and gradient is computed.
        fixed: The image to match.
        moving: The image to warp.
        iterations: Steps on each level of the pyramid.
        learning_rate: Of the coarsest level, in normalized units; halved on each finer one.
        control_points: Those of a `ThinPlateSpline`, (K, 2), in normalized coordinates of `fixed`:
            after the affine map, a map that bends is looked for. Of images only.

    Yields:
        Every step, of all levels of the pyramid from coarse to fine, each as soon as it is done.

    Raises:
        InvalidRequestError: An image has another shape, or is constant: there is nothing to align;
            or there are control points for volumes.
        StnClientError: As the methods of `Client`.

    Example:
        >>> *_, last = align(stn, fixed, moving)
        >>> aligned = stn.warp(moving, last.transform, fixed.shape[2:])
    """
    images = [_standardized(name, image) for name, image in (("fixed", fixed), ("moving", moving))]
    theta = _identity(fixed)
    if control_points is not None and fixed.ndim != 4:
        got = f"got some, and {fixed.ndim - 2}-D volumes. Splines are of images only."
        raise invalid("control_points", f"expected none, or images to align, {got}")
    pyramids = [_pyramid(client, image) for image in images]
    pyramid = list(zip(*pyramids, strict=False))
    rates = [learning_rate / 2 ** (len(pyramid) - 1 - level) for level in range(len(pyramid))]
    transform: Any = Affine(theta)
    for level in reversed(range(len(pyramid))):
        for step in _descend(client, pyramid[level], level, transform, iterations, rates[level]):
            transform = step.transform
            yield step
    if control_points is None:
        return
    theta, control = transform.theta, np.asarray(control_points)
    points = (control @ theta[0, :, :2].T + theta[0, :, 2]).astype(np.float32)
    transform = ThinPlateSpline(points[None], control_points=control)
    for level in reversed(range(min(len(pyramid), 2))):
        for step in _descend(client, pyramid[level], level, transform, iterations, rates[level]):
            transform = step.transform
            yield replace(step, theta=theta)


def _descend(
    client: Client,
    images: tuple[Array, Array],
    level: int,
    transform: Affine | ThinPlateSpline,
    iterations: int,
    rate: float,
) -> Iterator[Step]:
    """The steps on one level; as theta they have whatever the parameters are."""
    fixed, moving = images[0], _with_mask(images[1])
    adam = _Adam(rate, iterations)
    for iteration in range(iterations):
        warped = client.warp(moving, transform, fixed.shape[2:])
        mask = warped[:, -1:] >= _COVERED if level == 0 else np.ones_like(fixed[:, :1])
        loss, grad_warped = _masked_loss(warped, fixed, mask)
        if loss > _ROUNDING:
            gradients = client.warp_gradients(grad_warped, moving, transform, needs=["transform"])
            step = adam.step(np.asarray(gradients.transform))
            transform = _moved(transform, -step)
        yield Step(level, iteration, loss, transform.parameters, transform, warped[:, :-1])


def _moved(transform: Affine | ThinPlateSpline, step: Array) -> Affine | ThinPlateSpline:
    """The same kind of transform with other parameters."""
    parameters = (transform.parameters + step).astype(np.float32)
    if isinstance(transform, Affine):
        return Affine(parameters)
    return replace(transform, points=parameters)


class _Adam:
    """Adam (Kingma and Ba, 2015) with a rate that falls to zero over its steps."""

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._steps = rate, steps
        self._taken = 0
        self._mean: Any = 0.0
        self._square: Any = 0.0

    def step(self, gradient: Array) -> Array:
        """What to subtract from the parameters."""
        pace = self._rate * (1 - self._taken / self._steps)
        self._taken += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.99 * self._square + 0.01 * gradient**2
        mean = self._mean / (1 - 0.9**self._taken)
        square = self._square / (1 - 0.99**self._taken)
        step: Array = pace * mean / (np.sqrt(square) + 1e-12)
        return step


def _masked_loss(warped: Array, fixed: Array, mask: Array) -> tuple[float, Array]:
    """Mean squared difference under a mask, and its gradient to the warped channels.

    The warped image is first brought to the exposure (gain and offset) at which it fits best. As
    that is a minimum, its own dependence on the image drops out of the gradient.
    """
    weight = np.broadcast_to(mask, fixed.shape) / max(1.0, mask.sum() * fixed.shape[1])
    image = warped[:, :-1] - (weight * warped[:, :-1]).sum()
    target = fixed - (weight * fixed).sum()
    gain = (weight * image * target).sum() / ((weight * image**2).sum() + 1e-12)
    difference = gain * image - target
    gradient = np.zeros_like(warped)
    gradient[:, :-1] = 2 * gain * weight * difference
    return float((weight * difference**2).sum()), gradient


def _identity(image: Array) -> Array:
    """The theta that leaves an image, or a volume, as it is."""
    dims = image.ndim - 2
    return np.eye(dims, dims + 1, dtype=np.float32)[None]


def _standardized(name: str, image: Array) -> Array:
    if not isinstance(image, np.ndarray) or image.ndim not in {4, 5} or len(image) != 1:
        got = getattr(image, "shape", type(image).__name__)
        raise invalid(name, f"expected an array (1, C, [D,] H, W), got {got}.")
    if image.std() == 0:
        raise invalid(name, f"expected edges to align, got {image.flat[0]} everywhere.")
    standardized: Array = (image - image.mean()) / image.std()
    return standardized


def _with_mask(image: Array) -> Array:
    """The image with a channel of ones: warped, it says how much of a pixel is covered."""
    return np.concatenate([image, np.ones_like(image[:, :1])], axis=1)


def _pyramid(client: Client, image: Array) -> list[Array]:
    """The image, then half of it, and so on; halving is a warp, too."""
    levels = [image]
    while min(levels[-1].shape[2:]) >= 2 * _SMALLEST_PX:
        half = tuple((size + 1) // 2 for size in levels[-1].shape[2:])
        levels.append(client.warp(levels[-1], Affine(_identity(image)), half, padding="border"))
    return levels
