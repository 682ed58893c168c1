"""The file of tokens: what it may say, and whom it knows."""

import hashlib
import math
import re
from pathlib import Path

import pytest

from stn_server.config import ConfigError
from stn_server.tokens import UNLIMITED, Quota, read_tokens
from support.tokens import entry

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def read(tmp_path):
    def write_and_read(text):
        path = tmp_path / "tokens.toml"
        path.write_text(text, encoding="utf-8")
        return read_tokens(str(path))

    return write_and_read


README = Path(__file__).parents[2] / "server/README.md"


def test_the_example_of_the_readme_is_a_file_of_tokens(read):
    """It can be copied, but for the digest."""
    (example,) = re.findall(
        r"^  ```toml\n(.*?)^  ```", README.read_text(), re.DOTALL | re.MULTILINE
    )
    (token,) = read(example)._tokens
    assert token.quota == Quota(max_calls=64, max_bytes=2**30, calls_per_s=100)


def test_a_token_is_found_by_its_text(read):
    """And no other text finds it, its digest least of all."""
    tokens = read(entry("alice", "secret") + entry("bob", "other"))
    assert [tokens.find(text).name for text in ("secret", "other")] == ["alice", "bob"]
    for text in ("", "secret ", "Secret", "alice", DIGEST, "s\N{LATIN SMALL LETTER E WITH ACUTE}"):
        assert tokens.find(text) is None


def test_a_file_may_begin_with_a_mark_of_its_encoding(read):
    """As editors of Windows write it."""
    assert read("\N{ZERO WIDTH NO-BREAK SPACE}" + entry("alice", "secret")).find("secret")


def test_what_is_left_out_is_not_limited(read):
    """Each limit by itself."""
    tokens = read(
        entry("free", "a")
        + entry("calls", "b", max_calls=2)
        + entry("all", "c", max_calls=1, max_bytes=2, calls_per_s=0.5)
        + entry("open", "d", max_bytes=math.inf)
    )
    assert tokens.find("a").quota is UNLIMITED
    assert tokens.find("b").quota == Quota(max_calls=2)
    assert tokens.find("c").quota == Quota(max_calls=1, max_bytes=2, calls_per_s=0.5)
    assert tokens.find("d").quota == UNLIMITED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "auth.tokens: expected at least one token in"),
        ("[a", "auth.tokens: expected TOML in"),
        ("secret = 'alice'", "auth.tokens: entry 1: expected a table with sha256, got a value."),
        (entry("a", "x") + "['a secret']", "auth.tokens: entry 2: expected a name of letters"),
        ("[a]", "a.sha256: expected 64 hexadecimal digits, got something else."),
        ("[a]\nsha256 = 'secret'", "a.sha256: expected 64 hexadecimal digits"),
        (f"[a]\nsha256 = '{DIGEST.upper()}'", "a.sha256: expected 64 hexadecimal digits"),
        (f"[a]\nsha256 = '{DIGEST}'\nmax_call = 1", "Did you mean a.max_calls?"),
        (f"[a]\nsha256 = '{DIGEST}'\n[b]\nsha256 = '{DIGEST}'", "got one twice."),
        *(
            (f"[a]\nsha256 = '{DIGEST}'\n{key} = {value}", f"a.{key}: expected a number above 0")
            for key in ("max_calls", "max_bytes", "calls_per_s")
            for value in ("0", "-1", "nan", "true", "'1'")
        ),
    ],
)
def test_a_broken_file_says_where_and_never_quotes_a_token(read, text, message):
    """Somebody may have forgotten to hash it."""
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        read(text)
    assert "secret" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    """As a path that is a folder, or bytes that are not text."""
    with pytest.raises(ConfigError, match=r"^auth\.tokens: expected a readable file, got"):
        read_tokens(str(tmp_path))
    path = tmp_path / "tokens.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"^auth\.tokens: expected TOML in"):
        read_tokens(str(path))
