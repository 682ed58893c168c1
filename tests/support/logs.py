"""What one logger was told.

Others may speak at any moment: asyncio does of what an earlier test left, when the garbage
collector finds it.
"""

from __future__ import annotations


def records_of(caplog, name):
    """The records of a logger so far, in order."""
    return [record for record in caplog.records if record.name == name]
