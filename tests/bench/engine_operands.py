"""Seeded maps, and transforms that turn, scale and shift a little: most reads are inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ANGLE_RAD = 0.3
SCALES = (0.9, 1.1)
LARGEST_SHIFT = 0.1  # of half the map


def feature_map_and_theta(shape, layout=torch.contiguous_format) -> tuple[Tensor, Tensor]:
    """U of a shape, (N, C, H, W) or (N, C, D, H, W), and its theta in normalized units."""
    feature_map = uniform(shape, 0.0, 1.0, seed=1).to(memory_format=layout)
    return feature_map, normalized_theta(shape[0], len(shape) - 2)


def normalized_theta(n, dimensions=2) -> Tensor:
    """(N, 2, 3) or (N, 3, 4); a volume turns about its z axis."""
    theta = torch.eye(dimensions, dimensions + 1).repeat(n, 1, 1)
    cos, sin = math.cos(ANGLE_RAD), math.sin(ANGLE_RAD)
    theta[:, :2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    theta[:, :, :-1] *= uniform((n, 1, 1), *SCALES, seed=2)
    theta[:, :, -1] = uniform((n, dimensions), -LARGEST_SHIFT, LARGEST_SHIFT, seed=3)
    return theta


def pixel_theta(n, side) -> Tensor:
    """The same for square maps in pixel units, (N, 2, 3) in float64."""
    theta = normalized_theta(n).double()
    centre = torch.full((2, 1), (side - 1) / 2, dtype=torch.float64)
    linear, shift = theta[:, :, :2], theta[:, :, 2:] * side / 2
    return torch.cat((linear, centre - linear @ centre + shift), 2)


def inverse(theta) -> Tensor:
    """The affine map back, (N, 2, 3)."""
    linear = theta[:, :, :2].inverse()
    return torch.cat((linear, -linear @ theta[:, :, 2:]), 2)


def ragged(items, sides, channels) -> list[tuple[Tensor, Tensor]]:
    """Feature maps of one item each and of many sizes, with their thetas."""
    generator = torch.Generator().manual_seed(4)
    sizes = torch.randint(sides[0], sides[1] + 1, (items, 2), generator=generator).tolist()
    maps = [uniform((1, channels, *size), 0.0, 1.0, seed=n) for n, size in enumerate(sizes)]
    return list(zip(maps, normalized_theta(items).split(1), strict=True))


def uniform(shape, low, high, seed) -> Tensor:
    """Float32 values between two limits."""
    return torch.empty(shape).uniform_(low, high, generator=torch.Generator().manual_seed(seed))
