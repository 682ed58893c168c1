"""The operators of `stn_client.torch` under `torch.func.vmap`: one call for all, of a longer batch.

Calls of a service are batches anyway. So the axis that `vmap` maps over becomes a part of N: B
elements of N maps each are one call of B·N maps, and what comes back is taken apart again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stn_client._layouts import LAYOUTS, with_batch
from stn_client._parameters import parameters_with_batch
from stn_client._transforms import Transform

TENSORS = {
    "warp": ("feature_map", "transform"),
    "warp_gradients": ("grad_output", "feature_map", "transform"),
    "objective": ("moving", "transform", "fixed", "weights"),
}
"""The tensors of every operator, which are its first arguments; weights may be None."""


@dataclass(frozen=True)
class _Operand:
    """A tensor of one element, or, with an axis in front of all others, of B elements."""

    tensor: Tensor
    is_mapped: bool
    whole: tuple[int, ...]
    """The shape of one element with all axes that the wire has, N first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one element as the caller sees it."""
        return tuple(self.tensor.shape[self.is_mapped :])

    def flat(self, elements: int, batch: int, *, is_apart: bool) -> Tensor:
        """Returns the maps, or parameters, of all elements in one batch.

        Args:
            elements: The number of elements, B.
            batch: N of the call of one element.
            is_apart: Whether every map has to have its own, though all are the same.
        """
        own, *rest = self.whole
        if not (self.is_mapped or is_apart or own > 1):
            return self.tensor.reshape(self.whole)  # the service itself shares it
        own = batch if own == 1 else own  # of another N, the service says what is wrong
        stacked = self.tensor.reshape(elements if self.is_mapped else 1, *self.whole)
        return stacked.expand(elements, own, *rest).reshape(elements * own, *rest)


def one_call(
    operator: str,
    transform: Transform,
    elements: int,
    in_dims: Sequence[int | None],
    arguments: Sequence[Any],
    settings: dict[str, Any],
) -> tuple[Any, Any]:
    """Makes one call of an operator for all elements that `vmap` maps over.

    Args:
        operator: The name of the operator, without the library's.
        transform: One of the kind of the call; its parameters do not matter.
        elements: The number of elements, B.
        in_dims: The mapped axis of every argument; None: it is the same for all elements.
        arguments: The arguments of the operator.
        settings: The keywords of the operator.

    Returns:
        The results, and the axis of each that is the mapped one.
    """
    name = operator.removeprefix("compute_")
    layout = settings.get("layout") or "NCHW"
    names = TENSORS[name]
    operands = {
        field: _operand(field, tensor, axis, transform, layout)
        for field, tensor, axis in zip(names, arguments, in_dims, strict=False)
        if tensor is not None
    }
    # N = 1 goes with any other, as of a single call; also with none at all.
    batch = next((one.whole[0] for one in operands.values() if one.whole[0] != 1), 1)
    needs = dict(zip(names[1:], arguments[len(names)], strict=True)) if "grad" in name else {}
    flat = [
        None if one is None else one.flat(elements, batch, is_apart=needs.get(field, False))
        for field, one in ((field, operands.get(field)) for field in names)
    ]
    others = {**settings, "layout": LAYOUTS[layout].on_wire}
    call = getattr(torch.ops.stn_client, operator)
    found = call(*flat, *arguments[len(names) :], **others)
    added = LAYOUTS[layout].added
    if name == "warp":
        return _apart(found, elements, added), 0
    if name == "objective":
        value, gradient = found
        # Only one that has no batch axis is returned without.
        without = (0,) if len(operands["transform"].shape) < gradient.dim() else ()
        return (_apart(value, elements), _apart(gradient, elements, without)), (0, 0)
    gradients = [
        _gradient(gradient, elements, operands[field]) if needs[field] else gradient
        for field, gradient in zip(needs, found, strict=True)
    ]
    return tuple(gradients), tuple(0 if need else None for need in needs.values())


def _operand(
    field: str, tensor: Tensor, axis: int | None, transform: Transform, layout: str
) -> _Operand:
    """Returns an operand of an operator, checked as that of a single call."""
    is_mapped = axis is not None
    moved = tensor.movedim(axis, 0) if axis is not None else tensor
    # Shapes alone, without memory: the rules for them are those of arrays.
    element = np.broadcast_to(np.float32(0), tuple(moved.shape[is_mapped:]))
    if field == "transform":
        argument = fields(transform)[0].name
        element = parameters_with_batch(transform, argument, element, layout)
    else:
        element = with_batch(field, element, layout)
    return _Operand(moved, is_mapped, element.shape)


def _apart(result: Tensor, elements: int, added: Sequence[int] = ()) -> Tensor:
    """Returns a result by elements, each without the axes that its layout does not have."""
    shape = [elements, result.shape[0] // elements, *result.shape[1:]]
    return result.reshape([size for axis, size in enumerate(shape, -1) if axis not in added])


def _gradient(gradient: Tensor, elements: int, of: _Operand) -> Tensor:
    """Returns the gradient to an operand by elements; of one for all maps it is the sum."""
    per_element = _apart(gradient, elements)
    own = per_element.sum(1) if of.whole[0] == 1 else per_element
    return own.reshape(elements, *of.shape)
