"""Argument checks, one function per rule, typed errors. Reads shapes and dtypes, never values."""

import operator
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stn_engine.errors import (
    DeviceMismatchError,
    DTypeError,
    InvalidInputError,
    ParameterError,
    Shape,
    ShapeError,
)
from stn_engine.memory import has_memory, refuse_lost
from stn_engine.modes import has_tangents, is_plain, unrecorded
from stn_engine.spec import Interpolation

GRADIENT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Feature maps that have gradients."""

INTERPOLATED_DTYPES = (*GRADIENT_DTYPES, torch.uint8, torch.uint16, torch.int16)
"""Feature maps that are read by any interpolation."""

LABEL_DTYPES = (torch.bool, torch.int8, torch.int32, torch.uint32, torch.int64, torch.uint64)
"""Feature maps that are read by ``nearest`` alone, and moved bit for bit: label maps."""

FEATURE_MAP_DTYPES = INTERPOLATED_DTYPES + LABEL_DTYPES
"""Dtypes of feature maps."""

NEEDS = "feature_map", "transform"
"""Operands that have gradients, in this order."""

OBJECTIVE_NEEDS = "gradient", "gauss_newton"
"""Optional results of an objective, in this order."""

HALF_DTYPES = (torch.float16, torch.bfloat16)
"""Dtypes that autocast makes of float32 in the layers before a warp."""

PARAMETER_DTYPES = (torch.float32, torch.float64)
"""What theta and grids may hold: a half-precision coordinate misses by pixels on a large map."""

_SOURCE_AXES = ("D", "H", "W")
_TARGET_AXES = ("Do", "Ho", "Wo")
_SIZES = {2: "two integers >= 0, height first", 3: "three integers >= 0, depth first"}


def check_tensor(argument: str, value: object) -> None:
    """Checks that ``value`` is a torch.Tensor with one size for each axis."""
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise InvalidInputError(argument, "a torch.Tensor", got, "Convert it: torch.as_tensor.")
    if value.is_nested:  # it has no shape that could be checked
        remedy = "Warp its parts: warp_ragged."
        raise InvalidInputError(argument, "a dense tensor", "a nested one", remedy)


def check_dtype(argument: str, value: Tensor, expected: Sequence[torch.dtype]) -> None:
    """Checks that ``value`` has one of the expected dtypes."""
    if value.dtype not in expected:
        raise DTypeError(argument, expected, value.dtype, "Convert it: Tensor.to.")


def source_axes(dims: int) -> tuple[str, ...]:
    """Returns the names of the axes that are read, slowest first."""
    return _SOURCE_AXES[-dims:]


def target_axes(dims: int) -> tuple[str, ...]:
    """Returns the names of the axes that are written, slowest first."""
    return _TARGET_AXES[-dims:]


@unrecorded
def check_shape(argument: str, value: Tensor, expected: Sequence[Shape], remedy: str) -> None:
    """Checks that ``value`` has one of the expected shapes; a letter stands for any size."""
    if not any(_fits(value.shape, shape) for shape in expected):
        raise ShapeError(argument, expected, value.shape, remedy)


def _fits(actual: Sequence[int], expected: Shape) -> bool:
    if len(actual) != len(expected):
        return False
    for want, got in zip(expected, actual, strict=True):  # a loop: this is part of every call
        if not isinstance(want, str) and want != got:
            return False
    return True


def check_device(argument: str, value: Tensor, reference: str, other: Tensor) -> None:
    """Checks that ``value`` is on the device of ``other``, the operand called ``reference``."""
    if value.device != other.device:
        devices = {reference: other.device, argument: value.device}
        raise DeviceMismatchError(argument, devices)


def check_transform(value: object, kinds: tuple[type, ...]) -> None:
    """Checks that ``value`` is of one of the given kinds of transforms."""
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        got = type(value).__name__
        raise InvalidInputError("transform", expected, got, "Wrap the parameters in one of these.")


def checked_parameters(argument: str, value: Tensor, expected: Sequence[Shape]) -> Tensor:
    """Returns ``value`` as parameters of a transform: a float tensor of an expected shape."""
    check_tensor(argument, value)
    check_shape(argument, value, expected, "Add or remove axes; a single item has N = 1.")
    if value.dtype not in PARAMETER_DTYPES:
        value = autocast(argument, value, torch.float32)
        check_dtype(argument, value, PARAMETER_DTYPES)
    return value


def check_memory(argument: str, value: Tensor) -> None:
    """Checks that the values of ``value`` can be read here and now, before torch reads them.

    Raises:
        InvalidInputError: Its storage was freed or cut, or it has none.
    """
    if torch.compiler.is_compiling():
        return
    for part, tensor in parts_in_memory(argument, value):
        has_none = tensor.is_meta or tensor._is_zerotensor()  # noqa: SLF001 - no public function
        if not (has_none or has_memory(tensor)):
            refuse_lost(part, tensor)


def parts_in_memory(argument: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that torch reads below the wrappers of ``torch.func``.

    They are ``value`` and, in forward mode, its tangent, with what errors call them.
    """
    parts: list[tuple[str, Tensor | None]] = [(argument, value)]
    if has_tangents():
        dual = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]  # torch
        parts.append((f"tangent of {argument}", dual.tangent))
    for name, part in parts:
        inner = part
        while inner is not None and torch._C._functorch.is_functorch_wrapped_tensor(inner):  # noqa: SLF001
            inner = torch._C._functorch.get_unwrapped(inner)  # noqa: SLF001 - no public one
        if inner is not None and is_plain(inner):
            yield name, inner


