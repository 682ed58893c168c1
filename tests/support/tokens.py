"""Files of tokens for tests."""

from __future__ import annotations

import hashlib


def entry(name, token, **quota):
    """The table of one token."""
    lines = [f"[{name}]", f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in quota.items())]) + "\n"


def replace(path, *entries):
    """Writes a file of tokens as operators should: in one step, so that nobody reads half of it."""
    beside = path.with_suffix(".new")
    beside.write_text("\n".join(entries))
    beside.replace(path)
