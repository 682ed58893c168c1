"""Fuzzes the native module of the CPU backend; `make fuzz-native` runs it under sanitizers.

A seed is a call of one to three items. Every instruction set, any number of threads, and the items
one by one must give the same bits, whatever the memory held before, and write nothing else. A
spoiled call must work or raise ValueError or TypeError. Each seed runs in a process that may die;
a failing seed is printed, with the command that repeats it.
"""

import argparse
import mmap
import os
import signal
import sys
import time
import traceback
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import _cpu
import numpy as np

from support.native_items import DTYPES, Output, exported, random_operands, random_order

LONGEST_CALL_S = 60
SENTINELS = (0x00, 0x5A, 0xFF)
STEPS = 50_000


def fuzz(seed):
    """Runs the call of a seed, and spoils it."""
    rng = np.random.default_rng(seed)
    crowd = [random_operands(rng) for _ in range(rng.integers(1, 4))]
    before = [one.bits() for one in crowd]
    for call in (Warp(rng, crowd), WarpGradients(rng, crowd)):
        expected = None
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            for threads in (1, int(rng.integers(2, 5))):
                found = call.bits(threads, int(rng.choice(SENTINELS)))
                expected = expected or found
                assert found == expected, f"other bits: {name}, {threads} threads, {call.crowd}"
        assert call.bits_one_by_one() == expected, f"other bits in a batch: {call.crowd}"
        for _ in range(4):
            call.spoil(rng)
    assert before == [one.bits() for one in crowd], "operands were written to"


class Warp:
    """V of a crowd of operands."""

    run = staticmethod(_cpu.warp)

    def __init__(self, rng, crowd):
        self.crowd = crowd
        self.orders = [(random_order(rng, one.feature_map.ndim),) for one in crowd]

    def outputs(self, index, sentinel):
        """Memory for the results of one item."""
        one = self.crowd[index]
        shape, dtype = one.grad_output.shape, one.feature_map.dtype
        return (Output(shape, dtype, self.orders[index][0], sentinel),)

    def more(self, _index, outputs):
        """The arrays of an item behind those that it reads."""
        return [None if output is None else output.array for output in outputs]

    def item(self, index, outputs):
        """An item."""
        return self.crowd[index].item(_cpu, *self.more(index, outputs))

    def bits(self, threads, sentinel):
        """All results of one call."""
        outputs = [self.outputs(i, sentinel) for i in range(len(self.crowd))]
        items = [self.item(i, outputs[i]) for i in range(len(self.crowd))]
        self.run(items, threads)
        return [bits_of(outputs[i]) for i in range(len(self.crowd))]

    def bits_one_by_one(self):
        """The same from one call for each item."""
        results = []
        for i in range(len(self.crowd)):
            outputs = self.outputs(i, SENTINELS[1])
            self.run([self.item(i, outputs)], 2)
            results.append(bits_of(outputs))
        return results

    def spoil(self, rng):
        """Makes an item wrong: it is refused, or turns out to be right."""
        index = int(rng.integers(len(self.crowd)))
        outputs = self.outputs(index, SENTINELS[2])
        entries = list(self.item(index, outputs))
        place = int(rng.integers(len(entries)))
        if rng.random() < 0.1:
            del entries[place]
        else:
            arrays = (*self.crowd[index].arrays, *self.more(index, outputs))
            entries[place] = wrong(rng, None if place < 2 else arrays[place - 2])
        try:
            self.run([tuple(entries)], int(rng.integers(-1, 5)))
        except (ValueError, TypeError, RuntimeError):
            pass
        bits_of(outputs)


