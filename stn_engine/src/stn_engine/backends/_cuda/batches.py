"""Problems that run in the same kernels: their table, their scratch memory, and their launches."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._cuda.launcher import Arguments, Launcher
from stn_engine.backends._cuda.programs import Program
from stn_engine.backends._cuda.table import (
    ADDRESSES,
    FIELDS,
    REACH_BYTES,
    Description,
    Key,
    Row,
    row_of,
)
from stn_engine.backends._thin_plate import warp_basis
from stn_engine.problem import Gradients, WarpGradientsProblem, WarpProblem
from stn_engine.spec import Interpolation
from stn_engine.transforms import ThinPlateSpline

_OPERANDS = (
    "source",
    "target",
    "by_source",
    "points",
    "by_points",
    "parameters",
    "by_parameters",
    "own_parameters",
    "basis",
)
_COLUMNS = [ADDRESSES[name] for name in _OPERANDS]
_TILES = ("target_tiles", "source_tiles", "field_tiles", "thetas")
_THETA_BYTES = 6 * 8
_ALIGNMENT = 15


class Entry(NamedTuple):
    """One item: its row, its addresses in the order of ``_OPERANDS``, and what they belong to."""

    row: Row
    addresses: tuple[int, ...]
    operands: tuple[Any, ...]
    by_source: Tensor | None


def warp_entry(problem: WarpProblem, output: Tensor) -> Entry:
    """A forward problem and the memory for its result."""
    return _entry(problem, output, None, None)


def gradients_entry(problem: WarpGradientsProblem, result: Gradients) -> Entry:
    """A backward problem and the memory for its results."""
    is_flat = problem.warp.spec.interpolation == Interpolation.NEAREST
    by_transform = None if is_flat else result.transform
    return _entry(problem.warp, problem.grad_output, result.feature_map, by_transform)


def _entry(
    warp: WarpProblem, target: Tensor, by_source: Tensor | None, by_transform: Tensor | None
) -> Entry:
    source, transform = warp.feature_map, warp.transform
    kind, parameters = type(transform), transform.parameters
    if not (kind in FIELDS or parameters.is_contiguous()):
        parameters = parameters.contiguous()
    basis = warp_basis(warp) if kind is ThinPlateSpline else None
    u, v, by_u = source.data_ptr(), target.data_ptr(), _address(by_source)
    own, by_own = parameters.data_ptr(), _address(by_transform)
    row = row_of(
        Description(
            kind,
            warp.spec,
            source.dtype,
            source.device,
            (source.shape, source.stride()),
            (target.shape, target.stride()),
            (parameters.shape, parameters.stride()),
            parameters.dtype,
            None if by_source is None else (by_source.shape, by_source.stride()),
            None if by_transform is None else (by_transform.shape, by_transform.stride()),
            not (u | v | by_u) & _ALIGNMENT,
        )
    )
    addresses = (u, v, by_u, own, by_own, own, by_own, own, _address(basis))
    return Entry(row, addresses, (parameters, basis), by_source)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Batch:
    """The items of one key, described in the device's memory.

    Args:
        launcher: Runs the kernels.
        key: What the items have in common.
        entries: The items.
    """

    def __init__(self, launcher: Launcher, key: Key, entries: Sequence[Entry]) -> None:
        self._launcher, self._key = launcher, key
        self._rows = [entry.row for entry in entries]
        # Memory that kernels still read must not be given to others before they are queued.
        self._kept: list[Any] = [entry.operands for entry in entries]
        self._by_sources = [entry.by_source for entry in entries]
        words = np.frombuffer(bytearray().join(row.words for row in self._rows), np.int64)
        self._words = words.reshape(len(entries), -1)
        self._words[:, _COLUMNS] = [entry.addresses for entry in entries]
        self._starts: dict[str, tuple[int, int]] = {}
        self._table: Tensor | None = None

    def run_warp(self) -> None:
        """Write V of every item."""
        self._expand()
        self._over("target_tiles", self._program("warp"), f"stn_warp_{self._stem}")

    def run_gradients(self) -> None:
        """Write the gradients that the items need."""
        needs_map, needs_transform = (
            name in self._key.needs for name in ("feature_map", "transform")
        )
        reduces = needs_transform and self._key.family != "field"
        if reduces:
            self._take_scratch("sums", [8 * row.sums for row in self._rows])
        accumulates = self._prepare_map() if needs_map else False
        self._expand()
        if needs_transform:
            program = self._program("slopes")
            kernel = f"stn_by_{self._key.family}_{self._key.layout}"
            self._over(
                "field_tiles" if self._key.family == "field" else "target_tiles", program, kernel
            )
        if reduces:
            self._over("thetas", Program("parameters"), "stn_finish")
        if needs_map:
            self._gather() if self._key.gathers else self._scatter(collects=accumulates)

    def _program(self, source: str) -> Program:
        """The program of this batch that a source file makes."""
        key = self._key
        return Program(source, key.dtype, key.dims, key.interpolation)

    @property
    def _stem(self) -> str:
        """How kernels are called that take a matrix or points one by one."""
        return f"{'matrix' if self._key.family == 'matrix' else 'field'}_{self._key.layout}"

    def _expand(self) -> None:
        """Let similarities be affine maps from here on."""
        if self._key.expands:
            self._take_scratch("parameters", [_THETA_BYTES * row.thetas for row in self._rows])
            self._over("thetas", Program("parameters"), "stn_expand")

    def _prepare_map(self) -> bool:
        """Memory for the gradients of maps; whether it is not yet that of the gradients."""
        if self._key.gathers:
            self._take_scratch("reaches", [REACH_BYTES * row.thetas for row in self._rows])
            return False
        values = [row.map_values for row in self._rows]
        in_place = self._key.dtype in {torch.float32, torch.float64}
        if not self._key.deterministic and in_place:
            for by_source in self._by_sources:
                cast("Tensor", by_source).zero_()
            self._words[:, ADDRESSES["accumulators"]] = self._words[:, ADDRESSES["by_source"]]
            return False
        wide = self._key.dtype == torch.float64
        width = (8 * (1 + wide)) if self._key.deterministic else 4
        self._take_scratch("accumulators", [width * count for count in values], zero=True)
        if self._key.deterministic:
            self._take_scratch("peaks", [8 * row.maps for row in self._rows], zero=True)
        return True

    def _gather(self) -> None:
        program = self._program("gather")
        self._over("thetas", program, "stn_reach")
        for kernel in ("stn_gather", "stn_gather_far"):
            self._over("source_tiles", program, f"{kernel}_{self._key.layout}")

    def _scatter(self, *, collects: bool) -> None:
        program = self._program("scatter")
        if self._key.deterministic:
            self._over("target_tiles", program, "stn_peaks")
        self._over("target_tiles", program, f"stn_scatter_{self._key.layout}")
        if collects:
            self._over("source_tiles", program, f"stn_collect_{self._key.layout}")

    def _take_scratch(self, name: str, sizes: Iterable[int], *, zero: bool = False) -> None:
        """Memory of some bytes for every item, whose address goes into the table."""
        offsets = list(itertools.accumulate(((size + 15) & ~15 for size in sizes), initial=0))
        new = torch.zeros if zero else torch.empty
        memory = new(offsets[-1], dtype=torch.uint8, device=self._key.device)
        self._kept.append(memory)
        self._words[:, ADDRESSES[name]] = np.array(offsets[:-1]) + memory.data_ptr()

    def _over(self, tiles: str, program: Program, kernel: str) -> None:
        """Run a kernel over tiles of every item."""
        table = self._uploaded()
        place, total = self._starts[tiles]
        arguments = Arguments(
            table.data_ptr(), table.data_ptr() + 8 * place, total, len(self._rows)
        )
        if total:
            self._launcher.launch(program, kernel, arguments, self._key.device)

    def _uploaded(self) -> Tensor:
        """The table and, behind it, the first tiles of its items; copied at the first launch."""
        if self._table is None:
            blocks, place = [self._words.reshape(-1)], self._words.size
            for name in _TILES:
                counts = [getattr(row, name) for row in self._rows]
                starts = np.array([0, *itertools.accumulate(counts)])
                self._starts[name] = place, int(starts[-1])
                blocks.append(starts[:-1])
                place += len(counts)
            self._table = self._launcher.upload(np.concatenate(blocks), self._key.device)
        return self._table
