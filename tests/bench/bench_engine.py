"""The engine on the CPU against torch, torch.compile, OpenCV and Kornia, side by side in one run.

Everyone gets the same operands and as many threads. Ratios say how many times faster the engine is:
taken within a round, then their median. A missed bar is said, and is no failure. `--output`
writes everything as JSON.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import engine_memory, report
from bench.engine_cases import BARS, Case, all_cases
from bench.rounds import difference, durations_s, result
from stn_engine import Affine, WarpProblem, dispatch

PACKAGES = ("stn-engine", "torch", "numpy", "opencv-python-headless", "kornia")


def main() -> None:
    options = parse_options()
    cells = []
    for case in all_cases(options.threads):
        if re.search(options.only, f"{case.group}: {case.name}"):
            for cell in measured(case, options):
                cells.append(cell)
                print_cell(cell)
    summaries = list(summarized(cells))
    print_summaries(summaries)
    memory = list(engine_memory.measured(options.threads)) if options.memory else []
    print_memory(memory)
    if options.output:
        report.write(
            options.output,
            "the engine on the CPU against torch, OpenCV and Kornia",
            PACKAGES,
            threads=options.threads,
            rounds=options.rounds,
            backend=backend_name(),
            summaries=summaries,
            cells=cells,
            memory=memory,
        )


def measured(case: Case, options) -> Iterator[dict]:
    """Ours against each rival in one case; our slowest against our fastest, where all are ours."""
    contenders = case.build()
    results = {name: result(contender) for name, contender in contenders.items()}
    found = durations_s(contenders, options.rounds, options.seconds)
    ours, *rivals = contenders
    if case.all_ours:
        fastest, *_, ours = sorted(found, key=lambda name: statistics.median(found[name]))
        rivals = [fastest]
    for rival in rivals:
        ratios = [theirs / mine for theirs, mine in zip(found[rival], found[ours], strict=True)]
        absolute, relative = difference(results[ours], results[rival])
        yield {
            "group": case.group,
            "case": case.name,
            "rival": "the fastest" if case.all_ours else rival,
            "ours_ms": 1e3 * statistics.median(found[ours]),
            "rival_ms": 1e3 * statistics.median(found[rival]),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "difference": absolute,
            "relative_difference": relative,
        }


def summarized(cells) -> Iterator[dict]:
    """One line for each group and rival, with the verdict where there is a bar."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        found.setdefault((cell["group"], cell["rival"]), []).append(cell["ratio"])
    for (group, rival), ratios in found.items():
        mean, least = statistics.geometric_mean(ratios), min(ratios)
        bar = BARS.get((group, rival))
        yield {
            "group": group,
            "rival": rival,
            "cases": len(ratios),
            "mean": mean,
            "least": least,
            "bar_mean": bar and bar.mean,
            "bar_least": bar and bar.least,
            "met": bar and least >= bar.least and mean >= (bar.mean or 0),
        }


def backend_name() -> str:
    """Who runs an affine warp here."""
    theta = torch.eye(2, 3)[None]
    return dispatch.select(WarpProblem(torch.zeros(1, 1, 1, 1), Affine(theta))).name


def print_cell(cell) -> None:
    print(
        f"{cell['group']:34} {cell['case']:36} {cell['rival']:14}"
        f"{cell['ours_ms']:9.3f} ms {cell['rival_ms']:9.3f} ms {cell['ratio']:7.2f} x"
        f" ({cell['ratio_least']:.2f} to {cell['ratio_most']:.2f})"
        f"  differs by {cell['difference']:.1e} ({cell['relative_difference']:.1e})",
        flush=True,
    )


def print_summaries(summaries) -> None:
    print(f"\n{'':34} {'against':14} {'cases':>5} {'mean':>7} {'least':>7}   bar")
    for one in summaries:
        wanted = [
            f"{name} {one[f'bar_{name}']:g}"
            for name in ("mean", "least")
            if one[f"bar_{name}"] is not None
        ]
        verdict = {None: "", True: "met", False: "missed"}[one["met"]]
        print(
            f"{one['group']:34} {one['rival']:14} {one['cases']:5} {one['mean']:7.2f} "
            f"{one['least']:7.2f}   {', '.join(wanted)} {verdict}"
        )


def print_memory(memory) -> None:
    for one in memory:
        print(
            f"{one['kind']} {one['shape']}: {one['ours_extra_bytes'] / 1024:.0f} KiB beyond the "
            f"results (bar {one['bar_bytes'] / 1024:.0f}, {'met' if one['met'] else 'missed'}), "
            f"torch {one['torch_extra_bytes'] / 1024:.0f} KiB"
        )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=report.cores(), help="of every contender")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each turn in a round")
    parser.add_argument("--only", default="", help="a pattern for `group: case`")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
