"""Images in space, against nibabel and SimpleITK."""

from types import SimpleNamespace

import nibabel
import nibabel.processing
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everyone calls it
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation as Turn

from stn_client import Affine, Client, InvalidRequestError, SamplingGrid
from stn_client.geometry import ImageGeometry, from_world, rotation_about, to_world

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=50)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
DIRECTION = Turn.from_rotvec([0.2, -0.4, 0.3]).as_matrix()
"""Oblique, as scans are."""


def of_itk(seed, size, spacing, origin, direction=DIRECTION):
    """An image of SimpleITK; its array has the size reversed."""
    values = np.random.default_rng(seed).random(size[::-1]).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction.ravel().tolist())
    return image


MOVING = of_itk(0, (12, 14, 10), (1.0, 1.5, 2.0), (5.0, -3.0, 2.0))
FIXED = of_itk(1, (9, 8, 7), (1.2, 1.3, 1.7), (6.0, -1.0, 4.0), np.eye(3))


def of_nibabel(image):
    """The same image as nibabel would read it: its array in the order (x, y, z), its world RAS."""
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    matrix[:3, :3] = direction * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return nibabel.Nifti1Image(
        sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    )


def test_geometry_is_where_simpleitk_has_its_voxels():
    """`TransformIndexToPhysicalPoint` takes (x, y, z), the matrix the index of the array."""
    geometry = ImageGeometry.of(MOVING)
    assert geometry.world == "LPS"
    for index in ((0, 0, 0), (3, 5, 7), (9, 1, 2)):
        expected = MOVING.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose((geometry.matrix @ [*index, 1])[:3], expected, **CLOSE)
    same = ImageGeometry.itk(MOVING.GetSpacing(), MOVING.GetOrigin(), DIRECTION)
    np.testing.assert_array_equal(same.matrix, geometry.matrix)


def test_geometry_is_the_affine_of_nibabel():
    """And that of its zooms, origin and axes."""
    image = of_nibabel(MOVING)
    geometry = ImageGeometry.of(image)
    assert geometry.world == "RAS"
    np.testing.assert_array_equal(geometry.matrix, image.affine)
    zooms = nibabel.affines.voxel_sizes(image.affine)
    same = ImageGeometry.nifti(zooms, image.affine[:3, 3], image.affine[:3, :3] / zooms)
    np.testing.assert_allclose(same.matrix, image.affine, **CLOSE)


def test_geometry_of_images_in_the_plane():
    """Of SimpleITK, two axes; without a direction the axes are those of the world."""
    image = sitk.Image(5, 4, sitk.sitkFloat32)
    image.SetSpacing((0.5, 2.0))
    image.SetOrigin((7.0, 8.0))
    matrix = ImageGeometry.of(image).matrix
    np.testing.assert_array_equal(matrix, [[0, 0.5, 7], [2, 0, 8], [0, 0, 1]])
    np.testing.assert_array_equal(ImageGeometry.itk((0.5, 2), (7, 8)).matrix, matrix)


def test_worlds_differ_by_the_signs_of_x_and_y():
    """RAS of nibabel is LPS of ITK, and back."""
    ras, lps = ImageGeometry.of(of_nibabel(MOVING)), ImageGeometry.of(MOVING)
    order = [2, 1, 0, 3]  # of the axes of their arrays
    np.testing.assert_allclose(ras.to("LPS").matrix[:, order], lps.matrix, **CLOSE)
    np.testing.assert_array_equal(ras.to("LPS").to("RAS").matrix, ras.matrix)
    assert ras.to("RAS").world == "RAS"


def euler():
    transform = sitk.Euler3DTransform((8.0, 3.0, 7.0), 0.1, -0.2, 0.15, (0.7, -0.4, 0.3))
    transform.SetComputeZYX(True)
    return transform


def similarity():
    return sitk.Similarity3DTransform(1.1, (0.0, 0.6, 0.8), 0.2, (0.5, 0.2, -0.3), (8.0, 3.0, 7.0))


def composite():
    return sitk.CompositeTransform([euler(), similarity()])


