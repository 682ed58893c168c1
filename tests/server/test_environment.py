"""Variables of libraries: what does not apply is taken out, what is wrong is told in one line."""

import pytest

from stn_server.config import ConfigError
from stn_server.environment import loading, prepare


def test_metrics_of_many_processes_do_not_apply():
    """Whatever the variable holds, and however it is spelt; others stay."""
    environment = {
        "PROMETHEUS_MULTIPROC_DIR": "/none",
        "prometheus_multiproc_dir": "/none",
        "PATH": "/bin",
        "GRPC_POLL_STRATEGY": "epoll1,poll",
    }
    prepare(environment)
    assert environment == {"PATH": "/bin", "GRPC_POLL_STRATEGY": "epoll1,poll"}


@pytest.mark.parametrize("strategy", ["nonsense", "none", "epoll1,nonsense", ""])
def test_what_would_abort_the_process_is_refused(strategy):
    """GRPC ends it without a word."""
    message = rf"^GRPC_POLL_STRATEGY: expected some of all, epoll1, poll, got '{strategy}'\."
    with pytest.raises(ConfigError, match=message):
        prepare({"GRPC_POLL_STRATEGY": strategy})


def test_what_a_library_complains_about_is_one_line_with_the_suspects():
    """Long explanations are cut."""
    environment = {"TORCH_LOGS": "garbage", "HOME": "/", "OTEL_BSP_SCHEDULE_DELAY": "1"}
    message = (
        r"^environment: expected libraries that load, got ValueError: Invalid log settings: .* "
        r"\.\.\. Look at OTEL_BSP_SCHEDULE_DELAY, TORCH_LOGS\.$"
    )
    with pytest.raises(ConfigError, match=message) as caught, loading("environment", environment):
        raise ValueError("Invalid log settings:\n" + "garbage\n\n" * 100)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_there_is_one_line_too():
    """Without a variable to suspect."""
    message = (
        r"^tracing: expected libraries that load, got ImportError: No module named 'x' Install"
    )
    with pytest.raises(ConfigError, match=message), loading("tracing", {"HOME": "/"}):
        raise ImportError("No module named 'x'")


def test_an_error_of_the_configuration_stays_what_it_is():
    """It says already what is wrong."""
    with pytest.raises(ConfigError, match=r"^device: expected"), loading("environment", {}):
        raise ConfigError("device: expected cpu.")
