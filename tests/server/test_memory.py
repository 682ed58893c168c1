"""Freed memory that is kept is used again without new pages."""

import math
import resource
import subprocess
import sys

import pytest

from stn_server.memory import resident_bytes, retain_freed_memory

PAGE_FAULTS = """
import resource, sys
from stn_server.memory import retain_freed_memory

effect = retain_freed_memory(int(sys.argv[1]))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    before = faults()
    messages = [bytes(1) * 16_000_000 for _ in range(8)]
    del messages
    took = faults() - before
print(effect, took)
"""


def page_faults(limit_bytes):
    """Whether there was an effect, and the page faults of messages of sizes seen before."""
    command = [sys.executable, "-c", PAGE_FAULTS, str(limit_bytes)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    effect, took = result.stdout.split()
    return effect == "True", int(took)


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of glibc")
def test_retained_memory_costs_no_pages():
    """128 MB are about 31,000 pages, each of which the system would have to zero."""
    assert page_faults(512 * 2**20)[0]
    assert page_faults(512 * 2**20)[1] < 100 < page_faults(0)[1]


def test_nothing_is_retained_by_default():
    """A limit of 0 changes nothing."""
    assert not retain_freed_memory(0)


def test_the_memory_of_the_process_is_told(tmp_path):
    """What is in use now: no more than there ever was; not a number where nobody counts."""
    largest_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 10**7 < resident_bytes() < 1.1 * largest_bytes
    assert math.isnan(resident_bytes(tmp_path / "none"))


SURVEYED = """
import gc
from stn_server.memory import relax_collector
from stn_server.tuning import NEW_OBJECTS

old = [[] for _ in range(1000)]
relax_collector()
assert gc.get_count()[0] < 100 and gc.get_freeze_count() > 1000
found = []
gc.callbacks.append(lambda phase, info: found.append(phase))
new = [[] for _ in range(NEW_OBJECTS // 2)]
assert not found
new += [[] for _ in range(NEW_OBJECTS)]
assert found
"""


def test_a_relaxed_collector_comes_for_many_new_objects_only():
    """What is there to stay is never looked at again."""
    subprocess.run([sys.executable, "-c", SURVEYED], check=True)
