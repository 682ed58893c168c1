"""Channels of the ``cpu`` backend: worked on together, they come out as if they were alone."""

import pytest
import torch

from stn_engine import Affine, SamplingGrid, WarpGradientsProblem, WarpProblem, WarpSpec
from stn_engine.backends.cpu import CpuBackend
from support.strategies import random_values

CPU = CpuBackend()
CHANNELS = (5, 9, 67)
"""A last group of one, after one or more of four; more groups than one thread takes together."""


def turned(scale, n):
    """Thetas that turn, scale and shift."""
    linear = scale * torch.tensor([[0.9, -0.4], [0.4, 0.9]])
    return Affine(
        torch.cat((linear, torch.tensor([[0.1], [-0.2]])), 1).expand(n, 2, 3).contiguous()
    )


def problem_of(channels, *, scale, padding="zeros", interpolation="bilinear", batch=1, dtype=None):
    """Maps of several tiles, gradients of several rows to a block."""
    spec = WarpSpec(padding=padding, interpolation=interpolation, fill=tuple(range(channels)))
    source = random_values(1, (1, channels, 41, 53), dtype or torch.float32)
    warp = WarpProblem(source, turned(scale, batch), (37, 49), spec)
    return WarpGradientsProblem(
        warp, random_values(2, warp.output_shape, source.dtype), needs=("feature_map",)
    )


def alone(problem, c):
    """Channel c of a problem."""
    warp, one = problem.warp, slice(c, c + 1)
    spec = WarpSpec(
        padding=warp.spec.padding, interpolation=warp.spec.interpolation, fill=warp.spec.fill[one]
    )
    part = WarpProblem(warp.feature_map[:, one], warp.transform, warp.output_size, spec)
    return WarpGradientsProblem(part, problem.grad_output[:, one], needs=("feature_map",))


def assert_channels_are_independent(problem):
    values = CPU.warp([problem.warp])[0]
    gradients = CPU.warp_gradients([problem])[0].feature_map
    assert gradients.abs().sum() > 0
    for c in range(values.shape[1]):
        single = alone(problem, c)
        assert torch.equal(values[:, c : c + 1], CPU.warp([single.warp])[0])
        assert torch.equal(gradients[:, c : c + 1], CPU.warp_gradients([single])[0].feature_map)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("scale", [0.2, 0.9, 3.0])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection", "fill"])
def test_each_channel_is_computed_as_if_alone(channels, scale, padding):
    """Whether or not there is room to keep what the pixels of a tile read: few, many, most."""
    assert_channels_are_independent(problem_of(channels, scale=scale, padding=padding))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_of_every_dtype_and_interpolation(dtype, interpolation):
    """Tiles of other sizes, with other room."""
    problem = problem_of(9, scale=0.9, dtype=dtype, interpolation=interpolation)
    assert_channels_are_independent(problem)


def test_of_a_map_that_several_items_share():
    """Their pixels reach the same tile, one item after the other."""
    assert_channels_are_independent(problem_of(9, scale=0.9, batch=3))


@pytest.mark.parametrize("channels", [16, 24, 67])
@pytest.mark.parametrize(
    ("interpolation", "size", "output_size"),
    [
        ("bilinear", (9, 7), (5, 6)),
        ("bicubic", (9, 7), (5, 6)),
        ("nearest", (64, 70), (41, 30)),
        ("bilinear", (64, 70), (41, 30)),
        ("bilinear", (64, 64), (1, 2)),
        ("nearest", (5, 6, 7), (4, 6, 9)),
        ("bilinear", (5, 6, 7), (4, 6, 9)),
    ],
)
def test_of_points_anywhere(channels, interpolation, size, output_size):
    """Many channels are summed side by side: in one group, in several, and too few points."""
    points = random_values(3, (2, *output_size, len(size)), torch.float32) * 1.2
    spec = WarpSpec(interpolation=interpolation, fill=tuple(range(channels)), padding="fill")
    for dtype, maps in ((torch.float32, 1), (torch.float64, 2), (torch.bfloat16, 2)):
        source = random_values(1, (maps, channels, *size), dtype)
        warp = WarpProblem(source, SamplingGrid(points), output_size, spec)
        grad_output = random_values(2, warp.output_shape, dtype)
        problem = WarpGradientsProblem(warp, grad_output, needs=("feature_map",))
        assert_channels_are_independent(problem)
