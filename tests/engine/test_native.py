"""The native module of the ``cpu`` backend: its errors, its bits, threads and memory."""

import ast
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from nanobind.stubgen import StubGen

import stn_engine
from stn_engine import _cpu
from stn_engine.backends.cpu import CpuBackend
from support.native_calls import Objectives, Warp, WarpGradients
from support.native_items import (
    INTERPOLATIONS,
    KINDS,
    PADDINGS,
    UNITS,
    address_of,
    layout_of,
    random_operands,
)
from support.processes import run_python
from support.strategies import random_gradients, random_warp

STUB = Path(stn_engine.__file__).with_name("_cpu.pyi")


def options(fill=(0.0,)):
    return _cpu.Options(
        _cpu.Interpolation.bilinear, _cpu.Padding.border, _cpu.Unit.normalized, False, list(fill)
    )


def warp_call(*, kind="affine", fill=(0.0,), basis=None, **changes):
    """A good call of a warp, but for the changes."""
    arrays = {
        "feature_map": np.ones((2, 3, 4, 5), np.float32),
        "parameters": np.zeros((2, 2, 3), np.float32),
        "output": np.zeros((2, 3, 6, 7), np.float32),
    }
    *operands, output = (arrays | changes).values()
    layouts = [layout_of(_cpu, array) for array in (*operands, output)]
    plan = _cpu.Plan.warp(options(fill), _cpu.Kind[kind], *layouts)
    more = [] if basis is None else [basis]
    return plan, *(address_of(array) for array in (*operands, *more, output))


def volume_call(**changes):
    """A call that reads a volume, but for the changes."""
    volume = {name: np.zeros((2, 3, 4, 5, 6), np.float32) for name in ("feature_map", "output")}
    return warp_call(**(volume | changes))


def spline_call(**changes):
    """A call of a spline with four points, but for the changes."""
    spline = {"parameters": np.zeros((1, 4, 2), np.float32), "basis": np.zeros((4, 42))}
    return warp_call(kind="spline", **(spline | changes))


def grid_call(**changes):
    """A call of a grid, but for the changes."""
    return warp_call(kind="grid", **({"parameters": np.zeros((2, 6, 7, 2), np.float32)} | changes))


def gradients_call(*, kind="affine", fill=(0.0,), **changes):
    """A good call for gradients, but for the changes."""
    arrays = {
        "grad_output": np.zeros((2, 3, 6, 7), np.float32),
        "feature_map": np.zeros((2, 3, 4, 5), np.float32),
        "parameters": np.zeros((2, 2, 3), np.float32),
        "grad_feature_map": np.zeros((2, 3, 4, 5), np.float32),
        "grad_parameters": np.zeros((2, 2, 3), np.float32),
    }
    arrays = tuple((arrays | changes).values())
    layouts = [None if array is None else layout_of(_cpu, array) for array in arrays]
    plan = _cpu.Plan.gradients(options(fill), _cpu.Kind[kind], *layouts)
    return plan, *(address_of(array) for array in arrays if array is not None)


