"""How a stress suite says what it saw, and which promises held."""

from __future__ import annotations

import json


class Report:
    """Numbers of a run, and the promises that they break."""

    def __init__(self) -> None:
        self.numbers: dict[str, object] = {}
        self.broken: list[str] = []

    def note(self, **numbers: object) -> None:
        self.numbers |= numbers

    def promise(self, text: str, holds: bool) -> None:
        if not holds:
            self.broken.append(text)

    def finish(self) -> None:
        """Prints the numbers; exits with 1 if a promise was broken."""
        print(json.dumps(self.numbers, indent=2))
        for text in self.broken:
            print(f"BROKEN: {text}")
        raise SystemExit(bool(self.broken))


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
