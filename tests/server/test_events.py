"""Who hears what: what a listener overrides, in the order of the listeners."""

import inspect

from stn_server.events import NO_LISTENERS, Events, Listener, Stage

EVENTS = [name for name, _ in inspect.getmembers(Listener, inspect.isfunction)]


class Counting(Listener):
    """Hears of stages alone."""

    def __init__(self, told):
        self._told = told

    def reached(self, stage, calls):
        self._told.append((self, stage, calls))


def test_what_nobody_overrides_is_told_to_nobody():
    """So that it costs nothing to tell."""
    events = Events(Listener(), Counting([]))
    heard = {name for name in EVENTS if getattr(events, name)}
    assert heard == {"reached"}
    assert all(getattr(NO_LISTENERS, name) == [] for name in EVENTS)


def test_every_event_has_its_place():
    """None is declared and forgotten, in either class."""
    assert set(vars(NO_LISTENERS)) == set(EVENTS)


def test_all_who_listen_are_told_in_order():
    """Each once, with the same facts."""
    told = []
    listeners = Counting(told), Counting(told)
    for tell in Events(*listeners).reached:
        tell(Stage.DECODE, (None,))
    assert told == [(listener, Stage.DECODE, (None,)) for listener in listeners]


class Deeper(Counting):
    """Inherits what it hears."""


def test_what_is_inherited_is_heard():
    """A listener need not repeat what its base class does."""
    told = []
    listener = Deeper(told)
    (tell,) = Events(listener).reached
    tell(Stage.SEND, ())
    assert told == [(listener, Stage.SEND, ())]
