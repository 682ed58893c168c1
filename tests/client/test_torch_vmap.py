"""Remote operators under `torch.func.vmap`: one call for all, against torch's own warp under it."""

from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn import functional

from stn_client import Affine, Client, Flow, InvalidRequestError, Rotation, ThinPlateSpline
from stn_client.torch import SpatialTransformer, objective, warp

SIZE = (3, 4)
ELEMENTS, MAPS = 3, 2
CORNERS = [[-1, -1], [1, -1], [1, 1], [-1, 1]]


class Counting(Client):
    """Counts its calls, whatever their size."""

    def __init__(self, target):
        super().__init__(target)
        self.made = []

    def _run(self, call):
        if not call.method.endswith("GetServerInfo"):
            self.made.append(call.method.rpartition("/")[2])
        return super()._run(call)


@pytest.fixture(scope="module")
def stn(local_server):
    with Counting(local_server.target) as client:
        yield client


def given(maps=MAPS, thetas=MAPS):
    """Feature maps (B, N, 2, 5, 4) and matrices (B, N, 2, 3); points keep off the cell borders."""
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(ELEMENTS, maps, 2, 5, 4, dtype=torch.float64, generator=generator)
    noise = torch.rand(ELEMENTS, thetas, 2, 3, dtype=torch.float64, generator=generator)
    return u, torch.eye(2, 3) * 0.7 + noise * 0.2


def locally(u, theta, size=SIZE):
    """The warp of one element by torch, of which N may be 1 in either operand."""
    batch = max(len(u), len(theta))
    u, theta = u.expand(batch, *u.shape[1:]), theta.expand(batch, 2, 3)
    grid = functional.affine_grid(theta, (batch, 1, *size), align_corners=False)
    return functional.grid_sample(u, grid, align_corners=False)


def looped(function, in_dims=None):
    """What `vmap` returns, by a loop: torch warns that it has no rule of its own for its warps."""

    def loop(*operands):
        dims = in_dims or [0] * len(operands)
        pairs = list(zip(operands, dims, strict=True))
        results = [
            function(*(one if dim is None else one.select(dim, k) for one, dim in pairs))
            for k in range(ELEMENTS)
        ]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(one) for one in zip(*results, strict=True))
        return torch.stack(results)

    return loop


def remotely(stn, u, theta):
    """The same by the service."""
    return warp(stn, u, Affine(theta), SIZE)


def squares(function, u, theta):
    """A loss whose gradients differ from point to point."""
    return function(u, theta).square().sum()


