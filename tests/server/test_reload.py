"""Values from files: when they are read, and what a broken change does."""

import threading

import pytest

from stn_server.config import ConfigError
from stn_server.events import Events, Listener
from stn_server.reload import Reloaded, Watch


class Box(Listener):
    """A file with a number, and what was told about it."""

    def __init__(self, folder):
        self.path = folder / "number"
        self.told, self.reads = [], 0
        self.put("1")
        self.value = Reloaded("box", [str(self.path)], self.read, Events(self))

    def put(self, text):
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)

    def look(self):
        """Until what changed has stayed as it is."""
        self.value.look()
        self.value.look()

    def read(self):
        self.reads += 1
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"box: expected a number, got {error}.") from error

    def file_changed(self, name, outcome, reason):
        assert bool(reason) == (outcome == "rejected")
        self.told.append((name, outcome))


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


def test_a_file_that_stays_is_read_once(box):
    """Looking is not reading."""
    for _ in range(3):
        box.look()
    assert (box.value.current(), box.reads, box.told) == (1, 1, [])


def test_a_value_is_had_without_a_look_at_its_file(box):
    """Who asks for it may be an event loop, and the file may lie where reading takes long."""
    box.put("2")
    assert box.value.current() == 1
    box.look()
    assert box.value.current() == 2


def test_a_change_counts_from_the_next_look_on(box):
    """Replaced, or written in place."""
    box.put("2")
    box.look()
    assert box.value.current() == 2
    box.path.write_text("345")
    box.look()
    assert box.value.current() == 345
    assert box.told == [("box", "accepted")] * 2


def test_a_file_that_becomes_readable_has_changed(box):
    """Neither its time nor its size tells; permissions count, too."""
    box.path.chmod(0o400)
    box.look()
    assert (box.reads, box.told) == (2, [("box", "accepted")])


def test_a_file_can_be_read_though_it_did_not_change(box):
    """Who asks for it has a reason."""
    box.value.look(anyway=True)
    assert (box.reads, box.told) == (2, [("box", "accepted")])


def test_what_is_still_being_written_is_left_for_later(box):
    """A certificate may be there before its key; nothing is told of half a change."""
    for text in ("bro", "broken", "27"):
        box.path.write_text(text)
        box.value.look()
    assert (box.reads, box.told) == (1, [])
    box.value.look()
    assert (box.value.current(), box.told) == (27, [("box", "accepted")])


@pytest.mark.parametrize("text", ["broken", None])
def test_a_broken_change_keeps_what_was(box, text):
    """It is told once, not at every look; what is put right is taken again."""
    if text is None:
        box.path.unlink()
    else:
        box.put(text)
    for _ in range(3):
        box.look()
    assert box.value.current() == 1
    assert (box.reads, box.told) == (2, [("box", "rejected")])
    box.put("2")
    box.look()
    assert box.value.current() == 2
    assert box.told[1:] == [("box", "accepted")]


def test_a_file_that_vanishes_while_it_is_read_is_a_broken_change(box):
    """What opens it says so in the words of the system."""

    def vanish():
        raise FileNotFoundError(2, "No such file or directory")

    value = Reloaded("box", [str(box.path)], lambda: 1, Events(box))
    value._load = vanish
    value.look(anyway=True)
    assert (value.current(), box.told) == (1, [("box", "rejected")])


@pytest.mark.parametrize("asked", [False, True])
def test_a_watch_looks_by_itself_and_when_it_is_asked(tmp_path, asked):
    """In a thread of its own; a file that did not change is read only when asked."""
    path, read, told = tmp_path / "number", threading.Semaphore(0), threading.Semaphore(0)
    path.write_text("1")
    threads = set()

    def load():
        threads.add(threading.current_thread().name)
        read.release()
        return int(path.read_text())

    class Told(Listener):
        def file_changed(self, *_):
            told.release()

    watch = Watch(Events(Told()), look_s=3600.0 if asked else 0.001)
    value = watch.value("box", [str(path)], load)
    assert read.acquire(timeout=60)
    watch.start()
    if asked:
        watch.read_again()
    else:
        written = tmp_path / "written"
        written.write_text("22")
        written.replace(path)  # at once: the watch may look at any moment
    assert told.acquire(timeout=60)
    watch.stop()
    assert value.current() == (1 if asked else 22)
    assert threads == {threading.main_thread().name, "stn-files"}


def test_a_file_that_is_broken_from_the_start_is_an_error(box):
    """There is nothing to keep."""
    box.put("broken")
    with pytest.raises(ConfigError, match=r"^box: expected a number"):
        Reloaded("box", [str(box.path)], box.read, Events(box))
    assert box.told == []
