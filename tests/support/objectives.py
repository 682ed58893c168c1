"""Makes objectives, and computes them by torch.nn.functional and torch's own autograd."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from stn_engine import Comparison, Objective, ObjectiveProblem, WarpProblem, WarpSpec
from stn_engine.backends.reference import ReferenceBackend
from support.oracles import in_float64, settled, torch_grid, torch_warp
from support.strategies import random_values, random_warp

IMAGE = {"size": (9, 11), "output_size": (8, 10)}
VOLUME = {"size": (5, 6, 7), "output_size": (4, 5, 6)}
LOSSES = ("ssd", "huber", "ncc")
DOMAINS = ("overlap", "all")
PARTS = ("value", "count", "gradient", "gauss_newton")


def random_objective(
    seed: int,
    *,
    loss: str = "ssd",
    domain: str = "overlap",
    batch: tuple[int, int, int, int] = (1, 1, 1, 1),
    weighted: bool = True,
    **options,
) -> ObjectiveProblem:
    """An objective all of whose results are asked for; points near the edge of a cell weigh 0.

    ``batch`` is N of the moving map, the transform, the fixed map and the weights; all other
    options are those of ``random_warp``.
    """
    warp = random_warp(seed, **({"channels": 2} | IMAGE | options), batch=batch[:2])
    dtype, size = warp.output_dtype, warp.output_shape[2:]
    fixed = random_values(seed + 2, (batch[2], warp.output_shape[1], *size), dtype)
    weights = random_values(seed + 3, (batch[3], 1, *size), dtype).abs() if weighted else None
    if weighted:
        calm = settled(warp).all(0).to(dtype)
        weights = weights * calm
    is_matrix = warp.transform.kind.family == "matrix" and loss != "ncc"
    needs = ("gradient", "gauss_newton") if is_matrix else ("gradient",)
    comparison = Comparison(loss=loss, delta=0.7, domain=domain)
    return ObjectiveProblem(warp, fixed, weights, comparison, needs)


def exact_objective(problem: ObjectiveProblem) -> Objective:
    """By the reference, of operands in float64, so that it rounds nothing."""
    weights = None if problem.weights is None else problem.weights.double()
    wide = ObjectiveProblem(
        in_float64(problem.warp), problem.fixed.double(), weights, problem.comparison, problem.needs
    )
    return ReferenceBackend().objective([wide])[0]


def torch_objective(problem: ObjectiveProblem) -> Objective:
    """One item of float64 by torch alone, for the options that ``torch_warp`` has."""
    warp, how = problem.warp, problem.comparison
    parameters = warp.transform.parameters
    grid = torch_grid(warp)
    w = torch.ones_like(grid[..., 0]) if problem.weights is None else problem.weights[:, 0]
    if how.domain == "overlap":
        edge = (
            1.0 if warp.spec.align_corners else 1 - 1 / torch.tensor(warp.feature_map.shape[:1:-1])
        )
        w = w * (grid.abs() <= edge).all(-1)

    def warped(parameters: Tensor) -> Tensor:
        return torch_warp(replace(warp, transform=warp.transform.with_parameters(parameters)))

    def value(parameters: Tensor) -> Tensor:
        V, F = warped(parameters), problem.fixed
        ratio = w[:, None].expand_as(V) / (w.sum() * V.shape[1])
        if how.loss == "ssd":
            return (ratio * torch_functional.mse_loss(V, F, reduction="none")).sum()
        if how.loss == "huber":
            terms = torch_functional.huber_loss(V, F, reduction="none", delta=how.delta)
            return (ratio * terms).sum()
        a, b = V - (ratio * V).sum(), F - (ratio * F).sum()
        roots = ratio.sqrt().flatten()
        return 1 - torch_functional.cosine_similarity(roots * a.flatten(), roots * b.flatten(), 0)

    result = value(parameters), torch.autograd.functional.jacobian(value, parameters)
    matrix = None
    if "gauss_newton" in problem.needs:
        V = warped(parameters)
        jacobian = torch.autograd.functional.jacobian(warped, parameters)
        J = jacobian.reshape(V.numel(), parameters.numel())
        curvature = w[:, None].expand_as(V) / (w.sum() * V.shape[1])
        if how.loss == "ssd":
            curvature = 2 * curvature
        else:
            curvature = curvature * ((V - problem.fixed).abs() <= how.delta)
        matrix = (J.T @ (curvature.flatten()[:, None] * J))[None]
    return Objective(result[0][None], w.sum()[None], result[1], matrix)


def item_of(problem: ObjectiveProblem, n: int) -> ObjectiveProblem:
    """Item n of an objective, alone."""

    def one(tensor: Tensor) -> Tensor:
        return tensor[[n if len(tensor) > 1 else 0]]

    warp = problem.warp
    alone = WarpProblem(
        one(warp.feature_map),
        warp.transform.with_parameters(one(warp.transform.parameters)),
        warp.output_size,
        warp.spec,
    )
    weights = None if problem.weights is None else one(problem.weights)
    return ObjectiveProblem(alone, one(problem.fixed), weights, problem.comparison, problem.needs)


def parts_of(objective: Objective) -> dict[str, Tensor]:
    """The results that are there, by name."""
    return {name: part for name in PARTS if (part := getattr(objective, name)) is not None}


def spec_for(domain: str, **options) -> WarpSpec:
    """Reads outside are zero where they do not count, and have a slope where they do."""
    return WarpSpec(padding="zeros" if domain == "overlap" else "reflection", **options)
