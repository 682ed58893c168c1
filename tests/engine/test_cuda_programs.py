"""Every kernel compiles for every GPU that matters, and the common ones keep to their registers."""

import errno
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda.core._utils.cuda_utils import CUDAError

from stn_engine import compilations, warm
from stn_engine.backends.cuda import compiler
from stn_engine.backends.cuda.programs import Program, all_programs, kernel_of, sources_digest
from stn_engine.backends.cuda.structures import LAUNCH_WORDS, TILES
from stn_engine.backends.cuda.tuning import THREADS
from stn_engine.spec import Interpolation
from support.cubins import stack_frames

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
KEPT = Path(__file__).parents[2] / "build" / "kernels"

per_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def kept(monkeypatch):
    """A cache that outlives the tests: what has not changed is not compiled again."""
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(KEPT))
    compiler.folder_cache.cache_clear()
    yield
    compiler.folder_cache.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("kept")
@per_architecture
def test_every_program_compiles_and_holds_its_kernels(architecture):
    """No variant is left to be found wanting on somebody's GPU."""
    with ThreadPoolExecutor(2) as pool:
        codes = pool.map(lambda one: compiler.cubin(one, architecture), all_programs())
        for program, code in zip(all_programs(), codes, strict=True):
            kernels = {name for name in stack_frames(bytes(code.code)) if name.startswith("stn_")}
            assert kernels == set(program.kernels), program


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("kept")
@per_architecture
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("source", ["warp", "slopes", "gather", "scatter", "moments", "objective"])
def test_bilinear_float32_kernels_use_no_local_memory(architecture, dims, source):
    """A spilled register goes to memory, which is what these kernels are bound by."""
    program = Program(source, torch.float32, dims, Interpolation.BILINEAR)
    frames = stack_frames(bytes(compiler.cubin(program, architecture).code))
    assert {name: frames[name] for name in program.kernels} == dict.fromkeys(program.kernels, 0)


def test_a_program_that_spills_is_found_out():
    """The measure of the test above is not blind: trigonometry of float64 takes an array."""
    frames = stack_frames(bytes(compiler.cubin(Program("parameters"), "sm_90").code))
    assert frames["stn_prepare"] > 0


def test_a_compiled_program_is_read_back(monkeypatch, tmp_path):
    """The second process finds what the first has compiled, in the folder that was named."""
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    program = Program("parameters")
    compiler.folder_cache.cache_clear()
    compiled = bytes(compiler.cubin(program, "sm_90").code)
    monkeypatch.setattr(compiler, "Compilation", None)
    assert bytes(compiler.cubin(program, "sm_90").code) == compiled
    compiler.folder_cache.cache_clear()


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch):
    """That of an image is read-only, and may lack the present architecture."""

    class ReadOnly(dict):
        def __setitem__(self, key, value):
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(compiler, "folder_cache", ReadOnly)
    assert compiler.cubin(Program("parameters"), "sm_90").code


def test_compilations_are_told(monkeypatch, tmp_path):
    """Those that the compiler makes, those that are read back, and those that fail."""
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    compiler.folder_cache.cache_clear()
    told = []

    def listener(*one):
        told.append(one)

    compilations.watch(listener)
    for _ in range(2):
        compiler.cubin(Program("parameters"), "sm_90")
    with pytest.raises(FileNotFoundError):
        compiler.cubin(Program("nothing"), "sm_90")
    compilations.unwatch(listener)
    compiler.folder_cache.cache_clear()
    assert [outcome for outcome, _ in told] == ["compiled", "cached", "failed"]
    assert told[0][1] > told[1][1] > 0


def test_a_change_in_a_header_is_another_program(monkeypatch, tmp_path):
    """The cache is asked by all that the compiler would read."""
    monkeypatch.setattr(compiler, "sources_digest", lambda: "of other headers")
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    compiler.folder_cache.cache_clear()
    asked = []
    monkeypatch.setattr(compiler, "make_program_cache_key", lambda **given: asked.append(given))
    monkeypatch.setattr(compiler, "folder_cache", lambda: {None: b""})
    compiler.cubin(Program("parameters"), "sm_90")
    assert asked[0]["extra_digest"] == b"of other headers"
    assert sources_digest() != "of other headers"


