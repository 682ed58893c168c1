"""What the engine is measured on, and against whom. The first contender of a case is ours.

All float32 and bilinear with zeros outside, unless a case says otherwise. Transforms are built
inside the timed calls, as users build them; operands before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import torch
from kornia.geometry.transform import warp_affine as kornia_warp_affine
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

from bench import engine_operands
from bench.engine_calls import (
    affine_grid,
    differentiated,
    engine_affine,
    pixel_affine,
    target_points,
    torch_affine,
    torch_flow,
    torch_homography,
)
from bench.engine_operands import feature_map_and_theta, inverse, pixel_theta, uniform
from bench.rounds import Contender
from stn_engine import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    WarpGradientsProblem,
    WarpProblem,
    grid_sample,
    objective,
    warp,
    warp_gradients,
    warp_gradients_ragged,
    warp_ragged,
)

MAPS = ((32, 3, 224, 224), (1, 3, 1024, 1024), (64, 1, 28, 28), (8, 64, 56, 56))
VOLUME = (1, 1, 96, 96, 96)
CHANNELS_LAST = (8, 64, 56, 56)
PHOTOS = (32, 3, 224, 224)
IMAGE_SIDES = (224, 1024)
RAGGED_ITEMS, RAGGED_SIDES = 256, (16, 256)
POINTS = 38400
ARRANGEMENTS = ((1, POINTS), (POINTS, 1), (POINTS // 4, 4), (200, 192))
MAP_OF_POINTS = (1, 16, 64, 64)
VOLUME_ARRANGEMENTS = ((1, 1, POINTS), (POINTS, 1, 1), (POINTS // 4, 2, 2), (30, 32, 40))
VOLUME_OF_POINTS = (1, 16, 16, 16, 16)
HEADS, QUERIES, POINTS_OF_A_QUERY, HEAD_CHANNELS = 8, 300, 4, 32
LEVELS = (64, 32, 16, 8)


@dataclass(frozen=True)
class Case:
    """One comparison. ``build`` makes the operands and closes the contenders over them.

    With ``all_ours``, every contender is ours, and the slowest is compared with the fastest.
    """

    group: str
    name: str
    build: Callable[[], Mapping[str, Contender]]
    all_ours: bool = False


@dataclass(frozen=True)
class Bar:
    """What the ratios of a group against one rival should reach."""

    least: float
    mean: float | None = None


BARS = {
    ("forward", "torch"): Bar(least=2.5, mean=5),
    ("forward + backward", "torch"): Bar(least=2.5, mean=4),
    ("forward, channels last", "torch"): Bar(least=6),
    ("HWC image", "OpenCV"): Bar(least=1),
    ("batch in pixel units", "Kornia"): Bar(least=5),
    ("ragged forward", "torch loop"): Bar(least=5),
    ("two threads", "one thread"): Bar(least=1.8),
    ("fields", "torch"): Bar(least=2.5),
    ("fields, forward + backward", "torch"): Bar(least=2),
    ("arrangements of points", "the fastest"): Bar(least=0.667),
    ("deformable attention", "torch"): Bar(least=1.2),
    ("objective", "composed"): Bar(least=2),
    ("objective, all points", "composed"): Bar(least=2),
}
"""By group and rival; all others are for information."""


def all_cases(threads: int) -> Iterator[Case]:
    for group, build in (("forward", forward), ("forward + backward", backward)):
        yield from (Case(group, label(shape), partial(build, shape, threads)) for shape in MAPS)
        yield volume_case(group, build, threads)
        last = partial(build, CHANNELS_LAST, threads, torch.channels_last)
        yield Case(f"{group}, channels last", label(CHANNELS_LAST), last)
    for dtype in (torch.uint8, torch.float32):
        for side in IMAGE_SIDES:
            name = f"{label((side, side, 3))} {str(dtype).removeprefix('torch.')}"
            yield Case("HWC image", name, partial(hwc_image, side, dtype, threads))
    yield Case("batch in pixel units", label(PHOTOS), partial(pixel_batch, threads))
    name = f"{RAGGED_ITEMS} images of {RAGGED_SIDES[0]} to {RAGGED_SIDES[1]} px"
    yield Case("ragged forward", name, partial(ragged_forward, threads))
    yield Case("ragged forward + backward", name, partial(ragged_backward, threads))
    yield from arrangement_cases(threads)
    for name in ("forward", "forward + backward"):
        build = partial(deformable_attention, name != "forward", threads)
        yield Case("deformable attention", name, build)
    yield from objective_cases(threads)
    if threads >= 2:
        yield from thread_cases()
    yield from field_cases(threads)
    yield from other_modes(threads)


def objective_cases(threads: int) -> Iterator[Case]:
    """A step of a registration: value and gradient, against a warp, a loss and gradients."""
    for group, domain in (("objective", "overlap"), ("objective, all points", "all")):
        for shape, kind, losses in (
            ((1, 1, 512, 512), Affine, ("ssd", "huber", "ncc")),
            ((1, 3, 512, 512), Affine, ("ssd", "ncc")),
            ((1, 1, 512, 512), Flow, ("ssd", "ncc")),
            (VOLUME, Affine, ("ssd", "ncc")),
        ):
            for loss in losses:
                name = f"{kind.__name__} {loss} {label(shape)}"
                build = partial(objective_step, shape, kind, loss, domain, threads)
                yield Case(group, name, build)


def objective_step(shape, kind, loss, domain, threads) -> Mapping[str, Contender]:
    """Ours in one pass, and composed of our own warp and gradients with the loss of torch.

    The overlap is where a warp of ones is 1, and what is composed is weighted by that.
    """
    moving, theta = feature_map_and_theta(shape)
    fixed = uniform(shape, 0.0, 1.0, seed=6)
    transform = Affine(theta)
    if kind is Flow:
        transform = Flow(uniform((1, *shape[2:], len(shape) - 2), -0.01, 0.01, seed=7))
    ones = torch.ones_like(moving[:, :1])

    def ours():
        found = objective(moving, fixed, transform, loss=loss, delta=0.3, domain=domain)
        return found.value, found.gradient

    def composed():
        V = warp(moving, transform).requires_grad_()
        w = None if domain == "all" else (warp(ones, transform) > 1 - 1e-5).float()
        value = LOSSES[loss](V, fixed, w)
        (grad_output,) = torch.autograd.grad(value, V)
        gradients = warp_gradients(grad_output, moving, transform, needs=("transform",))
        return value.detach()[None], gradients.transform

    return {"ours": Contender(ours, threads), "composed": Contender(composed, threads)}


def weighted_mean(terms, w) -> Tensor:
    """Of all terms alike, if there are no weights."""
    return terms.mean() if w is None else (w * terms).sum() / (w.sum() * terms.shape[1])


def square_loss(V, fixed, w) -> Tensor:
    """The fastest that torch has: one operator where all points count."""
    return F.mse_loss(V, fixed) if w is None else weighted_mean((V - fixed).square(), w)


def huber_loss(V, fixed, w) -> Tensor:
    """As square_loss does."""
    if w is None:
        return F.huber_loss(V, fixed, delta=0.3)
    return weighted_mean(F.huber_loss(V, fixed, reduction="none", delta=0.3), w)


def correlation_loss(V, fixed, w) -> Tensor:
    """1 minus the correlation."""
    a, b = V - weighted_mean(V, w), fixed - weighted_mean(fixed, w)
    if w is None:
        return 1 - F.cosine_similarity(a.flatten(), b.flatten(), 0)
    covariances = (weighted_mean(one * other, w) for one, other in ((a, b), (a, a), (b, b)))
    of_both, of_moving, of_fixed = covariances
    return 1 - of_both / (of_moving * of_fixed).sqrt()


LOSSES = {"ssd": square_loss, "huber": huber_loss, "ncc": correlation_loss}


def volume_case(group: str, build, threads: int) -> Case:
    """Trilinear: the feature map is (N, C, D, H, W), theta (N, 3, 4)."""
    return Case(group, label(VOLUME), partial(build, VOLUME, threads))


def thread_cases() -> Iterator[Case]:
    """How our own kernels scale, on the cases against torch."""
    for group, build in (("forward", forward), ("forward + backward", backward)):
        for shape in (*MAPS, VOLUME):
            name = f"{group} {label(shape)}"
            yield Case("two threads", name, partial(two_threads, build, shape))


def arrangement_cases(threads: int) -> Iterator[Case]:
    """The same points of an explicit grid in rows of any length."""
    for shape, layouts in (
        (MAP_OF_POINTS, (torch.contiguous_format, torch.channels_last)),
        (VOLUME_OF_POINTS, (torch.contiguous_format, torch.channels_last_3d)),
    ):
        for layout in layouts:
            for differentiates in (False, True):
                last = "" if layout == torch.contiguous_format else ", channels last"
                name = f"{label(shape)}{last}, {'forward + backward' * differentiates or 'forward'}"
                build = partial(arrangements, shape, layout, differentiates, threads)
                yield Case("arrangements of points", name, build, all_ours=True)


def other_modes(threads: int) -> Iterator[Case]:
    for mode in ("bicubic", "nearest"):
        options = {"interpolation": mode}, {"mode": mode}
        yield Case("other modes", mode, partial(options_of_both, *options, threads))
    for padding in ("border", "reflection"):
        options = {"padding": padding}, {"padding_mode": padding}
        yield Case("other modes", padding, partial(options_of_both, *options, threads))
    yield Case("other modes", "homography", partial(homography, threads))


def field_cases(threads: int) -> Iterator[Case]:
    """One point per target pixel, given by the caller."""
    for group, differentiates in (("fields", False), ("fields, forward + backward", True)):
        for build in (flow, grid):
            yield Case(group, build.__name__, partial(build, differentiates, threads))


def arrangements(shape, layout, differentiates, threads):
    """Contenders are named by the size of the grid; results are flat, so that they agree."""
    feature_map = uniform(shape, 0.0, 1.0, seed=1).to(memory_format=layout)
    dimensions = len(shape) - 2
    points = uniform((POINTS, dimensions), -1.0, 1.0, seed=2)
    grads = uniform((1, shape[1], POINTS), -1.0, 1.0, seed=5)

    def call(size):
        grid = points.reshape(1, *size, dimensions)
        inputs = feature_map.clone(memory_format=torch.preserve_format), grid.clone()
        if not differentiates:
            return lambda: grid_sample(*inputs, align_corners=False).flatten(2)
        grad_output = grads.reshape(1, shape[1], *size).contiguous(memory_format=layout)
        leaves = tuple(one.requires_grad_() for one in inputs)
        sample = partial(grid_sample, align_corners=False)
        return lambda: [
            one.flatten(2) if one.shape == feature_map.shape else one.reshape(POINTS, dimensions)
            for one in differentiated(sample, leaves, grad_output)
        ]

    sizes = ARRANGEMENTS if dimensions == 2 else VOLUME_ARRANGEMENTS
    return contenders(threads, {label(size): call(size) for size in sizes})


def deformable_attention(differentiates, threads):
    """What multi-scale deformable attention samples: each head is an item of the batch."""
    maps = [uniform((HEADS, HEAD_CHANNELS, side, side), 0.0, 1.0, seed=side) for side in LEVELS]
    size = (QUERIES, POINTS_OF_A_QUERY)
    grids = [uniform((HEADS, *size, 2), -1.0, 1.0, seed=side + 1) for side in LEVELS]
    grads = [uniform((HEADS, HEAD_CHANNELS, *size), -1.0, 1.0, seed=side + 2) for side in LEVELS]

    def forward(function):
        return [function(*pair, align_corners=False) for pair in zip(maps, grids, strict=True)]

    def backward(function):
        return torch.autograd.grad(forward(function), maps + grids, grads)

    for leaf in maps + grids:
        leaf.requires_grad_(differentiates)
    run = backward if differentiates else forward
    return contenders(
        threads, {"ours": partial(run, grid_sample), "torch": partial(run, F.grid_sample)}
    )


def label(shape) -> str:
    return "x".join(map(str, shape))


def contenders(threads: int, calls: Mapping[str, Callable]) -> dict[str, Contender]:
    return {name: Contender(run, threads) for name, run in calls.items()}


def forward(shape, threads, layout=torch.contiguous_format):
    operands = feature_map_and_theta(shape, layout)
    calls = {"ours": partial(engine_affine, *operands), "torch": partial(torch_affine, *operands)}
    if shutil.which("g++"):
        torch.compiler.reset()
        calls["torch.compile"] = partial(torch.compile(torch_affine, dynamic=False), *operands)
    return contenders(threads, calls)


def backward(shape, threads, layout=torch.contiguous_format):
    inputs = tuple(operand.requires_grad_() for operand in feature_map_and_theta(shape, layout))
    grad_output = uniform(shape, -1.0, 1.0, seed=5).to(memory_format=layout)
    calls = {
        "ours": partial(differentiated, engine_affine, inputs, grad_output),
        "torch": partial(differentiated, torch_affine, inputs, grad_output),
    }
    return contenders(threads, calls)


def two_threads(build, shape):
    run = build(shape, threads=2)["ours"].run
    return {"two threads": Contender(run, 2), "one thread": Contender(run, 1)}


def hwc_image(side, dtype, threads):
    """The same array for both; OpenCV may write into an array that is there already."""
    image = uniform((side, side, 3), 0.0, 255.0, seed=1).to(dtype)
    feature_map, theta = image.permute(2, 0, 1)[None], pixel_theta(1, side)
    source, target, matrix = image.numpy(), image.clone().numpy(), theta[0].numpy()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    calls = {
        "ours": lambda: pixel_affine(feature_map, theta)[0].permute(1, 2, 0),
        "OpenCV": lambda: cv2.warpAffine(source, matrix, (side, side), dst=target, flags=flags),
    }
    return contenders(threads, calls)


def pixel_batch(threads):
    """Kornia's matrix leads from source to target, and has the dtype of the images."""
    feature_map, theta = uniform(PHOTOS, 0.0, 1.0, seed=1), pixel_theta(PHOTOS[0], PHOTOS[-1])
    matrix = inverse(theta).float()
    calls = {
        "ours": partial(pixel_affine, feature_map, theta),
        "Kornia": partial(kornia_warp_affine, feature_map, matrix, PHOTOS[2:]),
    }
    return contenders(threads, calls)


