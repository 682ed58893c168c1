"""What the common kernels cost, as their machine code says: registers, loops, and predicted times.

``python -m bench.kernel_costs`` prints them beside the committed table, with the times that they
predict for a device; with ``--write`` the table is written anew. Nothing here needs a GPU, and no
figure is a measurement: a device may take longer, waiting for memory, and never less.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from stn_engine.backends.cuda import compiler
from stn_engine.backends.cuda.programs import Program
from stn_engine.backends.cuda.tuning import THREADS
from stn_engine.spec import Interpolation
from support.cubins import ATOMICS, STORES, innermost_loops, operations, registers, stack_frames

ARCHITECTURE = "sm_90"
TABLE = Path(__file__).parent / "results" / "kernel_costs.json"
FEWEST_LOADS = 9
"""Of a loop that is in the table: others find problems and matrices, once for many pixels."""

PROGRAMS = (
    *(Program("warp", dtype) for dtype in (torch.float32, torch.bfloat16, torch.uint8)),
    Program("warp", interpolation=Interpolation.BICUBIC),
    *(Program(source) for source in ("slopes", "gather", "scatter", "moments", "objective")),
)
REGISTERS_OF_A_MULTIPROCESSOR = 1 << 16


@dataclass(frozen=True)
class Device:
    """What a prediction takes from a data sheet; the bandwidth is that of a copy, measured."""

    name: str
    multiprocessors: int
    clock_hz: float
    bytes_per_s: float

    def issue_us(self, instructions: float, pixels: int) -> float:
        """When four schedulers of each multiprocessor issue without a pause."""
        warps = pixels / 32
        return instructions * warps / (4 * self.multiprocessors * self.clock_hz) * 1e6

    def memory_us(self, size_bytes: int) -> float:
        """When all bytes move as fast as in a copy."""
        return size_bytes / self.bytes_per_s * 1e6


DEVICES = (Device("H200", 132, 1.755e9, 4.1e12), Device("H100", 132, 1.755e9, 2.9e12))

PIXELS = 32 * 512 * 512
PREDICTED = (
    # what, program, kernel, loads of its loop, pixels of a turn, turns for three channels, bytes
    ("forward", PROGRAMS[0], "stn_warp_matrix_planes", 48, 4, 1, 24),
    ("bicubic", PROGRAMS[3], "stn_warp_matrix_planes", 64, 4, 3, 24),
    ("bfloat16", PROGRAMS[1], "stn_warp_matrix_planes", 48, 4, 1, 12),
    ("gradient of theta", PROGRAMS[4], "stn_slopes_matrix_planes", 63, 4, 1, 24),
    ("gradient of U", PROGRAMS[5], "stn_gather_planes", 27, 1, 1, 24),
    ("objective", PROGRAMS[8], "stn_objective_matrix", 11, 1, 3, 24),
)
"""Calls for maps of 32x3x512x512, and the bytes that each pixel must at least move. Of two loops
with as many loads the longer one counts: the other is for channels that lie side by side."""


def costs_of(program: Program) -> dict[str, dict]:
    """What each kernel of a program costs."""
    code = bytes(compiler.cubin(program, ARCHITECTURE).code)
    taken, frames = registers(code), stack_frames(code)
    found = {}
    for kernel in program.kernels:
        done = operations(code, kernel)
        loops = [one for one in innermost_loops(code, kernel) if one.loads >= FEWEST_LOADS]
        found[kernel] = {
            "registers": taken[kernel],
            "blocks": REGISTERS_OF_A_MULTIPROCESSOR // (-(-taken[kernel] // 8) * 8 * THREADS),
            "local_bytes": frames[kernel],
            "generic_stores": sum(STORES.get(one, ATOMICS.get(one)) == "generic" for one in done),
            "instructions": len(done),
            "loops": [list(one) for one in loops],
        }
    return found


def all_costs() -> dict[str, dict]:
    """The costs of all programs of the table, by name."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(map(name_of, PROGRAMS), pool.map(costs_of, PROGRAMS), strict=True))


def name_of(program: Program) -> str:
    """How a program is called in the table."""
    dtype = str(program.dtype).removeprefix("torch.")
    return f"{program.source} {dtype} {program.interpolation}"


def print_predictions(costs: dict[str, dict]) -> None:
    """Instructions of a pixel of three channels in hot loops, and what they take."""
    print(f"{'':18} {'instructions':>12}", end="")
    for device in DEVICES:
        print(f" {device.name + ' issue':>12} {device.name + ' memory':>12}", end="")
    print(" us")
    for what, program, kernel, loads, pixels, turns, size_bytes in PREDICTED:
        loops = costs[name_of(program)][kernel]["loops"]
        longest = max(length for length, found in loops if found == loads)
        instructions = longest * turns / pixels
        print(f"{what:18} {instructions:12.1f}", end="")
        for device in DEVICES:
            issue, memory = device.issue_us(instructions, PIXELS), PIXELS * size_bytes
            print(f" {issue:12.1f} {device.memory_us(memory):12.1f}", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table anew")
    options = parser.parse_args()
    costs = all_costs()
    if options.write:
        TABLE.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(TABLE.read_text(encoding="utf-8"))
    for program, kernels in costs.items():
        for kernel, found in kernels.items():
            changed = "" if found == kept[program][kernel] else f"   was {kept[program][kernel]}"
            print(f"{program:24} {kernel:32} {found}{changed}")
    print_predictions(costs)


if __name__ == "__main__":
    main()
