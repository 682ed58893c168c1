"""Docstrings can be read alone: none is a fragment that needs the line above or another class."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAGMENT = re.compile(
    r"(Of|As|At|By|In|On|For|From|Through|Between|When|See|And|Those|Theirs|Told|Likewise|It is"
    r"|One of|Bytes of)\b"
)
LEAST_WORDS = 4
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


def sources():
    """Names of all Python files of the four projects that people write."""
    command = ["git", "ls-files", "*/src/*.py"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split() if "_pb2" not in name]


def fragments(name):
    """Where a docstring begins with a fragment, and what it is."""
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        text = ast.get_docstring(node) if isinstance(node, NAMED) else None
        first = "" if text is None else text.partition("\n\n")[0]
        if text and (FRAGMENT.match(first) or len(first.split()) < LEAST_WORDS):
            yield f"{name}:{getattr(node, 'lineno', 1)}: {first}"


@pytest.mark.parametrize("name", sources())
def test_docstrings_are_whole(name):
    assert list(fragments(name)) == []


def test_there_is_something_to_read():
    assert len(sources()) > 100
