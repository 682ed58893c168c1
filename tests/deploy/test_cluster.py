"""What the suite of a real API server says where it finds none."""

import os
import shutil

import pytest

from support.cluster import SERVERS, running_cluster


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts a cluster whose programs do what a script says."""
    programs, folder, definitions = (tmp_path / name for name in ("bin", "cluster", "crds"))
    for path in (programs, folder, definitions):
        path.mkdir()
    openssl = shutil.which("openssl")
    shell = shutil.which("sh", path=os.defpath)
    monkeypatch.setenv("PATH", str(programs))
    (programs / "openssl").symlink_to(openssl)

    def start(names, script="exit 3", kinds=1):
        for name in names:
            (programs / name).write_text(f"#!{shell}\n{script}\n")
            (programs / name).chmod(0o755)
        for number in range(kinds):
            (definitions / f"{number}.yaml").touch()
        return running_cluster(folder, definitions)

    return start


def assert_refused(cluster, match):
    """Entering raises."""
    with pytest.raises(RuntimeError, match=match), cluster:
        pass


def test_missing_programs_are_named(start):
    """And which ones there have to be."""
    assert_refused(
        start(["etcd"]), r"expected etcd, .* on the PATH, got no kube-apiserver, kube-controller"
    )


def test_missing_definitions_are_named(start):
    """With the words of the command."""
    assert_refused(start(SERVERS, kinds=0), r"in .*/crds, got none\. .* test-cluster CRDS=folder")


def test_an_api_server_that_fails_is_quoted(start):
    """At once, with its log."""
    assert_refused(
        start(SERVERS, "echo no such flag >&2; exit 3"),
        r"kube-apiserver: expected an answer .*, got none\. Its log:\nno such flag",
    )
