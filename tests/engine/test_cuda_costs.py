"""What the common kernels cost on a GPU, by their machine code: none gets dearer unnoticed."""

import json

import pytest

from bench import kernel_costs
from stn_engine.backends.cuda.programs import Program
from support.cubins import innermost_loops, operations

COSTS = ("registers", "local_bytes", "generic_stores", "instructions")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", kernel_costs.PROGRAMS, ids=kernel_costs.name_of)
def test_kernels_cost_no_more_than_the_table_says(program):
    """`python -m bench.kernel_costs --write` writes it anew, for all to see what changed."""
    table = json.loads(kernel_costs.TABLE.read_text(encoding="utf-8"))
    kept = table[kernel_costs.name_of(program)]
    found = kernel_costs.costs_of(program)
    assert found.keys() == kept.keys()
    for kernel, costs in found.items():
        for cost in COSTS:
            assert costs[cost] <= kept[kernel][cost], (kernel, cost)
        assert costs["loops"] == kept[kernel]["loops"], kernel


def test_the_table_has_no_generic_stores_and_no_local_memory():
    """Where they would be, kernels for images wait for memory that they need not have touched."""
    table = json.loads(kernel_costs.TABLE.read_text(encoding="utf-8"))
    for program, kernels in table.items():
        for kernel, costs in kernels.items():
            assert costs["generic_stores"] == 0, (program, kernel)
            if "float32 bilinear" in program:
                assert costs["local_bytes"] == 0, (program, kernel)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_measure_is_not_blind():
    """Of a kernel that sums tiles in a loop, the loop and its reads are seen."""
    code = bytes(kernel_costs.compiler.cubin(Program("parameters"), kernel_costs.ARCHITECTURE).code)
    loops = innermost_loops(code, "stn_finish")
    assert any(0 < one.loads < one.instructions for one in loops)
    assert all(one.instructions < len(operations(code, "stn_finish")) for one in loops)
