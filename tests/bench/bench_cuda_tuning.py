"""Variants of the constants that the CUDA kernels are tuned by, side by side on one GPU.

Every variant is a copy of the engine in which some constants have other values. All are compiled
first, side by side; then each is timed in a process of its own, in turns. One JSON line for
each variant and round: microseconds of the kernels of each call, by CUPTI, and what copies take.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS, HOST = Path("native/cuda/tuning.cuh"), Path("backends/cuda/tuning.py")
VARIANTS = {
    "as it is": {},
    "blocks 3": {"kBlocks": "kIsWide ? 2 : 3"},
    "backward 4": {
        "kGatherBlocks": "kIsWide ? 2 : 4",
        "kSlopeBlocks": "sizeof(T) == 8 ? 1 : kIsWide || K == 4 ? 2 : 4",
        "kVectorBlocks": "2",
    },
    "one tile": {"MOST_TILES": "1"},
    "four tiles": {"MOST_TILES": "4"},
}
"""New values of constants, by name."""


def copied(folder: Path, changes: dict[str, str]) -> Path:
    """A copy of the engine with other constants."""
    target = folder / "stn_engine"
    shutil.copytree(ROOT / "stn_engine" / "src" / "stn_engine", target)
    for name, value in changes.items():
        path = target / (HOST if name.isupper() else KERNELS)
        text = path.read_text(encoding="utf-8")
        text, count = re.subn(rf"(\b{name}\b[^=\n]* = )[^;\n]+", rf"\g<1>{value}", text)
        if count != 1:
            raise LookupError(f"expected one {name} in {path.name}, got {count}")
        path.write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, kernels: Path, *arguments: str) -> str:
    """One variant in a process of its own; what it prints."""
    paths = [str(folder), *(str(ROOT / one) for one in ("proto/src", "server/src", "tests"))]
    before = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, before]),
        "STN_KERNEL_CACHE": str(kernels),
    }
    command = [sys.executable, "-m", "bench.bench_cuda_tuning", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or json.dumps({"failed": done.stderr[-600:]})


def compile_all() -> None:
    """Compiles what is timed."""
    import torch  # noqa: PLC0415 - in the process of a variant only

    from stn_engine.backends.cuda import compiler  # noqa: PLC0415
    from stn_engine.backends.cuda.programs import Program  # noqa: PLC0415
    from stn_engine.spec import Interpolation  # noqa: PLC0415

    programs = [
        Program("parameters"),
        *(Program(one) for one in ("warp", "slopes", "gather")),
        *(Program("warp", one) for one in (torch.bfloat16, torch.uint8)),
        *(Program("warp", interpolation=one) for one in Interpolation),
    ]
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    architecture = "sm_{}{}".format(*capability)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: compiler.cubin(one, architecture), programs))
    print(json.dumps({"compiled": len(programs)}))


def time_all() -> None:
    """Times the calls of this process's engine."""
    import torch  # noqa: PLC0415 - in the process of a variant only

    from gpu_check import devices  # noqa: PLC0415
    from stn_engine import Affine, Flow, warp, warp_gradients  # noqa: PLC0415
    from support.plain_torch import turned  # noqa: PLC0415

    there = devices.device()

    def maps(*shape, last=False, dtype=torch.float32):
        shape = [*shape[:2], *(there.side_px(side) for side in shape[2:])]
        order = torch.channels_last if last else torch.contiguous_format
        values = torch.randn(shape, device=there.device) * 50 + 128
        return values.to(dtype).to(memory_format=order)

    n = there.side_px(32)
    found = {}

    def add(name, call):
        kernels = there.kernels_us(call)
        found[name] = {re.sub("^stn_", "", key): value for key, value in kernels.items()}

    u, g = maps(n, 3, 512, 512), maps(n, 3, 512, 512)
    into = torch.empty_like(u)
    add("copy", lambda: into.copy_(u))
    for degrees in (0, 10, 30, 45, 60, 90):
        add(f"forward {degrees}", partial(warp, u, Affine(turned(n, there.device, float(degrees)))))
    theta = turned(n, there.device)
    for mode in ("nearest", "bicubic"):
        add(mode, partial(warp, u, Affine(theta), interpolation=mode))
    add("bfloat16", partial(warp, u.bfloat16(), Affine(theta)))
    add("uint8 planes", partial(warp, u.byte(), Affine(theta)))
    add("uint8 NHWC", partial(warp, maps(n, 3, 512, 512, last=True).byte(), Affine(theta)))
    for degrees in (10, 45, 90):
        transform = Affine(turned(n, there.device, float(degrees)))
        add(f"gradients {degrees}", partial(warp_gradients, g, u, transform))
    few = there.side_px(8)
    u, g = (maps(few, 64, 256, 256, last=True) for _ in range(2))
    into = torch.empty_like(u)
    add("copy NHWC", lambda: into.copy_(u))
    add("forward NHWC", partial(warp, u, Affine(turned(few, there.device))))
    add("gradients NHWC", partial(warp_gradients, g, u, Affine(turned(few, there.device))))
    flow = Flow(0.02 * torch.randn(few, *u.shape[2:], 2, device=there.device))
    add("flow NHWC", partial(warp, u, flow))
    small = maps(64, 1, 28, 28)
    theta = Affine(turned(64, there.device))
    add("small", partial(warp, small, theta))
    add("small gradients", partial(warp_gradients, small, small, theta))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", default="all", choices=("all", "compile", "time"))
    parser.add_argument("--only", default="", help="variants whose name matches")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    if options.step != "all":
        {"compile": compile_all, "time": time_all}[options.step]()
        return
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu-check")
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in VARIANTS if re.search(options.only, name)]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(names)) as pool:
        kernels = Path(scratch) / "kernels"
        folders = {
            name: copied(Path(scratch) / str(place), VARIANTS[name])
            for place, name in enumerate(names)
        }
        list(pool.map(lambda name: run(folders[name], kernels, "compile"), names))
        with (out / "cuda_tuning.jsonl").open("a", encoding="utf-8") as file:
            for count in range(options.rounds):
                for name in names:
                    found = json.loads(run(folders[name], kernels, "time"))
                    line = json.dumps({"variant": name, "round": count, "us": found})
                    file.write(line + "\n")
                    file.flush()
                    print(line, flush=True)


if __name__ == "__main__":
    main()
