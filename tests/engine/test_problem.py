"""Problems and specs as data: normalised, hashable, and cheap at any size."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from stn_engine import (
    Affine,
    GridGradientsProblem,
    GridProblem,
    Padding,
    SamplingGrid,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
)

THETA = Affine(torch.zeros(4, 2, 3, dtype=torch.float64))


def test_spec_is_normalised_and_hashable():
    """Strings become enum members, fill a tuple of floats, and equal specs one dictionary key."""
    spec = WarpSpec(padding="fill", fill=[1, 2])
    assert spec.padding is Padding.FILL
    assert spec.fill == (1.0, 2.0)
    assert {spec: 1}[WarpSpec(padding=Padding.FILL, fill=(1.0, 2.0))] == 1
    assert replace(spec, padding="zeros") == WarpSpec(fill=(1.0, 2.0))


def test_spec_is_frozen():
    """A valid spec stays valid."""
    with pytest.raises(FrozenInstanceError, match="padding"):
        WarpSpec().padding = "wrap"


def test_warp_problem_sizes():
    """Sizes and bytes of a broadcast warp of another size than its map."""
    problem = WarpProblem(torch.zeros(1, 3, 5, 7, dtype=torch.uint8), THETA, [2, 6])
    assert problem.output_size == (2, 6)
    assert problem.output_shape == (4, 3, 2, 6)
    assert (problem.batch_size, problem.output_samples) == (4, 48)
    assert problem.output_dtype == torch.uint8
    assert problem.input_bytes == 105 + 4 * 6 * 8
    assert problem.output_bytes == 144


def test_warp_problem_default_sizes():
    """The output is as large as the grid, or else as the feature map."""
    feature_map = torch.zeros(4, 3, 5, 7)
    assert WarpProblem(feature_map, THETA).output_shape == (4, 3, 5, 7)
    grid = SamplingGrid(torch.zeros(1, 2, 6, 2))
    assert WarpProblem(feature_map, grid).output_shape == (4, 3, 2, 6)
    assert WarpProblem(feature_map, grid, (2, 6)).output_shape == (4, 3, 2, 6)


def test_warp_gradients_problem_sizes():
    """Output bytes count only the gradients that are needed."""
    warp = WarpProblem(torch.zeros(4, 3, 5, 7), THETA, (2, 6))
    map_bytes, theta_bytes = 4 * 3 * 5 * 7 * 4, 4 * 6 * 8
    problem = WarpGradientsProblem(warp, torch.zeros(4, 3, 2, 6), ["transform", "feature_map"])
    assert problem.needs == ("feature_map", "transform")
    assert (problem.batch_size, problem.output_samples) == (4, 48)
    assert problem.input_bytes == map_bytes + theta_bytes + 4 * 3 * 2 * 6 * 4
    assert problem.output_bytes == map_bytes + theta_bytes
    assert replace(problem, needs=("transform",)).output_bytes == theta_bytes


def test_grid_problem_sizes():
    """Sizes and bytes of the generator and its adjoint."""
    problem = GridProblem(THETA, (2, 6))
    assert problem.output_shape == (4, 2, 6, 2)
    assert (problem.batch_size, problem.output_samples) == (4, 48)
    assert (problem.input_bytes, problem.output_bytes) == (4 * 6 * 8, 4 * 2 * 6 * 2 * 8)
    assert problem.output_dtype == torch.float64
    adjoint = GridGradientsProblem(problem, torch.zeros(4, 2, 6, 2, dtype=torch.float64))
    assert (adjoint.batch_size, adjoint.output_samples) == (4, 48)
    assert (adjoint.input_bytes, adjoint.output_bytes) == (4 * 6 * 8 + 768, 4 * 6 * 8)


def test_monstrous_sizes_are_counted_and_not_allocated():
    """A problem of 2^80 samples is made in no time and knows its exact size."""
    size = (2**40, 2**40)
    warp = WarpProblem(torch.zeros(4, 3, 5, 7), THETA, size)
    assert warp.output_samples == 4 * 2**80
    assert warp.output_bytes == 4 * 3 * 2**80 * 4
    assert GridProblem(THETA, size).output_bytes == 4 * 2**80 * 2 * 8


def test_transforms_are_rebuilt_with_other_parameters():
    """with_parameters keeps the kind and validates anew."""
    other = torch.ones(1, 2, 3)
    assert THETA.with_parameters(other).parameters is other
    grid = SamplingGrid(torch.zeros(1, 2, 6, 2)).with_parameters(torch.ones(1, 1, 1, 2))
    assert isinstance(grid, SamplingGrid)
    with pytest.raises(ValueError, match="theta: expected shape"):
        THETA.with_parameters(torch.ones(2, 3))
