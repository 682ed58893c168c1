"""Images in space: spacing, origin and direction, as NIfTI and ITK have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._errors import invalid
from stn_client._transforms import Affine, Transform
from stn_client.geometry._arguments import (
    TransformArguments,
    arguments,
    check_affine,
    choice,
    homogeneous,
    inverted,
    numbers,
    vector,
)
from stn_client.geometry._foreign import pixel_matrices, reversed_axes

World = Literal["RAS", "LPS"]
_WORLDS = ("RAS", "LPS")


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """Position of the voxels of an array in the world: spacing, origin and direction.

    Shapes:
        matrix   (4, 4), of images (3, 3), float64

    Convention:
        - maps the index of an array, in its own order, to the world: array[a, b, c] lies at the
          first three of matrix . (a, b, c, 1)
        - world "RAS": x to the right, y to the front, z to the head, as in NIfTI and nibabel
        - world "LPS": x to the left, y to the back, z to the head, as in ITK, SimpleITK and DICOM
        - which axis of an array is x is the business of the library: `get_fdata()` of nibabel is
          (x, y, z), `GetArrayFromImage` of SimpleITK is (z, y, x)

    Raises:
        InvalidRequestError: matrix has another shape, is not finite or not invertible, its last row
            is not (0, .., 0, 1), or there is no such world.
    """

    matrix: Any
    world: World

    def __post_init__(self) -> None:
        choice("world", self.world, _WORLDS)
        object.__setattr__(self, "matrix", _checked_matrix("matrix", self.matrix))

    @staticmethod
    def of(image: Any) -> ImageGeometry:
        """Reads the geometry of an image of SimpleITK or nibabel (with an `affine` to RAS).

        Args:
            image: The image, for the array that its library makes of it; an `ImageGeometry` is
                returned as it is.

        Raises:
            InvalidRequestError: It says nothing of its place, or has neither 2 nor 3 axes.
        """
        return _geometry("image", image)

    @classmethod
    def itk(cls, spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike | None = None) -> Self:
        """Returns the geometry of an array (z, y, x) from ITK's spacing, origin, direction.

        Shapes:
            spacing     (3,), of images (2,)           along x, y and z
            origin      (3,), of images (2,)           of the first voxel, in the world, LPS
            direction   (3, 3) or (9,), of images (2, 2) or (4,)   columns are the axes x, y and z
                        of the array in the world; None: those of the world

        Raises:
            InvalidRequestError: An argument has another shape or is not finite, or the matrix is
                not invertible.
        """
        matrix = _matrix(spacing, origin, direction)
        # The axes of SimpleITK's arrays are those of its images in reverse.
        order = [*range(len(matrix) - 1)[::-1], len(matrix) - 1]
        return cls(matrix[:, order], "LPS")

    @classmethod
    def nifti(
        cls, spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike | None = None
    ) -> Self:
        """Returns the geometry of an array (x, y, z) of nibabel, in the world of NIfTI.

        Shapes:
            spacing     (3,), of images (2,)           along x, y and z, as `header.get_zooms()`
            origin      (3,), of images (2,)           of the first voxel, in the world, RAS
            direction   (3, 3) or (9,), of images (2, 2) or (4,)   columns are the axes x, y and z
                        of the array in the world; None: those of the world

        Raises:
            InvalidRequestError: An argument has another shape or is not finite, or the matrix is
                not invertible.
        """
        return cls(_matrix(spacing, origin, direction), "RAS")

    def to(self, world: World) -> Self:
        """Converts to another world: RAS and LPS differ in the signs of x and y."""
        choice("world", world, _WORLDS)
        signs = np.ones((len(self.matrix), 1))
        signs[:2] = 1 if world == self.world else -1
        return type(self)(signs * self.matrix, world)


def from_world(transform: Any, source: Any, target: Any) -> TransformArguments[Affine]:
    """Returns the transform between the voxels of two arrays that is this one between their worlds.

    As `SimpleITK.Resample(source, target, transform)`, whose transforms go from target to source,
    too.

    Args:
        transform: Target to source in the world, a matrix (4, 4) or (3, 4), of images (3, 3) or
            (2, 3), or N of them; or a linear transform of SimpleITK, whose world is LPS; None:
            none, the images already lie where they belong.
        source: Where the feature map lies: an image of nibabel or SimpleITK, or an `ImageGeometry`.
        target: Where the output lies, likewise.

    Returns:
        An `Affine` (N, 3, 4), of images (N, 2, 3), float64, in pixels of the arrays as their
        libraries make them: the last axis of an array is x.

    Raises:
        InvalidRequestError: An argument is none of these, they differ in their number of axes, the
            transform of SimpleITK is not linear, or a matrix stands between images of two worlds.

    Example:
        >>> u = sitk.GetArrayFromImage(moving)[None, None]
        >>> size = fixed.GetSize()[::-1]
        >>> v = stn.warp(u, **from_world(transform, moving, fixed), output_size=size)
    """
    read, shown = _geometry("source", source), _geometry("target", target)
    if transform is None:
        shown, between = shown.to(read.world), np.eye(len(read.matrix))[None]
    elif hasattr(transform, "TransformPoint"):
        read, shown, between = read.to("LPS"), shown.to("LPS"), _matrix_of_itk(transform)
    else:
        _check_one_world(read, shown)
        between = homogeneous("transform", transform)
        check_affine("transform", between)
    axes = [len(each) - 1 for each in (read.matrix, shown.matrix, between[0])]
    if len(set(axes)) > 1:
        raise invalid(
            "target",
            "expected as many axes as source and transform have; the axes of source, "
            f"target and transform are {axes[0]}, {axes[1]}, {axes[2]}.",
        )
    matrices = np.linalg.solve(read.matrix, between @ shown.matrix)
    return arguments(Affine(reversed_axes(matrices)[:, :-1]), "pixel")


def to_world(
    transform: Transform | TransformArguments[Any], source: Any, target: Any
) -> NDArray[np.float64]:
    """Returns the transform between the worlds of two images that is this one between their voxels.

    Shapes:
        returns   (N, 4, 4), of images (N, 3, 3), float64, target to source in their world

    Args:
        transform: One with a matrix, in pixels.
        source: As for `from_world`.
        target: As for `from_world`, of the same world.

    Raises:
        InvalidRequestError: The transform has no affine matrix or is not in pixels, or the images
            differ in their worlds or axes.
    """
    read, shown = _geometry("source", source), _geometry("target", target)
    _check_one_world(read, shown)
    matrices = pixel_matrices("transform", transform)
    check_affine("transform", matrices)
    if {len(read.matrix), len(shown.matrix)} != {matrices.shape[-1]}:
        raise invalid(
            "transform",
            "expected as many axes as source and target have; the axes of transform, "
            f"source and target are {matrices.shape[-1] - 1}, {len(read.matrix) - 1}, "
            f"{len(shown.matrix) - 1}.",
        )
    world: NDArray[np.float64] = read.matrix @ reversed_axes(matrices) @ np.linalg.inv(shown.matrix)
    return world


def _matrix(
    spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike | None
) -> NDArray[np.float64]:
    """Returns the matrix from index (x, y[, z]) to the world."""
    place = numbers("origin", origin)
    if place.shape not in {(2,), (3,)}:
        raise invalid("origin", f"expected (x, y, z), of images (x, y), got {place.tolist()}.")
    dims = len(place)
    steps = vector("spacing", spacing, dims)
    axes = np.eye(dims) if direction is None else numbers("direction", direction)
    if axes.shape not in {(dims, dims), (dims * dims,)}:
        raise invalid("direction", f"expected ({dims}, {dims}), got {axes.shape}.")
    matrix = np.eye(dims + 1)
    matrix[:-1, :-1] = axes.reshape(dims, dims) * steps
    matrix[:-1, -1] = place
    return matrix


def _geometry(name: str, image: Any) -> ImageGeometry:
    if isinstance(image, ImageGeometry):
        return image
    if all(hasattr(image, each) for each in ("GetSpacing", "GetOrigin", "GetDirection")):
        place = image.GetOrigin()
        if len(place) not in {2, 3}:
            raise invalid(name, f"expected an image of 2 or 3 axes, got {len(place)}.")
        return ImageGeometry.itk(image.GetSpacing(), place, image.GetDirection())
    if getattr(image, "affine", None) is not None:
        return ImageGeometry(_checked_matrix(f"{name}.affine", image.affine), "RAS")
    raise invalid(
        name,
        "expected an ImageGeometry, or an image of nibabel or SimpleITK, got "
        f"{type(image).__name__}.",
    )


def _checked_matrix(name: str, matrix: ArrayLike) -> NDArray[np.float64]:
    """Returns an affine matrix, (4, 4) or (3, 3), checked to be invertible."""
    given = numbers(name, matrix)
    if given.shape not in {(3, 3), (4, 4)}:
        raise invalid(name, f"expected (4, 4), of images (3, 3), got {given.shape}.")
    check_affine(name, given[None])
    inverted(name, given[None])
    return given


def _matrix_of_itk(transform: Any) -> NDArray[np.float64]:
    """Returns a linear transform's matrix, from the corners of a unit cube: (1, d + 1, d + 1)."""
    if not transform.IsLinear():
        advice = "Of what bends, give the points where it reads: a SamplingGrid in pixels."
        raise invalid("transform", f"expected a linear one, got {transform.GetName()}. {advice}")
    dims = transform.GetDimension()
    # By what it does, as not every linear transform of SimpleITK tells a matrix.
    corners = np.vstack([np.zeros(dims), np.eye(dims)])
    origin, *ends = (np.array(transform.TransformPoint(corner.tolist())) for corner in corners)
    matrix = np.eye(dims + 1)
    matrix[:-1] = np.column_stack([*(end - origin for end in ends), origin])
    return matrix[None]


def _check_one_world(source: ImageGeometry, target: ImageGeometry) -> None:
    if source.world != target.world:
        raise invalid(
            "target",
            f"expected the world of source, {source.world}, got {target.world}. Give "
            f'ImageGeometry.of(target).to("{source.world}") with a matrix of that world.',
        )