GAPS = np.zeros((2, 3, 6, 14), np.float32)[..., ::2]
BACKWARDS = np.zeros((2, 3, 6, 7), np.float32)[..., ::-1]
ONCE = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2, 3, 6, 7), (0, 0, 0, 0))
TANGLED = np.lib.stride_tricks.as_strided(np.zeros(252, np.float32), (2, 3, 6, 7), (496, 4, 4, 80))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (warp_call, {"feature_map": zeros(2, 3, 4)}, "feature_map: .* four or five axes"),
        (warp_call, {"feature_map": zeros(2, 3, 0, 5)}, "feature_map: .* at least one pixel"),
        (warp_call, {"feature_map": zeros(3, 3, 4, 5)}, "output: .* batch .* operands"),
        (warp_call, {"feature_map": zeros(2, 4, 4, 5)}, "output: .* channels of the operands"),
        (warp_call, {"output": zeros(2, 3, 6)}, "output: expected 4 axes"),
        (warp_call, {"output": zeros(2, 3, 6, 7, dtype=float)}, "output: .* dtype of feature_map"),
        (warp_call, {"output": GAPS}, "output: expected dense memory"),
        (warp_call, {"output": BACKWARDS}, "output: expected dense memory"),
        (warp_call, {"output": ONCE}, "output: expected dense memory"),
        (warp_call, {"output": TANGLED}, "output: expected dense memory"),
        (warp_call, {"parameters": zeros(2, 2, 4)}, "parameters: expected 6 numbers"),
        (warp_call, {"parameters": zeros(6)}, "parameters: expected two or three axes"),
        (warp_call, {"parameters": zeros(2, 2, 3, dtype=np.float16)}, "parameters: .* float32 or"),
        (warp_call, {"parameters": zeros(3, 2, 3)}, "output: .* batch .* operands"),
        (warp_call, {"fill": [0.0, 1.0]}, "fill: .* one per channel, got 2"),
        (volume_call, {"kind": "rotation"}, "parameters: expected an affine map"),
        (volume_call, {}, "parameters: expected 12 numbers"),
        (grid_call, {"parameters": zeros(2, 6, 8, 2)}, "parameters: .* one point per"),
        (grid_call, {"parameters": zeros(2, 6, 7, 3)}, "parameters: .* one point per"),
        (grid_call, {"parameters": zeros(2, 6, 7, 2, dtype=np.uint8)}, "parameters: .* float64"),
        (spline_call, {"parameters": zeros(1, 9)}, "parameters: expected points"),
    ],
)
def test_wrong_warps_are_refused(make, changes, message):
    """Everything is checked before anything runs."""
    output = zeros(2, 3, 6, 7)
    with pytest.raises(ValueError, match=message):
        _cpu.run([warp_call(output=output), make(**changes)], 1)
    assert not output.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_feature_map": zeros(2, 3, 5, 4)}, "grad_feature_map: expected the shape"),
        ({"grad_feature_map": zeros(2, 3, 4, 5, dtype=float)}, "grad_feature_map: .* the dtype"),
        ({"grad_feature_map": zeros(2, 3, 4, 10)[..., ::2]}, "grad_feature_map: .* dense memory"),
        ({"grad_parameters": zeros(1, 2, 3)}, "grad_parameters: expected the shape"),
        ({"grad_parameters": zeros(2, 2, 6)[..., ::2]}, "grad_parameters: .* dense memory"),
        (
            {
                "kind": "grid",
                "parameters": zeros(2, 6, 7, 2),
                "grad_parameters": zeros(1, 6, 7, 2),
            },
            "grad_parameters: expected the batch",
        ),
        (
            {
                "feature_map": zeros(2, 3, 4, 5, dtype=np.uint8),
                "grad_output": zeros(2, 3, 6, 7, dtype=np.uint8),
            },
            "feature_map: expected a float dtype, got integers",
        ),
    ],
)
def test_wrong_gradients_are_refused(changes, message):
    """Everything is checked before anything runs."""
    gradient = np.ones((2, 2, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        _cpu.run([gradients_call(grad_parameters=gradient), gradients_call(**changes)], 1)
    assert gradient.all()


@pytest.mark.parametrize(
    ("make", "counts"),
    [(warp_call, "3 or 4"), (spline_call, "4 or 5"), (gradients_call, "4 or 6")],
)
def test_calls_of_other_lengths_are_refused(make, counts):
    """Operands alone, or operands and results."""
    with pytest.raises(ValueError, match=f"call: expected {counts} entries, got 2"):
        _cpu.run([make()[:2]], 1)


@pytest.mark.parametrize(
    ("make", "place", "message"),
    [
        (warp_call, 1, "feature_map: expected an address or contiguous bytes, got NoneType"),
        (warp_call, 2, "parameters: expected an address or contiguous bytes, got NoneType"),
        (warp_call, 3, "output: expected an address, got NoneType"),
        (spline_call, 3, "basis: expected an address or contiguous bytes, got NoneType"),
        (gradients_call, 1, "grad_output: expected an address or contiguous bytes, got NoneType"),
        (gradients_call, 4, "grad_feature_map: expected an address, got NoneType"),
        (gradients_call, 5, "grad_parameters: expected an address, got NoneType"),
    ],
)
def test_entries_of_other_types_are_refused(make, place, message):
    """Each entry says what it has to be."""
    entries = make()
    with pytest.raises(TypeError, match=message):
        _cpu.run([(*entries[:place], None, *entries[place + 1 :])], 1)


def test_numbers_that_are_no_addresses_are_refused():
    """Memory does not go on for ever."""
    with pytest.raises(TypeError, match="feature_map: expected an address, got int"):
        _cpu.run([(warp_call()[0], 1 << 64, 0)], 1)


def test_calls_of_other_types_are_refused():
    """A batch is a list of tuples."""
    with pytest.raises(TypeError, match="call: expected a tuple, got int"):
        _cpu.run([3], 1)


def test_options_need_a_fill():
    """A constant is always there."""
    with pytest.raises(ValueError, match="fill: expected at least one value"):
        options([])


def test_unknown_instruction_sets_are_refused():
    """Those that run here are named."""
    with pytest.raises(ValueError, match=r"instruction set: .* baseline, got mmx"):
        _cpu.use_instruction_set("mmx")
    assert _cpu.instruction_set() == _cpu.instruction_sets()[0]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", [Warp, WarpGradients, Objectives])
def test_bits_depend_on_operands_alone(kind, seed):
    """Not on the instruction set, threads, other items, strides of results or old memory."""
    rng = np.random.default_rng(seed)
    call = kind(_cpu, rng, crowd(rng))
    before = [one.bits() for one in call.crowd]
    call.expected_bits(rng)
    assert before == [one.bits() for one in call.crowd]


def test_the_seeds_above_cover_all_options():
    """Every kind, interpolation, padding, unit and dtype, images and volumes."""
    ones = [one for seed in range(60) for one in crowd(np.random.default_rng(seed))]
    assert {one.kind for one in ones} == set(KINDS)
    assert {one.interpolation for one in ones} == set(INTERPOLATIONS)
    assert {one.padding for one in ones} == set(PADDINGS)
    assert {one.unit for one in ones} == set(UNITS)
    assert len({one.feature_map.dtype for one in ones}) == 5
    assert {one.feature_map.ndim for one in ones} == {4, 5}


def crowd(rng):
    return [random_operands(rng) for _ in range(2)]


def test_channels_last_maps_are_read_backwards():
    """A flipped view of a map is that map flipped, channels last or not."""
    pixels = np.random.default_rng(0).standard_normal((1, 5, 6, 4)).astype(np.float32)
    theta = np.array([[[0.7, 0.1, 0], [-0.1, 0.7, 0]]], np.float32)
    for channels in (1, 3, 4):
        view = pixels[..., :channels].transpose(0, 3, 1, 2)[:, :, ::-1, ::-1]
        results = [np.zeros((1, channels, 5, 6), np.float32) for _ in range(2)]
        last = np.zeros((1, 5, 6, channels), np.float32).transpose(0, 3, 1, 2)
        for source, result in ((view, last), (view.copy(), results[1])):
            _cpu.run([warp_call(feature_map=source, parameters=theta, output=result)], 1)
        assert (last == results[1]).all()


def test_calls_from_several_threads_do_not_mix():
    """Whoever finds the pool taken works alone."""
    calls = [Warp(_cpu, rng := np.random.default_rng(seed), crowd(rng)) for seed in range(8)]
    expected = [call.bits(1) for call in calls]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda call: call.bits(2), calls * 8))
    assert found == expected * 8


