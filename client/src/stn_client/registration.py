"""Aligns two images by gradient descent on theta, every forward and backward a remote call.

The loss is the mean squared difference of the images, brought to zero mean and unit variance
first so that exposure does not matter. It descends a pyramid from coarse to fine, because a
blurred image has a wide basin of attraction; normalized coordinates make one theta mean the same
on every level. The coarse levels compare everywhere, so that the image cannot flee out of sight;
the finest one compares only what is covered, so that the border does not pull.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_client._client import Client
from stn_client._transforms import Affine

Array = NDArray[Any]

_IDENTITY = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], np.float32)
_SMALLEST_PX = 16
"""Below this, an image has too few edges left to align."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where the descent stands.

    Attributes:
        level: Of the pyramid; 0 is full size.
        iteration: Within the level, from 0.
        loss: Mean squared difference before the step, in units of variance.
        theta: (1, 2, 3) after the step, normalized coordinates, fixed to moving.
        warped: The moving image before the step, standardized, (1, C, H, W) of this level.
    """

    level: int
    iteration: int
    loss: float
    theta: Array
    warped: Array


def align(
    client: Client,
    fixed: Array,
    moving: Array,
    *,
    iterations: int = 80,
    learning_rate: float = 0.02,
) -> Iterator[Step]:
    """Finds theta such that `client.warp(moving, Affine(theta), fixed's size)` looks like `fixed`.

    Shapes:
        fixed    (1, C, H, W)     float32
        moving   (1, C, H2, W2)   float32

    Args:
        client: Where every warp and gradient is computed.
        fixed: The image to match.
        moving: The image to warp.
        iterations: Steps on each level of the pyramid.
        learning_rate: Of the coarsest level, in normalized units; halved on each finer one.

    Yields:
        Every step; the theta of the last one is the result.

    Raises:
        StnClientError: As the methods of `Client`.
    """
    theta = _IDENTITY
    pyramids = [_pyramid(client, _standardized(image)) for image in (fixed, moving)]
    pyramid = list(zip(*pyramids, strict=False))
    for level in reversed(range(len(pyramid))):
        rate = learning_rate / 2 ** (len(pyramid) - 1 - level)
        for step in _descend(client, pyramid[level], level, theta, iterations, rate):
            theta = step.theta
            yield step


def _descend(
    client: Client,
    images: tuple[Array, Array],
    level: int,
    theta: Array,
    iterations: int,
    rate: float,
) -> Iterator[Step]:
    """Adam (Kingma and Ba, 2015) with a rate that falls to zero over the iterations."""
    fixed, moving = images[0], _with_mask(images[1])
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    for iteration in range(iterations):
        transform = Affine(theta)
        warped = client.warp(moving, transform, fixed.shape[2:])
        mask = warped[:, -1:] if level == 0 else np.ones_like(fixed[:, :1])
        loss, grad_warped = _masked_loss(warped, fixed, mask)
        gradients = client.warp_gradients(grad_warped, moving, transform, needs=["transform"])
        gradient = np.asarray(gradients.transform)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        mean_now = mean / (1 - 0.9 ** (iteration + 1))
        square_now = square / (1 - 0.99 ** (iteration + 1))
        pace = rate * (1 - iteration / iterations)
        theta = (theta - pace * mean_now / (np.sqrt(square_now) + 1e-12)).astype(np.float32)
        yield Step(level, iteration, loss, theta, warped[:, :-1])


def _masked_loss(warped: Array, fixed: Array, mask: Array) -> tuple[float, Array]:
    """Mean squared difference under a mask, and its gradient to the warped channels."""
    difference = (warped[:, :-1] - fixed) * mask
    weight = 1.0 / (mask.sum() * fixed.shape[1])
    gradient = np.zeros_like(warped)
    gradient[:, :-1] = 2.0 * weight * difference * mask
    return float((difference**2).sum() * weight), gradient


def _standardized(image: Array) -> Array:
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
        levels.append(client.warp(levels[-1], Affine(_IDENTITY), half, padding="border"))
    return levels
