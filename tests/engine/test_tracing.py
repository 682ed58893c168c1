"""torch.jit.trace writes down the operators, and what it wrote runs as the call does."""

import io
import warnings

import pytest
import torch
from torch.nn import functional as torch_functional

import stn_engine
from stn_engine import (
    Affine,
    SamplingGrid,
    generate_grid,
    generate_grid_gradients,
    warp,
    warp_gradients,
)
from support.strategies import GENERATORS, KINDS_AND_SIZES, as_function, random_warp

IMAGE, THETA = torch.rand(2, 3, 6, 7), torch.eye(2, 3).repeat(2, 1, 1) + 0.2 * torch.rand(2, 2, 3)
OTHER = torch.rand(2, 3, 9, 4)


def traced(function, *operands):
    """The graph of a call, recorded without a warning but torch's own of its end."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        return torch.jit.trace(function, operands)


def reloaded(graph):
    """The same after a way through a file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        torch.jit.save(graph, file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_a_traced_warp_equals_the_call(kind, sizes):
    """Values and both gradients of every kind, as traced and as loaded from a file."""
    function, operands = as_function(random_warp(1, kind=kind, **sizes))
    graph = traced(function, *(operand.detach() for operand in operands))
    expected = function(*operands)
    for run in (graph, reloaded(graph)):
        got = run(*operands)
        assert torch.equal(got, expected)
        gradients = torch.autograd.grad(got.square().sum(), operands)
        for ours, theirs in zip(
            gradients,
            torch.autograd.grad(expected.square().sum(), operands, retain_graph=True),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_trace_of_recorded_operands_equals_the_call(recorded):
    """Networks are traced with parameters that require gradients."""
    theta = THETA.clone().requires_grad_(recorded)
    graph = traced(lambda u, t: warp(u, Affine(t)), IMAGE, theta)
    assert torch.equal(graph(OTHER, theta), warp(OTHER, Affine(theta)))
    assert "stn_engine::warp" in str(graph.graph)


def test_sizes_that_follow_from_operands_follow_in_a_trace():
    """Another map gives another size, unless the call names one; a grid brings its own."""
    assert torch.equal(
        traced(lambda u, t: warp(u, Affine(t)), IMAGE, THETA)(OTHER, THETA),
        warp(OTHER, Affine(THETA)),
    )
    assert torch.equal(
        traced(lambda u, t: warp(u, Affine(t), (5, 4)), IMAGE, THETA)(OTHER, THETA),
        warp(OTHER, Affine(THETA), (5, 4)),
    )
    small, large = 2 * torch.rand(2, 3, 3, 2) - 1, 2 * torch.rand(2, 8, 5, 2) - 1
    assert torch.equal(
        traced(lambda u, g: warp(u, SamplingGrid(g)), IMAGE, small)(OTHER, large),
        warp(OTHER, SamplingGrid(large)),
    )


def test_a_trace_warns_of_sizes_that_become_constants():
    """As torch does where its tracer loses sight of a tensor."""
    for function in (
        lambda u, t: warp(u, Affine(t), u.shape[2:]),
        lambda u, t: generate_grid(Affine(t), (u.shape[2], 7)),
    ):
        with pytest.warns(torch.jit.TracerWarning, match="Python integer might cause the trace"):
            traced(function, IMAGE, THETA)


def test_traced_gradients_equal_the_call():
    """The vector-Jacobian product as a function of its own."""

    def function(grad, u, theta):
        gradients = warp_gradients(grad, u, Affine(theta))
        return gradients.feature_map, gradients.transform

    small, large = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 8, 3)
    graph = reloaded(traced(function, small, IMAGE, THETA))
    for ours, theirs in zip(graph(large, OTHER, THETA), function(large, OTHER, THETA), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", GENERATORS)
def test_traced_grids_equal_the_call(kind):
    """The generator alone, and its gradient."""
    transform = random_warp(1, kind=kind).transform

    def function(parameters, grad):
        own = transform.with_parameters(parameters)
        return generate_grid(own, (4, 6)), generate_grid_gradients(grad, own)

    operands = transform.parameters, torch.rand(2, 4, 6, 2).double()
    graph = reloaded(traced(function, *operands))
    for ours, theirs in zip(graph(*operands), function(*operands), strict=True):
        assert torch.equal(ours, theirs)


def test_traced_drop_ins_equal_torch_for_other_sizes():
    """A spatial transformer as tutorials write it, traced at one size and run at another."""

    def function(module, u, theta):
        grid = module.affine_grid(theta, u.size(), align_corners=False)
        return module.grid_sample(u, grid, align_corners=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # torch's own affine_grid has them
        graph = reloaded(traced(lambda u, t: function(stn_engine, u, t), IMAGE, THETA))
    for u in (IMAGE, OTHER):
        torch.testing.assert_close(graph(u, THETA), function(torch_functional, u, THETA))


def test_a_traced_module_trains():
    """The gradient of a parameter before the warp passes through the loaded graph."""

    class Turn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(THETA.clone())

        def forward(self, u):
            return warp(u, Affine(self.theta))

    module = Turn()
    graph = reloaded(traced(module, IMAGE))
    graph(OTHER).square().sum().backward()
    module(OTHER).square().sum().backward()
    (parameter,) = graph.parameters()
    assert torch.equal(parameter.grad, module.theta.grad)
