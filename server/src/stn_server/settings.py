"""Fills `ServerConfig` from its sources: defaults, TOML file, environment, flags; later ones win.

An image of a server may have defaults of its own, as flags in the variable `STN_DEFAULTS`, over
which every other source wins: variables for each setting would win over the operator's file.

Names follow from the tree: the field `batching.window_s` is `[batching] window_s` in the file,
`STN_BATCHING_WINDOW_S` in the environment and `--batching-window-s` as a flag. An unknown name is
an error that suggests the nearest known one.
"""

from __future__ import annotations

import math
import re
import shlex
import tomllib
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from stn_server.config import ConfigError, ServerConfig, unknown
from stn_server.sizing import defaults_within

ENVIRONMENT_PREFIX = "STN_"
CONFIG_FILE = "config"
DEFAULTS_VARIABLE = "STN_DEFAULTS"
ENGINE_VARIABLES = ("STN_BACKEND", "STN_KERNEL_CACHE")
"""Variables that share the prefix and are read by the engine itself."""

_SERVICE_LINK = re.compile(
    r"STN(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)"
)
"""Variables by which Kubernetes tells every container of a Service called stn, or stn-something."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A leaf of the configuration tree."""

    path: tuple[str, ...]
    kind: Any
    default: Any
    doc: str

    @property
    def name(self) -> str:
        """The name of the setting in the file: `batching.window_s`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The variable of the environment: `STN_BATCHING_WINDOW_S`."""
        return ENVIRONMENT_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        """The flag of the command line: `--batching-window-s`."""
        return "--" + "-".join(self.path).replace("_", "-")

    def parse(self, source: str, text: str) -> Any:
        """Returns the value that a text stands for."""
        text = text.strip()  # files of variables keep blanks, and ends of lines of Windows
        if "\0" in text:  # only a file can hold one, and the system takes none in names
            raise ConfigError(f"{source}: expected text without zero bytes, got {text!r}.")
        if self.kind == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        converters: dict[Any, Callable[[str], Any]] = {int: int, float: float, bool: _truth}
        convert = converters.get(self.kind, str)
        try:
            return convert(text)
        except ValueError:
            kind = self.kind.__name__
            raise ConfigError(f"{source}: expected a value of type {kind}, got {text!r}.") from None

    def check(self, source: str, value: Any) -> Any:
        """Returns a value of a TOML file in the type of this setting."""
        if self.kind == tuple[str, ...] and isinstance(value, list):
            return tuple(part for one in value for part in self.check(source, one))
        is_text = isinstance(value, str)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_text or (isinstance(value, bool) if self.kind is bool else is_number)):
            kind = getattr(self.kind, "__name__", "str")
            raise ConfigError(f"{source}: expected a value of type {kind}, got {value!r}.")
        return self.parse(source, str(value))


def _truth(text: str) -> bool:
    """Returns whether a text says true or false.

    Raises:
        ValueError: It says neither.
    """
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError(text)
    return text.lower() in {"true", "1"}


