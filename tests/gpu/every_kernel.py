"""Runs every kernel on small problems; for tools that watch a process."""

import torch

from stn_engine.backends.cuda import CudaBackend
from support.every_kernel import every_kernel
from support.on_device import on_device

backend = CudaBackend()
for problem in map(on_device, every_kernel()):
    backend.warp([problem.warp])
    backend.warp_gradients([problem])
torch.cuda.synchronize()
