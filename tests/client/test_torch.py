"""Remote warps under autograd, against a client that computes in this process."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stn_client import Affine, Gradients, SamplingGrid, UnavailableError
from stn_client.torch import SpatialTransformer, warp

SIZE = (3, 4)


def local_warp(feature_map, transform, output_size=None, *, padding="zeros", align_corners=False):
    """The same warp by torch.nn.functional, computed in float32 at least."""
    wide = torch.promote_types(feature_map.dtype, torch.float32)
    points = transform.parameters.to(wide)
    if isinstance(transform, Affine):
        size = (len(points), 1, *(output_size or feature_map.shape[2:]))
        points = functional.affine_grid(points, size, align_corners)
    sampled = functional.grid_sample(
        feature_map.to(wide), points, "bilinear", padding, align_corners
    )
    return sampled.to(feature_map.dtype)


class InProcessClient:
    """Computes what a server would; results are read-only, as views of received messages are."""

    def __init__(self):
        self.calls = []

    def warp(self, feature_map, transform, output_size=None, **options):
        self.calls.append(("warp", type(transform), output_size, options))
        operands = tensor(feature_map), type(transform)(tensor(transform.parameters))
        return received(local_warp(*operands, output_size, **options), feature_map)

    def warp_gradients(self, grad_output, feature_map, transform, *, needs, **options):
        self.calls.append(("warp_gradients", type(transform), tuple(needs), options))
        leaves = {"feature_map": tensor(feature_map), "transform": tensor(transform.parameters)}
        for leaf in leaves.values():
            leaf.requires_grad_()
        local = type(transform)(leaves["transform"])
        with torch.enable_grad():
            output = local_warp(leaves["feature_map"], local, grad_output.shape[2:], **options)
        gradients = torch.autograd.grad(output, list(leaves.values()), tensor(grad_output))
        arrays = dict.fromkeys(leaves)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            like = feature_map if leaf is leaves["feature_map"] else transform.parameters
            arrays[name] = received(gradient, like) if name in needs else None
        return Gradients(**arrays)


def tensor(array):
    """A tensor of float32 at least, which holds every bfloat16 exactly."""
    return torch.from_numpy(array.astype(np.promote_types(array.dtype, np.float32)))


def received(result, like):
    """An array that cannot be written to, in the dtype of another."""
    array = result.detach().numpy().astype(like.dtype)
    array.flags.writeable = False
    return array


def operands(kind=Affine, dtype=torch.float64, parameter_dtype=None):
    """A feature map (2, 2, 5, 4), and parameters whose points keep off the cell borders."""
    generator = torch.Generator().manual_seed(3)
    feature_map = torch.rand(2, 2, 5, 4, dtype=torch.float64, generator=generator).to(dtype)
    theta = torch.eye(2, 3) * 0.7 + torch.rand(2, 2, 3, generator=generator) * 0.2
    if kind is SamplingGrid:
        theta = functional.affine_grid(theta, (2, 1, *SIZE), align_corners=False)
    parameters = theta.to(parameter_dtype or dtype)
    return feature_map.requires_grad_(), parameters.requires_grad_()


@pytest.mark.parametrize("kind", [Affine, SamplingGrid])
@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_torch_warp_is_the_local_warp_and_its_autograd(kind, dtype, parameter_dtype):
    """Output and both gradients equal those of torch's own autograd, bit for bit."""
    feature_map, parameters = operands(kind, dtype, parameter_dtype)
    output = warp(InProcessClient(), feature_map, kind(parameters), SIZE)
    expected = local_warp(feature_map, kind(parameters), SIZE)
    grad_output = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape).to(dtype)
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    actual = torch.autograd.grad(output, (feature_map, parameters), grad_output)
    exact = torch.autograd.grad(expected, (feature_map, parameters), grad_output)
    for ours, theirs in zip(actual, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [Affine, SamplingGrid])
def test_torch_warp_passes_gradcheck(kind):
    """Finite differences in float64 agree, also for undefined gradients."""
    client = InProcessClient()

    def function(feature_map, parameters):
        return warp(client, feature_map, kind(parameters), SIZE)

    assert torch.autograd.gradcheck(function, operands(kind))


