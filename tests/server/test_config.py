"""The configuration tree: frozen, and every rule of its fields."""

import dataclasses
import math

import pytest

from stn_server.config import (
    MAX_MESSAGE_BYTES,
    MAX_PATH_BYTES,
    AuthConfig,
    BatchingConfig,
    ConfigError,
    LifecycleConfig,
    LimitsConfig,
    LogConfig,
    ServerConfig,
    TlsConfig,
    split_address,
)

SECTIONS = (
    BatchingConfig,
    LimitsConfig,
    LifecycleConfig,
    TlsConfig,
    AuthConfig,
    LogConfig,
    ServerConfig,
)

LEAST = {
    (BatchingConfig, "max_batch_bytes"): 1,
    (BatchingConfig, "max_batch_samples"): 1,
    (BatchingConfig, "window_s"): 0,
    (BatchingConfig, "max_admitted_items"): 1,
    (BatchingConfig, "max_admitted_bytes"): 1,
    (BatchingConfig, "stall_s"): 1,
    (LimitsConfig, "max_message_bytes"): 1024,
    (LimitsConfig, "max_payloads"): 3,
    (LimitsConfig, "max_envelope_bytes"): 1024,
    (LimitsConfig, "max_output_bytes"): 1,
    (LimitsConfig, "max_output_samples"): 1,
    (LimitsConfig, "max_dimension_px"): 1,
    (LimitsConfig, "max_control_points"): 3,
    (LimitsConfig, "max_calls"): 1,
    (LimitsConfig, "max_concurrent_streams"): 1,
    (LimitsConfig, "upload_s"): 0.1,
    (LifecycleConfig, "lame_duck_s"): 0,
    (LifecycleConfig, "grace_s"): 0,
    (LifecycleConfig, "connection_age_s"): 0,
    (LifecycleConfig, "hang_s"): 0,
    (LogConfig, "slow_call_s"): 0,
    (ServerConfig, "threads"): 0,
    (ServerConfig, "retained_bytes"): 0,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_configuration_cannot_change(section):
    """What was validated at birth stays valid."""
    config = section()
    for entry in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError, match=entry.name):
            setattr(config, entry.name, None)


