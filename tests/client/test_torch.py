"""Remote warps under autograd, against a client that computes in this process."""

import copy
import functools
import gc
import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import stn_engine
from stn_client import (
    Affine,
    AsyncClient,
    Attention,
    Client,
    Flow,
    Gradients,
    Homography,
    InvalidRequestError,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
    UnavailableError,
    WarpOptions,
)
from stn_client.torch import OPTIONS, SpatialTransformer, objective, warp

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
    """The backward call is not differentiable, and says where derivatives are to be had."""
    feature_map, theta = operands()
    output = warp(InProcessClient(), feature_map, Affine(theta))
    (gradient,) = torch.autograd.grad(output.square().sum(), theta, create_graph=True)
    with pytest.raises(InvalidRequestError, match=r"^create_graph: .* stn_engine\.warp"):
        gradient.sum().backward()


def _twice(loss, theta):
    return torch.func.grad(lambda t: torch.func.grad(loss)(t).sum())(theta)


def _twice_by_autograd(loss, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(torch.func.grad(loss)(theta).sum(), theta)


def _forward_over_reverse(loss, theta):
    return torch.func.jvp(torch.func.grad(loss), (theta,), (theta,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # used by torch itself
@pytest.mark.parametrize("second", [_twice, _twice_by_autograd, _forward_over_reverse])
def test_torch_second_derivatives_by_transforms_are_refused(second):
    """One transform in another: what the inner one does is recorded for the outer one, too.

    Else those derivatives would be zeros, and nobody would notice.
    """
    client = InProcessClient()
    feature_map, theta = (operand.detach() for operand in operands())

    def loss(theta):
        return warp(client, feature_map, Affine(theta)).square().sum()

    with pytest.raises(InvalidRequestError, match=r"^(create_graph|tangents): .* stn_engine\.warp"):
        second(loss, theta)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # used by torch itself
def test_torch_forward_mode_is_refused():
    """A tangent is not dropped in silence."""
    feature_map, theta = (operand.detach() for operand in operands())
    client = InProcessClient()
    with pytest.raises(InvalidRequestError, match=r"^tangents: .* stn_engine\.warp"):
        torch.func.jvp(lambda t: warp(client, feature_map, Affine(t)), (theta,), (theta,))


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


@pytest.fixture(scope="module")
def client(local_server):
    with Client(local_server.target) as connected:
        yield connected


def sampled(client, transform=Affine, **options):
    """A function of the operands, and what torch itself makes of it."""

    def remote(feature_map, parameters):
        return warp(client, feature_map, transform(parameters), SIZE, **options).sin()

    def local(feature_map, parameters):
        return local_warp(feature_map, transform(parameters), SIZE, **options).sin()

    return remote, local


def close(actual, expected):
    """To the precision of float32: torch adds in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("transform", [Affine, SamplingGrid])
def test_torch_compiles_a_remote_warp_without_a_break(client, backend, transform):
    """Value and gradients equal those of torch's own operators."""
    remote, local = sampled(client, transform, padding="border")
    compiled = torch.compile(remote, fullgraph=True, backend=backend)
    leaves = operands(transform, torch.float32)
    actual, expected = compiled(*leaves), local(*leaves)
    close(actual, expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        close(ours, theirs)


def test_torch_compiled_models_follow_their_sizes_and_their_client(client, local_server):
    """One compiled function for batches of all sizes, and for whichever client it is given."""

    def function(stn, feature_map, theta):
        return warp(stn, feature_map, Affine(theta), SIZE)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    feature_map, theta = (operand.detach() for operand in operands(dtype=torch.float32))
    with Client(local_server.target) as other:
        for stn in (client, other):
            for count in (2, 3, 5):
                batch = feature_map[:1].expand(count, -1, -1, -1), theta[:1].expand(count, -1, -1)
                close(compiled(stn, *batch), local_warp(batch[0], Affine(batch[1]), SIZE))


def test_torch_exports_one_node(client):
    """A model with a remote layer is exported whole, for any batch size, and can still learn."""
    model = SpatialTransformer(identity_localization([]), client, (3, 2), padding="border")
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n")},))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.stn_client.warp.default) == 1
    exported, more = program.module(), images.repeat(3, 1, 1, 1)
    assert torch.equal(exported(more), model(more))
    exported(images).sum().backward()
    model(images).sum().backward()
    for ours, theirs in zip(exported.parameters(), model.parameters(), strict=True):
        assert ours.grad.abs().max() > 0
        assert torch.equal(ours.grad, theirs.grad)


def test_torch_func_sees_the_warp(client):
    """`torch.func.vjp` and `grad` equal autograd, bit for bit."""
    remote, _ = sampled(client)
    feature_map, theta = operands(dtype=torch.float32)
    output, pullback = torch.func.vjp(remote, feature_map.detach(), theta.detach())
    expected = remote(feature_map, theta)
    assert torch.equal(output, expected)
    exact = torch.autograd.grad(expected.sum(), (feature_map, theta))
    for ours, theirs in zip(pullback(torch.ones_like(output)), exact, strict=True):
        assert torch.equal(ours, theirs)
    total = torch.func.grad(lambda t: remote(feature_map.detach(), t).sum())(theta.detach())
    assert torch.equal(total, exact[1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_torch_compiles_transforms_of_a_remote_warp(client, backend, argnums):
    """`torch.func.grad` in `torch.compile`, without a break, equals torch's own operators."""
    remote, local = sampled(client, padding="border")
    at = [operand.detach() for operand in operands(dtype=torch.float32)]

    def gradients(function):
        return torch.func.grad(lambda *leaves: function(*leaves).square().sum(), argnums)

    compiled = torch.compile(gradients(remote), fullgraph=True, backend=backend)
    expected = gradients(local)(*at)
    torch.testing.assert_close(compiled(*at), expected, rtol=1e-4, atol=1e-5)


def traced(function, *given):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        return torch.jit.trace(function, given, check_trace=False)


def test_torch_traces_follow_sizes_of_operands_and_warn_of_others(client):
    """A size that the tracer cannot follow is a constant, of which it warns as torch does."""
    images, more = torch.rand(1, 1, 4, 5), torch.rand(1, 1, 6, 7)
    theta = IDENTITY.theta.float()
    graph = traced(lambda u, t: warp(client, u, Affine(t)), images, theta)
    assert "stn_client::warp" in str(graph.graph)
    torch.testing.assert_close(graph(more, theta), more)
    with pytest.warns(torch.jit.TracerWarning, match="Python integer might cause the trace to be"):
        traced(lambda u, t: warp(client, u, Affine(t), u.shape[2:]), images, theta)


@pytest.mark.parametrize("checked", ["warp", "warp_gradients"])
def test_torch_operators_keep_the_rules_of_operators(client, checked):
    """Schema, fake, registration of autograd and tracing, as torch itself checks them."""
    feature_map, theta = operands(dtype=torch.float32)
    named = client._name, "Affine", []
    given = {
        "warp": (feature_map, theta, [*SIZE], *named),
        "warp_gradients": (torch.ones(2, 2, *SIZE), feature_map, theta, [True, False], *named),
    }[checked]
    if checked == "warp_gradients":
        given = tuple(g.detach() if isinstance(g, torch.Tensor) else g for g in given)
    operator = getattr(torch.ops.stn_client, checked).default
    outcome = torch.library.opcheck(operator, given, {"padding": "border"})
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", [None, "NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("kind", "parameters", "size"),
    [
        (Affine, torch.eye(2, 3).expand(3, 2, 3), None),
        (Affine, torch.eye(2, 3).expand(3, 2, 3), (3, 4)),
        (Affine, torch.eye(3, 4).expand(3, 3, 4), (2, 3, 4)),
        (SamplingGrid, torch.zeros(3, 4, 7, 2), None),
        (Flow, torch.zeros(3, 5, 4, 2), None),
        (Flow, torch.zeros(3, 2, 5, 4, 3), None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_torch_fakes_have_the_shape_of_results(client, kind, parameters, size, layout):
    """A map for all transforms takes their number; layout says where sizes stand."""
    sizes = (
        (2, 5, 4) if parameters.shape[-1] in {3, 4} and parameters.shape[1:] != (2, 3) else (5, 4)
    )
    shape = (1, *sizes, 2) if layout == "NHWC" else (1, 2, *sizes)
    options = {} if layout is None else {"layout": layout}
    real = warp(client, torch.rand(shape), kind(parameters), size, **options)
    fake = warp(client, torch.rand(shape, device="meta"), kind(parameters), size, **options)
    assert fake.is_meta
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_torch_half_precision_parameters_travel_as_float32(client):
    """Under autocast, and in a model of bfloat16; the gradient has the dtype of the parameters."""
    feature_map = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    model = SpatialTransformer(identity_localization([]), client, padding="border")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(feature_map)
    output.sum().backward()
    torch.testing.assert_close(output, feature_map)  # the identity is exact in bfloat16
    assert model.localization[1].bias.grad.abs().max() > 0
    half = copy.deepcopy(model).bfloat16()
    close(half(feature_map.bfloat16()), feature_map.bfloat16())
    theta = torch.eye(2, 3, dtype=torch.float16)[None].requires_grad_()
    warp(client, feature_map, Affine(theta)).sum().backward()
    assert theta.grad.dtype == torch.float16


def test_torch_modules_are_copied_with_their_client_and_saved_with_its_settings(client):
    """A copy of a network calls through the same connection; a saved one connects anew."""
    model = nn.Sequential(SpatialTransformer(identity_localization([]), client), nn.Flatten())
    images = torch.rand(2, 1, 6, 6)
    copied = copy.deepcopy(model)
    assert copied[0]._client is client
    assert copied[0].localization is not model[0].localization
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded[0]._client is not client
    with loaded[0]._client:
        assert torch.equal(loaded(images), model(images))


def test_torch_graphs_of_a_client_that_is_gone_say_so(local_server):
    """What was exported holds its name alone."""
    client = Client(local_server.target)
    model = SpatialTransformer(identity_localization([]), client)
    exported = torch.export.export(model, (torch.rand(2, 1, 6, 6),)).module()
    client.close()
    del model, client
    gc.collect()
    with pytest.raises(InvalidRequestError, match=r"^client: expected the client that this graph"):
        exported(torch.rand(2, 1, 6, 6))


def negative():
    """A tensor that is lazily negated."""
    return torch.complex(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).conj().imag


def freed():
    tensor = torch.rand(1, 1, 4, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


def test_torch_sends_the_values_of_lazy_tensors(client):
    """By hand: the imaginary part of a conjugate is negated."""
    output = warp(client, negative(), Affine(torch.eye(2, 3)[None]))
    assert torch.equal(output, -torch.ones(1, 1, 4, 4))


IDENTITY = Affine(torch.eye(2, 3)[None])
ARRAYS = np.zeros((1, 1, 4, 4)), Affine(np.eye(2, 3)[None])
IMAGE = torch.rand(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("feature_map", (ARRAYS[0], IDENTITY), {}),
        ("feature_map", (None, IDENTITY), {}),
        ("feature_map", (freed(), IDENTITY), {}),
        ("feature_map", (IMAGE.to_sparse(), IDENTITY), {}),
        ("feature_map", (torch.complex(IMAGE, IMAGE), IDENTITY), {}),
        ("transform", (IMAGE, IDENTITY.theta), {}),
        ("transform", (IMAGE, Affine(None)), {}),
        ("transform", (IMAGE, None), {}),
        ("transform", (IMAGE, Affine([[1], [1, 2]])), {}),
        ("output_size", (IMAGE, IDENTITY, 3), {}),
        ("output_size", (IMAGE, IDENTITY, (3.5, 3)), {}),
        ("output_size", (IMAGE, IDENTITY, (-1, 3)), {}),
        ("feature_map", (torch.ones(1).expand(1, 1, 10**6, 10**6), IDENTITY), {}),
        ("padding", (IMAGE, IDENTITY), {"padding": 3}),
        ("padding", (IMAGE, IDENTITY), {"padding": "mirror"}),
        ("align_corners", (IMAGE, IDENTITY), {"align_corners": "no"}),
        ("fill", (IMAGE, IDENTITY), {"fill": "black"}),
        ("fill", (IMAGE, IDENTITY), {"fill": [[1.0]]}),
        ("fill", (IMAGE, IDENTITY), {"fill": None}),
        ("fill", (IMAGE, IDENTITY), {"padding": "fill", "fill": 10**400}),
    ],
)
def test_torch_arguments_that_break_a_rule_are_named(client, name, arguments, options):
    """Errors of the SDK, whoever notices; never a crash of what lies below."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected ") as caught:
        warp(client, *arguments, **options)
    assert caught.value.violations


def test_a_size_of_nothing_is_refused_before_it_is_compiled(client):
    """By its name; torch would say that it cannot make such a tensor."""
    compiled = torch.compile(lambda u: warp(client, u, IDENTITY, (0, 3)), backend="eager")
    with pytest.raises(InvalidRequestError, match=r"^output_size: .* at least 1, got \(0, 3\)\.$"):
        compiled(IMAGE)


@pytest.mark.parametrize("name", ["loss", "domain", "delta"])
@pytest.mark.parametrize(
    "value", [None, [], IMAGE, np.eye(2)], ids=["none", "list", "map", "array"]
)
def test_torch_comparisons_are_named(client, name, value):
    """As of `Client.objective`, in words of the SDK and not of operators of torch."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected a (word|number), got"):
        objective(client, IMAGE, IMAGE, IDENTITY, **{name: value})


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("client", ("localhost:1",), {}),
        ("client", (AsyncClient("localhost:1"),), {}),
        ("client", (Client,), {}),
        ("output_size", (InProcessClient(), 3), {}),
        ("transform", (InProcessClient(), None, IDENTITY), {}),
        ("transform", (InProcessClient(), None, "Affine"), {}),
        ("padding", (InProcessClient(),), {"padding": "mirror"}),
        ("deterministic", (InProcessClient(),), {"deterministic": "no"}),
    ],
)
def test_torch_transformers_are_checked_when_they_are_made(name, arguments, options):
    """Not at the first call."""
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected "):
        SpatialTransformer(nn.Identity(), *arguments, **options)


@pytest.mark.parametrize("localization", [None, nn.Identity, "linear"])
def test_torch_localizations_are_checked_when_they_are_given(localization):
    """A class is none that was made."""
    with pytest.raises(InvalidRequestError, match=r"^localization: expected a module, got "):
        SpatialTransformer(localization, InProcessClient())


@pytest.mark.parametrize("client", [None, "localhost:1", AsyncClient("localhost:1"), IMAGE, Client])
def test_torch_warps_want_a_client(client):
    """One that waits for results, and that has been made; a tensor in its place is not printed."""
    with pytest.raises(InvalidRequestError, match=r"^client: expected a Client, got [a-zA-Z ]+\.$"):
        warp(client, IMAGE, IDENTITY)


def test_torch_numbers_are_no_transform():
    """What they are is asked for."""
    with pytest.raises(InvalidRequestError, match=r"^transform: .* got Tensor\. Say what the numb"):
        warp(InProcessClient(), IMAGE, torch.eye(2, 3)[None])


def test_torch_modules_show_their_settings():
    """As those of torch do; the token of a client is none of them."""
    with Client("127.0.0.1:1", token="secret") as client:
        module = SpatialTransformer(nn.Identity(), client, (4, 5), padding="border")
        shown = f"{client!r} {module}"
    assert "Client('127.0.0.1:1'), Affine, output_size=(4, 5), padding='border'" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    "fill", [np.array([2.0]), np.array(2.0), np.float32(2), torch.tensor([2.0]), (2,)]
)
def test_torch_options_may_come_from_numpy(local_server, fill):
    """What `Client.warp` takes, and what a module takes when it is made; outside is the fill."""
    options = {"padding": "fill", "fill": fill, "align_corners": np.bool_(True)}
    beyond = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    nn.init.zeros_(beyond[1].weight)
    beyond[1].bias.data = torch.tensor([1.0, 0, 10, 0, 1, 10])
    with Client(local_server.target) as client:
        output = SpatialTransformer(beyond, client, **options)(IMAGE)
    assert torch.equal(output, torch.full((1, 1, 4, 4), 2.0))


COMPILED = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize(
    "wrap", [lambda f: f, COMPILED, torch.vmap], ids=["eager", "compiled", "vmap"]
)
def test_torch_fills_with_labels_that_no_float_is(local_server, wrap):
    """Operators of torch take floats only; to the last bit, whichever way a call is made."""
    labels = torch.zeros((1, 1, 2, 3, 3), dtype=torch.int64)
    beyond = Affine(torch.tensor([[[1.0, 0, 10], [0, 1, 10]]]))
    options = {"interpolation": "nearest", "padding": "fill", "fill": (2**62 + 1, -5)}
    with Client(local_server.target) as client:
        call = lambda one: warp(client, one, beyond, **options)  # noqa: E731 - to be wrapped
        output = wrap(call)(labels if wrap is torch.vmap else labels[0])
    assert output.flatten().unique().tolist() == [-5, 2**62 + 1]


@pytest.mark.parametrize(
    ("name", "feature_map", "found"),
    [
        ("feature_map", IMAGE.numpy(), IDENTITY.theta),
        ("localization", IMAGE, None),
        ("localization", IMAGE, IDENTITY.theta.numpy()),
        ("localization", IMAGE, (IDENTITY.theta, 1)),
    ],
)
def test_torch_transformers_check_what_goes_in_and_what_is_found(client, name, feature_map, found):
    """Before anything of it is asked for."""
    transformer = SpatialTransformer(lambda _: found, client)
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected .*a torch\.Tensor, got"):
        transformer(feature_map)


@pytest.mark.parametrize("kind", [np.float64, np.float32, int, list])
def test_torch_transforms_may_be_of_numpy(client, kind):
    """As those of `stn_client.geometry` are; the map still has its gradient."""
    matrix = np.array([[[0, -1, 3], [1, 0, 0]]])
    theta = matrix.tolist() if kind is list else matrix.astype(kind)
    image = torch.rand(1, 1, 4, 4, requires_grad=True)
    turned = warp(client, image, Affine(theta), coordinates="pixel")
    torch.testing.assert_close(turned, torch.rot90(image, dims=(2, 3)))
    turned.square().sum().backward()
    torch.testing.assert_close(image.grad, 2 * image)


def test_torch_transformers_stand_in_sequences(client):
    """Between other modules of `nn.Sequential`."""
    torch.manual_seed(0)
    layer = SpatialTransformer(identity_localization([]), client, (3, 2))
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), layer, torch.nn.Flatten())
    images = torch.rand(2, 1, 6, 6)
    network(images).sum().backward()
    assert all(one.grad.abs().max() > 0 for one in network.parameters())


PARALLEL = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from stn_client import Client
from stn_client.torch import SpatialTransformer

rank, target, meeting, out = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
where = f"file://{meeting}"
torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
with Client(target) as client:
    torch.manual_seed(0)
    localization = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 6))
    model = DistributedDataParallel(SpatialTransformer(localization, client, (3, 2)))
    images = torch.rand(4, 1, 6, 6)[2 * rank : 2 * rank + 2]
    model(images).square().mean().backward()
    torch.save([one.grad for one in model.module.parameters()], f"{out}-{rank}")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_torch_transformers_learn_in_parallel(client, tmp_path):
    """Under DDP two processes have, each, the gradient of the whole batch."""
    target, out = client.target, tmp_path / "gradients"
    command = [sys.executable, "-c", PARALLEL]
    processes = [
        subprocess.Popen([*command, str(rank), target, tmp_path / "meeting", out])
        for rank in range(2)
    ]
    assert [process.wait(110) for process in processes] == [0, 0]
    torch.manual_seed(0)
    localization = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 6))
    model = SpatialTransformer(localization, client, (3, 2))
    model(torch.rand(4, 1, 6, 6)).square().mean().backward()
    for rank in range(2):
        for ours, whole in zip(torch.load(f"{out}-{rank}"), model.parameters(), strict=True):
            torch.testing.assert_close(ours, whole.grad)
            assert ours.abs().max() > 0


