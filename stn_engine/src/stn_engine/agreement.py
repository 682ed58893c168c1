"""Checks that the operands of one call agree, and what follows from them; `checks` is of one alone.

They read shapes, dtypes and devices, never values, and complain in the words of the caller's own
arguments.
"""

from collections.abc import Sequence

from torch import Tensor

from stn_engine import checks
from stn_engine.errors import ParameterError
from stn_engine.modes import unrecorded
from stn_engine.spec import Comparison, Family, Loss, WarpSpec
from stn_engine.transforms import KINDS, Transform


@unrecorded
def warp_shape(
    feature_map: Tensor, transform: Transform, size: Sequence[int] | None, spec: WarpSpec
) -> tuple[int, ...]:
    """Returns the shape of the result of a warp, (N, C, [Do,] Ho, Wo).

    Args:
        feature_map: What is read.
        transform: Where it is read.
        size: The output size; None: that of the transform, or else of the feature map.
        spec: How it is read.

    Raises:
        InvalidInputError: The warp cannot be computed.
    """
    checks.check_transform(transform, KINDS)
    kind, argument = type(transform).__name__, transform.argument
    checks.check_feature_map(feature_map, kind, transform.dims)
    parameters = transform.parameters
    # Existence and types first: later checks compare properties that have to be there.
    checks.check_device(argument, parameters, "feature_map", feature_map)
    checks.check_interpolation(spec.interpolation, feature_map)
    checks.check_fill(spec.fill, feature_map)
    n = checks.broadcast_batch(feature_map, argument, parameters)
    if size is not None:
        agreed = output_size(size, transform)
    else:
        own = transform.own_size
        agreed = tuple(feature_map.shape[2:]) if own is None else own
    return n, feature_map.shape[1], *agreed


def output_size(value: Sequence[int], transform: Transform) -> tuple[int, ...]:
    """Returns ``value`` as integers, one per axis, and the transform's own size if it has one.

    Raises:
        InvalidInputError: It is no size, or not that of the transform.
    """
    size, own = checks.checked_output_size(value, transform.dims), transform.own_size
    if own is not None:
        checks.check_own_size(size, own)
    return size


@unrecorded
def gradient_needs(
    feature_map: Tensor, shape: tuple[int, ...], grad_output: Tensor, needs: Sequence[str]
) -> tuple[str, ...]:
    """Returns the gradients of a warp that are needed, in order.

    Args:
        feature_map: That of the warp.
        shape: The shape of the result of the warp.
        grad_output: The gradient of the loss by this result.
        needs: Names of operands.

    Raises:
        InvalidInputError: The gradients cannot be computed.
    """
    checks.check_dtype("feature_map", feature_map, checks.GRADIENT_DTYPES)
    checks.check_cotangent("grad_output", grad_output, shape, feature_map.dtype)
    checks.check_device("grad_output", grad_output, "feature_map", feature_map)
    return checks.checked_needs(needs)


@unrecorded
def objective_shape(
    moving: Tensor, warped_shape: tuple[int, ...], fixed: Tensor, weights: Tensor | None
) -> tuple[int, ...]:
    """Returns the shape of the maps that an objective compares, (N, C, [Do,] Ho, Wo).

    Args:
        moving: The map that is warped.
        warped_shape: The shape of its warp.
        fixed: What the warp is compared with.
        weights: How much each point counts; None: all alike.

    Raises:
        InvalidInputError: They cannot be compared.
    """
    n, channels, *size = warped_shape
    checks.check_dtype("moving", moving, checks.GRADIENT_DTYPES)
    compared = [("fixed", fixed, channels)]
    if weights is not None:
        compared.append(("weights", weights, 1))
    for name, value, depth in compared:
        checks.check_tensor(name, value)
        items = ("N",) if n == 1 else (n, 1)
        expected = [(item, depth, *size) for item in items]
        checks.check_shape(name, value, expected, "Match the warp of moving, or use N = 1.")
        checks.check_dtype(name, value, (moving.dtype,))
        checks.check_device(name, value, "moving", moving)
        # Broadcasting goes on: the first operand with more than one item decides for all.
        n = value.shape[0] if n == 1 else n
    return n, channels, *size


@unrecorded
def objective_needs(
    transform: Transform, comparison: Comparison, needs: Sequence[str]
) -> tuple[str, ...]:
    """Returns what is needed of an objective besides value and count, in order.

    Raises:
        ParameterError: There is no such thing, or not by this transform and comparison.
    """
    known = checks.OBJECTIVE_NEEDS
    has_matrix = transform.kind.family == Family.MATRIX and comparison.loss != Loss.NCC
    # The approximation has K² numbers, and exists for losses that are sums over pixels.
    allowed = known if has_matrix else known[:1]
    names = checks.names_in(needs)
    if names is None or not names.issubset(allowed):
        forms = dict.fromkeys(((), *((name,) for name in allowed), allowed))  # each once
        raise ParameterError("needs", needs, tuple(forms))
    return tuple(name for name in known if name in names)
