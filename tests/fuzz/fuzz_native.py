"""Fuzzes the native module of the CPU backend; `make fuzz-native` runs it under sanitizers.

A seed is a call of one to three items. Every instruction set, any number of threads, and the items
one by one must give the same bits, whatever the memory held before, and write nothing else. A
spoiled call must work or raise ValueError or TypeError. Seeds run in a process that may die; a
failing seed is printed, with the options that repeat it.
"""

import argparse
import contextlib
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

from support.native_calls import SENTINELS, Forms, Warp, WarpGradients, bits_of
from support.native_items import DTYPES, exported, random_operands

LONGEST_CALL_S = 60


def fuzz(seed):
    """Runs the calls of a seed, and spoils them."""
    rng = np.random.default_rng(seed)
    crowd = [random_operands(rng) for _ in range(rng.integers(1, 4))]
    before = [one.bits() for one in crowd]
    for kind in (Warp, WarpGradients):
        call = kind(_cpu, rng, crowd)
        call.expected_bits(rng)
        for _ in range(4 if call.crowd else 0):
            spoil(rng, call)
    for gradients in (False, True):
        forms = Forms(_cpu, rng, crowd, gradients=gradients)
        assert forms.bits(int(rng.integers(1, 5))) == forms.expected_bits(), f"other bits: {crowd}"
        for _ in range(4 if forms.crowd else 0):
            spoil_form(rng, forms)
    assert before == [one.bits() for one in crowd], "operands were written to"


def spoil(rng, call):
    """Makes an item wrong: it is refused, or turns out to be right."""
    index = int(rng.integers(len(call.crowd)))
    outputs = call.outputs(index, SENTINELS[2])
    entries = list(call.item(index, outputs))
    place = int(rng.integers(len(entries)))
    if rng.random() < 0.1:
        del entries[place]
    else:
        arrays = (None, None, *call.crowd[index].arrays, *call.more(index, outputs))
        entries[place] = wrong(rng, arrays[place])
    with contextlib.suppress(ValueError, TypeError):
        call.run([tuple(entries)], int(rng.integers(-1, 5)))
    bits_of(outputs)


def spoil_form(rng, forms):
    """Makes a form or its bytes wrong: refused, or right after all."""
    index = int(rng.integers(len(forms.crowd)))
    one, entries = forms.crowd[index], list(forms.call(index))
    place = int(rng.integers(len(entries)))
    with contextlib.suppress(ValueError, TypeError, MemoryError):
        if rng.random() < 0.5:
            options, kind, *_ = one.item(_cpu)
            layouts = [odd_layout(rng, array) for array in (one.feature_map, one.parameters)]
            entries[0] = _cpu.Form(options, kind, *layouts, odd_layout(rng, one.grad_output))
        elif rng.random() < 0.5:
            entries[place] = wrong(rng, None)
        else:
            entries[place] = bytes(entries[place])[: rng.integers(100)]
        _cpu.compute([forms.call(index), tuple(entries)], int(rng.integers(-1, 5)))


def odd_layout(rng, array):
    """Near to that of an array, or far from it."""
    shape, strides = list(array.shape), [stride // array.itemsize for stride in array.strides]
    if rng.random() < 0.5:
        changed = shape if rng.random() < 0.5 else strides
        changed[rng.integers(array.ndim)] = int(rng.choice([-1, 0, 1, 2, 7, 2**31, 2**62]))
    return _cpu.Layout(_cpu.Storage[str(array.dtype)], shape, strides)


def wrong(rng, array):
    """Something else in place of an entry."""
    others = [None, 3, "x", (), b"1234", np.zeros(3), np.zeros((1, 1, 2, 2), complex)]
    others += [np.zeros(rng.integers(0, 4, rng.integers(0, 7)), DTYPES[rng.choice(4)])]
    if array is not None:
        others += [exported(near) for near in neighbours(rng, array)] * 3
    return others[rng.integers(len(others))]


def neighbours(rng, array):
    """Arrays of other shapes, dtypes and strides."""
    axis = int(rng.integers(array.ndim))
    strided = np.lib.stride_tricks.as_strided
    near = [array[None], array[..., None], array[..., :-1], array[..., ::-1]]
    near += [array.swapaxes(0, axis), np.repeat(array, 2, axis), array[:0]]
    near += [np.zeros(array.shape, DTYPES[rng.choice(4)]), np.zeros(array.shape, ">f4")]
    if array.size:
        near += [array.take(0, axis), strided(array, array.shape, [0] * array.ndim)]
        near += [strided(array, [200, *array.shape[1:]], [0, *array.strides[1:]])]
    return near


def run_seeds(first, seconds, current):
    """Runs seeds until one fails, or time is over; an exit status."""
    end = time.monotonic() + seconds
    try:
        for seed in count(first):
            current[:] = seed.to_bytes(8, "little")
            signal.alarm(LONGEST_CALL_S)
            fuzz(seed)
            if time.monotonic() > end:
                return 0
    except Exception:  # noqa: BLE001 - whatever it is, the seed that raised it is a finding
        traceback.print_exc()
    return 1


def last_seed(first, seconds):
    """Runs seeds in a child; the last one, and whether it went well."""
    current = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        os._exit(run_seeds(first, seconds, current))
    _, status = os.waitpid(child, 0)
    return int.from_bytes(current, "little"), status == 0


def main():
    """Fuzzes for a while; exit status 1 if any seed failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="0 runs one seed")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    arguments = parser.parse_args()
    end, seed, failed = time.monotonic() + arguments.seconds, arguments.seed, []
    while not failed or time.monotonic() < end:
        seed, fine = last_seed(seed, end - time.monotonic())
        if fine:
            break
        failed.append(seed)
        print(f"FAILED: --seed {seed} --seconds 0", file=sys.stderr, flush=True)
        seed += 1
    print(f"seeds from {arguments.seed} to {seed}, {len(failed)} failed: {failed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
