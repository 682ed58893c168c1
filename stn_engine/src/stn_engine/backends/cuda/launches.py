"""Which kernels are launched for problems of one group, and with what.

All of it but addresses follows from the problems' layouts, so it is made once and kept with plans:
a call puts in addresses, takes scratch memory, and launches.
"""

from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends.cuda.descriptors import Counts, Descriptor, Group
from stn_engine.backends.cuda.device import Arguments, Launcher
from stn_engine.backends.cuda.programs import Kernel, Program, kernel_of
from stn_engine.backends.cuda.structures import (
    ADDRESSES,
    COMPARED_BYTES,
    COUNT,
    LAUNCH_WORDS,
    PREIMAGE_BYTES,
    STARTS,
    TABLE,
    TILES,
    WORDS,
)
from stn_engine.backends.kernels import Words
from stn_engine.spec import Family

TILED = Counts._fields[:7]
"""What kernels run over: one thread block for each at a time."""


class Step(NamedTuple):
    """A kernel of a call, and what it runs over."""

    kernel: Kernel
    tiles: str
    """What it runs over: a name of ``TILED``."""


class Scratch(NamedTuple):
    """Memory that the kernels of a call share."""

    name: str
    """The field of a descriptor that holds its address."""
    width: int
    """The bytes for each of what it is counted by."""
    of: str
    """What it is counted by: a field of ``Counts``."""
    is_zeroed: bool = False


class Launches:
    """Problems of one group, ready to be launched together, again and again.

    Args:
        descriptors: The problems; all of one group. One of them travels as an argument of the
            kernels. Several stand in a table in memory of the device: one behind the other, and
            behind them, for all that kernels run over, the first tile of each problem.

    Attributes:
        descriptors: As given.
        group: Theirs.
    """

    def __init__(self, descriptors: Sequence[Descriptor]) -> None:
        self.descriptors, self.group = descriptors, descriptors[0].group
        self._held_on: set[int] = set()  # streams that constants wait for before they are freed
        count = len(descriptors)
        words = np.frombuffer(b"".join([one.words for one in descriptors]), np.int64)
        words = words.reshape(count, -1)
        counts = words[:, WORDS:].T
        ends = counts.cumsum(1)
        starts, totals = ends - counts, dict(zip(Counts._fields, ends[:, -1].tolist(), strict=True))
        self._arguments: Arguments = array("q", bytes(8 * LAUNCH_WORDS))
        self._arguments[COUNT] = count
        self._table: Words | None = None
        if count == 1:
            self._arguments[:WORDS] = array("q", words[0, :WORDS].tobytes())
        else:
            first = starts[: len(TILED)].reshape(-1)
            self._table = np.concatenate([words[:, :WORDS].reshape(-1), first])
        self._steps: list[tuple[Kernel, int, int]] = [
            (step.kernel, totals[step.tiles], 8 * count * (WORDS + TILED.index(step.tiles)))
            for step in steps_of(self.group)
            if totals[step.tiles]
        ]
        self._scratch = []
        for one in scratch_of(self.group):
            of_each: Any = starts[Counts._fields.index(one.of)] * one.width
            if count == 1:
                of_each = 0
            new = torch.zeros if one.is_zeroed else torch.empty
            size_bytes = totals[one.of] * one.width
            if size_bytes:
                self._scratch.append((ADDRESSES[one.name], of_each, size_bytes, new))

    def run(
        self, launcher: Launcher, addresses: Sequence[int] | Words, bases: Sequence[Tensor]
    ) -> None:
        """Writes the results of every problem.

        Args:
            launcher: Runs the kernels.
            addresses: Those of the only problem, in the order of its call; or those of all
                problems, (operands and results, problems).
            bases: Of each problem, if they are splines.
        """
        if not self._steps:
            return
        group, arguments = self.group, self._arguments[:]
        self._hold_constants(launcher)
        # Of each kind of address a number, or an array of those of all problems.
        fields: Any = arguments
        table = self._table
        if table is not None:
            table = table.copy()
            fields = table[: arguments[COUNT] * WORDS].reshape(-1, WORDS).T
        for column, address in zip(group.columns, addresses, strict=True):
            fields[column] = address
        if group.adds_in_place:
            fields[ADDRESSES["accumulators"]] = fields[ADDRESSES["grad_feature_map"]]
        # Memory that kernels still read must not be given to others before they are queued.
        kept: list[Any] = [self.descriptors, bases]
        for column, of_each, size_bytes, new in self._scratch:
            memory = new(size_bytes, dtype=torch.uint8, device=group.device)
            kept.append(memory)
            fields[column] = memory.data_ptr() + of_each
        if bases:
            launcher.hold(bases, group.device)  # their cache may drop them meanwhile
            there = [one.data_ptr() for one in bases]
            fields[ADDRESSES["basis"]] = there[0] if table is None else there
        launcher.retain(kept)
        if table is not None:
            uploaded = launcher.upload(table, group.device)
            arguments[TABLE] = uploaded.data_ptr()
        for kernel, tiles, starts in self._steps:
            arguments[TILES], arguments[STARTS] = tiles, arguments[TABLE] + starts
            launcher.launch(kernel, arguments, group.device)

    def _hold_constants(self, launcher: Launcher) -> None:
        stream = launcher.stream(self.group.device)
        if stream not in self._held_on:
            constants = [tensor for one in self.descriptors for tensor in one.constants]
            launcher.hold(constants, self.group.device)
            self._held_on.add(stream)


