"""Runs every emulated kernel on memory between pages that nobody may touch.

A read or write outside ends the process. ``python -m support.fenced_cuda begin`` has all memory
begin where such a page ends, ``end`` has it end where one begins.
"""

import ctypes
import mmap
import sys
from unittest.mock import patch

import torch

from stn_engine.backends.cuda import CudaBackend
from support.emulated_cuda import EmulatedLauncher
from support.every_kernel import every_kernel, results_of

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


class Fence:
    """Allocates between two pages without rights.

    Args:
        at_end: Whether memory ends where the second begins; else it begins where the first ends.
    """

    def __init__(self, *, at_end):
        self._at_end = at_end

    def like(self, tensor):
        """Memory full of ones (NaN to most) for a tensor of this form."""
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((n - 1) * step for n, step in steps) if tensor.numel() else 0
        memory = self._memory(extent * tensor.dtype.itemsize).view(tensor.dtype)
        return memory.as_strided(tensor.shape, tensor.stride())

    def copy(self, tensor):
        """The same values elsewhere."""
        return self.like(tensor).copy_(tensor)

    def around(self, make):
        """One of torch's functions that make tensors, now behind the fence."""

        def made(*args, device=None, **options):
            form = make(*args, device="meta", **options)
            if device == torch.device("meta"):
                return form
            tensor = self.like(form)
            return tensor.zero_() if make is torch.zeros else tensor

        return made

    def _memory(self, size_bytes):
        inside = -(-max(size_bytes, 1) // PAGE) * PAGE
        whole = torch.frombuffer(mmap.mmap(-1, inside + 2 * PAGE), dtype=torch.uint8)
        for first in (0, PAGE + inside):
            if LIBC.mprotect(ctypes.c_void_p(whole.data_ptr() + first), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        first = PAGE + (inside - size_bytes if self._at_end else 0)
        return whole[first : first + size_bytes].fill_(0xFF)


class FencedLauncher(EmulatedLauncher):
    """Reads the table behind a fence."""

    def __init__(self, fence):
        super().__init__()
        self._fence = fence

    def upload(self, words, device):
        return self._fence.copy(super().upload(words, device))


def run(fence, problem):
    """The kernels of a problem, on fenced operands, results and scratch memory, not bases."""
    fenced = problem.bound(*map(fence.copy, problem.operands))
    backend = CudaBackend(FencedLauncher(fence))
    with (
        patch.object(torch, "empty", fence.around(torch.empty)),
        patch.object(torch, "zeros", fence.around(torch.zeros)),
        patch.object(torch, "empty_strided", fence.around(torch.empty_strided)),
    ):
        results_of(backend, fenced)


if __name__ == "__main__":
    problems = list(every_kernel())
    for one in problems:
        run(Fence(at_end=sys.argv[1] == "end"), one)
    sys.stdout.write(f"{len(problems)}\n")
