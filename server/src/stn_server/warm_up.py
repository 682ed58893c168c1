"""Tiny calls that a server makes to itself before it says that it is ready."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stn_proto import join, put_tensor
from stn_proto.v1 import objective_pb2, warp_pb2
from stn_server.batching.work import Batch, Operation, WorkItem
from stn_server.config import LimitsConfig
from stn_server.translate import Translator


def batches() -> Iterator[Batch]:
    """Yields a warp, its gradients and an objective, each as it would come from a caller."""
    translator = Translator(LimitsConfig())
    for operation, message in (
        (Operation.WARP, _warp()),
        (Operation.WARP_GRADIENTS, _warp_gradients()),
        (Operation.OBJECTIVE, _objective()),
    ):
        request = translator.decode(operation, message)
        item = WorkItem(key=request.key, cost=request.cost, problems=(request.job,), arrived=0.0)
        yield Batch.of((item,), request.cost)


def _warp() -> bytes:
    payloads: list[memoryview] = []
    request = warp_pb2.WarpRequest(
        feature_map=put_tensor(_FEATURE_MAP, payloads), transform=_identity(payloads)
    )
    return join(request.SerializeToString(), payloads)


def _warp_gradients() -> bytes:
    payloads: list[memoryview] = []
    request = warp_pb2.WarpGradientsRequest(
        grad_output=put_tensor(_FEATURE_MAP, payloads),
        feature_map=put_tensor(_FEATURE_MAP, payloads),
        transform=_identity(payloads),
    )
    return join(request.SerializeToString(), payloads)


def _objective() -> bytes:
    payloads: list[memoryview] = []
    request = objective_pb2.ObjectiveRequest(
        moving=put_tensor(_FEATURE_MAP, payloads),
        fixed=put_tensor(_FEATURE_MAP, payloads),
        transform=_identity(payloads),
    )
    return join(request.SerializeToString(), payloads)


def _identity(payloads: list[memoryview]) -> warp_pb2.Transform:
    theta = put_tensor(np.eye(2, 3, dtype=np.float32)[None], payloads)
    return warp_pb2.Transform(affine=warp_pb2.Affine(theta=theta))


_FEATURE_MAP = np.zeros((1, 1, 2, 2), np.float32)