def engine_warp(images, transform, size=None):
    """The warp of the engine, in this process."""
    kind = getattr(stn_engine, type(transform).__name__)
    if isinstance(transform, ThinPlateSpline):
        points = torch.tensor(transform.control_points, dtype=torch.float64)
        local = kind(transform.parameters, control_points=points)
    else:
        local = kind(transform.parameters)
    return stn_engine.warp(images, local, size)


FOUND = {
    "Affine": (Affine, 6),
    "Homography": (Homography, 9),
    "Attention": (Attention, 3),
    "Similarity": (Similarity, 4),
    "Translation": (Translation, 2),
    "Rotation": (Rotation, 1),
    "ThinPlateSpline": (
        functools.partial(ThinPlateSpline, control_points=[(-1, -1), (1, -1), (-1, 1)]),
        6,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_torch_transformers_are_of_every_kind(client, name):
    """With flat parameters, forward and backward as the engine of this process has them."""
    kind, count = FOUND[name]
    found = torch.rand(2, count, generator=torch.Generator().manual_seed(5)) * 0.5 + 0.25
    found.requires_grad_()
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(6))
    theirs = found.detach().clone().requires_grad_()
    shape = {"Affine": (-1, 2, 3), "Homography": (-1, 3, 3), "ThinPlateSpline": (-1, 3, 2)}
    parameters = theirs.reshape(shape.get(name, (-1, count)))
    output = SpatialTransformer(lambda _: found, client, (3, 4), kind)(images)
    local = engine_warp(images, kind(parameters), (3, 4))
    torch.testing.assert_close(output, local)
    output.square().sum().backward()
    local.square().sum().backward()
    torch.testing.assert_close(found.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Flow, SamplingGrid])
