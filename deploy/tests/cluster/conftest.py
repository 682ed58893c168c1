"""One cluster for all tests of this folder, which has what operators define, but no operators."""

import os
from pathlib import Path

import pytest

from support.cluster import running_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Shared: every test has namespaces of its own."""
    definitions = Path(os.environ.get("CRDS") or "CRDS")
    with running_cluster(tmp_path_factory.mktemp("cluster"), definitions) as running:
        yield running
