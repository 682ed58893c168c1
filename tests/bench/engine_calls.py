"""The calls that are timed: the engine's, and the same in torch as users write it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

from stn_engine import Affine, warp


def engine_affine(feature_map, theta, **options) -> Tensor:
    return warp(feature_map, Affine(theta), **options)


def pixel_affine(feature_map, theta) -> Tensor:
    return engine_affine(feature_map, theta, coordinates="pixel")


def torch_affine(feature_map, theta, **options) -> Tensor:
    source = affine_grid(theta, feature_map.shape)
    return F.grid_sample(feature_map, source, align_corners=False, **options)


def torch_homography(feature_map, theta) -> Tensor:
    points = F.pad(target_points(feature_map.shape), (0, 1), value=1.0).reshape(1, -1, 3)
    x, y, w = (points @ theta.mT).unbind(-1)
    source = torch.stack((x / w, y / w), -1).reshape(-1, *feature_map.shape[2:], 2)
    return F.grid_sample(feature_map, source, align_corners=False)


def torch_flow(feature_map, displacement) -> Tensor:
    source = target_points(feature_map.shape) + displacement
    return F.grid_sample(feature_map, source, align_corners=False)


def affine_grid(theta, shape) -> Tensor:
    return F.affine_grid(theta, list(shape), align_corners=False)


def target_points(shape) -> Tensor:
    """The grid of an identity, (1, Ho, Wo, 2)."""
    return affine_grid(torch.eye(2, 3)[None], (1, *shape[1:]))


def differentiated(function, inputs, grad_output) -> tuple[Tensor, ...]:
    """The gradients of all inputs, after running the function."""
    return torch.autograd.grad(function(*inputs), inputs, grad_output)
