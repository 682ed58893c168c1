"""Where the configuration comes from: names, precedence, and what is wrong with a source."""

import dataclasses
import re

import pytest

from stn_engine.dispatch import BACKEND_VARIABLE
from stn_server.config import ConfigError, ServerConfig
from stn_server.settings import all_settings, load

TEXTS = {
    "lifecycle.end_with_stdin": ("true", True),
    "oip.shared_memory": ("true", True),
    "listen": ("host:1,unix:/a", ("host:1", "unix:/a")),
    "listen_mode": ("0660", "0660"),
    "residents.address": ("10.0.0.7:50051", "10.0.0.7:50051"),
    "listen_group": ("100", "100"),
    "metrics_listen": ("host:2", "host:2"),
    "admin_listen": ("host:3", "host:3"),
    "reflection": ("off", "off"),
    "tracing": ("otlp", "otlp"),
    "device": ("cpu", "cpu"),
    "tls.certificate": ("/cert.pem", "/cert.pem"),
    "tls.key": ("/key.pem", "/key.pem"),
    "tls.client_ca": ("/ca.pem", "/ca.pem"),
    "auth.tokens": ("/tokens", "/tokens"),
    "auth.plaintext": ("allow", "allow"),
    "local.dir": ("/run/stn", "/run/stn"),
    "local.mode": ("0660", "0660"),
    "local.group": ("trainers", "trainers"),
    "log.level": ("debug", "debug"),
    "log.format": ("text", "text"),
    "batching.max_admitted_items": ("100", 100),
    "threads": ("100", 100),
}
COMPANIONS = {
    "tls.certificate": ["--tls-key=/key.pem"],
    "tls.key": ["--tls-certificate=/cert.pem"],
    "tls.client_ca": ["--tls-certificate=/cert.pem", "--tls-key=/key.pem"],
}
"""Without which a setting makes no sense."""
NUMBERS = ("1000000000", 1_000_000_000)
SETTINGS = list(all_settings())


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "server.toml"
        path.write_text(text)
        return path

    return write


def value_at(config, setting):
    """The value of a leaf of the tree."""
    for name in setting.path:
        config = getattr(config, name)
    return config


def test_without_sources_everything_is_as_documented():
    """The defaults of the tree hold, whatever else stands in the environment."""
    assert load([], {"PATH": "/bin", "XSTN_LOG_LEVEL": "?"}) == ServerConfig()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_can_be_given_as_flag_variable_and_in_the_file(setting, file):
    """The three names follow from the field's."""
    text, value = TEXTS.get(setting.name, NUMBERS)
    flag = "--" + re.sub(r"[._]", "-", setting.name)
    variable = "STN_" + setting.name.replace(".", "_").upper()
    section, _, name = setting.name.rpartition(".")
    toml = f"[{section}]\n" * bool(section) + f'{name} = "{text}"\n'
    beside = COMPANIONS.get(setting.name, [])
    for config in (
        load([*beside, f"{flag}={text}"], {}),
        load([*beside, flag, text], {}),
        load(beside, {variable: text}),
        load([*beside, f"--config={file(toml)}"], {}),
    ):
        assert value_at(config, setting) == value
        assert type(value_at(config, setting)) is type(setting.default)


def test_flags_of_the_tree_are_true_or_false(file):
    """In a file as TOML's own, too; anything else is refused, and no number is one."""
    section = "[lifecycle]\nend_with_stdin = "
    for text, value in (("true", True), ("False", False), ("1", True), ("0", False)):
        assert load([f"--lifecycle-end-with-stdin={text}"], {}).lifecycle.end_with_stdin is value
    assert load([f"--config={file(section + 'true')}"], {}).lifecycle.end_with_stdin is True
    with pytest.raises(ConfigError, match="expected a value of type bool, got 'maybe'"):
        load(["--lifecycle-end-with-stdin=maybe"], {})
    with pytest.raises(ConfigError, match="expected a value of type bool, got 7"):
        load([f"--config={file(section + '7')}"], {})
    with pytest.raises(ConfigError, match="expected a value of type int, got True"):
        load([f"--config={file('threads = true')}"], {})


