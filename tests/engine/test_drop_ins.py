"""grid_sample and affine_grid stand in for those of torch.nn.functional."""

import inspect
import re
import warnings

import pytest
import torch
from torch.nn import functional as torch_functional

import stn_engine
from support.strategies import random_values
from support.tolerances import GRADIENT, STORAGE, assert_close_in_norm

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
IMAGE, GRID = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 7, 2)
VOLUME, VOLUME_GRID = torch.rand(2, 3, 4, 5, 6), torch.rand(2, 2, 6, 7, 3)
THETA = torch.eye(2, 3).repeat(2, 1, 1)

BAD_GRID_SAMPLE_CALLS = {
    "unknown mode": ((IMAGE, GRID, "garbage"), {}),
    "unknown padding": ((IMAGE, GRID, "nearest", "garbage"), {}),
    "fill is not a padding of torch": ((IMAGE, GRID, "nearest", "fill"), {}),
    "batch sizes differ": ((IMAGE[:1], GRID), {}),
    "input has three axes": ((IMAGE[0], GRID), {}),
    "grid has three axes": ((IMAGE, GRID[0]), {}),
    "grid has three coordinates": ((IMAGE, torch.rand(2, 6, 7, 3)), {}),
    "a volume on a grid of images": ((VOLUME, GRID), {}),
    "a volume on points of images": ((VOLUME, torch.rand(2, 2, 6, 7, 2)), {}),
    "an image on a grid of volumes": ((IMAGE, VOLUME_GRID), {}),
    "a bicubic volume": ((VOLUME, VOLUME_GRID, "bicubic"), {}),
    "a volume without planes": ((VOLUME[:, :, :0], VOLUME_GRID), {}),
    "input has six axes": ((VOLUME[None], VOLUME_GRID[None]), {}),
    "no rows": ((IMAGE[:, :, :0], GRID), {}),
    "no columns": ((IMAGE[:, :, :, :0], GRID), {}),
    "dtypes differ": ((IMAGE, GRID.double()), {}),
    "integers": ((IMAGE.int(), GRID.int()), {}),
    "devices differ": ((IMAGE, GRID.to("meta")), {}),
    "sparse input": ((IMAGE.to_sparse(), GRID), {}),
    "array instead of tensor": ((IMAGE, GRID.numpy()), {}),
    "align_corners is a number": ((IMAGE, GRID), {"align_corners": 1}),
}

BAD_AFFINE_GRID_CALLS = {
    "integers": ((THETA.int(), (2, 3, 4, 5)), {}),
    "theta has two axes": ((THETA[0], (2, 3, 4, 5)), {}),
    "theta is square": ((torch.rand(2, 3, 3), (2, 3, 4, 5)), {}),
    "size has three entries": ((THETA, (2, 3, 4)), {}),
    "size has six entries": ((torch.rand(2, 4, 5), (2, 3, 4, 5, 6, 7)), {}),
    "theta is of images, size of volumes": ((THETA, (2, 3, 4, 5, 6)), {}),
    "theta is of volumes, size of images": ((torch.rand(2, 3, 4), (2, 3, 4, 5)), {}),
    "size has a zero": ((THETA, (2, 3, 0, 5)), {}),
    "size has a negative": ((THETA, (2, 3, 4, -5)), {}),
    "size has a float": ((THETA, (2, 3, 4.0, 5)), {}),
    "batch sizes differ": ((THETA, (3, 3, 4, 5)), {}),
    "align_corners is a number": ((THETA, (2, 3, 4, 5)), {"align_corners": 1}),
}


def assert_same_error(ours, theirs, args, options):
    """Both refuse the arguments with the same type and the same words."""
    options = {"align_corners": False} | options
    with pytest.raises(Exception, match=r"\S") as expected:
        theirs(*args, **options)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        ours(*args, **options)


@pytest.mark.parametrize("case", BAD_GRID_SAMPLE_CALLS)
def test_grid_sample_refuses_what_torch_refuses(case):
    """A bad call fails as it does in torch."""
    args, options = BAD_GRID_SAMPLE_CALLS[case]
    assert_same_error(stn_engine.grid_sample, torch_functional.grid_sample, args, options)


@pytest.mark.parametrize("case", BAD_AFFINE_GRID_CALLS)
def test_affine_grid_refuses_what_torch_refuses(case):
    """A bad call fails as it does in torch."""
    args, options = BAD_AFFINE_GRID_CALLS[case]
    assert_same_error(stn_engine.affine_grid, torch_functional.affine_grid, args, options)


