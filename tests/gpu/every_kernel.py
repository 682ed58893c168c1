"""Runs kernels on small problems; for tools that watch a process.

``python -m gpu.every_kernel 24`` takes 24 problems, spread over all.
"""

import sys

from gpu_check.devices import device
from support.every_kernel import every_kernel, results_of

there = device()
problems = list(every_kernel())
most = int(sys.argv[1]) if len(sys.argv) > 1 else len(problems)
for problem in problems[:: -(-len(problems) // most)]:
    results_of(there.backend, there.place(problem))
there.synchronize()
print(f"{most} problems")
