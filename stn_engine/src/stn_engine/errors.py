"""What the engine raises, and nothing about who catches it.

::

    EngineError(Exception)
    ├─ InvalidInputError(EngineError, ValueError)    argument
    │   ├─ ShapeError                                expected_shapes, actual_shape
    │   ├─ DTypeError                                expected, actual
    │   ├─ DeviceMismatchError                       devices
    │   └─ ParameterError                            value, allowed
    └─ BackendUnavailableError                       reasons

A message reads *where: expected, got. What to do.* and every fact in it is an attribute as well.
"""

import copyreg
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

Shape: TypeAlias = Sequence[int | str]
"""The shape, one entry per axis: a size, or the letter of a free size."""


class EngineError(Exception):
    """Root of everything this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, and not by the arguments of __init__: a worker process could not send it back.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidInputError(EngineError, ValueError):
    """An argument that no backend could make sense of.

    Attributes:
        argument: Name of the offending argument, such as ``"theta"``.
    """

    def __init__(self, argument: str, expected: str, actual: str, remedy: str) -> None:
        super().__init__(f"{argument}: expected {expected}, got {actual}. {remedy}")
        self.argument = argument


class ShapeError(InvalidInputError):
    """An argument of the wrong shape.

    Attributes:
        expected_shapes: The shapes that would do; one entry per axis: a size, or the letter of a
            free size.
        actual_shape: The shape that was given.
    """

    def __init__(
        self,
        argument: str,
        expected_shapes: Sequence[Shape],
        actual_shape: Sequence[int],
        remedy: str,
    ) -> None:
        self.expected_shapes = tuple(map(tuple, expected_shapes))
        self.actual_shape = tuple(actual_shape)
        choices = (f"({', '.join(map(str, shape))})" for shape in self.expected_shapes)
        super().__init__(argument, f"shape {' or '.join(choices)}", f"{self.actual_shape}", remedy)


class DTypeError(InvalidInputError):
    """An argument of a dtype that the operation does not take.

    Attributes:
        expected: The dtypes that would do.
        actual: The dtype that was given.
    """

    def __init__(
        self, argument: str, expected: Sequence[torch.dtype], actual: torch.dtype, remedy: str
    ) -> None:
        self.expected = tuple(expected)
        self.actual = actual
        super().__init__(argument, " or ".join(map(str, self.expected)), f"{actual}", remedy)


class DeviceMismatchError(InvalidInputError):
    """Operands of one operation that live on different devices.

    Attributes:
        devices: Device of each operand, by argument name.
    """

    def __init__(self, argument: str, devices: Mapping[str, torch.device]) -> None:
        self.devices = dict(devices)
        others = " and ".join(f"{name} on {dev}" for name, dev in devices.items())
        super().__init__(argument, "one device", others, "Move all operands to one device.")


class ParameterError(InvalidInputError):
    """A parameter outside its allowed values.

    Args:
        argument: Its name.
        value: What was given.
        allowed: The allowed values, or a description of each allowed form.
        actual: What of a long value is wrong; empty: all of it.

    Attributes:
        value: What was given.
        allowed: The allowed values, or a description of each allowed form.
    """

    def __init__(
        self, argument: str, value: object, allowed: Sequence[object], actual: str = ""
    ) -> None:
        self.value = value
        self.allowed = tuple(allowed)
        choices = " | ".join(map(str, self.allowed))
        super().__init__(argument, choices, actual or repr(value), "Pass an allowed value.")


class BackendUnavailableError(EngineError):
    """No backend can run the problem.

    Attributes:
        reasons: Why not, for every backend that was asked.
    """

    def __init__(self, reasons: Mapping[str, tuple[str, ...]]) -> None:
        self.reasons = dict(reasons)
        told = "; ".join(f"{name}: {', '.join(why)}" for name, why in self.reasons.items())
        super().__init__(f"backend: expected one that runs this problem, got none ({told}).")
