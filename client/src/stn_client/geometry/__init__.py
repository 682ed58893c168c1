"""Transforms from what other libraries give: matrices, maps, points, images in space. NumPy only.

Every function returns `TransformArguments`, the transform together with the unit of its parameters,
so that nobody has to remember the unit: two stars hand both to a call.

    >>> stn.warp(photo, **rotation_about((320, 240), 30), padding="border")

All of them map target to source, as every transform of this package: from a point of the output to
the point of the feature map where it reads. Points are (x, y[, z]), x right, y down, z along the
depth; pixels have their centres at whole numbers; sizes are ([D,] H, W). Functions whose
documentation says *index order* take and give the order of the axes of an array, (row, column) or
(z, y, x), instead.
"""

from stn_client.geometry._arguments import TransformArguments
from stn_client.geometry._foreign import from_opencv, from_remap, from_voxel, to_voxel
from stn_client.geometry._matrices import (
    compose,
    invert,
    rotation_about,
    to_normalized,
    to_pixel,
)
from stn_client.geometry._points import from_points
from stn_client.geometry._world import ImageGeometry, from_world, to_world

__all__ = [
    "ImageGeometry",
    "TransformArguments",
    "compose",
    "from_opencv",
    "from_points",
    "from_remap",
    "from_voxel",
    "from_world",
    "invert",
    "rotation_about",
    "to_normalized",
    "to_pixel",
    "to_voxel",
    "to_world",
]