def recorded_warnings(call, *args, **options):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        call(*args, **options)
    return [(one.category, str(one.message), one.filename) for one in record]


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("grid_sample", (IMAGE, GRID), {}),
        ("affine_grid", (THETA, (2, 3, 4, 5)), {}),
        ("grid_sample", (IMAGE, GRID), {"align_corners": False}),
    ],
)
def test_drop_ins_warn_where_torch_warns(name, args, options):
    """align_corners left open gives torch's words, blamed on the caller's line."""
    ours = recorded_warnings(getattr(stn_engine, name), *args, **options)
    assert ours == recorded_warnings(getattr(torch_functional, name), *args, **options)


def test_affine_grid_warns_about_unit_sizes():
    """One target row with align_corners is answered, with torch's warning."""
    with pytest.warns(UserWarning, match="unit-size grids"):
        grid = stn_engine.affine_grid(THETA, (2, 3, 1, 5), align_corners=True)
    assert grid[0, 0, :, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    with pytest.warns(UserWarning, match="unit-size grids"):
        grid = stn_engine.affine_grid(torch.eye(3, 4)[None], (1, 1, 1, 2, 3), align_corners=True)
    assert grid[0, 0, 1, 2].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["grid_sample", "affine_grid"])
def test_drop_ins_have_the_signature_of_torch(name):
    """Names, order and defaults of the parameters agree."""
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (stn_engine, torch_functional)
    )
    assert ours == theirs


