"""Arrays as people have them: what NumPy makes of them, and results of the type that was given.

Libraries are known by the types of their arrays, and are never imported: whoever has an array of
one has it imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._arenas import may_be_kept
from stn_client._errors import invalid

Array = NDArray[Any]


class SupportsDLPack(Protocol):
    """An array of any library that exchanges memory by DLPack, such as torch, JAX and CuPy."""

    def __dlpack__(self) -> Any:
        """Hands out the memory."""


class SupportsArrayInterface(Protocol):
    """An array of any library that tells NumPy where its memory is, as Pillow does."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Tells where the memory is, and what is in it."""


M = TypeVar("M", bound=SupportsDLPack | SupportsArrayInterface)
"""The type of a feature map, which is that of the results."""

AnyArray = ArrayLike | SupportsDLPack | SupportsArrayInterface
"""Types that calls take as an array."""

IMAGE_LAYOUTS = {
    **dict.fromkeys(("L", "F", "I;16", "I;16B", "I;16L", "I;16N", "I"), "HW"),
    **dict.fromkeys(("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "RGBX", "RGBa"), "HWC"),
}
"""The modes of Pillow whose pixels are numbers, and their layouts; those of "I" are labels."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An array that a caller gave."""

    array: Array
    like: Callable[[Array], Any]
    """Makes a result, which is a read-only view, an array of the caller's type."""
    layout: str | None = None
    """Order of the axes, if the type says it."""


def operand(field: str, value: Any) -> Operand:
    """Returns an argument as an array of NumPy; without a copy where its memory can be read.

    Results become arrays of torch on the device of the argument, arrays of JAX, CuPy and whatever
    else has the array API standard or, in its package, a function `from_dlpack`; images of Pillow
    of the same mode; in all other cases arrays of NumPy.

    Args:
        field: The caller's name for the argument.
        value: Anything; an `Operand` is taken as it is.

    Raises:
        InvalidRequestError: It is no array, or its values are not to be had.
    """
    if type(value) is np.ndarray:
        return Operand(value, unchanged)
    if isinstance(value, Operand):
        return value
    for kind in type(value).__mro__:
        of_library = _LIBRARIES.get((_package(kind), kind.__name__))
        if of_library is not None:
            return of_library(field, value)
    if hasattr(value, "__array_namespace__") and hasattr(value, "device"):
        namespace = value.__array_namespace__()
        return Operand(
            _as_numpy(field, value),
            lambda array: namespace.asarray(array, device=value.device, copy=True),
        )
    package = sys.modules.get(_package(type(value)))
    if hasattr(value, "__dlpack__") and hasattr(package, "from_dlpack"):
        from_dlpack: Any = package.from_dlpack  # type: ignore[union-attr]  # it has one
        return Operand(_as_numpy(field, value), lambda array: from_dlpack(array.copy()))
    return Operand(_as_numpy(field, value), unchanged)


def as_array(field: str, value: Any) -> Array:
    """Returns an argument as an array, where no result has to be of its type."""
    return operand(field, value).array


def torch_to_numpy(field: str, tensor: Any) -> Array:
    """Returns a tensor of any device as an array; without a copy if it is plain host memory.

    Raises:
        InvalidRequestError: It has none, or none that NumPy can read.
    """
    torch: Any = sys.modules["torch"]
    try:
        if _is_whole(tensor) and tensor.is_cpu and not tensor.requires_grad:
            array: Array = tensor.numpy()
            return array
    except (RuntimeError, TypeError):  # not as it is
        pass
    try:
        if not _is_whole(tensor):
            got = "got a storage that was freed or cut. Keep it until the call is over"
            raise invalid(field, f"expected a tensor with values in memory, {got}.")
        if tensor.dtype == torch.bfloat16:
            halves = tensor.detach().contiguous().view(torch.int16)
            array = halves.numpy(force=True).view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy(force=True)  # lazy negatives and zeros, from wherever it is
    except (RuntimeError, TypeError) as error:  # sparse, quantized, wrapped by a transform ...
        raise invalid(field, f"expected a tensor with values in memory, got {error}.") from error
    return array


def _is_whole(tensor: Any) -> bool:
    """Returns whether the storage of a tensor reaches to its end; NumPy would read beyond it."""
    values = tensor.numel()
    if values and not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)  # which are never negative
        values = 1 + sum((size - 1) * step for size, step in steps)
    end = (tensor.storage_offset() + values) * tensor.element_size() if values else 0
    return bool(tensor.untyped_storage().nbytes() >= end)


def numpy_to_torch(array: Array, like: Any) -> Any:
    """Returns a tensor with memory of its own, for autograd, on the device of `like`.

    The memory is that of a slot, which then is the tensor's alone, or torch's own, and not NumPy's,
    which is less aligned: matrix products of libraries may depend on that in their last bits.
    """
    torch: Any = sys.modules["torch"]
    is_half = array.dtype == ml_dtypes.bfloat16
    numbers = array.view(np.int16) if is_half else array
    slot: Any = array.base
    if like.is_cpu and may_be_kept(slot) and slot.nbytes == array.nbytes:
        tensor = torch.from_numpy(np.ndarray(array.shape, numbers.dtype, slot))
    else:
        tensor = torch.empty(array.shape, dtype=_torch_dtype(numbers.dtype))
        np.copyto(tensor.numpy(), numbers)
    if is_half:
        tensor = tensor.view(torch.bfloat16)
    return tensor if like.is_cpu else tensor.to(like.device)


@cache
def _torch_dtype(dtype: np.dtype[Any]) -> Any:
    """Returns torch's type of the same name, which NumPy takes 2 µs to tell."""
    return getattr(sys.modules["torch"], dtype.name)


def _package(kind: type) -> str:
    """Returns the package that a type is of."""
    return kind.__module__.partition(".")[0]


def unchanged(array: Array) -> Array:
    """Returns the result itself, for arrays of NumPy."""
    return array


def _of_torch(field: str, tensor: Any) -> Operand:
    if tensor.requires_grad:
        raise invalid(
            field,
            "expected a tensor whose gradients are not recorded, got one with requires_grad. Use "
            "stn_client.torch.warp, which is differentiable, or tensor.detach().",
        )
    array = torch_to_numpy(field, tensor)
    return Operand(array, lambda result: numpy_to_torch(result, tensor))


def _of_pillow(field: str, image: Any) -> Operand:
    if image.mode not in IMAGE_LAYOUTS:
        modes = ", ".join(IMAGE_LAYOUTS)
        raise invalid(
            field,
            f"expected an image of mode {modes}, got {image.mode}. Convert it: image.convert(...).",
        )

    pixels = _as_numpy(field, image)

    def like(array: Array) -> Any:
        size = array.shape[1], array.shape[0]
        stored = array.astype(pixels.dtype, copy=False)  # some modes have their bytes in reverse
        made = sys.modules["PIL.Image"].frombytes(image.mode, size, stored.tobytes())
        made.info = dict(image.info)
        return made

    return Operand(pixels, like, IMAGE_LAYOUTS[image.mode])


def _of_simpleitk(field: str, _image: Any) -> Operand:
    """Refuses an image of SimpleITK, which NumPy would turn into a flat array."""
    expected = "expected an array, got an image of SimpleITK"
    raise invalid(field, f"{expected}. Take its voxels: SimpleITK.GetArrayViewFromImage(image).")


def _of_nibabel(field: str, _image: Any) -> Operand:
    """Refuses an image of nibabel, which is no array to NumPy."""
    expected = "expected an array, got an image of nibabel"
    raise invalid(field, f"{expected}. Take its voxels: image.get_fdata().")


def _of_cupy(field: str, value: Any) -> Operand:
    def like(array: Array) -> Any:
        with value.device:
            return sys.modules["cupy"].asarray(array)

    return Operand(_as_numpy(field, value.get()), like)


def _of_masked(field: str, array: Any) -> Operand:
    """Refuses masked values, which NumPy would turn into what lies beneath the mask."""
    if array.mask.any():
        raise invalid(field, "expected values everywhere, got masked ones. Fill them: filled(...).")
    return Operand(_as_numpy(field, array), unchanged)


_LIBRARIES: dict[tuple[str, str], Callable[[str, Any], Operand]] = {
    # NumPy imports this part of itself when it is first asked for it. A call that did so would hang
    # in a child that was forked while another thread's call was at it: its lock is never freed.
    ("numpy", "MaskedArray"): _of_masked,
    ("torch", "Tensor"): _of_torch,
    ("PIL", "Image"): _of_pillow,
    ("cupy", "ndarray"): _of_cupy,
    ("SimpleITK", "Image"): _of_simpleitk,
    ("nibabel", "SpatialImage"): _of_nibabel,
}
"""Types of libraries with ways of their own to NumPy and back, by package and name; other things of
theirs, such as `torch.Size`, are like anybody's."""


def _as_numpy(field: str, value: Any) -> Array:
    """Converts an argument to an array by any of NumPy's protocols."""
    try:
        known = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
        if hasattr(value, "__dlpack__") and not known:
            return np.from_dlpack(value)
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises of its arrays, or of files behind them
        kind = type(value).__name__
        if kind.endswith("Tracer"):
            expected = "expected an array with values, got one that JAX traces"
            advice = "Use stn_client.jax.warp, for maps and parameters; nothing else may be traced."
            raise invalid(field, f"{expected}. {advice}") from error
        raise invalid(field, f"expected an array, got {kind}: {error}") from error
