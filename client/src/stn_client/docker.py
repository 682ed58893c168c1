"""A server in a container on this machine, started from Python (extra `docker`).

The container is as locked down as the image allows: nobody's user, a read-only root file system,
no capabilities, and ports on the loopback interface only.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Self

IMAGE = "stn-server:cpu"
"""Name of the image that deploy/README.md builds."""

PORT, METRICS_PORT = 50051, 9464
"""Ports on which the server of the image listens."""

PAUSE_S = 0.05
"""The pause between two looks at a container that starts."""

GRACE_S = 35
"""Time that a container has to stop: a little more than the server's own grace."""

LOCKED_DOWN = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}


class ContainerError(RuntimeError):
    """There is no engine, image, GPU or container as asked for, or the server did not start."""


class ServerContainer:
    """A server in a container of its own, ready when the constructor returns.

    Args:
        image: Present on the engine; it is not pulled.
        gpus: "all", or device ids with commas between ("0,1"); None: the container sees no GPU.
        name: Of the container; None: the engine makes one up.
        network: Of the container; with "host" the server itself listens on the loopback interface.
        port: On the loopback interface; 0: any free one.
        metrics_port: Likewise.
        environment: Settings of the server (`STN_...`).
        timeout_s: How long the server may take to become ready.
        **options: Anything else that `create` of the Docker SDK takes: mem_limit, volumes,
            restart_policy.

    Attributes:
        target: What to give to `Client`.
        metrics: URL of its Prometheus metrics.
        container: The Docker SDK's object.

    Raises:
        ContainerError: See there; nothing is left behind.

    Example:
        >>> with ServerContainer(gpus="all") as server, Client(server.target) as stn:
        ...     stn.warp(u, Affine(theta))
    """

    def __init__(
        self,
        image: str = IMAGE,
        *,
        gpus: str | None = None,
        name: str | None = None,
        network: str = "bridge",
        port: int = 0,
        metrics_port: int = 0,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        **options: Any,
    ) -> None:
        options = {
            **LOCKED_DOWN,
            **_reach(network, port, metrics_port),
            **_devices(gpus),
            **options,
        }
        options["environment"] = {**options["environment"], **(environment or {})}
        # An interruption reaches the main thread alone. The engine is asked in another one, whose
        # answer is waited for: it makes a container even for who has hung up.
        made: list[Any] = []
        with _engine() as engine, ThreadPoolExecutor(1) as elsewhere:
            create = engine.containers.create
            try:
                elsewhere.submit(lambda: made.append(create(image, name=name, **options))).result()
                (self.container,) = made
                self.container.start()
                self._wait_until_ready(time.monotonic() + timeout_s)
                self.target, metrics = self._addresses(options)
            except BaseException:
                elsewhere.shutdown()
                for container in made:
                    _remove(container)
                raise
        self.metrics = f"http://{metrics}/metrics"

    def stop(self, timeout_s: int = GRACE_S) -> int:
        """Stops the server in order, removes the container and returns the exit code."""
        return stop(self.container.name, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _wait_until_ready(self, deadline: float) -> None:
        """Returns when the server has printed its addresses, which it does when it is ready."""
        while not self.container.logs(stderr=False):
            self.container.reload()
            if self.container.status not in {"created", "running"}:
                raise ContainerError(f"{self._named()}: expected it to serve, got {self._end()}")
            if time.monotonic() > deadline:
                raise ContainerError(f"{self._named()}: expected it to be ready in time, got none.")
            time.sleep(PAUSE_S)

    def _addresses(self, options: Mapping[str, Any]) -> tuple[str, str]:
        """Returns the addresses of calls and metrics, as seen from outside."""
        if "ports" not in options:
            listen = options["environment"]
            return listen["STN_LISTEN"], listen["STN_METRICS_LISTEN"]
        self.container.reload()
        return self._published(PORT), self._published(METRICS_PORT)

    def _published(self, port: int) -> str:
        bindings = self.container.ports.get(f"{port}/tcp")
        if not bindings:
            raise ContainerError(
                f"{self._named()}: expected port {port} on the loopback interface, got none: the "
                'engine has no such network. Try network="host".'
            )
        return f"{bindings[0]['HostIp']}:{bindings[0]['HostPort']}"

    def _end(self) -> str:
        """Returns how the container ended, with the last lines of its log."""
        code = self.container.attrs["State"]["ExitCode"]
        return f"exit code {code}. Its log ends: {self.container.logs(tail=3).decode().strip()}"

    def _named(self) -> str:
        return f"container {self.container.name}"


def stop(name: str, timeout_s: int = GRACE_S) -> int:
    """Stops and removes a container by its name; returns the server's exit code.

    Raises:
        ContainerError: There is no such container, or no engine.
    """
    with _engine() as engine:
        container = engine.containers.get(name)
        container.stop(timeout=timeout_s)
        code = int(container.wait()["StatusCode"])
        _remove(container)
        return code


def logs(name: str, *, follow: bool = False) -> Iterator[bytes]:
    """Yields what a container has written so far; with `follow`, also what it writes later.

    Raises:
        ContainerError: There is no such container, or no engine.
    """
    with _engine() as engine:
        yield from engine.containers.get(name).logs(stream=True, follow=follow)


def _reach(network: str, port: int, metrics_port: int) -> dict[str, Any]:
    """Returns options of `create` that make a container reachable by the loopback interface."""
    if network != "host":
        ports = {
            f"{PORT}/tcp": ("127.0.0.1", port or None),
            f"{METRICS_PORT}/tcp": ("127.0.0.1", metrics_port or None),
        }
        return {"network": network, "ports": ports, "environment": {}}
    listen = {
        "STN_LISTEN": f"127.0.0.1:{port or _free_port()}",
        "STN_METRICS_LISTEN": f"127.0.0.1:{metrics_port or _free_port()}",
    }
    return {"network_mode": "host", "environment": listen}


def _devices(gpus: str | None) -> dict[str, Any]:
    """Returns the request for GPUs, as the engine takes it."""
    if gpus is None:
        return {}
    wanted = {"Count": -1} if gpus == "all" else {"DeviceIDs": gpus.split(",")}
    return {"device_requests": [{"Driver": "", "Capabilities": [["gpu"]], **wanted}]}


def _free_port() -> int:
    """Returns a free port, which the image's health check has to know beforehand."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _remove(container: Any) -> None:
    container.remove(force=True, v=True)


@contextmanager
def _engine() -> Iterator[Any]:
    """Returns a connection to the engine that the environment names."""
    with _explained():
        import docker  # noqa: PLC0415 - optional

        with closing(docker.from_env()) as engine:
            yield engine


@contextmanager
def _explained() -> Iterator[None]:
    """Turns exceptions of the Docker SDK into errors that say what to do."""
    try:
        import docker.errors  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ContainerError(
            "docker: expected the Docker SDK, got none. "
            "In the checkout: pip install './client[docker]'"
        ) from error
    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise ContainerError(
            f"image: expected one on the engine, got {error.explanation}. "
            f"Build it in the project's root: docker build --target cpu --tag {IMAGE} ."
        ) from error
    except docker.errors.NotFound as error:
        raise ContainerError(f"container: expected one, got {error.explanation}.") from error
    except docker.errors.APIError as error:
        if "could not select device driver" in str(error.explanation):
            raise ContainerError(
                f"gpus: expected an engine with the NVIDIA container toolkit and a GPU, "
                f"got {error.explanation}. Leave gpus out for the CPU."
            ) from error
        raise ContainerError(f"docker: expected a container, got {error.explanation}.") from error
    except docker.errors.DockerException as error:
        raise ContainerError(
            f"docker: expected an engine that answers, got {error}. "
            "Start it, or let DOCKER_HOST name another one."
        ) from error