def test_a_forked_child_has_threads_of_its_own():
    """The pool of the parent stays behind; the child makes another."""
    feature_map = np.random.default_rng(0).standard_normal((1, 3, 256, 256)).astype(np.float32)

    def warped():
        output = np.zeros_like(feature_map)
        theta = np.array([[[0.9, 0.1, 0], [0, 0.9, 0]]], np.float32)
        _cpu.run([warp_call(feature_map=feature_map, parameters=theta, output=output)], 3)
        return output.tobytes()

    expected = warped()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a child of threads may hang
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if warped() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("width", [512, 63])
@pytest.mark.parametrize("kind", ["affine", "flow"])
def test_large_warps_have_the_same_bits_on_any_threads(kind, width, any_threads):
    """The fewer the threads, the larger the tasks; chunks of sums are no multiple of a block."""
    sizes = {"size": (512, 512), "output_size": (512, width)}
    large = random_warp(3, kind=kind, dtype=torch.float32, **sizes)
    problems = [random_gradients(4, one) for one in (large, random_warp(5, dtype=torch.float32))]
    results = []
    for threads in (1, 2, 5):
        any_threads(threads)
        found = CpuBackend().warp([one.warp for one in problems])
        gradients = CpuBackend().warp_gradients(problems)
        alone = CpuBackend().warp_gradients(problems[:1])
        for one in (gradients[0], alone[0]):
            found += [one.feature_map, one.transform]
        results.append(found)
    for found in results:
        assert torch.equal(found[2], found[4])
        assert torch.equal(found[3], found[5])
        assert all(map(torch.equal, found, results[0]))


