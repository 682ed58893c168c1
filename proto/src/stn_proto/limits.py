"""Limits of the wire format itself, the same for every sender and receiver."""

from __future__ import annotations

MAX_RANK = 8
"""Axes of a tensor; a volume with batch and channels has five."""

MAX_ELEMENTS = 2**40
"""Product of the sizes of a tensor that are not 0; far beyond what a message of 2 GiB holds."""

MAX_PAYLOADS = 16
"""Payloads of one message; the largest request of the contract has four."""

MAX_FIELDS = 1024
"""Top-level fields of one message, so that a hostile one cannot keep a scanner busy."""

MAX_ENVELOPE_BYTES = 256 * 1024
"""A message without its payloads; the longest honest part is one fill value per channel."""

PAYLOAD_ALIGNMENT_BYTES = 16
"""Where payloads start; what the allocator guarantees for the message they stand in."""
