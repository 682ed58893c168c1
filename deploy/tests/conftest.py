"""One engine, one base and one image for the whole suite; nothing of it stays."""

import os
from functools import partial
from pathlib import Path

import docker
import pytest

from stn_client.docker import ServerContainer
from support.engine import IMAGE, containers_of_the_image, import_base, running_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """The SDK's connection; the environment names the engine for whoever asks it."""
    with (
        running_engine(tmp_path_factory.mktemp("engine")) as url,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("DOCKER_HOST", url)
        client = docker.from_env(timeout=600)
        yield client
        client.close()


@pytest.fixture(scope="session")
def build(engine):
    """Builds the image from a copy of the tree, without a network."""
    base = os.environ.get("BASE_IMAGE") or import_base(engine)

    def build(context=ROOT, *, nocache=False):
        image, _log = engine.images.build(
            path=str(context),
            tag=IMAGE,
            target="cpu",
            network_mode="none",
            rm=True,
            nocache=nocache,
            buildargs={"BASE": base, "BUILD_BASE": base, "REVISION": "tested"},
        )
        return image

    yield build
    engine.images.remove(IMAGE, force=True)


@pytest.fixture(scope="session")
def image(build):
    """The image under test."""
    return build()


@pytest.fixture
def start(engine, image):
    """Starts servers of the image in the network of the host; they end with the test."""
    yield partial(ServerContainer, image.tags[0], network="host")
    for container in containers_of_the_image(engine):
        container.remove(force=True)
