"""Values from files: when they are read, and what a broken change does."""

import pytest

from stn_server.config import ConfigError
from stn_server.reload import Reloaded


class Box:
    """A file with a number, and what was told about it."""

    def __init__(self, folder):
        self.path = folder / "number"
        self.told, self.reads = [], 0
        self.put("1")
        self.value = Reloaded("box", [str(self.path)], self.read, self.observe)

    def put(self, text):
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)

    def read(self):
        self.reads += 1
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"box: expected a number, got {error}.") from error

    def observe(self, name, outcome):
        self.told.append((name, outcome))


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


def test_a_file_that_stays_is_read_once(box):
    """Looking is not reading."""
    assert [box.value.current() for _ in range(3)] == [1, 1, 1]
    assert (box.reads, box.told) == (1, [])


def test_a_change_counts_from_the_next_use_on(box):
    """Replaced, or written in place."""
    box.put("2")
    assert box.value.current() == 2
    box.path.write_text("345")
    assert box.value.current() == 345
    assert box.told == [("box", "accepted")] * 2


@pytest.mark.parametrize("text", ["broken", None])
def test_a_broken_change_keeps_what_was(box, text):
    """It is told once, not at every use; what is put right is taken again."""
    if text is None:
        box.path.unlink()
    else:
        box.put(text)
    assert [box.value.current() for _ in range(3)] == [1, 1, 1]
    assert (box.reads, box.told) == (2, [("box", "rejected")])
    box.put("2")
    assert box.value.current() == 2
    assert box.told[1:] == [("box", "accepted")]


def test_a_file_that_is_broken_from_the_start_is_an_error(box):
    """There is nothing to keep."""
    box.put("broken")
    with pytest.raises(ConfigError, match=r"^box: expected a number"):
        Reloaded("box", [str(box.path)], box.read, box.observe)
    assert box.told == []
