"""Checks variables that libraries read for themselves, so that a wrong one ends as one line."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from stn_server.config import ConfigError

MULTIPROCESS_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Makes prometheus_client keep metrics in files, for servers of many processes; ours is one."""

POLL_STRATEGY = "GRPC_POLL_STRATEGY"
POLL_STRATEGIES = ("all", "epoll1", "poll")
"""The log levels with which gRPC does not abort the process."""

PREFIXES = ("CUDA", "NPY", "NUMPY", "OMP", "OTEL", "PROTOCOL_BUFFERS", "PYTORCH", "TORCH")
"""Prefixes of the variables that the libraries of the server read."""

MAX_CHARS = 300
"""The most characters that are quoted of a library's error; some explain all their settings."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """Removes variables that do not apply to the server; call it before libraries are imported.

    Raises:
        ConfigError: With a variable as it is, a library would end the process.
    """
    for name in MULTIPROCESS_METRICS:
        environment.pop(name, None)
    strategies = environment.get(POLL_STRATEGY, POLL_STRATEGIES[0])
    if not set(strategies.split(",")) <= {*POLL_STRATEGIES}:
        known = ", ".join(POLL_STRATEGIES)
        raise ConfigError(f"{POLL_STRATEGY}: expected some of {known}, got {strategies!r}.")


@contextmanager
def loading(what: str, environment: MutableMapping[str, str]) -> Iterator[None]:
    """Turns a failure to load or to set up a library into an error of the configuration.

    Args:
        what: The name in the error of what is loaded.
        environment: The variables that it may read.

    Raises:
        ConfigError: Whatever was raised inside, in one line, and which variables may be the cause.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        cause = text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 4]} ..."
        set_here = ", ".join(sorted(name for name in environment if name.startswith(PREFIXES)))
        advice = f"Look at {set_here}." if set_here else "Install stn-server with what it needs."
        raise ConfigError(f"{what}: expected libraries that load, got {cause} {advice}") from error
