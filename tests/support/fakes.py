"""Stand-ins for what stands around a batcher: a runner under the test's control, a listener."""

from __future__ import annotations

import asyncio
import math

from stn_server.context import AbortedError, Context
from stn_server.events import Listener


def echo(batch):
    """Every problem is its own result."""
    return batch.problems


def feature_maps(batch):
    """What warps by the identity would return."""
    return [problem[1][:1] for problem in batch.problems]


class FakeRunner:
    """Computes when the test says so, or at once.

    Args:
        answer: Batch -> outcomes, or an exception to raise.
        held: Whether batches wait for `release`.

    Attributes:
        batches: The problems of every batch so far, in order of launch.
    """

    def __init__(self, answer=echo, *, held=False):
        self.batches = []
        self._answer = answer
        self._held = held
        self._begun = asyncio.Condition()
        self._gates = []

    async def run(self, batch):
        self.batches.append(list(batch.problems))
        async with self._begun:
            self._begun.notify_all()
        if self._held:
            gate = asyncio.Event()
            self._gates.append(gate)
            await gate.wait()
        return self._answer(batch)

    async def begun(self, count):
        """Returns when so many batches have been launched."""
        async with self._begun:
            await self._begun.wait_for(lambda: len(self.batches) >= count)

    def hold(self):
        """Lets batches wait from now on."""
        self._held = True

    def release(self):
        """Lets the oldest batch that waits finish."""
        self._gates.pop(0).set()

    def release_all(self):
        """Lets every batch finish, those to come as well."""
        self._held = False
        while self._gates:
            self.release()

    def run_inline(self, _batch):
        """Everything is worth a task."""

    def close(self):
        """As `EngineRunner.close`."""


class PromptRunner(FakeRunner):
    """Computes everything at once, but for batches of `tasks`, which are worth one."""

    def __init__(self, answer=echo, *, tasks=()):
        super().__init__(answer)
        self._tasks = tasks

    def run_inline(self, batch):
        problems = batch.problems
        if any(problem in self._tasks for problem in problems):
            return None
        self.batches.append(problems)
        return self._answer(batch)


class Recorder(Listener):
    """Remembers what it is told."""

    def __init__(self):
        self.abandoned = 0
        self.batches = []

    def item_abandoned(self):
        self.abandoned += 1

    def batch_ended(self, batch, queue_s, compute_s):
        self.batches.append((len(batch.problems), list(queue_s), compute_s))


class FakeContext(Context):
    """A call whose message comes in, and whose reply leaves, when the test says so."""

    AbortedError = AbortedError

    def __init__(
        self, metadata=(), time_remaining_s=math.inf, peer="ipv4:127.0.0.1:40000", name=""
    ):
        super().__init__(metadata, peer, certified_name=name)
        self._time_remaining_s = time_remaining_s
        self._sizes = asyncio.Queue()
        self._messages = asyncio.Queue()
        self._is_announced = self._is_amid = False

    def announce(self, size_bytes):
        """The size of its message is there."""
        self._is_announced = True
        self._sizes.put_nowait(size_bytes)

    def receive(self, message):
        """Its message is there; None: it has none."""
        if not self._is_announced:
            self.announce(None if message is None else len(message))
        self._messages.put_nowait(message)

    @property
    def is_amid_message(self):
        return self._is_amid

    async def announced_bytes(self):
        self._is_amid = True
        return await self._sizes.get()

    async def read(self):
        message = await self._messages.get()
        self._is_amid = False
        return message

    def remaining_s(self):
        return self._time_remaining_s

    @property
    def aborted(self):
        """Code, message and metadata with which it was aborted."""
        ending = self.ending
        return None if ending is None else (ending.code, ending.message, ending.metadata)
