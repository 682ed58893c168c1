"""The ``cuda`` backend: fused, ragged kernels for tensors in the memory of a GPU.

All problems of one dtype, number of axes, interpolation and layout run in one launch, whatever
their sizes: a table describes them, and every thread block finds its own. No grid and no gradient
of a grid is in memory but where one is asked for. Kernels are compiled when they are first needed,
kept on disk, and run on torch's current stream.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from stn_engine.backends.cuda.descriptors import Group
from stn_engine.backends.cuda.device import DeviceLauncher, Launcher
from stn_engine.backends.cuda.launch_table import LaunchTable, Words
from stn_engine.backends.cuda.plans import Plan, new_plan
from stn_engine.backends.cuda.results import SharedResults
from stn_engine.backends.cuda.structures import VECTOR_BYTES
from stn_engine.backends.kernels import KernelBackend
from stn_engine.call import Call
from stn_engine.plan import Addresses, Reasons
from stn_engine.spec import Family


class CudaBackend(KernelBackend[Plan]):
    """Runs every warp and its gradients on the device of the operands.

    Args:
        launcher: Who compiles and runs kernels.
    """

    name = "cuda"
    new_results = SharedResults

    def __init__(self, launcher: Launcher | None = None) -> None:
        self._launcher = DeviceLauncher() if launcher is None else launcher

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """What this machine lacks, and any other device."""
        return self._launcher.reasons_against(device)

    def plan_warp(self, call: Call) -> Plan | Reasons:
        """A new plan, or why maps are beyond the kernels' range."""
        return new_plan(call)

    def run(self, plans: Sequence[Plan], addresses: Sequence[Addresses]) -> None:
        """Launches the kernels of all plans, those of one group together."""
        for place in [place for place, plan in enumerate(plans) if plan.zeroed]:
            self._zero(plans[place], addresses[place])
        groups = dict.fromkeys([plan.group for plan in plans])
        for group in groups:
            if group is None:
                continue
            if len(groups) == 1:  # as nearly always; what follows would take longer than a launch
                self._run_group(group, plans, _matrix(addresses))
                continue
            mine = [place for place, plan in enumerate(plans) if plan.group is group]
            theirs = _matrix([addresses[place] for place in mine])
            self._run_group(group, [plans[place] for place in mine], theirs)

    def _zero(self, plan: Plan, addresses: Addresses) -> None:
        for place, size_bytes in plan.zeroed:
            self._launcher.zero(addresses[place], size_bytes, plan.call.device)

    def _run_group(self, group: Group, plans: Sequence[Plan], addresses: Words) -> None:
        """Launches plans of one group, by planes where maps begin between two vectors."""
        if group.layout == "planes":
            self._launch([plan.planes for plan in plans], plans, addresses)
            return
        maps: Words = addresses[:, np.array(group.maps)]
        is_aligned = np.bitwise_or.reduce(maps, 1) % VECTOR_BYTES == 0
        for chosen, layout in ((is_aligned, "interleaved"), (~is_aligned, "planes")):
            if chosen.any():
                mine = [plans[place] for place in np.flatnonzero(chosen).tolist()]
                self._launch([getattr(one, layout) for one in mine], mine, addresses[chosen])

    def _launch(self, descriptors: Sequence[Any], plans: Sequence[Plan], addresses: Words) -> None:
        group: Group = descriptors[0].group
        stream = self._launcher.stream(group.device)
        for plan in [plan for plan in plans if stream not in plan.held_on]:
            self._launcher.hold(plan.constants, group.device)
            plan.held_on.add(stream)
        bases = [plan.basis() for plan in plans] if group.family is Family.SPLINE else []
        LaunchTable(self._launcher, descriptors, addresses, bases).run()


def _matrix(addresses: Sequence[Addresses]) -> Words:
    """Addresses of calls that have equally many of them, a row each."""
    flat = list(chain.from_iterable(addresses))  # NumPy takes longer for nested sequences
    return np.array(flat, np.int64).reshape(len(addresses), -1)