@pytest.mark.parametrize(
    ("section", "name"), LEAST, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_number_has_a_least_value(section, name):
    """The least is allowed; anything below, infinite or not a number is not."""
    least = LEAST[section, name]
    assert getattr(section(**{name: least}), name) == least
    for value in (least - 1, math.nan):
        with pytest.raises(ConfigError, match=f"^{name}: expected at least {least}, got {value}"):
            section(**{name: value})
    with pytest.raises(ConfigError, match=f"^{name}: expected (a finite number|at most .*), got"):
        section(**{name: math.inf})


def test_every_number_has_a_least_value():
    """A new field joins the table above."""
    numbers = {
        (section, entry.name)
        for section in SECTIONS
        for entry in dataclasses.fields(section)
        if entry.type in {"int", "float"}
    }
    assert numbers == set(LEAST)


def test_a_loop_that_hangs_for_less_than_a_second_ends_no_server():
    """As a busy host would do; 0 is never."""
    assert LifecycleConfig(hang_s=1).hang_s == 1
    with pytest.raises(ConfigError, match=r"^hang_s: expected at least 1, got 0\.2\."):
        LifecycleConfig(hang_s=0.2)


def test_messages_have_the_size_that_grpc_can_take():
    """GRPC counts bytes in a signed 32-bit integer."""
    assert LimitsConfig(max_message_bytes=MAX_MESSAGE_BYTES).max_message_bytes == 2**31 - 1
    with pytest.raises(ConfigError, match="max_message_bytes: expected at most 2147483647, got"):
        LimitsConfig(max_message_bytes=MAX_MESSAGE_BYTES + 1)


def test_the_largest_call_can_be_admitted():
    """A call within the limits is never refused as if waiting would help."""
    limits = LimitsConfig(max_message_bytes=2000, max_output_bytes=500)
    fits = BatchingConfig(max_admitted_bytes=2500)
    assert ServerConfig(limits=limits, batching=fits).batching is fits
    message = r"^batching.max_admitted_bytes: expected at least 2500, .* got 2499\."
    with pytest.raises(ConfigError, match=message):
        ServerConfig(limits=limits, batching=BatchingConfig(max_admitted_bytes=2499))


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (LogConfig, "level"),
        (LogConfig, "format"),
        (AuthConfig, "plaintext"),
        (ServerConfig, "reflection"),
        (ServerConfig, "tracing"),
    ],
)
def test_a_choice_is_one_of_those_offered(section, name):
    """The message lists them."""
    with pytest.raises(ConfigError, match=f"^{name}: expected one of .*, got 'loud'"):
        section(**{name: "loud"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"certificate": "c"}, "key: expected a file beside that of certificate, got none"),
        ({"key": "k"}, "certificate: expected a file beside that of key, got none"),
        ({"client_ca": "a"}, "client_ca: expected a certificate of the server, too, got none"),
    ],
)
def test_files_of_tls_go_together(files, message):
    """Half a pair secures nothing."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        TlsConfig(**files)


TOKENS = AuthConfig(tokens="/tokens")
EVERYWHERE = ("127.0.0.1:1", "0.0.0.0:1")


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "host:1", "*:1"])
def test_tokens_do_not_cross_a_network_in_clear(address):
    """Whoever hears one has it."""
    message = r"^auth\.tokens: expected TLS, unix sockets or loopback, got "
    with pytest.raises(ConfigError, match=message):
        ServerConfig(listen=("127.0.0.1:1", address), auth=TOKENS)


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": ("127.0.0.1:1", "127.0.0.9:1", "[::1]:1", "localhost:1", "unix:/stn")},
        {"listen": EVERYWHERE, "tls": TlsConfig(certificate="c", key="k")},
        {"listen": EVERYWHERE, "auth": AuthConfig(tokens="/tokens", plaintext="allow")},
        {"listen": EVERYWHERE, "auth": AuthConfig()},
    ],
    ids=str,
)
def test_tokens_that_nobody_hears_are_fine(settings):
    """On this machine, inside TLS, or where the operator says so."""
    assert ServerConfig(**{"auth": TOKENS, **settings}).listen == settings["listen"]


def test_reflection_needs_an_address():
    """Asked for at an address that is not there, it would be lost without a word."""
    with pytest.raises(ConfigError, match=r"^reflection: expected an admin_listen to serve on"):
        ServerConfig(reflection="admin_listen")
    config = ServerConfig(reflection="admin_listen", admin_listen="unix:/admin")
    assert config.reflection == "admin_listen"


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:http", "host:-1", "host:\N{ARABIC-INDIC DIGIT THREE}"],
)
def test_an_address_is_host_and_port(address):
    """The server does not find out while binding."""
    with pytest.raises(ConfigError, match=r"^listen: expected host:port, got"):
        ServerConfig(listen=(address,))
    if address:
        with pytest.raises(ConfigError, match=r"^metrics_listen: expected host:port, got"):
            ServerConfig(metrics_listen=address)
        with pytest.raises(ConfigError, match=r"^admin_listen: expected host:port, got"):
            ServerConfig(admin_listen=address)


@pytest.mark.parametrize("name", ["listen", "metrics_listen", "admin_listen"])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("host:65536", r"expected a port of at most 65535, got 'host:65536'\."),
        (
            "::1:50051",
            r"expected brackets around an IPv6 address, as \[::1\]:50051, got '::1:50051'",
        ),
    ],
)
def test_what_is_no_address_has_its_own_reason(name, address, message):
    """Each address is looked at before any of them is taken."""
    with pytest.raises(ConfigError, match=f"^{name}: {message}"):
        ServerConfig(**{name: (address,) if name == "listen" else address})


@pytest.mark.parametrize("name", ["listen", "admin_listen"])
@pytest.mark.parametrize("path", ["", "x" * (MAX_PATH_BYTES + 1), "/" + "é" * 60], ids=len)
def test_the_path_of_a_socket_has_a_length_that_the_system_takes(name, path):
    """In bytes, however it is written; what is just short enough is taken."""
    for form in ("unix:", "unix://"):
        address = form + path
        message = f"^{name}: expected a socket path of 1 to {MAX_PATH_BYTES} bytes, got "
        with pytest.raises(ConfigError, match=message):
            ServerConfig(**{name: (address,) if name == "listen" else address})
    longest = "unix:" + ("/" + "x" * 200)[:MAX_PATH_BYTES]
    assert ServerConfig(listen=(longest,)).listen == (longest,)


@pytest.mark.parametrize("name", ["listen", "admin_listen"])
@pytest.mark.parametrize("path", ["/\udcff.sock", "/a\nb", "/a\0b"], ids=ascii)
def test_the_path_of_a_socket_is_text(name, path):
    """Arguments that are no UTF-8 come with surrogates in place of their bytes."""
    with pytest.raises(ConfigError, match=f"^{name}: expected a socket path in printable UTF-8"):
        ServerConfig(**{name: (f"unix:{path}",) if name == "listen" else f"unix:{path}"})


@pytest.mark.parametrize("path", ["/a%41.sock", "/e#f", "/g?h"])
def test_the_path_of_a_socket_is_what_grpc_makes_of_it(path):
    """Else one that is in use could be replaced, or none be found where the server says."""
    with pytest.raises(ConfigError, match=r"^listen: expected a socket path without '%', '#' and"):
        ServerConfig(listen=(f"unix:{path}",))


@pytest.mark.parametrize("mode", ["rw-rw----", "0o660", "66", "06600", "0689", "-660"])
def test_the_mode_of_sockets_is_octal(mode):
    """As chmod takes it."""
    with pytest.raises(ConfigError, match=r"^listen_mode: expected three or four octal digits"):
        ServerConfig(listen_mode=mode)
    assert ServerConfig(listen_mode="660").listen_mode == "660"


def test_there_is_at_least_one_address():
    """A server that nobody can reach is a mistake."""
    with pytest.raises(ConfigError, match=r"^listen: expected at least one address, got none"):
        ServerConfig(listen=())


def test_addresses_may_be_sockets_and_metrics_may_be_off():
    """A path is no host and port; an empty address means none."""
    config = ServerConfig(listen=("unix:/run/stn.sock", "[::1]:0"), metrics_listen="")
    assert config.listen == ("unix:/run/stn.sock", "[::1]:0")
    assert not config.metrics_listen


@pytest.mark.parametrize(
    ("address", "parts"),
    [("localhost:1", ("localhost", 1)), ("[::1]:65535", ("[::1]", 65535)), ("*:0", ("*", 0))],
)
def test_an_address_splits_at_its_last_colon(address, parts):
    """Brackets around an IPv6 host stay."""
    assert split_address("listen", address) == parts


def test_calls_do_not_queue_in_their_connection():
    """What cannot be admitted is refused with a status, for which it has to be received."""
    few = BatchingConfig(max_admitted_items=8)
    assert ServerConfig(batching=few, limits=LimitsConfig(max_concurrent_streams=9)).batching is few
    message = r"^limits.max_concurrent_streams: expected more than the 8 of .* got 8\."
    with pytest.raises(ConfigError, match=message):
        ServerConfig(batching=few, limits=LimitsConfig(max_concurrent_streams=8))
