"""One engine, one base and one image for the whole suite; nothing of it stays."""

import os
import shutil
import subprocess
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
def arguments(engine):
    """What the Dockerfile is told."""
    base = os.environ.get("BASE_IMAGE") or import_base(engine)
    return {"BASE": base, "BUILD_BASE": base, "REVISION": "tested"}


@pytest.fixture(scope="session")
def build(engine, arguments):
    """Builds the image from a copy of the tree, without a network, by Docker's classic builder."""

    def build(context=ROOT):
        image, _log = engine.images.build(
            path=str(context),
            tag=IMAGE,
            target="cpu",
            network_mode="none",
            rm=True,
            buildargs=arguments,
        )
        return image

    yield build
    engine.images.remove(IMAGE, force=True)


@pytest.fixture
def built_by_buildkit(engine, arguments):
    """The image from nothing, by BuildKit.

    The command is that of the engine's package: others need a plugin for BuildKit.
    """
    docker_command = shutil.which("docker", path=f"/usr/bin{os.pathsep}{os.environ['PATH']}")
    tag = f"{IMAGE}:buildkit"
    command = [docker_command, "build", "--quiet", "--no-cache", "--network=none", "--target=cpu"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    subprocess.run([*command, f"--tag={tag}", ROOT], env=environment, check=True)
    yield engine.images.get(tag)
    engine.images.remove(tag)


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