@pytest.mark.parametrize(
    ("in_dims", "axes"),
    [
        ((0, 0), (0, 0)),
        ((0, None), (0, 0)),
        ((None, 0), (0, 0)),
        ((2, 3), (2, 3)),
        ((-1, 1), (4, 1)),
    ],
)
@pytest.mark.parametrize("counts", [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_vmap_of_warps_is_one_call(stn, in_dims, axes, counts):
    """Whatever axis is mapped, and whether maps, matrices or both are."""
    operands = [
        tensor[0] if dim is None else tensor.movedim(0, axis)
        for tensor, dim, axis in zip(given(*counts), in_dims, axes, strict=True)
    ]
    stn.made.clear()
    found = vmap(partial(remotely, stn), in_dims)(*operands)
    assert stn.made == ["Warp"]
    torch.testing.assert_close(found, looped(locally, in_dims)(*operands))


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("counts", [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_vmap_of_gradients_is_two_calls(stn, argnums, in_dims, counts):
    """Every element has its own gradient, also to what it shares with others or within its N."""
    operands = [
        tensor[0] if dim is None else tensor
        for tensor, dim in zip(given(*counts), in_dims, strict=True)
    ]
    stn.made.clear()
    found = vmap(grad(partial(squares, partial(remotely, stn)), argnums), in_dims)(*operands)
    assert stn.made == ["Warp", "WarpGradients"]
    expected = looped(grad(partial(squares, locally), argnums), in_dims)(*operands)
    torch.testing.assert_close(found, expected)


def test_gradients_of_vmap_go_through_it(stn):
    """In the other order: autograd outside, by `backward` and by `grad`."""
    u, theta = (tensor.requires_grad_() for tensor in given())
    vmap(partial(remotely, stn))(u, theta).square().sum().backward()
    expected = torch.autograd.grad(looped(locally)(u, theta).square().sum(), (u, theta))
    torch.testing.assert_close((u.grad, theta.grad), expected)
    of_theta = grad(partial(squares, vmap(partial(remotely, stn))), 1)(u.detach(), theta.detach())
    torch.testing.assert_close(of_theta, expected[1])


def test_jacobians_are_two_calls(stn):
    """By `jacrev`; autograd's own loop over gradients goes as well, a call for each."""
    u, theta = (tensor[0] for tensor in given())
    stn.made.clear()
    found = jacrev(partial(remotely, stn), 1)(u, theta)
    assert stn.made == ["Warp", "WarpGradients"]
    expected = jacrev(locally, 1, chunk_size=1)(u, theta)
    torch.testing.assert_close(found, expected)
    by_autograd = torch.autograd.functional.jacobian(
        lambda theta: remotely(stn, u, theta), theta, vectorize=True
    )
    torch.testing.assert_close(by_autograd, expected)


def test_vmap_within_vmap_is_one_call(stn):
    """Elements and, within them, channels: a map of one channel each."""
    u, theta = given()

    def channel(one, theta):
        return remotely(stn, one[:, None], theta)

    stn.made.clear()
    found = vmap(vmap(channel, (1, None)))(u, theta)
    assert stn.made == ["Warp"]
    torch.testing.assert_close(found.movedim(1, 2).squeeze(3), looped(locally)(u, theta))


def turned(phi):
    """The matrix of a `Rotation`."""
    cos, sin, zero = phi.cos(), phi.sin(), torch.zeros_like(phi)
    return torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])[None]


def moved(shift):
    """The matrix of a shift."""
    return torch.cat([torch.eye(2, dtype=shift.dtype), shift[:, None]], 1)[None]


SHIFTED = partial(ThinPlateSpline, control_points=CORNERS)
ANGLES = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)
SHIFTS = torch.tensor([[0.13, 0.2], [-0.3, 0.11], [0.41, -0.2]], dtype=torch.float64)


@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW"])
@pytest.mark.parametrize(
    ("transform", "matrix", "numbers"),
    [
        (Affine, lambda theta: theta[None], given()[1][:, 0]),
        (lambda theta: Affine(theta[None]), lambda theta: theta[None], given()[1][:, 0]),
        (Rotation, turned, ANGLES),
        (lambda phi: Rotation(phi[None]), turned, ANGLES),
        (lambda t: SHIFTED(t.new_tensor(CORNERS) + t), moved, SHIFTS),
        (lambda t: Flow(t.expand(*SIZE, 2)), moved, SHIFTS),
    ],
    ids=["matrix", "one matrix", "number", "vector", "spline", "flow"],
)
def test_vmap_of_single_maps_is_one_call(stn, layout, transform, matrix, numbers):
    """Maps without a batch axis, and parameters with one or without, are gathered to a batch."""
    u = given()[0][:, 0]
    if layout == "HW":
        u = u[:, :1]

    def remote(u, number):
        own = {"CHW": u, "HWC": u.movedim(0, 2), "HW": u[0]}[layout]
        found = warp(stn, own, transform(number), SIZE, layout=layout)
        return found[None] if layout == "HW" else found.movedim(layout.index("C"), 0)

    def local(u, number):
        return locally(u[None], matrix(number))[0]

    stn.made.clear()
    found = vmap(remote)(u, numbers)
    assert stn.made == ["Warp"]
    torch.testing.assert_close(found, looped(local)(u, numbers))
    found = vmap(grad(partial(squares, remote), (0, 1)))(u, numbers)
    assert stn.made == ["Warp", "Warp", "WarpGradients"]
    torch.testing.assert_close(found, looped(grad(partial(squares, local), (0, 1)))(u, numbers))


def compared(u, theta, fixed, weights):
    """The weighted mean of squares of one element by torch, for each of its maps."""
    differences = (locally(u, theta, fixed.shape[2:]) - fixed).square() * weights
    channels = fixed.shape[1]
    total = weights.expand(len(differences), *weights.shape[1:]).flatten(1).sum(1) * channels
    return differences.flatten(1).sum(1) / total


@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (None, 0, None, None), (0, None, 0, None)])
@pytest.mark.parametrize("counts", [(2, 2), (1, 2)])
def test_vmap_of_objectives_is_one_call(stn, in_dims, counts):
    """Values and gradients; a search from many places for one pair of maps, too."""
    generator = torch.Generator().manual_seed(5)
    fixed = torch.rand(ELEMENTS, counts[0], 2, *SIZE, dtype=torch.float64, generator=generator)
    weights = torch.rand(ELEMENTS, 1, 1, *SIZE, dtype=torch.float64, generator=generator)
    operands = [
        tensor[0] if dim is None else tensor
        for tensor, dim in zip((*given(*counts), fixed, weights), in_dims, strict=True)
    ]

    def remote(u, theta, fixed, weights):
        return objective(stn, u, fixed, Affine(theta), weights=weights, domain="all")

    stn.made.clear()
    torch.testing.assert_close(
        vmap(remote, in_dims)(*operands), looped(compared, in_dims)(*operands)
    )
    assert stn.made == ["Objective"]

    def loss(function, *operands):
        return function(*operands).square().sum()

    found = vmap(grad(partial(loss, remote), 1), in_dims)(*operands)
    assert stn.made == ["Objective"] * 2
    expected = looped(grad(partial(loss, compared), 1), in_dims)(*operands)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("has_axis", [True, False])
