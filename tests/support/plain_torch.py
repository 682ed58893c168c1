"""The same warps as plain torch code, and the transforms that benchmarks warp by."""

import torch
from torch import Tensor
from torch.nn import functional


def turned(n: int, device, degrees: float = 10.0, zoom: float = 0.95) -> Tensor:
    """Thetas (n, 2, 3) that read nearly all of a map and little beside it."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom * angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -zoom * angle.sin(), zoom * angle.sin()
    return theta.to(device)


def torch_warp(u: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
    """V by torch's own operators."""
    grid = functional.affine_grid(theta, list(u.shape), align_corners=False)
    return functional.grid_sample(u, grid.to(u.dtype), mode, "zeros", align_corners=False)


def torch_both(u: Tensor, theta: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """The gradients of U and theta, after a forward pass."""
    return torch.autograd.grad(torch_warp(u, theta), (u, theta), g)