COUNTS_THREADS = """
import os
import torch
import stn_engine
from stn_engine.adapters import on_bytes

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
feature_map = torch.rand(1, 3, 256, 256, requires_grad=True)
transform = stn_engine.Affine(torch.tensor([[[0.9, 0.1, 0.0], [0.0, 0.9, 0.0]]]))
feature_map.exp()
of_torch = threads()
stn_engine.warp(feature_map, transform).sum().backward()
beside_torch = threads()
problem = stn_engine.WarpProblem(feature_map.detach(), transform)
on_bytes.compute([on_bytes.Job(problem, [one.numpy().tobytes() for one in problem.operands])])
print(beside_torch - of_torch, threads() - beside_torch)
"""


def test_tensors_are_computed_by_the_threads_of_torch_and_bytes_by_others():
    """Two pools side by side would take the cores from each other."""
    found = subprocess.run(
        [sys.executable, "-c", COUNTS_THREADS], check=True, capture_output=True, text=True
    )
    assert found.stdout.split() == ["0", "2"]


AFTER_TORCH_ALONE = """
import os, signal, sys
import numpy as np
import torch
from stn_engine import Affine, WarpProblem, warp_ragged

torch.set_num_threads(4)
u, theta = torch.ones(1, 4, 256, 256), torch.eye(2, 3)[None]
u.sigmoid().sum()
child = os.fork()
if child == 0:
    signal.alarm(30)
    memory = torch.from_numpy(np.zeros((1, 4, 256, 256), np.float32))
    warp_ragged([WarpProblem(u, Affine(theta))], [memory])
    os._exit(0 if (memory.numpy() == 1).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_of_a_process_in_which_torch_alone_used_openmp_does_not_wait_for_it():
    """It is the fork that counts, and not whether the parent had called the engine before."""
    ended = run_python("-c", AFTER_TORCH_ALONE)
    assert ended.returncode == 0, ended.stderr


def test_other_python_threads_run_during_a_call():
    """Someone sees a result half written: impossible while the interpreter is held.

    Who never gets to look in time tries again.
    """
    feature_map = np.ones((1, 1, 64, 64), np.float32)
    theta = np.eye(2, 3, dtype=np.float32)[None]
    for _ in range(100):
        output = np.zeros((1, 1, 2048, 2048), np.float32)
        planned = warp_call(feature_map=feature_map, parameters=theta, output=output)
        call = threading.Thread(target=_cpu.run, args=([planned], 1))
        call.start()
        while call.is_alive() and output[0, 0, 0, 1024] == 0:
            pass
        half_written = output[0, 0, -1, 1024] == 0
        call.join()
        assert output[0, 0, -1, 1024] == 1
        if half_written:
            return
    pytest.fail("nobody ever saw a call in progress")


def test_the_type_stub_agrees_with_the_module():
    """Names, members of enumerations, arguments and what functions return."""
    generator = StubGen(_cpu)
    generator.put(_cpu)
    assert outline(STUB.read_text()) == outline(generator.get())


def outline(stub):
    """What a stub declares; what collections hold is left out, the module does not say it."""
    found = {}
    for node in ast.walk(ast.parse(stub)):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = (
                [(a.arg, bare(a.annotation)) for a in node.args.args],
                bare(node.returns),
            )
        elif isinstance(node, ast.ClassDef):
            found[node.name] = [ast.unparse(n) for n in node.body if isinstance(n, ast.Assign)]
    return found


def bare(annotation):
    return annotation and ast.unparse(annotation).split("[")[0]