TRANSFORMS = {
    "none": lambda: None,
    "translation": lambda: sitk.TranslationTransform(3, (0.3, -0.8, 0.9)),
    "rigid": euler,
    "similarity": similarity,
    "composite": composite,
    "inverse": lambda: euler().GetInverse(),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_from_world_is_resample_of_simpleitk(local_server, name):
    """Every linear transform, between images of other spacing, origin and direction."""
    transform = TRANSFORMS[name]()
    theirs = sitk.Resample(MOVING, FIXED, transform or sitk.Transform(), sitk.sitkLinear, 0.0)
    expected = sitk.GetArrayFromImage(theirs)
    with Client(local_server.target) as stn:
        found = stn.warp(
            sitk.GetArrayFromImage(MOVING)[None, None],
            **from_world(transform, MOVING, FIXED),
            output_size=expected.shape,
        )[0, 0]
    np.testing.assert_allclose(*_well_inside(found, expected, transform), atol=2e-5)


def _well_inside(found, expected, transform):
    """The voxels that read between voxels of the moving image: ITK extends it by half a voxel."""
    transform = transform or sitk.Transform(3, sitk.sitkIdentity)
    inside = np.zeros(expected.shape, bool)
    size = np.array(MOVING.GetSize())
    for index in np.ndindex(expected.shape):
        point = transform.TransformPoint(FIXED.TransformIndexToPhysicalPoint(index[::-1]))
        read = np.array(MOVING.TransformPhysicalPointToContinuousIndex(point))
        inside[index] = (read > 0).all() and (read < size - 1).all()
    assert inside.mean() > 0.3
    return found[inside], expected[inside]


def test_from_world_is_resample_of_nibabel(local_server):
    """In arrays of the order (x, y, z), whose last axis is then the x of a transform."""
    moving, fixed = of_nibabel(MOVING), of_nibabel(FIXED)
    theirs = nibabel.processing.resample_from_to(moving, fixed, order=1, mode="grid-constant")
    with Client(local_server.target) as stn:
        found = stn.warp(
            moving.get_fdata()[None, None],
            **from_world(None, moving, fixed),
            output_size=fixed.shape,
        )[0, 0]
    np.testing.assert_allclose(found, theirs.get_fdata(), atol=1e-6)


def test_from_world_takes_images_of_two_libraries():
    """One of nibabel and one of SimpleITK, and a transform of the latter, which is in LPS."""
    fixed = of_nibabel(FIXED)
    mixed = from_world(euler(), MOVING, fixed)["transform"].theta[0]
    alike = from_world(euler(), MOVING, FIXED)["transform"].theta[0]
    np.testing.assert_allclose(mixed, alike[:, [2, 1, 0, 3]], **CLOSE)
    mixed = from_world(None, MOVING, fixed)["transform"].theta[0]
    alike = from_world(None, MOVING, FIXED)["transform"].theta[0]
    np.testing.assert_allclose(mixed, alike[:, [2, 1, 0, 3]], **CLOSE)


def test_from_world_takes_a_matrix_in_the_world_of_the_images():
    """That of a transform of SimpleITK is this transform; N of them are N."""
    transform = euler()
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    expected = from_world(transform, MOVING, FIXED)["transform"].theta
    np.testing.assert_allclose(
        from_world(matrix, MOVING, FIXED)["transform"].theta, expected, **CLOSE
    )
    many = from_world([matrix[:3], np.eye(3, 4)], MOVING, FIXED)["transform"].theta
    np.testing.assert_allclose(many[:1], expected, **CLOSE)
    signs = np.diag([-1.0, -1.0, 1.0, 1.0])
    images = of_nibabel(MOVING), of_nibabel(FIXED)
    in_ras = from_world(signs @ matrix @ signs, *images)["transform"].theta
    order = [2, 1, 0, 3]
    np.testing.assert_allclose(in_ras, expected[:, [2, 1, 0]][:, :, order], **CLOSE)


def test_an_image_in_its_own_place_stays_as_it_is():
    """But for the rounding of an inverse."""
    found = from_world(None, MOVING, MOVING)["transform"].theta[0]
    np.testing.assert_allclose(found, np.eye(3, 4), atol=1e-14)


GEOMETRIES = st.builds(
    lambda spacing, origin, turn: ImageGeometry.itk(
        spacing, origin, Turn.from_rotvec(turn).as_matrix()
    ),
    arrays.arrays(np.float64, 3, elements=st.floats(0.1, 10)),
    arrays.arrays(np.float64, 3, elements=st.floats(-200, 200)),
    arrays.arrays(np.float64, 3, elements=st.floats(-2, 2)),
)
MATRICES = st.builds(
    lambda turn, shift: np.vstack([np.column_stack([turn, shift]), np.eye(4)[-1:]]),
    st.builds(
        lambda vector: Turn.from_rotvec(vector).as_matrix(),
        arrays.arrays(np.float64, 3, elements=st.floats(-2, 2)),
    ),
    arrays.arrays(np.float64, 3, elements=st.floats(-50, 50)),
)


@PROPERTY
@given(source=GEOMETRIES, target=GEOMETRIES, matrix=MATRICES)
def test_to_world_undoes_from_world(source, target, matrix):
    found = to_world(from_world(matrix, source, target), source, target)
    np.testing.assert_allclose(found[0], matrix, rtol=1e-8, atol=1e-8)


REFUSALS = {
    "array": (
        lambda: from_world(None, np.eye(4), FIXED),
        "source: expected an ImageGeometry, or an image of nibabel or SimpleITK, got ndarray",
    ),
    "four axes": (
        lambda: from_world(None, FIXED, sitk.Image([2, 2, 2, 2], sitk.sitkFloat32)),
        "target: expected an image of 2 or 3 axes, got 4",
    ),
    "affine": (
        lambda: from_world(None, SimpleNamespace(affine=np.eye(5)), FIXED),
        r"source.affine: expected \(4, 4\), of images",
    ),
    "array as target": (lambda: from_world(None, FIXED, "scan.nii"), "target: expected an Image"),
    "worlds": (
        lambda: from_world(np.eye(4), MOVING, of_nibabel(FIXED)),
        r'target: expected the world of source, LPS, got RAS\. Give .*to\("LPS"\)',
    ),
    "matrix": (lambda: from_world(np.eye(2), MOVING, FIXED), r"transform: expected \(2, 3\) or"),
    "projective": (
        lambda: from_world(np.ones((4, 4)), MOVING, FIXED),
        r"transform: expected the last row \[0, 0, 0, 1\]",
    ),
    "planar": (
        lambda: from_world(np.eye(3), MOVING, FIXED),
        "target: expected as many axes as .* target and transform are 3, 3, 2",
    ),
    "not linear": (
        lambda: from_world(sitk.BSplineTransform(3), MOVING, FIXED),
        "transform: expected a linear one, got BSplineTransform",
    ),
    "to_world: unit": (
        lambda: to_world(Affine(np.eye(3, 4)[None]), MOVING, FIXED),
        "transform: expected one in pixels, got a normalized one. Use to_pixel",
    ),
    "to_world: grid": (
        lambda: to_world(
            {"transform": SamplingGrid(np.zeros((1, 2, 2, 2))), "coordinates": "pixel"},
            MOVING,
            FIXED,
        ),
        "transform: expected a transform with a matrix",
    ),
    "to_world: axes": (
        lambda: to_world(rotation_about((1, 2), 3), MOVING, FIXED),
        "transform: expected as many axes as source and target have; .* are 2, 3, 3",
    ),
    "to_world: worlds": (
        lambda: to_world(rotation_about((1, 2, 3), (1, 2, 3)), MOVING, of_nibabel(FIXED)),
        "target: expected the world of source, LPS, got RAS",
    ),
    "world": (
        lambda: ImageGeometry(np.eye(4), "RAI"),
        "world: expected one of RAS, LPS, got 'RAI'",
    ),
    "other world": (lambda: ImageGeometry.of(MOVING).to("lps"), "world: expected one of RAS, LPS"),
    "shape": (lambda: ImageGeometry(np.eye(3, 4), "RAS"), r"matrix: expected \(4, 4\), of images"),
    "last row": (lambda: ImageGeometry(np.ones((4, 4)), "RAS"), "matrix: expected the last row"),
    "flat": (lambda: ImageGeometry.itk((1, 1, 0), (0, 0, 0)), "matrix: expected an invertible"),
    "origin": (lambda: ImageGeometry.itk((1, 1, 1), 5), r"origin: expected \(x, y, z\), of images"),
    "spacing": (lambda: ImageGeometry.nifti((1, 1), (0, 0, 0)), "spacing: expected 3 numbers"),
    "direction": (
        lambda: ImageGeometry.itk((1, 1, 1), (0, 0, 0), np.eye(2)),
        r"direction: expected \(3, 3\), got \(2, 2\)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_argument(case):
    """What cannot be is refused in the words of the caller, before anything is sent."""
    call, message = REFUSALS[case]
    with pytest.raises(InvalidRequestError, match=message):
        call()
