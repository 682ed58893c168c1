"""Shared by all tests: deterministic property tests, and the choice of a quick run."""

import signal
from collections import defaultdict
from hashlib import sha256

from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Shells let what they start in the background ignore interrupts; processes of tests must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "project", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


def pytest_addoption(parser):
    parser.addoption(
        "--most-cases",
        type=int,
        help="run at most so many cases of every parametrised test; which ones, its names decide",
    )


def pytest_collection_modifyitems(config, items):
    most = config.getoption("--most-cases")
    if most is None:
        return
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    chosen = {id(item) for alike in cases.values() for item in sorted(alike, key=rank)[:most]}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]


def rank(item):
    """The same in every run; every n-th case would always meet the same values of a parameter."""
    return sha256(item.nodeid.encode()).digest()
