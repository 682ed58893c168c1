"""Steps that both clients take, so that what they do is written once.

Steps are a generator that yields where `AsyncClient` awaits, as in `reply = yield
self._run(call)`. There the call is a coroutine, which `awaited` awaits; in `Client` it has been
made by then, and `completed` only gives back what it returned.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[Any, Any, T]


def completed(steps: Steps[T]) -> T:
    """Takes steps whose calls return when they have been made; returns the result."""
    try:
        result = next(steps)
        while True:
            result = steps.send(result)
    except StopIteration as done:
        found: T = done.value
        return found


async def awaited(steps: Steps[T]) -> T:
    """Takes steps whose calls have to be awaited; returns the result."""
    try:
        step = next(steps)
        while True:
            try:
                result = await step
            except BaseException as error:  # noqa: BLE001 - raised where the step was taken
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        found: T = done.value
        return found