class WarpGradients(Warp):
    """Gradients of a crowd of operands, of some of them by one operand only."""

    run = staticmethod(_cpu.warp_gradients)

    def __init__(self, rng, crowd):
        super().__init__(rng, [one for one in crowd if one.has_gradients])
        self.orders = [
            (
                random_order(rng, one.feature_map.ndim) if rng.random() < 0.8 else None,
                random_order(rng, one.parameters.ndim) if rng.random() < 0.8 else None,
            )
            for one in self.crowd
        ]

    def outputs(self, index, sentinel):
        """Memory for the gradients that are asked for; zeros where nothing is written."""
        one, (of_map, of_parameters) = self.crowd[index], self.orders[index]
        arrays = ((one.feature_map, of_map, one.is_empty),)
        arrays += ((one.parameters, of_parameters, one.moves_nothing),)
        return tuple(
            None if order is None else Output(a.shape, a.dtype, order, 0 if left else sentinel)
            for a, order, left in arrays
        )

    def more(self, index, outputs):
        """Those that it reads, G, and the gradients."""
        return [self.crowd[index].grad_output, *super().more(index, outputs)]

    def spoil(self, rng):
        """Makes an item wrong, if there is one."""
        if self.crowd:
            super().spoil(rng)


def bits_of(outputs):
    """The numbers of all outputs, whose guards must be intact."""
    asked = [output for output in outputs if output is not None]
    assert all(output.guards_are_intact() for output in asked), "written outside"
    return [output.bits() for output in asked]


def wrong(rng, array):
    """Something else in place of an entry."""
    others = [None, 3, "x", (), b"1234", np.zeros(3), np.zeros((1, 1, 2, 2), complex)]
    others += [np.zeros(rng.integers(0, 4, rng.integers(0, 7)), DTYPES[rng.choice(4)])]
    if array is not None:
        others += reshaped(rng, array) * 3
    return others[rng.integers(len(others))]


def reshaped(rng, array):
    """Neighbours of an array: other shapes, dtypes and strides."""
    axis = int(rng.integers(array.ndim))
    step = np.lib.stride_tricks.as_strided
    strides = rng.permutation(array.strides)
    some = [array[None], array[..., None], array[..., :-1], array[..., ::-1], array.swapaxes(0, axis)]
    some += [np.zeros((0, *array.shape[1:]), array.dtype), np.repeat(array, 2, axis)]
    some += [np.zeros(array.shape, DTYPES[rng.choice(4)]), np.zeros(array.shape, ">f4")]
    if array.size:
        some += [array.take(0, axis), step(array, array.shape, [0] * array.ndim)]
        some += [step(array, [2**20, *array.shape[1:]], [0, *array.strides[1:]])]
        if (strides >= 0).all() and min(array.shape) == max(array.shape):
            some += [step(array, array.shape, strides)]
    return [exported(one) for one in some]


def survives(seed, seconds):
    """Runs seeds from ``seed`` on in a child; the seed at which it died, or None."""
    current = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        os._exit(run_seeds(seed, seconds, current))
    _, status = os.waitpid(child, 0)
    last = int.from_bytes(current, "little")
    return last, status == 0


def run_seeds(seed, seconds, current):
    """The exit status of a child."""
    end = time.monotonic() + seconds
    try:
        for each in count(seed):
            current[:] = each.to_bytes(8, "little")
            signal.alarm(LONGEST_CALL_S)
            fuzz(each)
            if time.monotonic() > end:
                return 0
    except BaseException:
        traceback.print_exc()
    return 1


def main():
    """Fuzzes for a while; exit status 1 if any seed failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="0 runs one seed")
    parser.add_argument("--seed", type=int, default=int(time.time()) * STEPS)
    arguments = parser.parse_args()
    first = seed = arguments.seed
    end, failed = time.monotonic() + arguments.seconds, []
    while not failed or time.monotonic() < end:
        last, fine = survives(seed, max(0.0, end - time.monotonic()))
        seed = last + 1
        if fine:
            break
        failed.append(last)
        print(f"FAILED: --seed {last} --seconds 0", file=sys.stderr)
    print(f"{seed - first} seeds from {first} on, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