def assert_equals_torch(call, operands, grad):
    """``call(module, *operands)`` and its gradients agree between this package and torch.

    torch rounds half types at every step; the value to meet is its float32 result.
    """
    dtype = operands[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    results = []
    for module, precision in ((stn_engine, dtype), (torch_functional, wide)):
        leaves = [operand.to(precision).requires_grad_() for operand in operands]
        output = call(module, *leaves)
        assert output.dtype == precision
        gradients = torch.autograd.grad(output, leaves, grad.to(precision))
        results.append((output.detach(), *gradients))
    for ours, theirs in zip(*results, strict=True):
        assert_close_in_norm(ours, theirs, GRADIENT[wide] + STORAGE[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("mode", "dims"),
    [("bilinear", 2), ("nearest", 2), ("bicubic", 2), ("bilinear", 3), ("nearest", 3)],
)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_grid_sample_equals_torch(dtype, mode, dims, padding_mode, align_corners):
    """Values and gradients agree on torch's own kind of sample: grids in [-2, 2]."""
    size = dims * [5]
    image = random_values(1, (2, 3, *size), dtype)
    grid = 4 * torch.rand(2, *size, dims, generator=torch.Generator().manual_seed(2)) - 2
    grad = random_values(3, (2, 3, *size), dtype)
    assert_equals_torch(
        lambda module, *leaves: module.grid_sample(*leaves, mode, padding_mode, align_corners),
        (image, grid.to(dtype)),
        grad,
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "size",
    [(2, 3, 4, 5), (2, 1, 7, 2), [2, 3, 4, 5], torch.Size([2, 3, 4, 5]), (2, 3, 4, 5, 6)],
)
def test_affine_grid_equals_torch(dtype, align_corners, size):
    """Values and gradients agree for any kind of size."""
    dims = len(size) - 2
    theta = random_values(4, (2, dims, dims + 1), dtype)
    grad = random_values(5, (2, *size[2:], dims), dtype)
    call = lambda module, theta: module.affine_grid(theta, size, align_corners)  # noqa: E731 - twin
    assert_equals_torch(call, (theta,), grad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (0, 3, 4, 5, 6)])
def test_grid_sample_of_nothing_is_nothing(shape):
    """Empty batches and channels are legal, as in torch."""
    dims = len(shape) - 2
    image, grid = torch.rand(shape), torch.rand(shape[0], *range(2, 2 + dims), dims)
    output = stn_engine.grid_sample(image, grid, align_corners=False)
    assert output.shape == torch_functional.grid_sample(image, grid, align_corners=False).shape


def test_grid_sample_computes_gradients_only_where_needed():
    """needs_input_grad is honoured: a grid without requires_grad gets none."""
    image = IMAGE.clone().requires_grad_()
    output = stn_engine.grid_sample(image, GRID, align_corners=False)
    output.sum().backward()
    assert image.grad is not None
    assert GRID.grad is None


def strided(tensor):
    """Every other number of a larger tensor."""
    return tensor.repeat_interleave(2, -1)[..., ::2]


ORDERS = {
    "contiguous": lambda one: one,
    "channels last": lambda one: one.contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[one.dim()]
    ),
    "turned": lambda one: one.transpose(-1, -2).contiguous().transpose(-1, -2),
    "strided": strided,
    "expanded": lambda one: one[:1].expand_as(one),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("recorded", [False, True])
def test_grid_sample_returns_the_memory_format_of_torch(dims, order, recorded):
    """So that ``view`` works wherever it works after torch; of the map's gradient, too."""
    image, grid = (IMAGE, GRID) if dims == 2 else (VOLUME, VOLUME_GRID)
    results = []
    for module in (stn_engine, torch_functional):
        leaf = ORDERS[order](image).detach().requires_grad_(recorded)
        output = module.grid_sample(leaf, grid, align_corners=False)
        parts = [output.detach()]
        if recorded:
            parts += torch.autograd.grad(output.square().sum(), leaf)
        results.append(parts)
    for ours, theirs in zip(*results, strict=True):
        assert ours.stride() == theirs.stride()
        assert ours.view(len(ours), -1).shape == theirs.view(len(theirs), -1).shape
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_affine_grid_returns_the_memory_format_of_torch(size):
    """A contiguous grid."""
    theta = torch.rand(2, len(size) - 2, len(size) - 1)
    ours, theirs = (
        module.affine_grid(theta, size, align_corners=False)
        for module in (stn_engine, torch_functional)
    )
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("map_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("grid_dtype", FLOATS, ids=str)
def test_grid_sample_under_autocast_does_what_torch_does(dtype, map_dtype, grid_dtype):
    """The dtype, the values, and the errors of mixtures."""
    args = IMAGE.to(map_dtype), GRID.to(grid_dtype)
    with torch.autocast("cpu", dtype=dtype):
        if torch.float64 in {map_dtype, grid_dtype} and map_dtype != grid_dtype:
            assert_same_error(stn_engine.grid_sample, torch_functional.grid_sample, args, {})
            return
        ours, theirs = (
            module.grid_sample(*args, align_corners=False)
            for module in (stn_engine, torch_functional)
        )
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("theta_dtype", FLOATS, ids=str)
def test_affine_grid_under_autocast_does_what_torch_does(dtype, theta_dtype):
    """Torch makes grids by a matrix product, which autocast runs in its own type."""
    theta = random_values(4, (2, 2, 3), theta_dtype)
    options = {"size": (2, 3, 4, 5), "align_corners": False}
    with torch.autocast("cpu", dtype=dtype):
        ours, theirs = (
            module.affine_grid(theta, **options) for module in (stn_engine, torch_functional)
        )
    assert ours.dtype == theirs.dtype
    wide = torch.promote_types(theta_dtype, torch.float32)
    expected = torch_functional.affine_grid(theta.to(wide), **options)  # torch rounds on the way
    assert_close_in_norm(ours, expected, GRADIENT[wide] + STORAGE[ours.dtype])


def test_drop_ins_compute_where_their_operands_are():
    """As torch: the default device is for those who name none."""
    with torch.device("meta"):
        ours, theirs = (
            module.grid_sample(
                IMAGE,
                module.affine_grid(THETA, (2, 3, 4, 5), align_corners=True),
                align_corners=True,
            )
            for module in (stn_engine, torch_functional)
        )
    assert ours.device == torch.device("cpu")
    torch.testing.assert_close(ours, theirs)


def test_drop_ins_give_shapes_for_shapes():
    """As torch: operands on the meta device give results there."""
    image, grid, theta = IMAGE.to("meta"), GRID.to("meta"), THETA.to("meta")
    output = stn_engine.grid_sample(image, grid, align_corners=False)
    assert (output.device.type, output.shape) == ("meta", (2, 3, 6, 7))
    made = stn_engine.affine_grid(theta, (2, 3, 4, 5), align_corners=False)
    assert (made.device.type, made.shape) == ("meta", (2, 4, 5, 2))


@pytest.mark.parametrize("size", [(1, 1), (0, 4)])
def test_strides_of_one_pixel_or_none_are_those_of_torch(size):
    """They could be those of channels last, which the next layer would take for a wish."""
    image = IMAGE.contiguous(memory_format=torch.channels_last)
    grid = torch.zeros(2, *size, 2)
    found, expected = (
        module.grid_sample(image, grid, align_corners=False)
        for module in (stn_engine, torch_functional)
    )
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


def test_sizes_that_are_truths_are_refused_as_by_torch():
    """Truths are integers to Python."""
    for module in (stn_engine, torch_functional):
        with pytest.raises(TypeError, match="tuple of ints, but found element of type bool"):
            module.affine_grid(THETA[:1], (True, 1, 4, 4), align_corners=False)