def ragged_forward(threads):
    pairs = engine_operands.ragged(RAGGED_ITEMS, RAGGED_SIDES, channels=3)
    calls = {
        "ours": lambda: warp_ragged([WarpProblem(u, Affine(theta)) for u, theta in pairs]),
        "torch loop": lambda: [torch_affine(u, theta) for u, theta in pairs],
    }
    return contenders(threads, calls)


def ragged_backward(threads):
    """Of the loss |V|²/2, whose gradient is V: both sides run forward and then backward."""
    pairs = engine_operands.ragged(RAGGED_ITEMS, RAGGED_SIDES, channels=3)
    leaves = [tuple(one.clone().requires_grad_() for one in pair) for pair in pairs]

    def ours() -> list[tuple[Tensor | None, Tensor | None]]:
        warps = [WarpProblem(u, Affine(theta)) for u, theta in pairs]
        problems = map(WarpGradientsProblem, warps, warp_ragged(warps))
        gradients = warp_gradients_ragged(list(problems))
        return [(one.feature_map, one.transform) for one in gradients]

    def theirs() -> list[tuple[Tensor, ...]]:
        outputs = [torch_affine(*pair) for pair in leaves]
        both = zip(outputs, leaves, strict=True)
        return [torch.autograd.grad(v, pair, v.detach()) for v, pair in both]

    return contenders(threads, {"ours": ours, "torch loop": theirs})