def test_torch_transformers_find_fields(client, kind):
    """One point for every pixel; their size is that of the output."""
    field = (torch.rand(2, 3, 4, 2) * 0.2).requires_grad_()
    images = torch.rand(2, 1, 6, 6)
    output = SpatialTransformer(lambda _: field, client, transform=kind)(images)
    torch.testing.assert_close(output, engine_warp(images, kind(field)))
    output.sum().backward()
    assert field.grad.shape == field.shape


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_torch_nested_tensors_are_refused(client):
    """In words, and not with torch's list of backends."""
    nested = torch.nested.nested_tensor([torch.zeros(1, 4, 4)])
    with pytest.raises(InvalidRequestError, match=r"^feature_map: .* got a nested one\. Warp its"):
        warp(client, nested, IDENTITY)


def test_torch_unknown_options_are_type_errors(client):
    """When a module is made, and of the function."""
    with pytest.raises(TypeError, match="allign_corners: expected an option of"):
        SpatialTransformer(nn.Identity(), client, allign_corners=True)
    with pytest.raises(TypeError, match="allign_corners: expected an option of"):
        warp(client, IMAGE, IDENTITY, allign_corners=True)
    with pytest.raises(TypeError, match=r"^dsize: .* Did you mean output_size\?$"):
        warp(client, IMAGE, IDENTITY, dsize=SIZE)


def test_torch_localizations_return_parameters_of_their_transform():
    """Five numbers for each of six maps are thirty, but not five affine maps."""
    five = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    message = (
        r"^localization: expected it to return \(N, 6\) or \(N, 2, 3\) for Affine, got \(6, 5\)"
    )
    with pytest.raises(InvalidRequestError, match=message):
        SpatialTransformer(five, InProcessClient())(torch.rand(6, 1, 4, 4))


def test_torch_operators_have_all_options():
    """Those of `Client.warp`."""
    assert set(OPTIONS) == set(WarpOptions.__annotations__)
