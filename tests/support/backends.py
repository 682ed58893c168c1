"""The backends that the batteries run over.

Without a GPU the ``cuda`` backend is emulated; ``make test-gpu`` says that there is one.
"""

import os

from stn_engine.backends.cpu import CpuBackend
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend

if os.environ.get("STN_TEST_GPU"):
    from support.on_device import ON_DEVICE as CUDA
else:
    from support.emulated_cuda import EMULATED_CUDA as CUDA

FAST = (CpuBackend(), TorchBackend(), CUDA)
"""Those that compute in the precision of their operands."""

BACKENDS = (*FAST, ReferenceBackend())