def options_of_both(options, torch_options, threads):
    operands = feature_map_and_theta(PHOTOS)
    calls = {
        "ours": partial(engine_affine, *operands, **options),
        "torch": partial(torch_affine, *operands, **torch_options),
    }
    return contenders(threads, calls)


def homography(threads):
    feature_map, affine = feature_map_and_theta(PHOTOS)
    horizon = torch.tensor([0.1, -0.05, 1.0]).expand(PHOTOS[0], 1, 3)
    theta = torch.cat((affine, horizon), 1)
    calls = {
        "ours": lambda: warp(feature_map, Homography(theta)),
        "torch": partial(torch_homography, feature_map, theta),
    }
    return contenders(threads, calls)


def flow(differentiates, threads):
    feature_map, theta = feature_map_and_theta(PHOTOS)
    displacement = affine_grid(theta, PHOTOS) - target_points(PHOTOS)
    inputs = feature_map, displacement
    return of_fields(lambda u, f: warp(u, Flow(f)), torch_flow, inputs, differentiates, threads)


def grid(differentiates, threads):
    feature_map, theta = feature_map_and_theta(PHOTOS)
    sample = partial(F.grid_sample, align_corners=False)
    inputs = feature_map, affine_grid(theta, PHOTOS)
    return of_fields(lambda u, p: warp(u, SamplingGrid(p)), sample, inputs, differentiates, threads)


def of_fields(ours, theirs, inputs, differentiates, threads):
    if not differentiates:
        return contenders(
            threads, {"ours": partial(ours, *inputs), "torch": partial(theirs, *inputs)}
        )
    leaves = tuple(one.requires_grad_() for one in inputs)
    grad_output = uniform(PHOTOS, -1.0, 1.0, seed=5)
    calls = {"ours": ours, "torch": theirs}
    return contenders(
        threads,
        {name: partial(differentiated, call, leaves, grad_output) for name, call in calls.items()},
    )
