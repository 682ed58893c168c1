"""The file of tokens: which callers are admitted, and how much each may use at once.

    [alice]
    sha256 = "83a1bfc7acb62003fc8f092875e2843dce4ec223be664a96fa349fe670821fd7"
    max_calls = 64           # in flight
    max_bytes = 1073741824   # of their operands and results
    calls_per_s = 100        # on average; up to one second's worth at once

What is left out is not limited. The file holds digests, so that reading it reveals no token.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn_server.config import ConfigError, unknown

QUOTAS = ("max_calls", "max_bytes", "calls_per_s")

_NAME_FORM = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST_FORM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The limits of one caller; infinity: no limit."""

    max_calls: float = math.inf
    """Calls in flight."""
    max_bytes: float = math.inf
    """The bytes of operands and results of the calls in flight."""
    calls_per_s: float = math.inf


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Token:
    """An entry of the file."""

    name: str
    digest: bytes
    quota: Quota


class Tokens:
    """All entries of the file."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = tokens

    def find(self, presented: str) -> Token | None:
        """Returns the entry of a token, None if it is unknown, in a time that tells nothing."""
        digest = hashlib.sha256(presented.encode()).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def read_tokens(path: str) -> Tokens:
    """Returns the entries of a file.

    Raises:
        ConfigError: The file cannot be read or breaks a rule. Never quotes what may be a token
            that was left unhashed by mistake.
    """
    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"auth.tokens: expected a readable file, got {error}.") from error
    except ValueError as error:
        raise ConfigError(f"auth.tokens: expected TOML in {path}, got {error}.") from error
    if not entries:
        raise ConfigError(f"auth.tokens: expected at least one token in {path}, got none.")
    tokens = tuple(_token(n, *entry) for n, entry in enumerate(entries.items(), start=1))
    if len({token.digest for token in tokens}) < len(tokens):
        raise ConfigError(f"auth.tokens: expected distinct tokens in {path}, got one twice.")
    return Tokens(tokens)


def _token(number: int, name: str, entry: Any) -> Token:
    """Reads one entry; errors do not quote its name, which may be a token by mistake."""
    where = f"auth.tokens: entry {number}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a table with sha256, got a value.")
    if not _NAME_FORM.fullmatch(name):
        raise ConfigError(f"{where}: expected a name of letters, digits and '_.-', got another.")
    for key in entry:
        if key not in {"sha256", *QUOTAS}:
            raise unknown("setting", f"{name}.{key}", [f"{name}.{k}" for k in ("sha256", *QUOTAS)])
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not _DIGEST_FORM.fullmatch(digest):
        raise ConfigError(f"{name}.sha256: expected 64 hexadecimal digits, got something else.")
    limits = {key: _limit(f"{name}.{key}", entry[key]) for key in QUOTAS if key in entry}
    return Token(name, bytes.fromhex(digest), Quota(**limits) if limits else UNLIMITED)


def _limit(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name}: expected a number above 0, got {value!r}.")
    return value