def all_settings(config: Any = ServerConfig, prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yields every leaf of the tree, in its order."""
    hints = get_type_hints(config)
    for entry in fields(config):
        kind, path = hints[entry.name], (*prefix, entry.name)
        if is_dataclass(kind):
            yield from all_settings(kind, path)
        else:
            yield Setting(path, kind, entry.default, entry.metadata["doc"])


def load(
    arguments: Sequence[str], environment: Mapping[str, str], memory_bytes: float = math.inf
) -> ServerConfig:
    """Returns the configuration that command line, environment and file ask for.

    Args:
        arguments: The arguments of the command line.
        environment: All variables.
        memory_bytes: The memory limit of the process, which defaults have to fit into.

    Raises:
        ConfigError: An unknown name, an unreadable file, or a value out of its range.
        SystemExit: `--help` or `--version` was asked for.
    """
    known = {setting.name: setting for setting in all_settings()}
    flags = _from_flags(arguments, known)
    variables = _from_environment(environment, known)
    given = {**variables, **flags}
    file = _from_file(given.pop(CONFIG_FILE).strip(), known) if CONFIG_FILE in given else {}
    defaults = _from_defaults(environment.get(DEFAULTS_VARIABLE, ""), known)
    values = {**defaults, **file, **given}
    fitting = defaults_within(memory_bytes, values)
    try:
        config: ServerConfig = _build(ServerConfig, {**fitting, **values})
    except ConfigError as error:
        name = str(error).partition(":")[0]
        sources = {
            **dict.fromkeys(defaults, DEFAULTS_VARIABLE),
            **dict.fromkeys(file, "the file"),
            **{one: known[one].variable for one in variables if one in known},
            **{one: known[one].flag for one in flags if one in known},
        }
        if name not in sources:
            raise
        raise ConfigError(f"{error} It is set by {sources[name]}.") from None
    return config


def _from_flags(arguments: Sequence[str], known: Mapping[str, Setting]) -> dict[str, Any]:
    description = (
        "Serves warps and their exact gradients over gRPC. A setting comes from its flag, or else "
        f"from its variable ({ENVIRONMENT_PREFIX}LISTEN for --listen), or else from the file."
    )
    parser = _Parser(prog="stn-server", description=description, allow_abbrev=False)
    parser.add_argument(
        "--version", action="version", version=f"stn-server {version('stn-server')}"
    )
    parser.add_argument("--config", default=SUPPRESS, metavar="FILE", help="TOML file to read")
    for setting in known.values():
        parser.add_argument(
            setting.flag,
            dest=setting.name,
            default=SUPPRESS,
            metavar=setting.path[-1].upper(),
            help=f"{setting.doc} Default: {setting.default}",
        )
    found, extra = parser.parse_known_args(arguments)
    flags = ["--config", *(setting.flag for setting in known.values())]
    for argument in extra:
        raise unknown("flag", argument.split("=")[0], flags)
    return {
        name: text if name == CONFIG_FILE else known[name].parse(known[name].flag, text)
        for name, text in vars(found).items()
    }


def _from_environment(
    environment: Mapping[str, str], known: Mapping[str, Setting]
) -> dict[str, Any]:
    by_variable = {setting.variable: setting for setting in known.values()}
    config_variable = ENVIRONMENT_PREFIX + CONFIG_FILE.upper()
    others = (DEFAULTS_VARIABLE, *ENGINE_VARIABLES)
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable == config_variable:
            values[CONFIG_FILE] = text
        elif setting := by_variable.get(variable):
            values[setting.name] = setting.parse(variable, text)
        elif (
            variable.startswith(ENVIRONMENT_PREFIX)
            and variable not in others
            and not _SERVICE_LINK.fullmatch(variable)
        ):
            known_variables = [config_variable, *others, *by_variable]
            raise unknown("variable", variable, known_variables)
    return values


def _from_defaults(text: str, known: Mapping[str, Setting]) -> dict[str, Any]:
    """Returns the values of flags in one text, quoted as for a shell."""
    try:
        values = _from_flags(shlex.split(text), known)
    except ValueError as error:
        raise ConfigError(f"{DEFAULTS_VARIABLE}: expected flags, got {error}") from error
    if CONFIG_FILE in values:
        expected = "expected flags of settings, got --config, which wins over settings here"
        raise ConfigError(f"{DEFAULTS_VARIABLE}: {expected}. Set STN_CONFIG.")
    return values


def _from_file(path: str, known: Mapping[str, Setting]) -> dict[str, Any]:
    if not path:
        raise ConfigError("config: expected the name of a file, got none. Leave it out.")
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"config: expected a readable file, got {error}.") from error
    except ValueError as error:
        raise ConfigError(f"config: expected TOML in {path}, got {error}.") from error
    values = {}
    for name, value in _flattened(tree):
        if value == {} and any(other.startswith(f"{name}.") for other in known):
            continue  # a table all of whose settings are comments
        if name not in known:
            raise unknown("setting", name, list(known))
        values[name] = known[name].check(f"{path}: {name}", value)
    return values


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _build(config: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    """Builds a dataclass of the tree from values by dotted name; others keep their defaults."""
    hints = get_type_hints(config)
    arguments: dict[str, Any] = {}
    for entry in fields(config):
        name = prefix + entry.name
        if is_dataclass(kind := hints[entry.name]) and isinstance(kind, type):
            arguments[entry.name] = _build(kind, values, f"{name}.")
        elif name in values:
            arguments[entry.name] = values[name]
    try:
        return config(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


class _Parser(ArgumentParser):
    """A parser that raises where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"flags: {message}.")