def test_later_sources_win(file):
    """Flags over environment over file over defaults, name by name."""
    path = file("threads = 1\n[batching]\nmax_admitted_items = 1\nwindow_s = 0.1\n")
    environment = {
        "STN_CONFIG": str(path),
        "STN_THREADS": "2",
        "STN_BATCHING_MAX_ADMITTED_ITEMS": "2",
    }
    config = load(["--threads=3"], environment)
    assert config.threads == 3
    assert config.batching.max_admitted_items == 2
    assert config.batching.window_s == 0.1
    assert config.batching.max_batch_bytes == ServerConfig().batching.max_batch_bytes


def test_the_flag_config_wins_over_the_variable(file):
    """One file is read, not two."""
    path = file("threads = 5")
    config = load(["--config", str(path)], {"STN_CONFIG": "/does/not/exist"})
    assert config.threads == 5


def test_a_list_of_addresses_can_be_a_list_in_the_file(file):
    """TOML has arrays; text has commas."""
    path = file('listen = ["a:1", "unix:/b"]')
    assert load(["--config", str(path)], {}).listen == ("a:1", "unix:/b")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ["--batching-windw-s=1"],
            {},
            "--batching-windw-s: expected a known flag, got none. Did you mean --batching-window-s",
        ),
        (["--confg", "x"], {}, "Did you mean --config?"),
        (["--port=1"], {}, "--port: expected a known flag, got none. Did you mean --listen?"),
        (
            [],
            {"STN_HOST": "h"},
            "STN_HOST: expected a known variable, got none. Did you mean STN_LISTEN?",
        ),
        (
            ["--metrics-port=1"],
            {},
            "--metrics-port: expected a known flag, got none. Did you mean --metrics-listen?",
        ),
        (["threads"], {}, "threads: expected a known flag, got none. Did you mean --threads?"),
        (["--thread=1"], {}, "--thread: expected a known flag, got none. Did you mean --threads?"),
        (
            [],
            {"STN_LOG_LEVL": "info"},
            "STN_LOG_LEVL: expected a known variable, got none. Did you mean STN_LOG_LEVEL?",
        ),
        ([], {"STN_CONFG": "x"}, "Did you mean STN_CONFIG?"),
        (["--threads"], {}, "flags: argument --threads: expected one argument"),
    ],
    ids=str,
)
def test_an_unknown_name_suggests_the_nearest(arguments, environment, message):
    """A typo is not a default; abbreviations are typos."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(arguments, environment)


def test_variables_of_services_of_kubernetes_are_no_settings():
    """A Service called stn, or stn-server, makes them in every container of its namespace."""
    links = {
        f"{name}_{variable}": "tcp://10.0.0.1:50051"
        for name in ("STN", "STN_SERVER", "STN_2")
        for variable in (
            *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP"),
            *("PORT_50051_TCP_PROTO", "PORT_50051_TCP_PORT", "PORT_50051_TCP_ADDR"),
        )
    }
    assert load([], links) == ServerConfig()
    assert not links.keys() & {setting.variable for setting in SETTINGS}
    with pytest.raises(ConfigError, match="STN_PORTS: expected a known variable"):
        load([], {"STN_PORTS": "1"})


def test_blanks_around_a_value_do_not_count():
    """As files of variables keep them, with the ends of lines of Windows."""
    environment = {
        "STN_LOG_LEVEL": " debug",
        "STN_REFLECTION": "off\r",
        "STN_OIP_SHARED_MEMORY": "true \r\n",
        "STN_THREADS": "\t3 ",
        "STN_LISTEN": " a:1 , unix:/b\r",
        "STN_LOCAL_DIR": " /run/stn ",
    }
    config = load(["--batching-window-s= 0.5"], environment)
    assert (config.log.level, config.reflection, config.threads) == ("debug", "off", 3)
    assert (config.listen, config.local.dir) == (("a:1", "unix:/b"), "/run/stn")
    assert config.oip.shared_memory
    assert config.batching.window_s == 0.5


def test_the_variables_of_the_engine_are_no_settings():
    """The engine reads them itself; they are neither unknown nor ours."""
    assert load([], {BACKEND_VARIABLE: "torch", "STN_KERNEL_CACHE": "/cache"}) == ServerConfig()
    with pytest.raises(ConfigError, match=r"STN_BACKND: .* Did you mean STN_BACKEND\?"):
        load([], {"STN_BACKND": "torch"})


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[batching]\nwindow = 1",
            "batching.window: expected a known setting, got none. Did you mean batching.window_s?",
        ),
        ("[log.level]\nx = 1", "log.level.x: expected a known setting, got none."),
        ("threads = true", "threads: expected a value of type int, got True"),
        ("threads = [1]", "threads: expected a value of type int, got [1]"),
        ("threads = 100000", "threads: expected at most 1024, got 100000"),
        ("threads = 1.5", "threads: expected a value of type int, got '1.5'"),
        (
            "threads = 1979-05-27",
            "threads: expected a value of type int, got datetime.date(1979, 5, 27)",
        ),
        ("[batching]\nmax_batch_bytes = 0", "batching.max_batch_bytes: expected at least 1, got 0"),
        ("[lifecycle]\ngrace_s = inf", "lifecycle.grace_s: expected a finite number, got inf"),
        ("threads = ", "config: expected TOML in"),
        ("threads = 1\nthreads = 2", "config: expected TOML in"),
    ],
)
def test_a_file_says_what_is_wrong_with_it(toml, message, file):
    """By the name of the setting, or by the place where the syntax ends."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load([f"--config={file(toml)}"], {})


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path):
    """As editors of Windows write it, with their ends of lines."""
    path = tmp_path / "server.toml"
    path.write_bytes(b'\xef\xbb\xbf[log]\r\nlevel = "debug"\r\n')
    assert load([f"--config={path}"], {}).log.level == "debug"


