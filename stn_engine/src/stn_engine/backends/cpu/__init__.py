"""The ``cpu`` backend: fused, ragged kernels in C++ for tensors in host memory.

One call computes coordinates, reads and sums block by block: no grid and no gradient of a grid is
ever in memory. It reads operands in place, whatever their strides, and writes results once.
"""

from collections.abc import Sequence

import torch

from stn_engine.backends.cpu.plans import CpuPlan, new_plan
from stn_engine.backends.kernels import KernelBackend
from stn_engine.call import Call, Operation
from stn_engine.plan import Addresses, Bytes, Reasons

try:
    from stn_engine import _cpu
except ImportError as error:
    MISSING: str | None = f"the native module is not usable: {error}"
else:
    MISSING = None


class CpuBackend(KernelBackend[CpuPlan]):
    """Runs every warp and its gradients on up to ``torch.get_num_threads()`` threads."""

    name = "cpu"
    operations = frozenset({Operation.WARP, Operation.OBJECTIVE})
    reads_bytes = True

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Returns reasons: no native module, or a device that is not the host."""
        if MISSING is not None:
            return (MISSING,)
        if device.type == "cpu":
            return ()
        return (f"computes in host memory, the operands are on {device}",)

    def new_plan(self, call: Call) -> CpuPlan | Reasons:
        """Returns a new plan, or why maps exceed the range of the native module's integers."""
        return new_plan(call)

    def run(self, plans: Sequence[CpuPlan], addresses: Sequence[Addresses]) -> None:
        """Runs plans together, each on its addresses."""
        self.run_on_bytes(plans, addresses, torch.get_num_threads())

    def run_on_bytes(
        self,
        plans: Sequence[CpuPlan],
        operands: Sequence[Sequence[Bytes]] | Sequence[Addresses],
        threads: int,
    ) -> Sequence[tuple[Bytes, ...]]:
        """Runs plans on addresses, as ``stn_engine.plan.Kernels`` says."""
        calls, bases = [], []
        for plan, where in zip(plans, operands, strict=True):
            if plan.basis is None:
                calls.append((plan.native, *where))
                continue
            basis, count = plan.basis(), plan.operands
            bases.append(basis)  # until the end of the run
            # The basis stands between operands and results, as the native plan expects it.
            calls.append((plan.native, *where[:count], basis.data_ptr(), *where[count:]))
        return _cpu.run(calls, threads)