@pytest.mark.parametrize(
    ("of_map", "of_theta", "needs"),
    [
        (True, True, ("feature_map", "transform")),
        (True, False, ("feature_map",)),
        (False, True, ("transform",)),
    ],
)
def test_torch_asks_only_for_the_gradients_that_are_needed(of_map, of_theta, needs):
    """A frozen operand costs no gradient on the server, and gets none."""
    client = InProcessClient()
    feature_map, theta = operands()
    feature_map.requires_grad_(of_map)
    theta.requires_grad_(of_theta)
    warp(client, feature_map, Affine(theta)).sum().backward()
    assert client.calls[1] == ("warp_gradients", Affine, needs, {})
    assert [feature_map.grad is not None, theta.grad is not None] == [of_map, of_theta]


def test_torch_without_anything_to_learn_makes_one_call():
    """When nothing requires gradients, neither does the output."""
    client = InProcessClient()
    feature_map, theta = operands()
    output = warp(client, feature_map.detach(), Affine(theta.detach()))
    assert not output.requires_grad
    assert len(client.calls) == 1


def test_torch_sends_options_forward_and_backward():
    """Both calls are of the same warp."""
    client, options = InProcessClient(), {"padding": "border", "align_corners": True}
    feature_map, grid = operands(SamplingGrid)
    warp(client, feature_map, SamplingGrid(grid), SIZE, **options).sum().backward()
    assert client.calls == [
        ("warp", SamplingGrid, SIZE, options),
        ("warp_gradients", SamplingGrid, ("feature_map", "transform"), options),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_results_can_be_written_to(dtype):
    """Outputs and gradients own their memory, so that in-place operators work on them."""
    feature_map, theta = operands(dtype=dtype, parameter_dtype=torch.float32)
    output = warp(InProcessClient(), feature_map, Affine(theta))
    before = output.detach().clone()
    output.detach().add_(1)
    assert torch.equal(output.detach(), before + 1)
    output.sum().backward()
    for gradient in (feature_map.grad, theta.grad):
        assert not gradient.zero_().any()


def test_torch_second_derivatives_are_refused():
    """The backward call is not differentiable, and says so instead of answering 0."""
    feature_map, theta = operands()
    output = warp(InProcessClient(), feature_map, Affine(theta))
    (gradient,) = torch.autograd.grad(output.square().sum(), theta, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_torch_errors_of_the_service_leave_backward_as_they_are():
    """A failed backward call raises the error of the client."""

    class Failing(InProcessClient):
        def warp_gradients(self, *_operands, **_options):
            raise UnavailableError("gone")

    feature_map, theta = operands()
    output = warp(Failing(), feature_map, Affine(theta))
    with pytest.raises(UnavailableError, match="gone"):
        output.sum().backward()


def identity_localization(outputs):
    """A linear layer that starts as the identity for every feature map."""
    layer = nn.Linear(36, 6)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.eye(2, 3).flatten())
    return nn.Sequential(nn.Flatten(), layer, *outputs)


@pytest.mark.parametrize("outputs", [[], [nn.Unflatten(1, (2, 3))]], ids=["(N, 6)", "(N, 2, 3)"])
def test_torch_transformer_takes_theta_flat_or_as_matrices(outputs):
    """An identity network leaves the feature map as it is, in the size asked for."""
    feature_map = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    transformer = SpatialTransformer(identity_localization(outputs), InProcessClient())
    torch.testing.assert_close(transformer(feature_map), feature_map)
    small = SpatialTransformer(identity_localization(outputs), InProcessClient(), (3, 2))
    assert small(feature_map).shape == (2, 1, 3, 2)


def test_torch_transformer_learns():
    """Ten steps of gradient descent through the client shift a blob towards where it belongs."""
    ramp = torch.linspace(-1, 1, 6)
    feature_map = torch.exp(-((ramp - 0.3) ** 2) - ramp[:, None] ** 2)[None, None]
    target = torch.exp(-((ramp + 0.1) ** 2) - ramp[:, None] ** 2)[None, None]
    client = InProcessClient()
    transformer = SpatialTransformer(identity_localization([]), client, padding="border")
    optimizer = torch.optim.SGD(transformer.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = functional.mse_loss(transformer(feature_map), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert {options["padding"] for *_, options in client.calls} == {"border"}
    assert {call[2] for call in client.calls if call[0] == "warp_gradients"} == {("transform",)}
