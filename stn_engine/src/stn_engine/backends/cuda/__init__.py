"""The ``cuda`` backend: fused, ragged kernels for tensors in the memory of a GPU.

All problems of one dtype, number of axes, interpolation and layout run in one launch, whatever
their sizes: a table describes them, and every thread block finds its own. One problem alone travels
as an argument of its kernels. No grid and no gradient of a grid is in memory but where one is asked
for. Kernels are compiled when they are first needed, kept on disk, and run on torch's current
stream.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch

from stn_engine.backends.cuda.descriptors import Group
from stn_engine.backends.cuda.device import DeviceLauncher, Launcher
from stn_engine.backends.cuda.launches import Launches
from stn_engine.backends.cuda.plans import Plan, in_parts, new_plan
from stn_engine.backends.cuda.results import SharedResults
from stn_engine.backends.cuda.structures import VECTOR_BYTES
from stn_engine.backends.kernels import KernelBackend, Words
from stn_engine.call import Call, Operation
from stn_engine.plan import Addresses, Reasons
from stn_engine.spec import Family


class CudaBackend(KernelBackend[Plan]):
    """Runs every warp, its gradients and every objective on the device of the operands.

    Args:
        launcher: Who compiles and runs kernels.
    """

    name = "cuda"
    operations = frozenset({Operation.WARP, Operation.OBJECTIVE})
    new_results = SharedResults

    def __init__(self, launcher: Launcher | None = None) -> None:
        self._launcher = DeviceLauncher() if launcher is None else launcher

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """What this machine lacks, and any other device."""
        return self._launcher.reasons_against(device)

    def new_plan(self, call: Call) -> Plan | Reasons:
        """A new plan, or why maps are beyond the kernels' range."""
        return new_plan(call)

    def run(self, plans: Sequence[Plan], addresses: Sequence[Addresses]) -> None:
        """Launches the kernels of all plans, those of one group together."""
        if len(plans) == 1 and not plans[0].parts:
            self._run_alone(plans[0], addresses[0])
            return
        have_parts, zeroed, groups = _parts(tuple(plans))
        if have_parts:
            self.run(*in_parts(plans, addresses))
            return
        for place in zeroed:
            self._zero(plans[place], addresses[place])
        for group, places, mine in groups:
            theirs = addresses
            if len(mine) < len(plans):  # seldom; it takes longer than a launch
                theirs = [addresses[place] for place in places]
            self._run_group(group, mine, _columns(theirs))

    def _run_alone(self, plan: Plan, addresses: Addresses) -> None:
        """Launches one plan; small calls spend their time here."""
        if plan.zeroed:
            self._zero(plan, addresses)
        group = plan.group
        if group is None:
            return
        layout = group.layout
        if layout != "planes":
            # A vector is loaded in one piece, so that every map has to begin at a multiple of its
            # size: no address may have one of the low bits.
            bits = 0
            for place in group.maps:
                bits |= addresses[place]
            if bits % VECTOR_BYTES:
                layout = "planes"
        bases = [plan.basis()] if group.family is Family.SPLINE else []
        plan.alone(layout).run(self._launcher, addresses, bases)

    def _zero(self, plan: Plan, addresses: Addresses) -> None:
        for place, size_bytes in plan.zeroed:
            self._launcher.zero(int(addresses[place]), size_bytes, plan.call.device)

    def _run_group(self, group: Group, plans: tuple[Plan, ...], addresses: Words) -> None:
        """Launches plans of one group, by planes where maps begin between two vectors."""
        if group.layout == "planes":
            self._launch("planes", plans, addresses)
            return
        is_aligned = np.bitwise_or.reduce(addresses[group.maps]) % VECTOR_BYTES == 0
        if is_aligned.all():
            self._launch("interleaved", plans, addresses)
            return
        for chosen, layout in ((is_aligned, "interleaved"), (~is_aligned, "planes")):
            places = np.flatnonzero(chosen).tolist()
            if places:
                mine = tuple([plans[place] for place in places])
                self._launch(layout, mine, addresses[:, places])

    def _launch(self, layout: str, plans: tuple[Plan, ...], addresses: Words) -> None:
        launches = together(layout, plans)
        is_spline = launches.group.family is Family.SPLINE
        bases = [plan.basis() for plan in plans] if is_spline else []
        of_all = addresses if len(plans) > 1 else addresses[:, 0].tolist()
        launches.run(self._launcher, of_all, bases)


Part: TypeAlias = tuple[Group, list[int], tuple[Plan, ...]]
"""A group, which plans are of it, and these plans."""


@lru_cache(maxsize=64)
def _parts(plans: tuple[Plan, ...]) -> tuple[bool, list[int], list[Part]]:
    """Whether some plans have parts, which have results that are zeroed, and the groups of all."""
    zeroed = [place for place, plan in enumerate(plans) if plan.zeroed]
    places: dict[Group, list[int]] = {}
    for place, plan in enumerate(plans):
        if plan.group is not None:
            places.setdefault(plan.group, []).append(place)
    parts = [
        (group, mine, tuple([plans[place] for place in mine])) for group, mine in places.items()
    ]
    return any(plan.parts for plan in plans), zeroed, parts


def _columns(addresses: Sequence[Addresses]) -> Words:
    """Addresses of calls that have equally many of them, a column each."""
    rows: Any = addresses
    if isinstance(rows, np.ndarray):
        return rows.T
    flat = list(chain.from_iterable(addresses))  # NumPy takes longer for nested sequences
    return np.array(flat, np.int64).reshape(len(addresses), -1).T


@lru_cache(maxsize=64)  # of them 256 problems take 150 KB
def together(layout: str, plans: tuple[Plan, ...]) -> Launches:
    """The launches of plans of one group, kept for when the same ones come together again."""
    if len(plans) == 1:
        return plans[0].alone(layout)
    return Launches([getattr(plan, layout) for plan in plans])
