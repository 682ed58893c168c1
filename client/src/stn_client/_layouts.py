"""Notices feature maps whose axes are in another order than the call says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

_CALLER = 5
"""Frames from the warning to whoever called a method of a client."""

_suspected: list[Sequence[int]] = []
"""The first map of the process that looked wrong: one warning is enough."""


def warn_of_channels_last(shape: Sequence[int]) -> None:
    """Warns once of a map with sizes as of (N, H, W, C) where (N, C, H, W) is expected.

    Such are more than 4 channels and rows, but at most 4 columns.
    """
    if not _suspected and len(shape) in {4, 5} and min(shape[1:-1]) > 4 >= shape[-1]:
        _suspected.append(shape)
        warnings.warn(
            f"feature_map: expected (N, C, [D,] H, W), got {tuple(shape)}, which looks like "
            '(N, [D,] H, W, C). If it is, pass layout="NHWC".',
            stacklevel=_CALLER,
        )
