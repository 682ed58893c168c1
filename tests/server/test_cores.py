"""CPU quotas of control groups, version 1 and 2, as containers and systemd set them."""

import math
import os

import pytest

from stn_server.cores import Throttling, quota_cores, threads_within, throttling, usable_cores


class Groups:
    """What a kernel tells of a process, and the folders of its groups."""

    def __init__(self, folder):
        self._folder = folder
        self.process = folder / "self"
        self.process.mkdir()
        self._mounts = ["1 0 8:1 / / rw - ext4 /dev/vda rw"]
        self._groups = []

    def mount(self, kind, options, root="/"):
        """A hierarchy, of which the group `root` is visible here."""
        point = self._folder / f"{kind}{len(self._mounts)}"
        point.mkdir()
        self._mounts.append(
            f"30 1 0:2{len(self._mounts)} {root} {point} rw,nosuid shared:9 - {kind} none {options}"
        )
        return point

    def enter(self, line):
        """A line of /proc/self/cgroup."""
        self._groups.append(line)

    def tell(self):
        (self.process / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.process / "cgroup").write_text("\n".join(self._groups) + "\n")
        return self.process


@pytest.fixture
def groups(tmp_path):
    return Groups(tmp_path)


def limit(folder, text):
    """Sets a quota as version 2 does, or as version 1 does."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(text) == 1:
        (folder / "cpu.max").write_text(f"{text[0]}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{text[0]}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{text[1]}\n")


def test_version_2_in_a_container(groups):
    """The group of the container is the root of what is mounted."""
    limit(groups.mount("cgroup2", "rw"), ["150000 100000"])
    groups.enter("0::/")
    assert quota_cores(groups.tell()) == 1.5


def test_the_smallest_quota_above_counts(groups):
    """As for a service of systemd in a slice with less."""
    root = groups.mount("cgroup2", "rw")
    limit(root / "slice", ["200000 100000"])
    limit(root / "slice" / "service", ["max 100000"])
    limit(root / "slice" / "service" / "worker", ["700000 100000"])
    limit(root / "other", ["1000 100000"])
    groups.enter("0::/slice/service/worker")
    assert quota_cores(groups.tell()) == 2.0


def test_version_1_in_a_container(groups):
    """The kernel tells the path on the host, of which only the last group is mounted."""
    groups.mount("cgroup", "rw,memory", root="/docker/abc")
    limit(groups.mount("cgroup", "rw,cpu,cpuacct", root="/docker/abc"), ["300000", "100000"])
    groups.enter("5:memory:/docker/abc")
    groups.enter("4:cpu,cpuacct:/docker/abc")
    groups.enter("0::/")
    assert quota_cores(groups.tell()) == 3.0


def test_version_1_below_what_is_mounted(groups):
    """On a host, or in a container with groups of its own; -1 is no quota."""
    root = groups.mount("cgroup", "rw,cpu")
    limit(root, ["-1", "100000"])
    limit(root / "a" / "b", ["50000", "200000"])
    groups.enter("4:cpu:/a/b")
    assert quota_cores(groups.tell()) == 0.25


def test_a_path_outside_of_what_is_mounted_is_that_of_the_host(groups):
    """Without a namespace of its own, a container sees only its own group."""
    limit(groups.mount("cgroup2", "rw"), ["400000 100000"])
    groups.enter("0::/../../kubepods/pod1")
    assert quota_cores(groups.tell()) == 4.0


def test_without_quotas_or_groups_there_is_none(groups, tmp_path):
    """Also where nobody tells, as on other systems."""
    groups.mount("cgroup2", "rw")
    groups.enter("0::/")
    assert quota_cores(groups.tell()) == math.inf
    assert quota_cores(tmp_path / "none") == math.inf


@pytest.mark.parametrize(
    ("quota", "most", "threads"),
    [("400000", 8, 4), ("150000", 8, 1), ("50000", 8, 1), ("900000", 8, 8), ("max", 8, 8)],
)
def test_threads_fit_the_quota(groups, quota, most, threads):
    """A thread beyond it would be stopped amid a batch; one there is always."""
    limit(groups.mount("cgroup2", "rw"), [f"{quota} 100000"])
    groups.enter("0::/")
    assert threads_within(most, groups.tell()) == threads


def test_the_group_with_the_smallest_quota_tells_how_it_throttles(groups):
    """Version 2 in microseconds."""
    root = groups.mount("cgroup2", "rw")
    limit(root / "slice", ["200000 100000"])
    stat = "usage_usec 9\nnr_periods 400\nnr_throttled 30\nthrottled_usec 2500000\n"
    (root / "slice" / "cpu.stat").write_text(stat)
    limit(root / "slice" / "service", ["max 100000"])
    (root / "slice" / "service" / "cpu.stat").write_text("usage_usec 9\nnr_periods 0\n")
    groups.enter("0::/slice/service")
    assert throttling(groups.tell()) == Throttling(400, 30, 2.5)


def test_version_1_tells_how_it_throttles_in_nanoseconds(groups):
    """Under a name of its own."""
    folder = groups.mount("cgroup", "rw,cpu,cpuacct")
    limit(folder, ["50000", "100000"])
    (folder / "cpu.stat").write_text("nr_periods 7\nnr_throttled 2\nthrottled_time 1500000000\n")
    groups.enter("4:cpu,cpuacct:/")
    assert throttling(groups.tell()) == Throttling(7, 2, 1.5)
    assert usable_cores(groups.tell()) == 0.5


def test_without_a_quota_nothing_is_throttled(groups):
    """And the cores are those of the machine that the process may run on."""
    limit(groups.mount("cgroup2", "rw"), ["max 100000"])
    groups.enter("0::/")
    assert throttling(groups.tell()) == Throttling(0, 0, 0.0)
    assert usable_cores(groups.tell()) == len(os.sched_getaffinity(0))
