"""Orders of the axes of maps: what the wire has, and what people have without a batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stn_client._arrays import Array
from stn_client._errors import invalid


class Layout(NamedTuple):
    """An order of axes."""

    on_wire: str
    """The wire's layout for it, with a batch axis and channels."""
    added: tuple[int, ...]
    """Axes of the wire, each of length 1, that a map of the caller does not have."""
    first: int
    """The first axis of space of a map of the caller: depth or height."""
    others: int
    """Number of axes that are not spatial."""
    shape: str
    """Notation of the shape in messages."""


LAYOUTS = {
    "NCHW": Layout("NCHW", (), 2, 2, "(N, C, [D,] H, W)"),
    "NHWC": Layout("NHWC", (), 1, 2, "(N, [D,] H, W, C)"),
    "CHW": Layout("NCHW", (0,), 1, 1, "(C, [D,] H, W)"),
    "HWC": Layout("NHWC", (0,), 0, 1, "([D,] H, W, C)"),
    "HW": Layout("NCHW", (0, 1), 0, 0, "([D,] H, W)"),
}
"""Every value of the option `layout`."""


def layout_of(given: object, own: str | None) -> str:
    """Returns the layout that a call names, or its default.

    Args:
        given: The option; None: not given.
        own: What the type of the feature map says of itself; None: nothing.

    Raises:
        InvalidRequestError: There is no such layout, or it is not that of an image.
    """
    if given is None:
        return own or "NCHW"
    if not isinstance(given, str) or given not in LAYOUTS:
        hint = ""
        if isinstance(given, str) and (one := given.upper().replace("D", "")) in LAYOUTS:
            hint = f" Of images and volumes it is {one!r}."
        raise invalid("layout", f"expected one of {', '.join(LAYOUTS)}, got {given!r}.{hint}")
    if own is not None and given != own:
        raise invalid(
            "layout", f"expected {own!r} or none for an image of this mode, got {given!r}."
        )
    return given


def with_batch(field: str, array: Array, layout: str) -> Array:
    """Returns a view of a map with the wire's axes, of which the caller's layout may have fewer.

    Raises:
        InvalidRequestError: It has not as many axes as its layout.
    """
    of = LAYOUTS[layout]
    if not of.added and array.ndim in {2, 3}:
        got = f"got shape {array.shape}"
        advice = 'Of one map without a batch axis say the layout: "HWC", "CHW" or "HW".'
        raise invalid(field, f"expected {of.shape}, {got}. {advice}")
    if of.added and array.ndim - of.others not in {2, 3}:
        got = f"got shape {array.shape}"
        raise invalid(field, f"expected {of.shape} beside layout {layout!r}, {got}.")
    for axis in of.added:
        array = array[(slice(None),) * axis + (None,)]
    return array


def without_batch(array: Array, layout: str) -> Array:
    """Returns a view of a result with the axes of the caller's layout."""
    alone: Array = array[(0,) * len(LAYOUTS[layout].added)]
    return alone


def output_shape(
    feature_map: list[Any],
    parameters: Sequence[Any],
    output_size: Sequence[Any] | None,
    *,
    layout: str,
    of_points: bool,
) -> list[Any]:
    """Returns the shape of the output of a warp, in its layout.

    Args:
        feature_map: The shape of the feature map; it is changed.
        parameters: The shape of the parameters.
        output_size: None: that of the parameters if they are points, else of the feature map.
        layout: Of the feature map.
        of_points: Whether the parameters are one for every target pixel.
    """
    of = LAYOUTS[layout]
    if output_size is None and of_points:
        output_size = parameters[-3:-1] if parameters[-1] == 2 else parameters[-4:-1]
    if output_size is not None:
        feature_map[of.first : of.first + len(output_size)] = output_size
    if not of.added and feature_map[0] == 1:
        feature_map[0] = parameters[0]
    return feature_map
