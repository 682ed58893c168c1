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

from support.native_calls import SENTINELS, Objectives, OnBytes, Warp, WarpGradients, bits_of
from support.native_items import DTYPES, address_of, layout_of, random_operands

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
    objectives = Objectives(_cpu, rng, crowd)
    objectives.expected_bits(rng)
    for _ in range(4 if objectives.crowd else 0):
        spoil_objective(rng, objectives)
    for gradients in (False, True):
        on_bytes = OnBytes(_cpu, rng, crowd, gradients=gradients)
        found = on_bytes.bits(int(rng.integers(1, 5)))
        assert found == on_bytes.expected_bits(), f"other bits: {crowd}"
        for _ in range(4 if on_bytes.crowd else 0):
            spoil_bytes(rng, on_bytes)
    assert before == [one.bits() for one in crowd], "operands were written to"


def spoil(rng, call):
    """Puts another array in place of one: it is refused, or turns out to be right."""
    index = int(rng.integers(len(call.crowd)))
    outputs, one = call.outputs(index, SENTINELS[2]), call.crowd[index]
    arrays = [one.feature_map, one.parameters, *(output and output.array for output in outputs)]
    if call.gradients:
        arrays.insert(0, one.grad_output)
    place = int(rng.integers(len(arrays)))
    if arrays[place] is not None:
        near = neighbours(rng, arrays[place])
        arrays[place] = near[rng.integers(len(near))]
    make = _cpu.Plan.gradients if call.gradients else _cpu.Plan.warp
    basis = [] if one.basis is None else [one.basis]
    first_result = 3 if call.gradients else 2
    with contextlib.suppress(ValueError, TypeError, KeyError):
        layouts = [None if array is None else layout_of(_cpu, array) for array in arrays]
        plan = make(one.options(_cpu), _cpu.Kind[one.kind], *layouts)
        given = [*arrays[:first_result], *basis, *arrays[first_result:]]
        if basis and place not in ({1, 3, 4} if call.gradients else {0}):
            return  # the basis belongs to other points, or to another target
        addresses = [address_of(array) for array in given if array is not None]
        _cpu.run([(plan, *addresses)], int(rng.integers(-1, 5)))
    bits_of(outputs)


def spoil_objective(rng, objectives):
    """Puts another array in place of one: it is refused, or turns out to be right."""
    index = int(rng.integers(len(objectives.crowd)))
    outputs, one = objectives.outputs(index, SENTINELS[2]), objectives.crowd[index]
    operands = [one.operands.feature_map, one.operands.parameters, one.fixed, one.weights]
    value, count, *results = [output and output.array for output in outputs]
    arrays = [*operands, *results]
    place = int(rng.integers(len(arrays)))
    if arrays[place] is not None:
        near = neighbours(rng, arrays[place])
        arrays[place] = near[rng.integers(len(near))]
    basis = [] if one.operands.basis is None else [one.operands.basis]
    with contextlib.suppress(ValueError, TypeError, KeyError):
        plan = one.plan(_cpu, *arrays)
        if basis and place == 1:
            return  # the basis belongs to other points
        given = [*arrays[:4], *basis, value, count, *arrays[4:]]
        addresses = [address_of(array) for array in given if array is not None]
        _cpu.run([(plan, *addresses)], int(rng.integers(-1, 5)))
    bits_of(outputs)


def spoil_bytes(rng, on_bytes):
    """Makes a plan or its bytes wrong: refused, or right after all."""
    index = int(rng.integers(len(on_bytes.crowd)))
    one, entries = on_bytes.crowd[index], list(on_bytes.call(index))
    place = int(rng.integers(len(entries)))
    with contextlib.suppress(ValueError, TypeError, MemoryError):
        if rng.random() < 0.5:
            maps = [one.grad_output, one.feature_map] if on_bytes.gradients else [one.feature_map]
            results = [one.feature_map, one.parameters] if on_bytes.gradients else [one.grad_output]
            arrays = [*maps, one.parameters, *results]
            make = _cpu.Plan.gradients if on_bytes.gradients else _cpu.Plan.warp
            layouts = [odd_layout(rng, array) for array in arrays]
            entries[0] = make(one.options(_cpu), _cpu.Kind[one.kind], *layouts)
        elif rng.random() < 0.5:
            entries[place] = wrong(rng)
        elif rng.random() < 0.1:
            del entries[place]
        else:
            entries[place] = bytes(entries[place])[: rng.integers(100)]
        _cpu.run([on_bytes.call(index), tuple(entries)], int(rng.integers(-1, 5)))


def odd_layout(rng, array):
    """Near to that of an array, or far from it."""
    shape, strides = list(array.shape), [stride // array.itemsize for stride in array.strides]
    if rng.random() < 0.5:
        changed = shape if rng.random() < 0.5 else strides
        changed[rng.integers(array.ndim)] = int(rng.choice([-1, 0, 1, 2, 7, 2**31, 2**62]))
    return _cpu.Layout(_cpu.Storage[str(array.dtype)], shape, strides)


def wrong(rng):
    """Something else in place of an entry, but no number: that would be an address."""
    others = [None, 3.5, "x", (), b"1234", np.zeros(3), np.zeros((1, 1, 2, 2), complex)]
    others += [np.zeros(rng.integers(0, 4, rng.integers(0, 7)), DTYPES[rng.choice(4)])]
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
