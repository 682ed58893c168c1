"""Problems that run in the same kernels: their table, their scratch memory, and their launches."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stn_engine.backends.cuda.descriptors import TILES, Counts, Descriptor, Group
from stn_engine.backends.cuda.device import Arguments, Launcher
from stn_engine.backends.cuda.programs import Program
from stn_engine.backends.cuda.structures import ADDRESSES, PREIMAGE_BYTES, WORDS
from stn_engine.spec import Family

Words: TypeAlias = npt.NDArray[np.int64]

_PARAMETERS = Program("parameters")
_PLACES = {name: place for place, name in enumerate(Counts._fields)}


class LaunchTable:
    """The problems of one group: a descriptor each, and behind them where their tiles begin.

    Args:
        launcher: Runs the kernels.
        descriptors: The problems, all of one group.
        addresses: Those of each problem, (problems, operands and results).
        bases: Of each problem, if they are splines.
    """

    def __init__(
        self,
        launcher: Launcher,
        descriptors: Sequence[Descriptor],
        addresses: Words,
        bases: Sequence[Tensor],
    ) -> None:
        self._launcher, self._group = launcher, descriptors[0].group
        count = len(descriptors)
        described = np.frombuffer(b"".join([one.words for one in descriptors]), np.int64)
        described = described.reshape(count, -1)
        counts = described[:, WORDS:].T
        ends = counts.cumsum(1)
        self._totals: list[int] = ends[:, -1].tolist()
        self._starts = ends - counts
        self._words = np.empty(count * (WORDS + len(TILES)), np.int64)
        self._problems = self._words[: count * WORDS].reshape(count, WORDS)
        self._problems[:] = described[:, :WORDS]
        self._words[self._problems.size :] = self._starts[: len(TILES)].reshape(-1)
        self._problems[:, self._group.columns] = addresses
        self._table: Tensor | None = None
        # Memory that kernels still read must not be given to others before they are queued.
        self._kept: list[Any] = [descriptors, bases]
        if bases:
            launcher.hold(bases, self._group.device)  # their cache may drop them meanwhile
            self._put("basis", [one.data_ptr() for one in bases])

    def run(self) -> None:
        """Write the results of every problem."""
        group = self._group
        maps, transforms = group.needs
        forward = "output" in group.results
        if not (forward or maps or transforms):
            return
        if transforms and group.family is not Family.FIELD:
            self._take("sums", 8, "sums")
        if maps:
            self._prepare_maps()
        if group.prepares:
            self._take("parameters", 8, "parameters")
            self._over("thetas", _PARAMETERS, "stn_prepare")
        if forward:
            self._over("target_tiles", self._program("warp"), f"stn_warp_{self._stem}")
        if transforms:
            self._run_slopes()
        if maps:
            self._gather() if group.gathers else self._scatter()

    def _put(self, name: str, addresses: Words | Sequence[int]) -> None:
        self._problems[:, ADDRESSES[name]] = addresses

    def _prepare_maps(self) -> None:
        """Scratch memory for the gradients of maps."""
        group = self._group
        if group.gathers:
            self._take("preimages", PREIMAGE_BYTES, "thetas")
        elif group.adds_in_place:
            self._put("accumulators", self._problems[:, ADDRESSES["grad_feature_map"]])
        elif group.deterministic:
            is_wide = group.dtype == torch.float64
            self._take("accumulators", 8 * (1 + is_wide), "map_values", zero=True)
            self._take("peaks", 8, "maps", zero=True)
        else:
            self._take("accumulators", 4, "map_values", zero=True)

    def _take(self, name: str, width: int, what: str, *, zero: bool = False) -> None:
        """Scratch memory of some bytes for each of ``what``, whose address goes into the table."""
        place = _PLACES[what]
        new = torch.zeros if zero else torch.empty
        memory = new(width * self._totals[place], dtype=torch.uint8, device=self._group.device)
        self._kept.append(memory)
        self._put(name, width * self._starts[place] + memory.data_ptr())

    def _run_slopes(self) -> None:
        """Gradients of fields point by point; of parameters by partial sums, and their sums."""
        field = self._group.family is Family.FIELD
        tiles = "field_tiles" if field else "target_tiles"
        kernel = f"stn_slopes_{self._group.family}_{self._group.layout}"
        self._over(tiles, self._program("slopes"), kernel)
        if not field:
            self._over("thetas", _PARAMETERS, "stn_finish")

    def _gather(self) -> None:
        program = self._program("gather")
        self._over("thetas", program, "stn_preimage")
        for kernel in ("stn_gather", "stn_gather_far"):
            self._over("source_tiles", program, f"{kernel}_{self._group.layout}")

    def _scatter(self) -> None:
        program = self._program("scatter")
        if self._group.deterministic:
            self._over("target_tiles", program, "stn_peaks")
        self._over("target_tiles", program, f"stn_scatter_{self._group.layout}")
        if not self._group.adds_in_place:
            self._over("source_tiles", program, f"stn_collect_{self._group.layout}")

    def _program(self, source: str) -> Program:
        """The program of this group that a source file makes."""
        return _program(source, self._group)

    @property
    def _stem(self) -> str:
        """How kernels are called that take a matrix or points one by one."""
        matrix = self._group.family is Family.MATRIX
        return f"{'matrix' if matrix else 'field'}_{self._group.layout}"

    def _over(self, tiles: str, program: Program, kernel: str) -> None:
        """Run a kernel over tiles of every problem."""
        place, count = _PLACES[tiles], len(self._problems)
        if self._totals[place]:
            table = self._uploaded().data_ptr()
            starts = table + 8 * (self._problems.size + place * count)
            arguments = Arguments(table, starts, self._totals[place], count)
            self._launcher.launch(program, kernel, arguments, self._group.device)

    def _uploaded(self) -> Tensor:
        """The table on the device, copied there at the first launch."""
        if self._table is None:
            self._launcher.retain(self._kept)
            self._table = self._launcher.upload(self._words, self._group.device)
        return self._table


@cache
def _program(source: str, group: Group) -> Program:
    return Program(source, group.dtype, group.dims, group.interpolation)
