"""Compiles all kernels of the ``cuda`` backend ahead of time; needs no GPU.

``python -m stn_engine.warm --arch sm_80 --arch sm_90`` fills the cache that later processes read:
the folder that ``STN_KERNEL_CACHE`` names, or else cuda.core's own.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from stn_engine.backends.cuda.programs import all_programs


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles every program for every architecture named; returns 1 without a compiler."""
    description = (
        "Compiles all kernels of the CUDA backend ahead of time, without a GPU, into the folder "
        "that STN_KERNEL_CACHE names, or else into cuda.core's own."
    )
    parser = argparse.ArgumentParser(prog="python -m stn_engine.warm", description=description)
    parser.add_argument("--arch", action="append", required=True, help="such as sm_90; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    options = parser.parse_args(arguments)
    try:
        from stn_engine.backends.cuda.compiler import cubin  # noqa: PLC0415 - optional
    except ImportError as error:
        sys.stderr.write(
            f"cuda.core: expected it with a compiler, got {error}. "
            "In the checkout: pip install './stn_engine[cuda]'\n"
        )
        return 1
    wanted = list(product(all_programs(), options.arch))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda one: cubin(*one), wanted))
    sys.stdout.write(f"{len(wanted)} programs for {', '.join(options.arch)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
