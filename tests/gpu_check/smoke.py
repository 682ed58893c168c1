"""Every kernel once against torch on the host, one line for each problem.

A kernel that does what a device does not survive poisons the context of its process: this one ends
with status 3 then, and is started again behind that problem.
"""

import argparse
import time
import traceback

import torch

from gpu_check.devices import Findings, device
from stn_engine.backends.torch import TorchBackend
from support.every_kernel import every_kernel, results_of

POISONED = 3
"""The status of a process that must not go on."""

HOST = TorchBackend()
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.uint8: 1e-2}
"""Of norms; half types are wider."""

HALF_TOLERANCE = 3e-2
SIGNS_OF_POISON = ("ILLEGAL", "LAUNCH_FAILED", "MISALIGNED", "ASSERT", "LAUNCH_TIMEOUT")


def main() -> int:
    """Run the problems from a number on, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-s", type=float, default=40)
    parser.add_argument("--every", type=int, default=1, help="take one problem of so many")
    options = parser.parse_args()
    findings = Findings("smoke")
    first = max((line["n"] + 1 for line in findings.read()), default=0)
    there, began, bad = device(), time.monotonic(), 0
    for number, problem in enumerate(every_kernel()):
        if number < first or number % options.every:
            continue
        if time.monotonic() - began > options.limit_s:
            print(f"smoke: out of time at {number}", flush=True)
            break
        finding = _finding(there, problem)
        bad += not finding["ok"]
        findings.add(n=number, what=_name(problem), **finding)
        if finding.get("poisoned"):
            return POISONED
    print(f"smoke: {bad} bad, {time.monotonic() - began:.1f} s", flush=True)
    return 1 if bad else 0


def _finding(there, problem) -> dict:
    try:
        errors = _errors(there, problem)
    except Exception as error:  # noqa: BLE001 - a finding, whatever it is
        text = traceback.format_exc()[-1500:]
        sticky = isinstance(error, torch.AcceleratorError) or any(
            sign in str(error).upper() for sign in SIGNS_OF_POISON
        )
        return {"ok": False, "exception": text, "poisoned": sticky}
    tolerance = TOLERANCES.get(_warp(problem).feature_map.dtype, HALF_TOLERANCE)
    return {"ok": all(error <= tolerance for error in errors), "errors": errors}


def _errors(there, problem) -> list[float]:
    """Distances from what torch's composition has in float64, or in its own dtype."""
    results = results_of(there.backend, there.place(problem))
    there.synchronize()
    expected = results_of(HOST, problem)
    return [_distance(*pair) for pair in zip(results, expected, strict=True)]


def _warp(problem):
    return getattr(problem, "warp", problem)


def _distance(got, want) -> float:
    """Relative in norm; NaN where NaN stands on one side only."""
    got, want = got.detach().cpu().double(), want.double()
    if not torch.equal(got.isnan(), want.isnan()):
        return float("nan")
    return float((got - want).nan_to_num().norm() / max(float(want.nan_to_num().norm()), 1e-30))


def _name(problem) -> str:
    warp = _warp(problem)
    source, spec = warp.feature_map, warp.spec
    return (
        f"{type(warp.transform).__name__} {spec.interpolation} {spec.padding} {source.dtype} "
        f"{tuple(source.shape)} channel stride {source.stride(1)} "
        f"deterministic {spec.deterministic}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
