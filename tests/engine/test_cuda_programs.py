"""Every kernel compiles for every GPU that matters, and the common ones keep to their registers."""

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda.core import Stream
from cuda.core._utils.cuda_utils import CUDAError

from stn_engine import compilations, warm
from stn_engine.backends.cuda import compiler
from stn_engine.backends.cuda.programs import Program, all_programs, sources_digest
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
@pytest.mark.parametrize("source", ["warp", "slopes", "gather", "scatter"])
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

    def observer(*one):
        told.append(one)

    compilations.watch(observer)
    for _ in range(2):
        compiler.cubin(Program("parameters"), "sm_90")
    with pytest.raises(FileNotFoundError):
        compiler.cubin(Program("nothing"), "sm_90")
    compilations.unwatch(observer)
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


def test_a_stream_of_torch_is_no_foreign_object_to_the_launcher(recwarn):
    """One that is passed as such warns at every launch, which is an error under -W error."""
    from stn_engine.backends.cuda import driver  # noqa: PLC0415 - needs cuda.core

    gpu = torch.device("cuda", 0)
    stream = driver._stream(gpu, 0x1234)
    assert isinstance(stream, Stream)
    assert int(stream.handle) == 0x1234
    assert driver._stream(gpu, 0x1234) is stream
    assert not recwarn.list


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


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, None), (2, torch.OutOfMemoryError), (700, torch.AcceleratorError)],
)
def test_memory_is_zeroed_in_the_order_of_the_stream(monkeypatch, code, kind):
    """By the driver, whose refusals are errors of torch."""
    from stn_engine.backends.cuda import driver  # noqa: PLC0415 - needs cuda.core

    asked = []

    def memset(*one):
        asked.append(one)
        return (driver.CUresult(code),)

    monkeypatch.setattr(driver, "cuMemsetD8Async", memset)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    expected = nullcontext() if kind is None else pytest.raises(kind, match="not filled with 0")
    with expected:
        driver.zero(1 << 20, 256, torch.device("cuda", 0))
    assert asked == [(1 << 20, 0, 256, 7)]
