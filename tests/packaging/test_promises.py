"""Every promise of the server's README names a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<proofs>[^|]+) \|$")
PROOF = re.compile(r"`(?P<file>tests/[^`]+)` `(?P<name>\w+)`")


def test_promises_are_proved_by_tests_that_exist():
    """Each row of the table, and no row without a test."""
    section = (ROOT / "server/README.md").read_text().split("## What you can rely on")[1]
    table = section.split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    promises = [ROW.match(row) for row in rows[2:]]  # behind the head of the table
    assert len(promises) > 10
    for row in promises:
        proofs = row["proofs"].split(", ")
        for proof in proofs:
            test = PROOF.fullmatch(proof)
            assert test, row["promise"]
            source = (ROOT / test["file"]).read_text()
            defined = rf"^(async )?(def {test['name']}\(|{test['name']} = )"
            assert re.search(defined, source, re.MULTILINE), row["promise"]