def autocast(argument: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns ``value`` in ``dtype``, if it is of half precision and autocast is on."""
    kind = value.device.type  # of meta tensors, which nobody computes with, there is no autocast
    if value.dtype in HALF_DTYPES and kind != "meta" and torch.is_autocast_enabled(kind):
        check_memory(argument, value)
        return value.to(dtype)
    return value


def check_feature_map(
    value: Tensor, transform: str, dims: int, argument: str = "feature_map"
) -> None:
    """Checks the axes of ``value`` by its transform, that it has pixels, and its dtype."""
    check_tensor(argument, value)
    axes, shape = source_axes(dims), value.shape
    if len(shape) != 2 + dims:
        remedy = f"Add or remove axes: this {transform} is {dims}-D; a single item has N = 1."
        raise ShapeError(argument, [("N", "C", *axes)], shape, remedy)
    if 0 in shape[2:]:
        expected = ("N", "C", *(f"{axis} > 0" for axis in axes))
        raise ShapeError(argument, [expected], shape, "Drop maps without pixels.")
    check_dtype(argument, value, FEATURE_MAP_DTYPES)


def broadcast_batch(feature_map: Tensor, argument: str, parameters: Tensor) -> int:
    """Returns the common N of a feature map and parameters, of which either may be 1."""
    n_map, n_parameters = feature_map.shape[0], parameters.shape[0]
    if n_parameters == 1 or n_parameters == n_map:  # noqa: PLR1714 - symbols are no set's members
        return n_map
    if n_map == 1:
        return n_parameters
    expected = (n_map, *parameters.shape[1:])
    raise ShapeError(argument, [expected], parameters.shape, "Match the feature map's N, or use 1.")


def checked_output_size(value: Sequence[int], dims: int) -> tuple[int, ...]:
    """Returns ``value`` as ``dims`` Python integers, slowest axis first."""
    allowed = (_SIZES[dims],)
    try:
        size = tuple(map(_extent, value))
    except TypeError:
        raise ParameterError("output_size", value, allowed) from None
    if len(size) != dims or min(size) < 0:
        raise ParameterError("output_size", value, allowed)
    return size


def _extent(value: int) -> int:
    """Returns ``value`` as a Python integer, or as the symbol that a tracer has given for it."""
    is_symbol = type(value) is int or isinstance(value, torch.SymInt)
    return value if is_symbol else operator.index(value)


def check_own_size(output_size: tuple[int, ...], own_size: tuple[int, ...]) -> None:
    """Checks that a requested output size agrees with the transform that defines it."""
    if output_size != own_size:
        remedy = "Pass the transform's own size."
        raise ShapeError("output_size", [own_size], output_size, remedy)


def check_interpolation(interpolation: Interpolation | str, feature_map: Tensor) -> None:
    """Checks that ``feature_map`` does not hold labels, if it is interpolated."""
    if feature_map.dtype in LABEL_DTYPES and interpolation != Interpolation.NEAREST:
        remedy = 'Labels are read by interpolation="nearest"; for another one convert: Tensor.to.'
        raise DTypeError("feature_map", INTERPOLATED_DTYPES, feature_map.dtype, remedy)


def check_fill(fill: tuple[float, ...], feature_map: Tensor) -> None:
    """Checks that ``fill`` has 1 or C values, which are finite where weights multiply them."""
    channels = feature_map.shape[1]
    if len(fill) != 1 and len(fill) != channels:
        raise ParameterError("fill", fill, ("one value", f"one value per channel ({channels})"))
    largest = torch.finfo(compute_dtype(feature_map.dtype)).max
    if max(fill) > largest or min(fill) < -largest:
        raise ParameterError("fill", fill, (f"values of magnitude <= {largest}",))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of coordinates, weights and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_cotangent(
    argument: str, value: Tensor, like: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Checks that ``value`` has the shape and dtype of the result whose gradient it is."""
    check_tensor(argument, value)
    check_shape(argument, value, [like], "Pass the gradient of exactly this result.")
    check_dtype(argument, value, (dtype,))


def check_problems(value: object, kind: type) -> None:
    """Checks that ``value`` is a sequence of problems of one kind."""
    expected, remedy = f"a sequence of {kind.__name__}", "Make one of each call, in a list."
    if not isinstance(value, Sequence):
        raise InvalidInputError("problems", expected, type(value).__name__, remedy)
    for one in value:
        if not isinstance(one, kind):
            raise InvalidInputError("problems", expected, f"{type(one).__name__} in it", remedy)


def check_count(argument: str, value: object, expected: int) -> None:
    """Checks that ``value`` is a sequence with one element per problem."""
    count = str(len(value)) if isinstance(value, Sequence) else type(value).__name__
    if count != str(expected):
        remedy = "Give one per problem, or none at all."
        raise InvalidInputError(argument, f"{expected} elements", count, remedy)


def checked_needs(value: object) -> tuple[str, ...]:
    """Returns ``value`` without repeats and in canonical order."""
    names = names_in(value)
    if not names or not names.issubset(NEEDS):
        raise ParameterError("needs", value, (*((name,) for name in NEEDS), NEEDS))
    return tuple(name for name in NEEDS if name in names)


def names_in(value: object) -> frozenset[str] | None:
    """Returns the names in a collection or an iterator of them; None if it is none."""
    # A tensor, too, says that it can be iterated over; a text is one of letters.
    if isinstance(value, str | Tensor) or not isinstance(value, Iterable):
        return None
    try:
        names = list(value)
    except TypeError:  # an array without axes says that it can be iterated over, too
        return None
    return frozenset(names) if all(isinstance(name, str) for name in names) else None