def test_warm_compiles_all_programs_for_every_architecture(monkeypatch, capsys):
    """Once each, and says so."""
    asked = []
    monkeypatch.setattr(compiler, "cubin", lambda *one: asked.append(one))
    assert warm.main(["--arch", "sm_80", "--arch", "sm_90", "--jobs", "1"]) == 0
    programs = all_programs()
    assert set(asked) == {(one, arch) for one in programs for arch in ("sm_80", "sm_90")}
    assert capsys.readouterr().out == f"{2 * len(programs)} programs for sm_80, sm_90\n"


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", torch.OutOfMemoryError, None),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", torch.AcceleratorError, 700),
        ("CUDA_ERROR_INVALID_VALUE", torch.AcceleratorError, 1),
        ("something new", torch.AcceleratorError, 999),
    ],
)
def test_errors_of_the_launcher_are_those_of_torch(name, kind, code):
    """Whoever runs batches has one kind to look at: lack of memory, or the code of the driver."""
    from stn_engine.backends.cuda import driver  # noqa: PLC0415 - needs cuda.core

    with pytest.raises(kind, match=f"cuda.core: {name}: it says why") as caught:
        raise driver.as_torch_error(CUDAError(f"{name}: it says why"))
    assert getattr(caught.value, "error_code", None) == code


class Driver:
    """The driver, and what torch knows of it, for a thread that has touched no device."""

    def __init__(self, monkeypatch):
        from stn_engine.backends.cuda import driver  # noqa: PLC0415 - needs cuda.core

        self.driver, self.code, self.current, self.asked = driver, 0, 0, []
        for name in ("cuMemsetD8Async", "cuLaunchKernel"):
            monkeypatch.setattr(driver, name, partial(self._asked, name))
        monkeypatch.setattr(driver, "_TOUCHED", driver._Touched())
        monkeypatch.setattr(driver, "Device", self._context)
        monkeypatch.setattr(driver, "cubin", lambda *_: self)
        monkeypatch.setattr(torch.cuda, "device", self._device)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: self)
        monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: self.current, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_getCurrentRawStream", lambda index: 7 + index, raising=False
        )

    major, minor, multi_processor_count = 9, 0, 2

    def get_kernel(self, name):
        return SimpleNamespace(name=name, handle=0x1234)

    def _context(self, index):
        return SimpleNamespace(set_current=lambda: self.asked.append(("set_current", index)))

    @contextmanager
    def _device(self, index):
        before, self.current = self.current, index
        yield
        self.current = before

    def _asked(self, name, *arguments):
        self.asked.append((name, self.current, *arguments))
        return (self.driver.CUresult(self.code),)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, None), (2, torch.OutOfMemoryError), (700, torch.AcceleratorError)],
)
def test_memory_is_zeroed_in_the_order_of_the_stream(monkeypatch, code, kind):
    """By the driver, whose refusals are errors of torch."""
    there = Driver(monkeypatch)
    there.code = code
    expected = nullcontext() if kind is None else pytest.raises(kind, match="not filled with 0")
    with expected:
        there.driver.zero(1 << 20, 256, torch.device("cuda", 0))
    (asked,) = there.asked[1:]
    assert asked[:-1] == ("cuMemsetD8Async", 0, 1 << 20, 0, 256)
    assert int(asked[-1]) == 7


def test_a_kernel_is_launched_on_the_device_and_stream_of_its_operands(monkeypatch):
    """In a thread that had no context, and whatever device is the present one."""
    there = Driver(monkeypatch)
    kernel = kernel_of(Program("parameters"), "stn_finish")
    arguments = array("q", range(LAUNCH_WORDS))
    arguments[TILES] = 40
    for index in (1, 1, 0, 0):
        there.driver.launch(kernel, arguments, torch.device("cuda", index))
    launches = [one for one in there.asked if one[0] == "cuLaunchKernel"]
    assert [one for one in there.asked if one not in launches] == [
        ("set_current", index) for index in (1, 1, 0)
    ]
    assert [one[1] for one in launches] == [1, 1, 0, 0]
    _, _, function, blocks, *shape, stream, parameters, extra = launches[0]
    assert int(function) == 0x1234
    assert (blocks, shape, extra) == (20, [1, 1, THREADS, 1, 1, 0], 0)  # two tiles each
    assert [int(one[-3]) for one in launches] == [8, 8, 7, 7]
    assert int(stream) == 8
    assert list(parameters) == [arguments.buffer_info()[0]]


def test_a_launch_that_the_driver_refuses_says_which(monkeypatch):
    """As torch says it."""
    there = Driver(monkeypatch)
    there.code = 700
    kernel = kernel_of(Program("parameters"), "stn_prepare")
    arguments = array("q", bytes(8 * LAUNCH_WORDS))
    with pytest.raises(torch.AcceleratorError, match="ADDRESS: stn_prepare is not launched"):
        there.driver.launch(kernel, arguments, torch.device("cuda", 0))
