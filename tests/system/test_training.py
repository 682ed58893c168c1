"""Networks that learn through a real server: as well as they would here, and by the same steps."""

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import stn_engine
from stn_client import Affine, Homography, Similarity
from stn_client.torch import SpatialTransformer
from support.processes import TESTS, run_python

EXAMPLE = TESTS.parent / "client/examples/distorted_mnist.py"
SIDE = 28
IMAGES, VOLUMES = (16, 1, SIDE, SIDE), (16, 1, 7, 14, 8)
MATRICES = {
    (stn_engine.Affine, 4): (2, 3),
    (stn_engine.Affine, 5): (3, 4),
    (stn_engine.Homography, 4): (3, 3),
}


class LocalTransformer(nn.Module):
    """``SpatialTransformer`` by the engine in this process."""

    def __init__(self, localization, transform):
        super().__init__()
        self.localization, self.transform = localization, transform

    def forward(self, feature_map):
        parameters = self.localization(feature_map)
        matrix = MATRICES.get((self.transform, feature_map.dim()))
        transform = self.transform(parameters.reshape(-1, *matrix) if matrix else parameters)
        return stn_engine.warp(feature_map, transform)


def network(look):
    """Reads what a transformer sees."""
    return nn.Sequential(look, nn.Flatten(), nn.Linear(SIDE * SIDE, 4))


def localization(start):
    """Finds ``start`` at first, and soon something else."""
    torch.manual_seed(1)
    last = nn.Linear(SIDE * SIDE, start.numel())
    nn.init.normal_(last.weight, std=1e-3)
    last.bias.data = start.flatten().clone()
    return nn.Sequential(nn.Flatten(), last)


def trained(model, images, truth, steps=8):
    """The parameters after some steps of gradient descent."""
    torch.manual_seed(2)
    model[-1].reset_parameters()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), truth).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("remote", "local", "start", "shape"),
    [
        (Affine, stn_engine.Affine, torch.eye(2, 3), IMAGES),
        (Affine, stn_engine.Affine, torch.eye(3, 4), VOLUMES),
        (Homography, stn_engine.Homography, torch.eye(3), IMAGES),
        (Similarity, stn_engine.Similarity, torch.tensor([1.0, 0.1, 0.0, 0.0]), IMAGES),
    ],
    ids=["affine", "affine of volumes", "homography", "similarity"],
)
def test_training_takes_the_steps_that_it_takes_here(client, remote, local, start, shape):
    """Bit for bit, whoever computes the transformer and its gradients."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    truth = torch.arange(len(images)) % 4
    there = SpatialTransformer(localization(start), client, transform=remote)
    here = LocalTransformer(localization(start), local)
    by_server, by_engine = (trained(network(look), images, truth) for look in (there, here))
    assert not torch.equal(by_server[1], start.flatten())
    for one, other in zip(by_server, by_engine, strict=True):
        assert torch.equal(one, other)


def write_idx(path, array):
    """Bytes in the format of MNIST."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_squares(folder, part, count):
    """Small ones and large ones, labelled 0 and 1."""
    labels = (np.arange(count) % 2).astype(np.uint8)
    images = np.zeros((count, SIDE, SIDE), np.uint8)
    images[labels == 0, 11:17, 11:17] = 255
    images[labels == 1, 6:22, 6:22] = 255
    write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
    write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_learns_to_read(tmp_path):
    """Small squares and large ones, told apart after forty steps."""
    write_squares(tmp_path, "train", 1024)
    write_squares(tmp_path, "t10k", 200)
    flags = [f"--data={tmp_path}", f"--output={tmp_path}", "--epochs=10"]
    ended = run_python(EXAMPLE, *flags, timeout_s=280)
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "distorted_mnist.json").read_text())
    assert results["epochs"] == 10
    assert results["test_error_percent"]["FCN"] < 20
    assert results["test_error_percent"]["ST-FCN"] < 2
    assert (tmp_path / "distorted_mnist.png").stat().st_size > 0
