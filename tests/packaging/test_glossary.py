"""The glossary: its words are used where it says so, and those that it retires are not."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "proto/GLOSSARY.md").read_text()
PROJECTS = ("proto", "stn_engine", "server", "client")
GENERATED = re.compile(r"_pb2|_pb2_grpc")


def table(title):
    """The rows of the table under a title, without its head."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def identifiers(project):
    """All names in the sources of a project, in lower case with words joined by underscores."""
    listed = subprocess.run(
        ["git", "ls-files", f"{project}/src"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    code = [
        (ROOT / name).read_text()
        for name in listed.stdout.split()
        if re.search(r"\.(py|h|cpp|cuh|cu|proto)$", name) and not GENERATED.search(name)
    ]
    names = set(re.findall(r"[A-Za-z_]\w*", "\n".join(code)))
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_") for name in names}


@pytest.fixture(scope="module")
def names():
    return {project: identifiers(project) for project in PROJECTS}


def is_part(word, name):
    """Whether a name has a word, in the singular or the plural, as a part of its own."""
    return re.search(rf"(^|_){word}s?(_|$)", name) is not None


WORDS = [
    (word.replace(" ", "_"), home)
    for words, _, homes in table("Used")
    for word in re.findall(r"\*([^*]+)\*", words)
    for home in (PROJECTS if homes == "all" else homes.split(", "))
]

RETIRED = [word for words, _ in table("Not used") for word in words.split(", ")]


@pytest.mark.parametrize(("word", "project"), WORDS)
def test_a_word_is_used_where_the_page_says_so(names, word, project):
    assert any(is_part(word, name) for name in names[project])


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_used_nowhere(names, word):
    found = {
        project: sorted(name for name in names[project] if is_part(word, name))
        for project in PROJECTS
    }
    assert not any(found.values()), found


def test_both_tables_are_read():
    assert len(WORDS) > 40
    assert len(RETIRED) > 10