@cache
def steps_of(group: Group) -> tuple[Step, ...]:
    """The launches that write the results of a group, in order."""
    if group.compared:
        return _steps_of_objectives(group)
    maps, transforms = group.needs
    forward = "output" in group.results
    if not (forward or maps or transforms):
        return ()
    steps = [_parameters("stn_prepare", "thetas")] if group.prepares else []
    if forward:
        # Kernels are called after whether they take a matrix or points one by one.
        points = "matrix" if group.family is Family.MATRIX else "field"
        steps.append(_step(group, "warp", f"stn_warp_{points}", "target_tiles"))
    if transforms:
        field = group.family is Family.FIELD
        tiles = "field_tiles" if field else "target_tiles"
        steps.append(_step(group, "slopes", f"stn_slopes_{group.family}", tiles))
        if not field:  # sums of tiles become those of parameters
            steps.append(_parameters("stn_finish", "unfinished_thetas"))
    if maps and group.gathers:
        steps.append(Step(_kernel(group, "gather", "stn_preimage"), "uninverted_thetas"))
        steps += [
            _step(group, "gather", name, "source_tiles")
            for name in ("stn_gather", "stn_gather_far")
        ]
    elif maps:
        if group.deterministic:
            steps.append(Step(_kernel(group, "scatter", "stn_peaks"), "target_tiles"))
        steps.append(_step(group, "scatter", "stn_scatter", "target_tiles"))
        if not group.adds_in_place:
            steps.append(_step(group, "scatter", "stn_collect", "source_tiles"))
    return tuple(steps)


def _steps_of_objectives(group: Group) -> tuple[Step, ...]:
    """The launches that compare maps, and differentiate what that comes to."""
    steps = [_parameters("stn_prepare", "thetas")] if group.prepares else []
    if group.measures:
        steps.append(Step(_kernel(group, "moments", "stn_moments"), "target_tiles"))
        steps.append(_parameters("stn_finish_moments", "items"))
    if group.needs[1]:
        name = f"stn_objective_{group.family}"
        steps.append(Step(_kernel(group, "objective", name), "target_tiles"))
        if group.family is not Family.FIELD:  # sums of tiles become those of parameters
            steps.append(_parameters("stn_finish_objective", "items"))
    return tuple(steps)


def scratch_of(group: Group) -> list[Scratch]:
    """The memory that the launches of a group need beyond operands and results."""
    maps, transforms = group.needs
    found = []
    if group.prepares:
        found.append(Scratch("parameters", 8, "parameters"))
    if group.compared:
        found.append(Scratch("sums", 8, "sums"))
        if transforms and group.measures:
            found.append(Scratch("compared", COMPARED_BYTES, "items"))
    elif transforms and group.family is not Family.FIELD:
        found.append(Scratch("sums", 8, "sums"))
    if maps and group.gathers:
        found.append(Scratch("preimages", PREIMAGE_BYTES, "thetas"))
    elif maps and group.deterministic:
        # Sums of integers do not depend on their order: 64 bits each, two words for float64. The
        # largest |G| of a map, its peak, says by which power of two its numbers are scaled.
        is_wide = group.dtype == torch.float64
        found.append(Scratch("accumulators", 8 * (1 + is_wide), "map_values", is_zeroed=True))
        found.append(Scratch("peaks", 8, "maps", is_zeroed=True))
    elif maps and not group.adds_in_place:
        found.append(Scratch("accumulators", 4, "map_values", is_zeroed=True))
    return found


def _parameters(name: str, tiles: str) -> Step:
    return Step(kernel_of(Program("parameters"), name), tiles)


def _step(group: Group, source: str, name: str, tiles: str) -> Step:
    return Step(_kernel(group, source, f"{name}_{group.layout}"), tiles)


def _kernel(group: Group, source: str, name: str) -> Kernel:
    return kernel_of(Program(source, group.dtype, group.dims, group.interpolation), name)
