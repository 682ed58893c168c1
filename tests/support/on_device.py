"""The ``cuda`` backend behind operands and results in host memory."""

import torch

from stn_engine import Gradients, Objective
from stn_engine.backends.cuda import CudaBackend

DEVICE = torch.device("cuda")


def moved(tensor, device):
    """``tensor`` elsewhere, with the strides that it has."""
    if tensor is None or tensor.device.type == device.type:
        return tensor
    there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if 0 in tensor.shape:
        return there
    extent = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    flat = tensor.as_strided((extent,), (1,), tensor.storage_offset()).to(device)
    return flat.as_strided(tensor.shape, tensor.stride())


def on_host(tensor):
    """A result in host memory, if it was asked for."""
    return None if tensor is None else tensor.cpu()


def on_device(problem, device=DEVICE):
    """``problem`` with its operands on ``device``."""
    return problem.bound(*(moved(operand, device) for operand in problem.operands))


class OnDevice:
    """Copies operands in and results out."""

    name = "cuda"

    def __init__(self):
        self._backend = CudaBackend()

    def unsupported_reasons(self, problem):
        return self._backend.unsupported_reasons(on_device(problem))

    def _tensors(self, operation, problems):
        results = getattr(self._backend, operation)([on_device(one) for one in problems])
        return [result.cpu() for result in results]

    def warp(self, problems):
        return self._tensors("warp", problems)

    def generate_grid(self, problems):
        return self._tensors("generate_grid", problems)

    def generate_grid_gradients(self, problems):
        return self._tensors("generate_grid_gradients", problems)

    def warp_gradients(self, problems):
        results = self._backend.warp_gradients([on_device(one) for one in problems])
        return [Gradients(*map(on_host, vars(result).values())) for result in results]

    def objective(self, problems):
        results = self._backend.objective([on_device(one) for one in problems])
        return [Objective(*map(on_host, vars(result).values())) for result in results]


ON_DEVICE = OnDevice()