def test_objectives_of_single_maps_have_gradients_of_their_number(stn, has_axis):
    """With a batch axis of one, or without any, and under `vmap`."""
    u, fixed = given()[0][:, 0, 0], given()[0][:, 1, 1, :3]

    def remote(u, fixed, phi):
        angle = Rotation(phi[None] if has_axis else phi)
        return objective(stn, u, fixed, angle, domain="all", layout="HW")[0]

    def local(u, fixed, phi):
        return compared(u[None, None], turned(phi), fixed[None, None], fixed.new_ones(1, 1, 3, 4))[
            0
        ]

    expected = looped(grad(local, 2))(u, fixed, ANGLES)
    torch.testing.assert_close(vmap(grad(remote, 2))(u, fixed, ANGLES), expected)
    phi = ANGLES[1].clone().requires_grad_()
    remote(u[1], fixed[1], phi).backward()
    torch.testing.assert_close(phi.grad, expected[1])


def test_an_ensemble_of_transformers_is_one_call(stn):
    """As torch's tutorial of model ensembles has it."""
    layers = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 6)) for _ in range(3)]
    transformers = [SpatialTransformer(layer.double(), stn, SIZE) for layer in layers]
    parameters, buffers = stack_module_state(transformers)
    u = given()[0][0]

    def one(parameters, buffers):
        return functional_call(transformers[0], (parameters, buffers), (u,))

    stn.made.clear()
    found = vmap(one)(parameters, buffers)
    assert stn.made == ["Warp"]
    expected = [locally(u, layer(u).reshape(-1, 2, 3)) for layer in layers]
    torch.testing.assert_close(found, torch.stack(expected))


def test_what_is_refused_of_a_single_call_is_refused_under_vmap(stn):
    """In the same words: shapes are those of one element."""
    u, theta = given()
    with pytest.raises(InvalidRequestError, match=r"^feature_map: .*got shape \(2, 5, 4\)"):
        vmap(partial(remotely, stn))(u[:, 0], theta)
    with pytest.raises(InvalidRequestError, match=r"^theta: expected a batch axis, got .*\(2, 3\)"):
        vmap(partial(remotely, stn))(u, theta[:, 0])
    three = torch.cat([theta, theta[:, :1]], 1)
    with pytest.raises(InvalidRequestError, match="Match the feature map's N, or use 1"):
        vmap(partial(remotely, stn))(u, three)
    second = grad(lambda u: grad(lambda u: remotely(stn, u, theta[0]).sum())(u).sum())
    with pytest.raises(InvalidRequestError, match=r"^create_graph: expected no derivatives of"):
        vmap(second)(u)


def test_vmap_compiles_to_one_operator(stn):
    """Shapes are known without a call."""
    u, theta = given()
    compiled = torch.compile(vmap(partial(remotely, stn)), backend="eager", fullgraph=True)
    stn.made.clear()
    torch.testing.assert_close(compiled(u, theta), looped(locally)(u, theta))
    assert stn.made == ["Warp"]