@pytest.mark.parametrize("path", ["missing.toml", "."])
def test_an_unreadable_file_is_an_error(path, tmp_path):
    """It was asked for; going on without it would be a surprise."""
    with pytest.raises(ConfigError, match=r"^config: expected a readable file, got"):
        load([], {"STN_CONFIG": str(tmp_path / path)})


@pytest.mark.parametrize("text", ["", " "])
def test_a_name_of_no_file_is_an_error(text):
    """As compose makes it of a variable without a value."""
    with pytest.raises(ConfigError, match=r"^config: expected the name of a file, got none\."):
        load([], {"STN_CONFIG": text})


def test_a_file_that_is_not_text_is_an_error(tmp_path):
    """Bytes that are not UTF-8 are not TOML."""
    path = tmp_path / "server.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^config: expected TOML in"):
        load([f"--config={path}"], {})


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--threads=many"], {}, "--threads: expected a value of type int, got 'many'"),
        (["--threads=1e3"], {}, "--threads: expected a value of type int, got '1e3'"),
        ([], {"STN_LIFECYCLE_GRACE_S": "long"}, "STN_LIFECYCLE_GRACE_S: expected a value of type"),
        (["--batching-window-s", "-1"], {}, "batching.window_s: expected at least 0, got -1.0"),
        (["--log-level=loud"], {}, "log.level: expected one of debug, info, warning, error, got"),
        (["--listen=,"], {}, "listen: expected at least one address, got none"),
        (["--retained-bytes=" + "9" * 20], {}, "retained_bytes: expected at most 92233720368547"),
    ],
    ids=str,
)
def test_a_text_must_have_the_type_and_range_of_its_setting(arguments, environment, message):
    """The message begins with the name that the caller used, or the field's."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(arguments, environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "source"),
    [
        (["--threads=-1"], {"STN_THREADS": "2"}, "--threads"),
        ([], {"STN_THREADS": "-1", "STN_DEFAULTS": "--threads=2"}, "STN_THREADS"),
        ([], {"STN_DEFAULTS": "--threads=-1"}, "STN_DEFAULTS"),
        (["--config={file}"], {"STN_DEFAULTS": "--threads=2"}, "the file"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_told_with_its_source(tmp_path, arguments, environment, source):
    """A setting has four of them, of which one won."""
    file = tmp_path / "stn.toml"
    file.write_text("threads = -1")
    message = rf"^threads: expected at least 0, got -1\. It is set by {source}\.$"
    with pytest.raises(ConfigError, match=message):
        load([one.format(file=file) for one in arguments], environment)


def test_a_value_that_nobody_set_has_no_source():
    """As another one does not go with it."""
    with pytest.raises(ConfigError, match=r"batching\.max_admitted_bytes: .*, got \d+\.$"):
        load(["--limits-max-output-bytes=2147483648"], {})


def test_help_shows_every_flag_with_its_meaning(capsys):
    """And ends the program well."""
    with pytest.raises(SystemExit, match=r"^0$"):
        load(["--help"], {})
    shown = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS:
        assert f"{setting.flag} {setting.path[-1].upper()}" in shown
        assert setting.doc in shown


def test_every_leaf_of_the_tree_is_a_setting():
    """Nothing can be configured in code only."""

    def leaves(config):
        for entry in dataclasses.fields(config):
            value = getattr(config, entry.name)
            yield from leaves(value) if dataclasses.is_dataclass(value) else [entry.name]

    assert [setting.path[-1] for setting in SETTINGS] == list(leaves(ServerConfig()))
    assert all(setting.doc.endswith(".") for setting in SETTINGS)


def test_whoever_packs_a_server_has_other_defaults(file):
    """Unlike variables they give way to the file of whoever runs it, name by name."""
    packed = "--listen=0.0.0.0:50051 --metrics-listen 0.0.0.0:9464 --threads=1 --log-level='error'"
    variables = {"STN_DEFAULTS": packed}
    assert load([], variables).listen == ("0.0.0.0:50051",)
    path = file('listen = "127.0.0.1:7000"\nmetrics_listen = ""')
    config = load(["--config", str(path)], {**variables, "STN_THREADS": "2"})
    assert (config.listen, config.metrics_listen, config.threads) == (("127.0.0.1:7000",), "", 2)
    assert config.log.level == "error"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--threads='1", "STN_DEFAULTS: expected flags, got No closing quotation"),
        ("--threds=1", "STN_DEFAULTS: expected flags, got --threds: .* Did you mean --threads"),
        ("--threads=many", "STN_DEFAULTS: expected flags, got --threads: expected a value of type"),
        (
            "--config=a.toml",
            "STN_DEFAULTS: expected flags of settings, got --config, .* STN_CONFIG",
        ),
        ("/etc/stn.toml", "STN_DEFAULTS: expected flags, got /etc/stn.toml: expected a known flag"),
    ],
)
def test_wrong_defaults_are_an_error(text, message):
    """As wrong flags are, and it says whose they are."""
    with pytest.raises(ConfigError, match=message):
        load([], {"STN_DEFAULTS": text})


def test_a_table_of_the_file_may_hold_comments_alone(file):
    """So does one that is left when all its settings are commented out; of no name it is wrong."""
    assert load(["--config", str(file("[batching]\n# window_s = 1\n[log]"))], {}) == ServerConfig()
    with pytest.raises(ConfigError, match="batchin: expected a known setting, got none"):
        load(["--config", str(file("[batchin]"))], {})
    with pytest.raises(ConfigError, match=r"batching.window_s: expected a value of type float"):
        load(["--config", str(file("[batching.window_s]"))], {})


@pytest.mark.parametrize("name", ["auth.tokens", "tls.key", "listen_group", "listen"])
def test_texts_have_no_zero_bytes(file, name):
    """The system would refuse them as names, with an exception of its own."""
    with pytest.raises(ConfigError, match=f"{name}: expected text without zero bytes, got 'a"):
        load(["--config", str(file(f'{name} = "a\\u0000b"'))], {})


def test_texts_of_lists_have_no_zero_bytes(file):
    """They are checked one by one, as lists are how a file says several."""
    with pytest.raises(ConfigError, match="listen: expected text without zero bytes, got 'a"):
        load(["--config", str(file('listen = ["[::]:1", "a\\u0000b"]'))], {})


def test_errors_of_values_have_the_whole_name_once():
    """Also where the value is checked within its section."""
    with pytest.raises(ConfigError, match=r"^residents\.address: expected host:port, got 'x'"):
        load(["--residents-address=x"], {})


def test_an_empty_variable_switches_metrics_off():
    """It is a value, as that of the file is."""
    assert load([], {"STN_METRICS_LISTEN": ""}).metrics_listen == ""
