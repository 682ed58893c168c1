"""Remote warps that torch can differentiate: forward and backward are RPCs of a `Client`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from stn_client._client import Client
from stn_client._options import WarpOptions
from stn_client._transforms import Affine, Homography, Transform

__all__ = ["SpatialTransformer", "warp"]

MATRICES: dict[tuple[type[Transform], int], tuple[int, int]] = {
    (Affine, 2): (2, 3),
    (Affine, 3): (3, 4),
    (Homography, 2): (3, 3),
}
"""Transforms whose parameters are matrices, by the axes that they are of."""


def warp(
    client: Client,
    feature_map: Tensor,
    transform: Transform,
    output_size: Sequence[int] | None = None,
    **options: Unpack[WarpOptions],
) -> Tensor:
    """`Client.warp` for tensors, differentiable in the feature map and in the transform.

    Shapes:
        feature_map   (N, C, [D,] H, W)      any device; results come back to it
        returns       (N, C, [D',] H', W')   same dtype and device

    Args:
        client: Where to compute.
        feature_map: What is read.
        transform: Any transform of a tensor.
        output_size: ([D',] H', W'); None: that of the grid, else of the feature map.
        options: See `WarpOptions`.

    Raises:
        StnClientError: As the methods of `Client`; from `backward` as well.
    """
    output: Tensor = _RemoteWarp.apply(  # type: ignore[no-untyped-call]
        feature_map, transform.parameters, client, transform, output_size, options
    )
    return output


class SpatialTransformer(nn.Module):
    """A localisation network whose transform is applied by the service.

    Args:
        localization: Feature map -> parameters of the transform; those of a matrix may be flat,
            (N, 6) of an `Affine`, or (N, 12) of one in 3-D, and (N, 9) of a `Homography`.
        client: Where to compute.
        output_size: Of the output; None: that of the grid, else of the feature map.
        transform: What the parameters are those of.
        options: See `WarpOptions`.

    Shapes:
        feature_map   (N, C, [D,] H, W)
        returns       (N, C, [D',] H', W')

    Source: Jaderberg et al., Spatial Transformer Networks, 2015, figure 2.
    """

    def __init__(
        self,
        localization: nn.Module,
        client: Client,
        output_size: Sequence[int] | None = None,
        transform: type[Transform] = Affine,
        **options: Unpack[WarpOptions],
    ) -> None:
        super().__init__()
        self.localization = localization
        self._client = client
        self._output_size = output_size
        self._transform = transform
        self._options = options

    def forward(self, feature_map: Tensor) -> Tensor:
        """Warps every feature map by what the localisation network finds for it."""
        parameters = self.localization(feature_map)
        matrix = MATRICES.get((self._transform, feature_map.dim() - 2))
        transform = self._transform(parameters.reshape(-1, *matrix) if matrix else parameters)
        return warp(self._client, feature_map, transform, self._output_size, **self._options)


class _RemoteWarp(torch.autograd.Function):
    """Forward is `Warp`, backward is `WarpGradients`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        feature_map: Tensor,
        parameters: Tensor,
        client: Client,
        transform: Transform,
        output_size: Sequence[int] | None,
        options: WarpOptions,
    ) -> Tensor:
        ctx.save_for_backward(feature_map, parameters)
        ctx.call = (client, type(transform), options)  # type: ignore[attr-defined]
        local = type(transform)(_to_numpy(parameters))
        output = client.warp(_to_numpy(feature_map), local, output_size, **options)
        return _to_torch(output, feature_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feature_map, parameters = ctx.saved_tensors
        client, kind, options = ctx.call
        operands = ("feature_map", "transform")
        needs = [name for name, need in zip(operands, ctx.needs_input_grad, strict=False) if need]
        gradients = client.warp_gradients(
            _to_numpy(grad_output),
            _to_numpy(feature_map),
            kind(_to_numpy(parameters)),
            needs=needs,
            **options,
        )
        return (
            _optional(gradients.feature_map, feature_map),
            _optional(gradients.transform, parameters),
            *[None] * 4,
        )


def _optional(array: NDArray[Any] | None, like: Tensor) -> Tensor | None:
    return None if array is None else _to_torch(array, like)


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    local = tensor.detach().cpu()
    if local.dtype == torch.bfloat16:
        return local.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: NDArray[Any] = local.numpy()
    return array


def _to_torch(array: NDArray[Any], like: Tensor) -> Tensor:
    """A tensor of its own memory, for autograd and in-place operators, on the device of `like`.

    The memory is torch's own and not NumPy's, which is less aligned: matrix products of libraries
    may depend on that in their last bits.
    """
    if array.dtype == ml_dtypes.bfloat16:
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16).to(like.device)
    return torch.tensor(array).to(like.device)
