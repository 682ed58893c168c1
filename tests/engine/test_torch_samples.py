"""The samples on which torch tests its own grid samplers, handed to the drop-ins."""

import pytest
import torch

import stn_engine
from support.strategies import random_values
from support.tolerances import GRADIENT, assert_close_in_norm

MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


def named(mode, padding, align_corners):
    """The options of torch's internal samplers, which are numbers, as those of grid_sample."""
    return {
        "mode": MODES[mode],
        "padding_mode": PADDINGS[padding],
        "align_corners": align_corners,
    }


@pytest.fixture(scope="module")
def operators():
    """What torch says of its own grid samplers, by name."""
    from torch.testing._internal.common_methods_invocations import op_db  # noqa: PLC0415 - seconds

    return {one.name: one for one in op_db if "grid_sample" in one.name}


def samples_of(operator, dtype):
    """Operands and options of every sample; torch draws its values from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        samples = list(operator.sample_inputs("cpu", dtype))
    for sample in samples:
        grid, *numbers = sample.args
        yield (sample.input, grid), named(*numbers) if numbers else sample.kwargs


def result_and_gradients(module, operands, options):
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    output = module.grid_sample(*leaves, **options)
    grad = random_values(1, tuple(output.shape), output.dtype)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["nn.functional.grid_sample", "grid_sampler_2d", "grid_sampler_3d"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_grid_sample_equals_torch_on_its_own_samples(operators, name, dtype):
    """Values and both gradients of every sample."""
    for operands, options in samples_of(operators[name], dtype):
        ours = result_and_gradients(stn_engine, operands, options)
        theirs = result_and_gradients(torch.nn.functional, operands, options)
        for one, other in zip(ours, theirs, strict=True):
            assert_close_in_norm(one, other, GRADIENT[dtype])
