"""Runs kernels on small problems; for tools that watch a process.

``python -m gpu.every_kernel 24`` takes 24 problems, spread over all.
"""

import sys

from gpu_check.devices import device
from support.every_kernel import every_kernel

there = device()
problems = list(every_kernel())
most = int(sys.argv[1]) if len(sys.argv) > 1 else len(problems)
for problem in problems[:: -(-len(problems) // most)]:
    on = there.place(problem)
    if hasattr(on, "warp"):
        there.backend.warp([on.warp])
        there.backend.warp_gradients([on])
    else:
        there.backend.warp([on])
there.synchronize()
print(f"{most} problems")
