"""What the container suite says where it finds no engine, and what it leaves behind then."""

import os
import shutil

import pytest

from support.engine import running_engine


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts an engine for root, where nobody listens and nothing else is installed."""
    programs, folder = tmp_path / "bin", tmp_path / "engine"
    programs.mkdir()
    folder.mkdir()
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def start(script=None, **options):
        if script is not None:
            shell = shutil.which("sh", path=os.defpath)
            (programs / "dockerd").write_text(f"#!{shell}\n{script}\n")
            (programs / "dockerd").chmod(0o755)
        return running_engine(folder, f"unix://{tmp_path}/nobody", **options)

    yield start
    assert not list(folder.glob("*"))


def assert_refused(engine, match):
    """Entering raises."""
    with pytest.raises(RuntimeError, match=match), engine:
        pass


def test_without_an_engine_it_says_what_to_install(start):
    """There is no dockerd."""
    assert_refused(start(), r"dockerd and root .*, got neither\. apt install docker")


def test_without_root_it_says_so(start, monkeypatch):
    """There is dockerd, and nobody who may start it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert_refused(start("exit 0"), r"dockerd and root to start one, got neither")


def test_an_engine_that_fails_is_quoted(start):
    """With its exit code and its log."""
    assert_refused(
        start("echo no space left >&2; exit 3"), r"got exit code 3\. Its log:\nno space left"
    )


def test_an_engine_that_never_answers_is_given_up(start):
    """It is stopped, too."""
    assert_refused(
        start("exec /bin/sleep 1000", patience_s=0), r"expected an answer within 0 s, got none\."
    )


def test_an_engine_that_is_named_is_taken(start, monkeypatch):
    """Nothing is started beside it, whether it answers or not."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine:2375")
    with start("exit 1") as url:
        assert url == "tcp://engine:2375"
