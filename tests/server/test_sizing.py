"""Memory limits of control groups, and the defaults that follow from one."""

import math

import pytest

from stn_server.config import ConfigError, ServerConfig
from stn_server.memory import memory_limit_bytes
from stn_server.settings import load
from stn_server.sizing import IDLE_BYTES

MIB = 1024**2
GIB = 1024 * MIB


def process_in(folder, kind, options, group):
    """What the kernel tells of a process in a group, whose hierarchy is mounted in `folder`."""
    told = folder / "self"
    told.mkdir()
    mount = f"30 1 0:22 / {folder} rw,nosuid shared:9 - {kind} none {options}\n"
    (told / "mountinfo").write_text(mount)
    (told / "cgroup").write_text(group + "\n")
    return told


def limit(folder, name, text):
    """Sets the limit of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{text}\n")


def test_version_2_tells_the_smallest_limit_above(tmp_path):
    """As for a container in a pod, which has one of its own."""
    limit(tmp_path / "pod", "memory.max", 3 * GIB)
    limit(tmp_path / "pod/server", "memory.max", "max")
    limit(tmp_path / "other", "memory.max", 1)
    process = process_in(tmp_path, "cgroup2", "rw", "0::/pod/server")
    assert memory_limit_bytes(process) == 3 * GIB


def test_version_1_tells_a_limit_in_bytes(tmp_path):
    """In the hierarchy of the memory, whatever others there are."""
    limit(tmp_path / "server", "memory.limit_in_bytes", 512 * MIB)
    process = process_in(tmp_path, "cgroup", "rw,memory", "7:memory:/server\n4:cpu,cpuacct:/other")
    assert memory_limit_bytes(process) == 512 * MIB


def test_without_a_limit_there_is_none(tmp_path):
    """Version 1 tells all pages that it can count; a kernel without groups tells nothing."""
    limit(tmp_path, "memory.limit_in_bytes", 2**63 - 4096)
    process = process_in(tmp_path, "cgroup", "rw,memory", "7:memory:/")
    assert memory_limit_bytes(process) == math.inf
    assert memory_limit_bytes(tmp_path / "nowhere") == math.inf


def held_bytes(config):
    """What the server's README says that it may come to hold."""
    arenas = config.local.max_arena_bytes if config.local.dir else 0
    kept = config.retained_bytes + config.residents.max_bytes + arenas
    return IDLE_BYTES + 2 * config.batching.max_admitted_bytes + kept


@pytest.mark.parametrize("limit_bytes", [900 * MIB, GIB, 2 * GIB, 4 * GIB, 6 * GIB, 64 * GIB])
@pytest.mark.parametrize("local", [{}, {"STN_LOCAL_DIR": "/run/stn"}])
def test_defaults_fit_into_the_limit(limit_bytes, local):
    """With and without arenas; and no limit makes them more than they are without one."""
    if local:
        limit_bytes = max(limit_bytes, 3 * GIB)
    config, plain = load((), local, limit_bytes), ServerConfig()
    assert held_bytes(config) <= limit_bytes
    assert config.batching.max_admitted_bytes <= plain.batching.max_admitted_bytes
    assert config.limits.max_message_bytes <= plain.limits.max_message_bytes
    assert config.retained_bytes <= plain.retained_bytes
    assert config.local.max_arena_bytes <= plain.local.max_arena_bytes


def test_4_gib_take_the_largest_calls_of_the_defaults():
    """By hand: 4096 - 512 idle - 512 retained - 512 resident leave 2560, half of it is inside."""
    config = load((), {}, 4 * GIB)
    assert config.residents.max_bytes == 512 * MIB
    assert config.batching.max_admitted_bytes == 1280 * MIB
    assert config.limits == ServerConfig().limits
    assert config.retained_bytes == 512 * MIB


def test_a_small_limit_makes_calls_small():
    """By hand: 1024 - 512 idle - 2 x 128 kept leave 256: 128 inside, 64 either way."""
    config = load((), {}, GIB)
    assert config.retained_bytes == config.residents.max_bytes == 128 * MIB
    assert config.batching.max_admitted_bytes == 128 * MIB
    assert config.limits.max_message_bytes == config.limits.max_output_bytes == 64 * MIB


def test_what_is_set_stays_and_the_rest_follows():
    """Retained memory that is given up is for calls."""
    config = load(["--retained-bytes=0"], {}, GIB)
    assert (config.retained_bytes, config.batching.max_admitted_bytes) == (0, 192 * MIB)
    given = {"STN_BATCHING_MAX_ADMITTED_BYTES": str(3 * GIB)}
    assert load((), given, GIB).batching.max_admitted_bytes == 3 * GIB
    with pytest.raises(ConfigError, match=r"max_admitted_bytes: expected at least"):
        load(["--limits-max-message-bytes=268435456"], {}, GIB)


def test_without_a_limit_nothing_changes():
    """The defaults are those of the documentation."""
    assert load((), {}) == load((), {}, math.inf) == ServerConfig()


def test_the_smallest_servers_still_take_calls():
    """Where idle memory alone is more than the limit."""
    config = load((), {}, 256 * MIB)
    assert config.batching.max_admitted_bytes == 64 * MIB
    assert config.limits.max_message_bytes == 32 * MIB
