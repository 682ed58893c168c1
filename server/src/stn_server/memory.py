"""The handling of freed memory, and how much memory the process holds and may hold.

By default glibc gives large blocks back to the system and takes them anew for the next message, and
the system fills every page with zeros again: in a virtual machine that costs more than computing on
the bytes. A server that moves tensors of the same sizes all day does better to hold on to them.
"""

from __future__ import annotations

import ctypes
import gc
import math
import resource
from pathlib import Path

from stn_server.cores import PROCESS, groups
from stn_server.tuning import NEW_OBJECTS

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGEST_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
"""The largest threshold that glibc accepts; larger blocks are always given back."""

_LARGEST_INT = 2**31 - 1

_NO_LIMIT_BYTES = 2**60


def retain_freed_memory(limit_bytes: int) -> bool:
    """Keeps up to so many bytes of freed memory at hand, in blocks of up to 32 MiB.

    All threads share one heap: else each would keep as much for itself.

    Args:
        limit_bytes: The most freed memory that is kept; 0: leave the C library as it is.

    Returns:
        Whether it had an effect: not with a limit of 0, nor on a C library other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or limit_bytes == 0:
        return False
    block_bytes = min(limit_bytes, _LARGEST_MMAP_THRESHOLD_BYTES)
    accepted = mallopt(_M_ARENA_MAX, 1) and mallopt(_M_MMAP_THRESHOLD, block_bytes)
    return bool(accepted and mallopt(_M_TRIM_THRESHOLD, min(limit_bytes, _LARGEST_INT)))


def relax_collector() -> None:
    """Makes garbage collection rare and limited to new objects; call it once, when all is built.

    It need not walk torch's modules again, which stay for good. What it finds are reference
    cycles that gRPC makes of calls; until then they hold some hundred bytes each.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


def resident_bytes(counts: Path = Path("/proc/self/statm")) -> float:
    """Returns the resident memory of this process in bytes; NaN where it is not counted."""
    try:
        pages = counts.read_text(encoding="ascii").split()[1]
    except OSError:  # not Linux
        return math.nan
    return float(int(pages) * resource.getpagesize())


def memory_limit_bytes(process: Path = PROCESS) -> float:
    """Returns how much memory a control group allows this process; infinity if it is unbounded.

    The smallest limit of the groups above it counts, in version 1 and 2 of control groups.

    Args:
        process: The folder of the process, as /proc/self.
    """
    return min((_limit_bytes(folder) for folder in groups("memory", process)), default=math.inf)


def _limit_bytes(folder: Path) -> float:
    """Returns the limit of one group; version 1 reports a huge number where there is none."""
    name = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
    try:
        text = (folder / name).read_text(encoding="ascii").strip()
    except OSError:  # the root has none
        return math.inf
    return math.inf if text == "max" or int(text) >= _NO_LIMIT_BYTES else float(text)
