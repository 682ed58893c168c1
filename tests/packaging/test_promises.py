"""Every promise of the server's README names a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<promise>[^|]+) \| `(?P<file>tests/[^`]+)` `(?P<name>\w+)` \|$", re.MULTILINE
)


def test_promises_are_proved_by_tests_that_exist():
    """Each row of the table, and no row without a test."""
    section = (ROOT / "server/README.md").read_text().split("## What you can rely on")[1]
    table = section.split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    promises = [row for row in rows if "| --- |" not in row]
    found = list(ROW.finditer(table))
    assert len(found) == len(promises) > 10
    for match in found:
        source = (ROOT / match["file"]).read_text()
        assert re.search(
            rf"^(async )?(def {match['name']}\(|{match['name']} = )", source, re.MULTILINE
        ), match["promise"]
