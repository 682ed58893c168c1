"""Exact changes between normalized and pixel units. Knows no tensor and no image.

Per axis, both changes are ratios of integers:

    target lattice   x_t  = (p·j + q) / r        source pixel   x_px = (u·x + v) / w

    convention                        p   q       r         u      v      w
    normalized, align_corners=False   2   1-W'    W'        W      W-1    2
    normalized, align_corners=True    2   1-W'    W'-1      W-1    W-1    2
    (the same with W' = 1)            0   0       1
    pixel                             1   0       1         1      0      1

Composed with a theta, every ratio that occurs is evaluated by one division of integers. In
normalized units the offsets of an identity cancel exactly and its scale is exactly 1, so an
identity theta is a bit-exact identity in every convention.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from stn_engine.spec import Coordinates


@dataclass(frozen=True)
class TargetAxis:
    """An axis of the target lattice: ``x_t = (p·j + q) / r`` for j = 0, 1, ..."""

    p: int
    q: int
    r: int


@dataclass(frozen=True)
class SourceAxis:
    """An axis of the source: ``x_px = (u·x + v) / w``."""

    u: int
    v: int
    w: int


def target_axis(size: int, coordinates: Coordinates | str, *, align_corners: bool) -> TargetAxis:
    """Returns the lattice of ``size`` > 0 target pixels in the given unit."""
    if coordinates == Coordinates.PIXEL:
        return TargetAxis(1, 0, 1)
    if not align_corners:
        return TargetAxis(2, 1 - size, size)
    if size == 1:
        return TargetAxis(0, 0, 1)
    return TargetAxis(2, 1 - size, size - 1)


def source_axis(size: int, coordinates: Coordinates | str, *, align_corners: bool) -> SourceAxis:
    """Returns the change from the given unit to pixels of a source ``size`` > 0 wide."""
    if coordinates == Coordinates.PIXEL:
        return SourceAxis(1, 0, 1)
    return SourceAxis(size - 1 if align_corners else size, size - 1, 2)


Row = tuple[float, ...]


@dataclass(frozen=True)
class PixelAffine:
    """The linear map from theta to its pixel matrix M, for rows a and columns b from x on.

    M[a, b]  = theta[a, b]·scales[a][b]                     factor of column j, row i, plane k
    M[a, -1] = sum over b of theta[a, b]·offsets[a][b]
               + theta[a, -1]·scale[a] + offset[a]
    """

    scales: tuple[Row, ...]
    offsets: tuple[Row, ...]
    scale: Row
    offset: Row


@lru_cache(maxsize=1024)
def pixel_affine(
    output_size: tuple[int, ...],
    source_size: tuple[int, ...],
    coordinates: Coordinates | str,
    align_corners: bool,  # noqa: FBT001 - lru_cache keys positional arguments fastest
) -> PixelAffine:
    """Composes the unit changes around theta for sizes ([depth,] height, width), all > 0."""
    targets = [
        target_axis(n, coordinates, align_corners=align_corners) for n in reversed(output_size)
    ]
    sources = [
        source_axis(n, coordinates, align_corners=align_corners) for n in reversed(source_size)
    ]
    return PixelAffine(
        scales=tuple(tuple(x.u * j.p / (x.w * j.r) for j in targets) for x in sources),
        offsets=tuple(tuple(x.u * j.q / (x.w * j.r) for j in targets) for x in sources),
        scale=tuple(x.u / x.w for x in sources),
        offset=tuple(x.v / x.w for x in sources),
    )


@lru_cache(maxsize=1024)
def pixel_homography(
    output_size: tuple[int, ...],
    source_size: tuple[int, ...],
    coordinates: Coordinates | str,
    align_corners: bool,  # noqa: FBT001 - lru_cache keys positional arguments fastest
) -> tuple[tuple[float, ...], ...]:
    """Returns the linear map, (9, 9), from theta (3, 3) to the entries of its pixel matrix.

    ``M = T·theta·S`` with S from (j, i, 1) to target points and T from source points to pixels,
    hence ``M[a, b] = sum of (T[a, c]·S[d, b])·theta[c, d]``; each product is rounded once.
    """
    i, j = (target_axis(n, coordinates, align_corners=align_corners) for n in output_size)
    y, x = (source_axis(n, coordinates, align_corners=align_corners) for n in source_size)
    to_target = (
        (Fraction(j.p, j.r), 0, Fraction(j.q, j.r)),
        (0, Fraction(i.p, i.r), Fraction(i.q, i.r)),
        (0, 0, 1),
    )
    to_pixels = (
        (Fraction(x.u, x.w), 0, Fraction(x.v, x.w)),
        (0, Fraction(y.u, y.w), Fraction(y.v, y.w)),
        (0, 0, 1),
    )
    return tuple(
        tuple(float(to_pixels[a][c] * to_target[d][b]) for c in range(3) for d in range(3))
        for a in range(3)
        for b in range(3)
    )
