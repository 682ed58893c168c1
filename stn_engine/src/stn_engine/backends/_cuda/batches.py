"""Problems that run in the same kernels: their table, their memory, and their launches."""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._cuda.item import ADDRESSES, REACH_BYTES, THETA_BYTES, WORDS
from stn_engine.backends._cuda.launcher import Arguments, Launcher
from stn_engine.backends._cuda.memory import New, Results, Words, at
from stn_engine.backends._cuda.plans import Found
from stn_engine.backends._cuda.programs import Program
from stn_engine.backends._cuda.rows import SIZES, TILES, Key, Row
from stn_engine.backends.torch.thin_plate import warp_basis
from stn_engine.problem import WarpProblem

_COUNTS = (*TILES, *SIZES)
_PARAMETERS = Program("parameters")


class Batch:
    """The items of one key: a row each, whose addresses are filled in column by column.

    Args:
        launcher: Runs the kernels.
        found: The problems of a call.
        places: Those of them that are in this batch, all of one key.
        warps: What they warp; not needed where the addresses of their parameters were found.

    Attributes:
        key: That of all rows.
    """

    def __init__(
        self,
        launcher: Launcher,
        found: Found,
        places: Sequence[int],
        warps: Sequence[WarpProblem] = (),
    ) -> None:
        self._launcher, self._found, self._places = launcher, found, places
        self._rows = cast("Sequence[Row]", at(found.rows, places))
        self.key = self._rows[0].key
        described = np.frombuffer(b"".join([row.words for row in self._rows]), np.int64)
        described = described.reshape(len(places), -1)
        counts = described[:, WORDS:].T
        ends = counts.cumsum(1)
        self._totals: list[int] = ends[:, -1].tolist()
        self._starts = ends - counts
        self._words = np.empty(len(places) * (WORDS + len(TILES)), np.int64)
        self._items = self._words[: len(places) * WORDS].reshape(-1, WORDS)
        self._items[:] = described[:, :WORDS]
        self._words[self._items.size :] = self._starts[: len(TILES)].reshape(-1)
        self._table: Tensor | None = None
        # Memory that kernels still read must not be given to others before they are queued.
        self._kept: list[Any] = []
        for name, addresses in found.operands.items():
            self._put(self.key.columns.get(name, name), at(addresses, places))
        if "parameters" not in found.operands:
            self._put_parameters(warps)
        self._results = {name: self._result(name) for name in self.key.results}

    def tensors(self, result: str) -> Sequence[Tensor | None]:
        """``target``, ``by_source`` or ``by_parameters`` of every item; None if not needed."""
        if result in self._results:
            return self._results[result].tensors()
        return [None] * len(self._rows)

    def run_warp(self) -> None:
        """Write V of every item."""
        self._take_thetas()
        self._expand()
        self._over("target_tiles", self._program("warp"), f"stn_warp_{self._stem}")

    def run_gradients(self) -> None:
        """Write the gradients that the items need."""
        by_maps, by_transforms = map(self._results.get, ("by_source", "by_parameters"))
        if by_transforms is not None and self.key.is_flat:
            by_transforms.zero()
            by_transforms = None
        if by_maps is None and by_transforms is None:
            return
        if by_transforms is not None and self.key.family != "field":
            self._take("sums", 8, "sums")
        collects = by_maps is not None and self._prepare_map(by_maps)
        self._take_thetas()
        self._expand()
        if by_transforms is not None:
            self._run_slopes()
        if by_maps is not None:
            self._gather() if self.key.gathers else self._scatter(collects=collects)

    def _put_parameters(self, warps: Sequence[WarpProblem]) -> None:
        if self.key.packs:
            parameters = [one.transform.parameters.contiguous() for one in warps]
            self._kept.append(parameters)
            addresses = [one.data_ptr() for one in parameters]
        else:
            addresses = [one.transform.parameters.data_ptr() for one in warps]
        self._put(self.key.columns["parameters"], addresses)
        if self.key.family == "spline":
            bases = [warp_basis(one) for one in warps]
            self._kept.append(bases)
            self._launcher.hold(bases, self.key.device)  # their cache may drop them meanwhile
            self._put("basis", [one.data_ptr() for one in bases])

    def _result(self, name: str) -> Results:
        """Where a result of every item goes."""
        if name in self._found.provided:
            memory: Results = self._found.provided[name].of(self._places)
        else:
            memory = New(self._rows, name, *self._spread(name))
        self._put(self.key.columns.get(name, name), memory.addresses)
        return memory

    def _put(self, column: str, addresses: Words | Sequence[int]) -> None:
        self._items[:, ADDRESSES[column]] = addresses

    def _take_thetas(self) -> None:
        """Memory for the affine maps that similarities are."""
        if self.key.expands:
            self._take("parameters", THETA_BYTES, "thetas")

    def _prepare_map(self, by_maps: Results) -> bool:
        """Memory for the gradients of maps; whether it is not yet that of the gradients."""
        key = self.key
        if key.gathers:
            self._take("reaches", REACH_BYTES, "thetas")
            return False
        if not key.deterministic and key.dtype in {torch.float32, torch.float64}:
            by_maps.zero()
            self._put("accumulators", by_maps.addresses)
            return False
        wide = key.dtype == torch.float64
        width = (8 * (1 + wide)) if key.deterministic else 4
        self._take("accumulators", width, "map_values", zero=True)
        if key.deterministic:
            self._take("peaks", 8, "maps", zero=True)
        return True

    def _take(self, name: str, width: int, what: str, *, zero: bool = False) -> None:
        """Scratch memory of some bytes for each of ``what``, whose address goes into the table."""
        starts, total = self._spread(what)
        new = torch.zeros if zero else torch.empty
        memory = new(width * total, dtype=torch.uint8, device=self.key.device)
        self._kept.append(memory)
        self._put(name, width * starts + memory.data_ptr())

    def _spread(self, what: str) -> tuple[Words, int]:
        """How many of ``TILES`` or ``SIZES`` there are before each item, and in all."""
        place = _COUNTS.index(what)
        return self._starts[place], self._totals[place]

    def _expand(self) -> None:
        """Let similarities be affine maps from here on."""
        if self.key.expands:
            self._over("thetas", _PARAMETERS, "stn_expand")

    def _run_slopes(self) -> None:
        """Gradients of fields point by point; of parameters by partial sums, and their sums."""
        family, layout = self.key.family, self.key.layout
        tiles = "field_tiles" if family == "field" else "target_tiles"
        self._over(tiles, self._program("slopes"), f"stn_by_{family}_{layout}")
        if family != "field":
            self._over("thetas", _PARAMETERS, "stn_finish")

    def _gather(self) -> None:
        program = self._program("gather")
        self._over("thetas", program, "stn_reach")
        for kernel in ("stn_gather", "stn_gather_far"):
            self._over("source_tiles", program, f"{kernel}_{self.key.layout}")

    def _scatter(self, *, collects: bool) -> None:
        program = self._program("scatter")
        if self.key.deterministic:
            self._over("target_tiles", program, "stn_peaks")
        self._over("target_tiles", program, f"stn_scatter_{self.key.layout}")
        if collects:
            self._over("source_tiles", program, f"stn_collect_{self.key.layout}")

    def _program(self, source: str) -> Program:
        """The program of this batch that a source file makes."""
        return _program(source, self.key)

    @property
    def _stem(self) -> str:
        """How kernels are called that take a matrix or points one by one."""
        return f"{'matrix' if self.key.family == 'matrix' else 'field'}_{self.key.layout}"

    def _over(self, tiles: str, program: Program, kernel: str) -> None:
        """Run a kernel over tiles of every item."""
        place, count = TILES.index(tiles), len(self._items)
        if self._totals[place]:
            table = self._uploaded().data_ptr()
            starts = table + 8 * (self._items.size + place * count)
            arguments = Arguments(table, starts, self._totals[place], count)
            self._launcher.launch(program, kernel, arguments, self.key.device)

    def _uploaded(self) -> Tensor:
        """The table and, behind it, the first tiles of its items; copied at the first launch."""
        if self._table is None:
            self._launcher.retain((self._rows, self._kept))
            self._table = self._launcher.upload(self._words, self.key.device)
        return self._table


@cache
def _program(source: str, key: Key) -> Program:
    return Program(source, key.dtype, key.dims, key.interpolation)
