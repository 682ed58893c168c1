"""The example of Ray Serve: both its deployments warp as torch does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import serve
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

pytestmark = pytest.mark.timeout(300)

EXAMPLE = Path(__file__).parents[2] / "client/examples/ray_serve.py"
CALLS = 12


@pytest.fixture(scope="module")
def example():
    """The module of the example; Ray's processes get it with the deployments."""
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray_serve", module)
        spec.loader.exec_module(module)
        ray.cloudpickle.register_pickle_by_value(module)
        yield module


@pytest.fixture(scope="module")
def target():
    """A server of the environment that SERVER_PYTHON names."""
    listen = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-level=warning"]
    command = [os.environ["SERVER_PYTHON"], "-m", "stn_server", *listen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())["targets"][0]
        process.terminate()


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, without its page."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


def by_torch(feature_map, theta):
    """The same warp by torch alone."""
    u, matrix = torch.from_numpy(feature_map)[None], torch.from_numpy(theta)[None]
    grid = F.affine_grid(matrix, u.shape, align_corners=False).to(u.dtype)
    return F.grid_sample(u, grid, align_corners=False)[0].numpy()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("way", ["service", "ray"])
def test_a_deployment_warps_as_torch_does(example, target, way):
    """Calls of several sizes at once, whose results are not mixed up."""
    application = {
        "service": lambda: example.WarpByService.bind(target),
        "ray": example.WarpInRay.bind,
    }[way]()
    handle = serve.run(application, name=way, route_prefix=None)
    rng = np.random.default_rng(0)
    maps = [rng.random((3, 16 + n % 3, 20), np.float32) for n in range(CALLS)]
    thetas = [np.array([[0.9, -0.2, 0.01 * n], [0.2, 0.8, 0.0]]) for n in range(CALLS)]
    answers = [handle.remote(u, theta) for u, theta in zip(maps, thetas, strict=True)]
    for u, theta, answer in zip(maps, thetas, answers, strict=True):
        np.testing.assert_allclose(answer.result(), by_torch(u, theta), rtol=0, atol=1e-5)
