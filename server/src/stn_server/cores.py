"""The processor cores that a control group lets this process use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROCESS = Path("/proc/self")


def quota_cores(process: Path = PROCESS) -> float:
    """Returns the CPU quota of this process in cores; infinity if there is none.

    The smallest of the groups above it counts, in version 1 and 2 of control groups.

    Args:
        process: The folder of the process, as /proc/self.
    """
    quotas = (_quota(folder) for folder in _folders(process))
    return min(quotas, default=math.inf)


class Throttling(NamedTuple):
    """A control group's counts, since its start, of what its CPU quota held back."""

    periods: int = 0
    """Counts periods, mostly of 0.1 s, in which the group had something to run."""
    throttled_periods: int = 0
    """Counts those in which its quota was not enough, so that all its threads were stopped."""
    throttled_s: float = 0.0
    """How long its threads were stopped, in seconds."""


def usable_cores(process: Path = PROCESS) -> float:
    """Returns how many cores this process may use, by its affinity and its CPU quota."""
    return min(float(len(os.sched_getaffinity(0))), quota_cores(process))


def throttling(process: Path = PROCESS) -> Throttling:
    """Reads the counters of the group with the smallest CPU quota; zeros if there is no quota."""
    quota, folder = min(((_quota(one), one) for one in _folders(process)), default=(math.inf, None))
    if folder is None or quota == math.inf:
        return Throttling()
    lines = (folder / "cpu.stat").read_text(encoding="ascii").splitlines()
    told = {name: int(value) for name, value in (line.split() for line in lines)}
    throttled_s = told.get("throttled_usec", 0) / 1e6 + told.get("throttled_time", 0) / 1e9
    return Throttling(told.get("nr_periods", 0), told.get("nr_throttled", 0), throttled_s)


def threads_within(most: int, process: Path = PROCESS) -> int:
    """Returns `most`, or fewer threads if the CPU quota cannot keep so many running.

    A thread beyond the quota would be stopped amid a batch, which then waits for it.
    """
    return max(1, math.floor(min(most, quota_cores(process))))


def _folders(process: Path) -> Iterator[Path]:
    return groups("cpu", process)


def groups(controller: str, process: Path = PROCESS) -> Iterator[Path]:
    """Yields the folders of the groups that this process is in, each with those above it.

    Args:
        controller: The resource that the groups bound: "cpu" or "memory".
        process: The folder of the process, as /proc/self.
    """
    try:
        mounts = (process / "mountinfo").read_text(encoding="utf-8").splitlines()
        groups = (process / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in groups)}
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        _, _, _, root, point, *_ = left.split(" ")
        kind, _, options = right.split(" ", 2)
        for controllers, path in paths.items():
            names = controllers.split(",")
            bounds = controller in names and controller in options.split(",")
            version_1 = kind == "cgroup" and bounds
            if version_1 or (kind == "cgroup2" and not controllers):
                yield from _upwards(Path(point), root, path)


def _upwards(mounted: Path, root: str, path: str) -> Iterator[Path]:
    """Yields the folder of a group and those above it, as far as they are mounted here."""
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:  # told as the host sees it; the container's own group is what is mounted
        below = PurePosixPath()
    folder = mounted / below
    while True:
        yield folder
        if folder == mounted:
            return
        folder = folder.parent


def _quota(folder: Path) -> float:
    """Returns the quota of one group in cores."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
    except OSError:  # the root has none
        return math.inf
    return math.inf if quota in {"max", "-1"} else int(quota) / int(period)
