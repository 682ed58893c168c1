"""A server process with a fault that its first call brings on: `faulty_server.py FAULT FLAGS...`.

Otherwise it is `stn-server`, with its flags, its output and its exit codes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from stn_server.command import run
from stn_server.errors import DeviceLostError
from stn_server.events import Listener, Stage
from support.faulty import InjectedError
from support.processes import environment


class LostDevice(Listener):
    """The device is gone as soon as a call wants it."""

    def reached(self, stage, calls):
        if stage is Stage.LAUNCH and calls[0] is not None:
            raise DeviceLostError("expected a device, got smoke")


class HungLoop(Listener):
    """The first call holds up the event loop for ever."""

    def reached(self, stage, _calls):
        if stage is Stage.DECODE:
            threading.Event().wait()


class StuckDevice(Listener):
    """The thread that computes waits for ever; small batches are computed in another one."""

    def reached(self, stage, calls):
        if stage is Stage.LAUNCH and calls[0] is not None:
            threading.Event().wait()


class SlowLoop(Listener):
    """Every call takes the event loop 10 ms."""

    def reached(self, stage, _calls):
        if stage is Stage.DECODE:
            threading.Event().wait(0.01)


class BusyLoop(Listener):
    """Every call takes the event loop 10 ms of its core."""

    def reached(self, stage, _calls):
        if stage is Stage.DECODE:
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass


class SlowDevice(Listener):
    """Every launch takes a lane 50 ms; only small batches take the event loop, too."""

    def reached(self, stage, calls):
        if stage is Stage.LAUNCH and calls[0] is not None:
            threading.Event().wait(0.05)


class FailingDevice(Listener):
    """From the first call on every second launch fails, of whomever it is, until SIGUSR1."""

    def __init__(self):
        self._launches = 0
        self._is_healed = False
        signal.signal(signal.SIGUSR1, self._heal)

    def _heal(self, *_signal):
        self._is_healed = True

    def reached(self, stage, calls):
        if stage is Stage.LAUNCH and not self._is_healed and (self._launches or calls[0]):
            self._launches += 1
            if self._launches % 2:
                raise InjectedError(stage)


class PoisonousGradients(Listener):
    """Gradients that callers ask for fail; those of the server itself do not."""

    def reached(self, stage, calls):
        if stage is Stage.LAUNCH and calls[0] is not None and calls[0].method == "WarpGradients":
            raise InjectedError(stage)


FAULTS = {
    "lost device": LostDevice,
    "stuck device": StuckDevice,
    "hung loop": HungLoop,
    "slow loop": SlowLoop,
    "busy loop": BusyLoop,
    "slow device": SlowDevice,
    "failing device": FailingDevice,
    "poisonous gradients": PoisonousGradients,
}


class FaultyServer:
    """The process, ready to be called.

    Args:
        fault: A key of `FAULTS`.
        *flags: Of `stn-server`.
        log: A file for its log.
    """

    def __init__(self, fault, *flags, log):
        ports = "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"  # unless flags say others
        with Path(log).open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, __file__, fault, *ports, *flags],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(),
                text=True,
            )
        addresses = json.loads(self.process.stdout.readline())
        (self.target,), self.metrics = addresses["targets"], addresses["metrics"]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    os._exit(run(sys.argv[2:], os.environ, FAULTS[sys.argv[1]]()))
