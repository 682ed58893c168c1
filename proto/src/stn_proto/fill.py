"""The constants of padding "fill", to and from the two fields that hold them in a `WarpSpec`.

A double holds all integers up to 2^53, and labels have up to 64 bits. So `fill` has the nearest
double of each constant, and `fill_remainder` what that leaves of an integer.
"""

from __future__ import annotations

from collections.abc import Sequence

from stn_proto.errors import WireFormatError

_ALL_INTEGERS = 2**53
"""Up to here doubles hold all integers."""

_LABELS = 2**64
"""No label is larger; what a double leaves of larger numbers is nobody's value."""


def split_fill(constants: Sequence[float]) -> tuple[list[float], list[int]]:
    """Returns `fill` and `fill_remainder` of a message.

    Args:
        constants: Numbers of any type; those with `__index__` are integers.

    Returns:
        The nearest doubles, and what is left of each: 0 of all but integers beyond 2^53. Nothing
        if nothing is left of any.

    Raises:
        OverflowError: A number is larger than every double.
    """
    doubles = [float(one) for one in constants]
    remainder = [
        int(one) - int(double)
        if _ALL_INTEGERS <= abs(double) <= _LABELS and hasattr(one, "__index__")
        else 0
        for one, double in zip(constants, doubles, strict=True)
    ]
    return doubles, remainder if any(remainder) else []


def join_fill(
    fill: Sequence[float], remainder: Sequence[int], field: str = "fill"
) -> tuple[float | int, ...]:
    """Returns the constants that the two fields of a message hold.

    Args:
        fill: Doubles.
        remainder: One for each of them, or none.
        field: The path of `fill`, for errors.

    Returns:
        The doubles, and integers where something was left.

    Raises:
        WireFormatError: There are more or fewer remainders, or one of a number that is no integer.
    """
    if not remainder:
        return tuple(fill)
    if len(remainder) != len(fill) or not all(
        float(double).is_integer() for double, more in zip(fill, remainder, strict=True) if more
    ):
        expected = f"as many as {field} has integers"
        actual = str(len(remainder))
        raise WireFormatError(f"{field}_remainder", expected, actual, "Send none for others.")
    return tuple(
        int(double) + more if more else double for double, more in zip(fill, remainder, strict=True)
    )
