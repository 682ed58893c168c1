"""What type checkers must make of the SDK: read by mypy --strict, never executed.

Each `type: ignore` is a call that must be refused; mypy reports those it finds unused.
"""

from typing import Any, assert_type

import jax
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import stn_client
from stn_client import (
    Affine,
    AsyncClient,
    Client,
    ClientStatistics,
    Gradients,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    SamplingGrid,
    ServerInfo,
    StnClientError,
    ThinPlateSpline,
    Tls,
    Transform,
)
from stn_client.geometry import TransformArguments, compose, from_remap, rotation_about

u: NDArray[np.float64] = np.zeros((1, 1, 2, 2))
theta: Transform = Affine(np.eye(2, 3)[None])


def synchronous(client: Client) -> None:
    """`Client`: arrays in, arrays out."""
    assert_type(client.warp(u, theta, output_size=(2, 3), padding="border"), NDArray[np.float64])
    assert_type(client.warp([[[[1.0]]]], SamplingGrid(u), (2, 3), fill=[0, 1]), NDArray[Any])
    gradients = client.warp_gradients(u, u, theta, needs=["transform"], deterministic=False)
    assert_type(gradients, Gradients)
    assert_type(gradients.transform, NDArray[Any] | None)
    output, pullback = client.vjp(u, theta, align_corners=True)
    assert_type(output, NDArray[np.float64])
    assert_type(pullback(u), Gradients)
    assert_type(client.vjp([1.0], theta)[0], NDArray[Any])
    assert_type(client.generate_grid(Affine(u), (2, 2), coordinates="pixel"), NDArray[Any])
    assert_type(client.generate_grid_gradients(u, Affine(u)), NDArray[Any])
    spline = ThinPlateSpline(u, control_points=[(0, 0), (1, 0), (0, 1)], regularization=0.5)
    assert_type(client.generate_grid(spline, (2, 2)), NDArray[Any])
    ThinPlateSpline(u, [(0, 0)])  # type: ignore[call-arg]
    assert_type(client.server_info(), ServerInfo)
    assert_type(client.is_ready(timeout_s=0.5), bool)
    client.wait_until_ready(None)
    assert_type(client.stats, ClientStatistics)
    client.warp(u, theta, timeout_s=None, metadata={"tenant": "a"}, request_id="r")
    with Client("a:1", timeout_s=None, retry=RetryPolicy(attempts=1)) as other:
        assert_type(other, Client)


def libraries(client: Client, tensor: torch.Tensor, image: Image.Image, array: jax.Array) -> None:
    """Type in, type out."""
    assert_type(client.warp(tensor, theta), torch.Tensor)
    assert_type(client.warp(image, theta, layout="HWC"), Image.Image)
    assert_type(client.warp(array, theta, layout="HW"), jax.Array)
    assert_type(client.vjp(tensor, theta)[0], torch.Tensor)
    assert_type(client.warp([[1.0]], theta, layout="HW"), NDArray[Any])
    client.warp(tensor, theta, layout="WHC")  # type: ignore[call-overload]


async def asynchronous(client: AsyncClient) -> None:
    """`AsyncClient`: the same, awaited."""
    assert_type(await client.warp(u, theta, layout="NHWC"), NDArray[np.float64])
    assert_type(await client.warp_gradients(u, u, theta), Gradients)
    output, pullback = await client.vjp(u, theta)
    assert_type(output, NDArray[np.float64])
    assert_type(await pullback(u), Gradients)
    assert_type(await client.generate_grid(Affine(u), (2, 2)), NDArray[Any])
    assert_type(await client.server_info(), ServerInfo)
    assert_type(await client.is_ready(), bool)
    async with AsyncClient("a:1", tls=Tls(ca="ca.pem"), token="t") as other:
        assert_type(other, AsyncClient)


def errors(error: StnClientError) -> None:
    """Facts are attributes of their class alone."""
    assert_type(error.request_id, str)
    if isinstance(error, InvalidRequestError):
        assert_type(error.violations, tuple[tuple[str, str], ...])
    if isinstance(error, OverloadedError):
        assert_type(error.retry_after_s, float | None)
    error.violations  # type: ignore[attr-defined]  # noqa: B018


def geometry(client: Client) -> None:
    """Transforms with their unit fit every call that takes a transform."""
    turn = rotation_about((3, 4), 30)
    assert_type(turn, TransformArguments[Affine])
    assert_type(turn["transform"], Affine)
    v = client.warp(u, **turn, output_size=(2, 2), padding="border")
    assert_type(v, NDArray[np.float64])
    assert_type(client.warp_gradients(u, u, **compose(turn, turn)), Gradients)
    assert_type(client.generate_grid(**turn, output_size=(2, 2)), NDArray[Any])
    client.warp(u, turn)  # type: ignore[call-overload]
    client.warp(u, **turn, coordinates="pixel")  # type: ignore[call-overload]
    client.generate_grid(**from_remap(u), output_size=(2, 2))  # type: ignore[arg-type]


def refused(client: Client, gradients: Gradients) -> None:
    """Misuse that a type checker can see."""
    client.warp(u, u)  # type: ignore[call-overload]
    client.warp(u, theta, padding="mirror")  # type: ignore[call-overload]
    client.warp(u, theta, align_corner=True)  # type: ignore[call-overload]
    client.warp(u, theta, output_size=3)  # type: ignore[call-overload]
    client.warp_gradients(u, u, theta, ["transform"])  # type: ignore[call-arg]
    client.generate_grid(SamplingGrid(u), (2, 2))  # type: ignore[arg-type]
    client.generate_grid(Affine(u), (2, 2), padding="zeros")  # type: ignore[call-arg]
    gradients.transform = None  # type: ignore[misc]
    client.warp(u, theta, timeout="1")  # type: ignore[call-overload]
    client.warp(u, theta, metadata=[("a", "b")])  # type: ignore[call-overload]
    client.server_info(padding="zeros")  # type: ignore[call-arg]
    Client("a:1", 3.0)  # type: ignore[call-arg]
    Client("a:1", tls=True)  # type: ignore[arg-type]
    stn_client.Klient  # type: ignore[attr-defined]  # noqa: B018
