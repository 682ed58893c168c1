"""The keyword options that calls share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])


class GridOptions(TypedDict, total=False):
    """Options of the grid generator."""

    coordinates: Literal["normalized", "pixel"]
    """Unit of all coordinates, those of parameters and grids; default "normalized": [-1, 1]."""
    align_corners: bool
    """Whether -1 and 1 are centres of the corner pixels (True) or their outer edges (default)."""


class WarpOptions(GridOptions, total=False):
    """Options of a warp: grid generator and sampler."""

    interpolation: Literal["nearest", "bilinear", "bicubic"]
    """Default "bilinear"."""
    padding: Literal["zeros", "border", "reflection", "fill"]
    """What reads outside the feature map return; default "zeros"."""
    fill: float | Sequence[float]
    """The constant of padding "fill", or one per channel; default 0."""
    subgradient: Literal["right", "zero"]
    """Derivative at integer coordinates; default "right", as PyTorch."""
    deterministic: bool
    """Whether feature-map gradients must be bit-reproducible; default True."""
    layout: Literal["NCHW", "NHWC", "CHW", "HWC", "HW"]
    """Order of the axes of all maps of the call, given or returned: the feature map, the output and
    the gradients to both. "NCHW" (default) is (N, C, [D,] H, W), "NHWC" is (N, [D,] H, W, C); those
    without N are one map each, and "HW" has one channel. That of an image of Pillow is its own."""


class CallOptions(TypedDict, total=False):
    """Options of one call, whatever it computes."""

    timeout_s: float | None
    """Seconds for this call with all its retries; None: no limit; default: the client's."""
    metadata: Mapping[str, str]
    """Sent along for whatever is between client and server, as a proxy or a tracer; default none.
    Names are as gRPC has them: lower case, none that gRPC or the SDK uses itself."""
    request_id: str | None
    """What errors and the server's log call this call, in up to 64 letters, digits, "_", "." and
    "-"; None (default): a random one."""


class GridCallOptions(GridOptions, CallOptions, total=False):
    """All options of a call that generates a grid."""


class WarpCallOptions(WarpOptions, CallOptions, total=False):
    """All options of a call that warps."""


class _OfClient(Enum):
    """Placeholder for a setting of the client where options are shown."""

    TIMEOUT_S = "timeout_s of the client"

    def __repr__(self) -> str:
        return f"<{self.value}>"


TIMEOUT_OF_CLIENT = _OfClient.TIMEOUT_S
"""The default of `timeout_s`, because None means something else."""

DEFAULTS: dict[str, Any] = {
    "interpolation": "bilinear",
    "padding": "zeros",
    "fill": 0.0,
    "coordinates": "normalized",
    "align_corners": False,
    "subgradient": "right",
    "deterministic": True,
    "layout": "NCHW",
    "timeout_s": TIMEOUT_OF_CLIENT,
    "metadata": {},
    "request_id": None,
}
"""The default of every option, in the order in which they are shown."""


def takes_options(kind: type) -> Callable[[F], F]:
    """Makes `help` and editors show the options of a function one by one, with their defaults.

    Args:
        kind: The TypedDict that its `**options` unpack.
    """

    def decorate(function: F) -> F:
        shown = inspect.signature(function)
        own = [one for one in shown.parameters.values() if one.kind is not one.VAR_KEYWORD]
        hints = get_type_hints(kind)
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name]
            )
            for name, default in DEFAULTS.items()
            if name in hints
        ]
        function.__signature__ = shown.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return function

    return decorate
