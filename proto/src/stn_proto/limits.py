"""Limits of the wire format itself, the same for every sender and receiver."""

from __future__ import annotations

MAX_RANK = 8
"""Axes of a tensor; a volume with batch and channels has five."""

MAX_ELEMENTS = 2**40
"""Product of the sizes of a tensor that are not 0; far beyond what a message of 2 GiB holds."""

MAX_FIELDS = 1024
"""Top-level fields of one message beside its payloads and what aligns them, so that a hostile one
cannot keep a scanner busy."""

PAYLOAD_ALIGNMENT_BYTES = 16
"""Where payloads start; what the allocator guarantees for the message they stand in."""
