"""Makes machine code of programs: NVRTC through ``cuda.core``, and its cache on disk.

Nothing here needs a GPU.
"""

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from cuda.core import ObjectCode, ProgramOptions
from cuda.core import Program as Compilation
from cuda.core.utils import FileStreamProgramCache, make_program_cache_key

from stn_engine.backends.cuda.programs import SOURCES, Program, sources_digest
from stn_engine.compilations import Outcome, tell

CACHE_VARIABLE = "STN_KERNEL_CACHE"
"""The environment variable that names the folder of compiled kernels; cuda.core's own if unset."""


def _options(program: Program, arch: str) -> ProgramOptions:
    """How every program is compiled: no contraction but the explicit one."""
    return ProgramOptions(
        name=program.source,
        arch=arch,
        std="c++17",
        include_path=str(SOURCES),
        define_macro=list(program.macros.items()),
        fma=False,
        device_as_default_execution_space=True,
    )


def cubin(program: Program, arch: str) -> ObjectCode:
    """The machine code of a program for an architecture such as ``"sm_90"``, cached."""
    began, outcome = time.monotonic(), Outcome.FAILED
    try:
        code, outcome = _read_or_compiled(program, arch)
    finally:
        tell(outcome, time.monotonic() - began)
    return code


def _read_or_compiled(program: Program, arch: str) -> tuple[ObjectCode, Outcome]:
    source, options = program.path.read_text(encoding="utf-8"), _options(program, arch)
    key = make_program_cache_key(
        code=source,
        code_type="c++",
        options=options,
        target_type="cubin",
        extra_digest=sources_digest().encode(),
    )
    kept = folder_cache().get(key)
    if kept is not None:
        return ObjectCode.from_cubin(kept, name=program.source), Outcome.CACHED
    compiled = Compilation(source, "c++", options).compile("cubin")
    with suppress(OSError):  # an image is read-only: the next process compiles it again
        folder_cache()[key] = compiled
    return compiled, Outcome.COMPILED


@cache
def folder_cache() -> FileStreamProgramCache:
    """The cache on disk."""
    folder = os.environ.get(CACHE_VARIABLE)
    return FileStreamProgramCache(Path(folder)) if folder else FileStreamProgramCache()
