"""Defaults that fit into a memory limit, so that a server refuses calls before it is killed.

What a server holds stays below

    idle + 2 x batching.max_admitted_bytes + retained_bytes + residents.max_bytes
    + local.max_arena_bytes

with arenas only where `local.dir` is set. An admitted call counts once, and its message
takes as much again on its way in or out. Without a limit, settings have the defaults of
`config.py`, which are also the most that a limit gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stn_server.config import (
    MIB,
    BatchingConfig,
    LimitsConfig,
    LocalConfig,
    ResidentsConfig,
    ServerConfig,
)

IDLE_BYTES = 512 * MIB
"""Memory beside tensors: Python, torch, threads, connections, and the needs of a launch."""

LEAST_ADMITTED_BYTES = 64 * MIB
"""The least that defaults give, however small the limit: with less a server can do nothing."""


def defaults_within(memory_bytes: float, given: Mapping[str, Any]) -> dict[str, int]:
    """Returns defaults for a limit of so many bytes, by the names of settings.

    Args:
        memory_bytes: The memory limit of the process; infinity: none.
        given: The settings that are given, by name, from which the others follow.
    """
    if memory_bytes == math.inf:
        return {}
    limit = int(memory_bytes)
    found = {
        "local.max_arena_bytes": min(LocalConfig().max_arena_bytes, limit // 2),
        "retained_bytes": min(ServerConfig().retained_bytes, limit // 8),
        "residents.max_bytes": min(ResidentsConfig().max_bytes, limit // 8),
    }
    chosen = {**found, **given}
    arenas = chosen["local.max_arena_bytes"] if chosen.get("local.dir") else 0
    kept = chosen["retained_bytes"] + chosen["residents.max_bytes"] + arenas
    left = limit - IDLE_BYTES - kept
    admitted = min(BatchingConfig().max_admitted_bytes, max(left // 2, LEAST_ADMITTED_BYTES))
    one_way = chosen.get("batching.max_admitted_bytes", admitted) // 2
    return {
        **found,
        "batching.max_admitted_bytes": admitted,
        "limits.max_message_bytes": min(LimitsConfig().max_message_bytes, one_way),
        "limits.max_output_bytes": min(LimitsConfig().max_output_bytes, one_way),
    }
