"""The ``cpu`` backend: fused, ragged kernels in C++ for tensors in host memory.

One call computes coordinates, reads and sums block by block: no grid and no gradient of a grid is
ever in memory. It reads operands in place, whatever their strides, and writes results once.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch

from stn_engine.backends._results import gradients_of, outputs_of
from stn_engine.backends._thin_plate import warp_basis
from stn_engine.backends.base import reasons_against_device
from stn_engine.backends.torch import TorchBackend
from stn_engine.checks import NEEDS
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.spec import Coordinates, Subgradient, WarpSpec
from stn_engine.transforms import (
    Affine,
    Attention,
    Flow,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Transform,
    Translation,
)

try:
    from stn_engine import _cpu
except ImportError as error:
    MISSING: str | None = f"the native module is not usable: {error}"
    _KINDS: dict[type[Transform], Any] = {}
else:
    MISSING = None
    _KINDS = {
        Affine: _cpu.Kind.affine,
        Homography: _cpu.Kind.homography,
        Attention: _cpu.Kind.attention,
        Similarity: _cpu.Kind.similarity,
        Translation: _cpu.Kind.translation,
        Rotation: _cpu.Kind.rotation,
        ThinPlateSpline: _cpu.Kind.spline,
        Flow: _cpu.Kind.flow,
        SamplingGrid: _cpu.Kind.grid,
    }

COMPOSITION = TorchBackend()


class CpuBackend:
    """Runs every warp and its gradients on up to ``torch.get_num_threads()`` threads."""

    name = "cpu"

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """A missing native module, and any other device."""
        if MISSING is not None:
            return (MISSING,)
        return reasons_against_device(problem)

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """V of each problem, (N, C, ...); new ones in the memory format of the feature map."""
        outputs = outputs_of(problems, out)
        items = [
            (*_operands(problem), to_dlpack(output))
            for problem, output in zip(problems, outputs, strict=True)
        ]
        _cpu.warp(items, torch.get_num_threads())
        return outputs

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """The gradients that each problem needs."""
        gradients = gradients_of(problems, out)
        items = [
            (
                *_operands(problem.warp),
                to_dlpack(problem.grad_output),
                None if gradient.feature_map is None else to_dlpack(gradient.feature_map),
                None if gradient.transform is None else to_dlpack(gradient.transform),
            )
            for problem, gradient in zip(problems, gradients, strict=True)
        ]
        _cpu.warp_gradients(items, torch.get_num_threads())
        return gradients

    def form(self, problem: Problem, results: Sequence[Tensor]) -> Any:
        """What ``compute`` needs to know of a problem but its bytes; None if it has no kernel.

        Args:
            problem: Any, even on meta tensors; its operands are dense.
            results: Tensors like those that it will return.
        """
        match problem:
            case WarpProblem():
                return _form(problem, results[0])
            case WarpGradientsProblem() if form := _form(problem.warp, problem.grad_output):
                wanted = (name in problem.needs for name in NEEDS)
                form.differentiate(*wanted)
                return form
        return None

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """The sampling grid of each problem, composed: a generator alone has nothing to fuse."""
        return COMPOSITION.generate_grid(problems)

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """The gradient of the parameters of each problem, composed likewise."""
        return COMPOSITION.generate_grid_gradients(problems)


def compute(calls: list[tuple[Any, ...]], threads: int) -> list[tuple[bytes, ...]]:
    """Results of forms, each with the bytes of its operands."""
    return _cpu.compute(calls, threads)


def _form(problem: WarpProblem, target: Tensor) -> Any:
    if MISSING is not None or isinstance(problem.transform, ThinPlateSpline):
        return None
    layouts = map(_layout, (*problem.operands, target))
    return _cpu.Form(_options(problem.spec), _KINDS[type(problem.transform)], *layouts)


def _layout(tensor: Tensor) -> Any:
    """Where the numbers of a tensor lie."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _cpu.Layout(_cpu.Storage[dtype], tensor.shape, tensor.stride())


def _operands(problem: WarpProblem) -> tuple[Any, ...]:
    """Options, kind, feature map, parameters and basis, as the native module takes them."""
    transform = problem.transform
    basis = to_dlpack(warp_basis(problem)) if isinstance(transform, ThinPlateSpline) else None
    return (
        _options(problem.spec),
        _KINDS[type(transform)],
        to_dlpack(problem.feature_map),
        to_dlpack(transform.parameters),
        basis,
    )


@lru_cache(maxsize=256)
def _options(spec: WarpSpec) -> Any:
    return _cpu.Options(
        interpolation=_cpu.Interpolation[spec.interpolation.value],
        padding=_cpu.Padding[spec.padding.value],
        unit=_unit(spec.coordinates, spec.align_corners),
        zero_subgradient=spec.subgradient == Subgradient.ZERO,
        fill=list(spec.fill),
    )


@lru_cache(maxsize=16)
def _unit(coordinates: str, align_corners: bool) -> Any:  # noqa: FBT001 - lru_cache keys positional arguments fastest
    if coordinates == Coordinates.PIXEL:
        return _cpu.Unit.pixel
    return _cpu.Unit.normalized_corners if align_corners else _cpu.Unit.normalized
