"""Distorted digits: a network that looks before it reads, and whose eye is on a server.

The experiment of table 1 of Jaderberg et al. (2015), column RTS, in a shorter protocol. Digits of
MNIST are turned by up to 45 degrees, scaled by 0.7 to 1.2 and put anywhere on 42 x 42 pixels. A
fully connected network (FCN) learns to read them; so does a smaller one behind a spatial
transformer (ST-FCN), of as many parameters with its localisation network. Every distortion, and
every forward and backward of the transformer, is an RPC; the networks stay here.

Needs the four files of MNIST in --data, packed or unpacked: those of
https://yann.lecun.com/exdb/mnist, which torchvision's `MNIST(root, download=True)` leaves in
root/MNIST/raw.
Writes a picture and the results to --output.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everyone calls it
from tqdm import tqdm

from stn_client import Client, Similarity
from stn_client.local import LocalServer
from stn_client.torch import SpatialTransformer

Array = NDArray[Any]

CANVAS_PX = 42
DIGITS = 10
LARGEST_ANGLE_DEG = 45.0
SCALES = (0.7, 1.2)
BATCH = 256
LEARNING_RATE = 1e-3


def main() -> None:
    """Trains both networks on the same digits, and says how many of the test they misread."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    with _server(options) as target, Client(target) as stn:
        looking = LookingReader(stn)
        plain = fully_connected(CANVAS_PX**2, 200, nn.Linear(200, DIGITS))
        networks = {"FCN": plain, "ST-FCN": looking}
        test = distorted_test(stn, options)
        results = learn(stn, networks, test, options)
        show(looking, test[0][:12], options)
    (options.output / "distorted_mnist.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"Results and a picture in {options.output}/")


class LookingReader(nn.Module):
    """Looks where a localisation network says, shrinks what it sees by 2, and reads it.

    Args:
        stn: Who warps.
    """

    def __init__(self, stn: Client) -> None:
        super().__init__()
        localization = fully_connected(CANVAS_PX**2, 128, look_at_all(128))
        self.look = SpatialTransformer(localization, stn)
        self.read = fully_connected((CANVAS_PX // 2) ** 2, 256, nn.Linear(128, DIGITS))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 42, 42) -> (N, 10)."""
        outputs: Tensor = self.read(F.avg_pool2d(self.look(images), 2))
        return outputs


def fully_connected(inputs: int, hidden: int, last: nn.Linear) -> nn.Sequential:
    """Two hidden layers before the last one."""
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, last.in_features)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)


def look_at_all(inputs: int) -> nn.Linear:
    """Finds the identity at first, whatever its inputs."""
    last = nn.Linear(inputs, 6)
    nn.init.zeros_(last.weight)
    last.bias.data = torch.eye(2, 3).flatten()
    return last


def learn(
    stn: Client,
    networks: Mapping[str, nn.Module],
    test: tuple[Tensor, Tensor],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Every batch is distorted anew, and shown to all networks."""
    digits, labels = read_mnist(options.data, "train")
    rng = np.random.default_rng(options.seed)
    steps = options.epochs * (len(digits) // BATCH)
    learners = {name: _learner(network, steps) for name, network in networks.items()}
    began, errors = time.perf_counter(), {}
    for epoch in range(1, options.epochs + 1):
        for some in tqdm(shuffled(rng, len(digits)), desc=f"Epoch {epoch}", leave=False):
            seen, truth = distorted(stn, digits[some], rng), torch.from_numpy(labels[some])
            for name, network in networks.items():
                step(network, *learners[name], seen, truth)
        errors = {name: error_percent(network, *test) for name, network in networks.items()}
        found = (f"{name} misreads {error:.2f} %" for name, error in errors.items())
        print(f"Epoch {epoch}: {', '.join(found)}")
    return {
        "epochs": options.epochs,
        "batch": BATCH,
        "seed": options.seed,
        "parameters": {name: count_parameters(network) for name, network in networks.items()},
        "steps_per_s": round(steps / (time.perf_counter() - began), 1),
        "test_error_percent": errors,
    }


def count_parameters(network: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(map(torch.numel, network.parameters()))


def shuffled(rng: np.random.Generator, count: int) -> list[Array]:
    """Batches of an epoch; the few that are left over wait for another."""
    whole = count // BATCH
    return np.split(rng.permutation(count)[: whole * BATCH], whole)


def _learner(network: nn.Module, steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def step(network: nn.Module, optimizer: Any, schedule: Any, seen: Tensor, truth: Tensor) -> None:
    """One step down the gradient."""
    optimizer.zero_grad()
    torch.autograd.backward(F.cross_entropy(network(seen), truth))
    optimizer.step()
    schedule.step()


@torch.no_grad()
def error_percent(network: nn.Module, seen: Tensor, truth: Tensor) -> float:
    """Of how many the most likely digit is another."""
    guesses = torch.cat([network(some).argmax(1) for some in torch.split(seen, 1000)])
    return round(100.0 * float((guesses != truth).double().mean()), 2)


def distorted_test(stn: Client, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """All digits of the test, distorted once."""
    digits, labels = read_mnist(options.data, "t10k")
    rng = np.random.default_rng(options.seed + 1)
    parts = [distorted(stn, digits[n : n + 1000], rng) for n in range(0, len(digits), 1000)]
    return torch.cat(parts), torch.from_numpy(labels)


def distorted(stn: Client, digits: Array, rng: np.random.Generator) -> Tensor:
    """Digits (N, 1, 28, 28) in uint8 as images (N, 1, 42, 42) from 0 to 1, made by the server."""
    side = digits.shape[-1]
    transform = Similarity(similarities(rng, len(digits), side))
    images = stn.warp(digits, transform, (CANVAS_PX, CANVAS_PX), coordinates="pixel")
    return torch.from_numpy(np.asarray(images, np.float32) / 255)


def similarities(rng: np.random.Generator, count: int, side: int) -> Array:
    """Where pixels of the canvas read the digit: (s, phi, t_x, t_y), (N, 4)."""
    angle = np.radians(rng.uniform(-LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG, count))
    scale = rng.uniform(*SCALES, count)
    # The digit's frame stays on the canvas.
    reach = scale * side / 2
    x, y = rng.uniform(reach - 0.5, CANVAS_PX - reach - 0.5, (2, count))
    s, centre = 1 / scale, (side - 1) / 2
    t_x = centre - s * (np.cos(angle) * x - np.sin(angle) * y)
    t_y = centre - s * (np.sin(angle) * x + np.cos(angle) * y)
    return np.stack((s, angle, t_x, t_y), axis=1).astype(np.float32)


def read_mnist(folder: Path, part: str) -> tuple[Array, Array]:
    """Images (N, 1, H, W) in uint8 and labels (N,) in int64 of "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte")
    return images[:, None], read_idx(folder / f"{part}-labels-idx1-ubyte").astype(np.int64)


def read_idx(path: Path) -> Array:
    """An array of bytes in the IDX format, which may be packed by gzip."""
    packed = path.with_name(path.name + ".gz")
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    axes = data[3]
    shape = np.frombuffer(data, ">i4", axes, offset=4)
    return np.frombuffer(data, np.uint8, math.prod(shape.tolist()), 4 + 4 * axes).reshape(shape)


@torch.no_grad()
def show(network: LookingReader, seen: Tensor, options: argparse.Namespace) -> None:
    """Draws some digits, and what the transformer makes of them."""
    mpl.use("Agg")
    figure, axes = plt.subplots(2, len(seen), figsize=(len(seen), 2))
    for row, images in zip(axes, (seen, network.look(seen)), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.tight_layout(pad=0.2)
    figure.savefig(options.output / "distorted_mnist.png", dpi=80)
    plt.close(figure)


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[str]:
    """The target of a server of our own, unless one was given."""
    if options.target:
        yield options.target
    else:
        with LocalServer(log=options.output / "server.log") as server:
            yield server.target


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the files of MNIST")
    parser.add_argument("--target", help="a running server; default: one is started")
    parser.add_argument("--output", type=Path, default=Path("build/mnist"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
