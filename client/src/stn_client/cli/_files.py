"""Many files: which they are, where their results go, and one task for each, side by side."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from stn_client._errors import StnClientError
from stn_client.cli._images import INSTALL, ImageError, is_image
from stn_client.cli._report import report

Job = tuple[Path, Path]
"""A file to read and a file to write."""


def jobs_of(sources: Sequence[str], destination: str) -> list[Job]:
    """Returns the files to read, each with the file to write.

    One file goes to the destination, or into it if that is a folder. Several files, patterns and
    folders go into it, under their names; of a folder all images, those of its folders included,
    but not of folders that it links to. A file that is found by several ways goes there once.

    Raises:
        ImageError: There is nothing to read, no place to write, or one place for two files.
    """
    if len(sources) == 1 and not (Path(sources[0]).is_dir() or _is_pattern(sources[0])):
        return [job_of(sources[0], destination)]
    _check_names(*sources, destination)
    found = {source: list(_found(source)) for source in sources}
    target = _folder(destination)
    jobs: dict[Path, Path] = {}
    inside = _real(target)
    for source, files in found.items():
        # What lies in OUT came from earlier, unless it is named.
        new = [
            one for one in files if str(one[0]) in sources or inside not in _real(one[0]).parents
        ]
        if not new:
            raise ImageError(
                f"{source}: expected images outside of OUT, got only those in {target}."
            )
        jobs |= {path: target / name for path, name in new}
    taken: dict[Path, Path] = {}
    for path, result in jobs.items():
        other = taken.setdefault(result, path)
        if _real(other) != _real(path):
            raise ImageError(
                f"{result}: expected one file to go there, got {other} and {path}. "
                "Rename one, or warp them apart."
            )
    return [(path, result) for result, path in taken.items()]


def job_of(source: str, destination: str) -> Job:
    """Returns the job of one file, written to the destination, or into it if that is a folder.

    Raises:
        ImageError: It is a folder itself, or there is no place to write.
    """
    _check_names(source, destination)
    path, target = Path(source), Path(destination)
    if path.is_dir():
        raise ImageError(f"{path}: expected an image file, got a folder.")
    if target.is_dir() or destination.endswith("/"):
        return path, _folder(destination) / path.name
    if not target.parent.is_dir():
        raise ImageError(f"{target}: expected its folder to exist, got none. Make it.")
    return path, target


def _check_names(*names: str) -> None:
    """Checks that no name is empty, as a shell makes it of a variable without a value."""
    if "" in names:
        raise ImageError("arguments: expected names of files or folders, got an empty one.")


def _folder(destination: str) -> Path:
    """Returns the folder of the results; it need not exist yet."""
    target = Path(destination)
    if target.exists() and not target.is_dir():
        raise ImageError(f"{target}: expected a folder for several files, got a file.")
    return target


def run_jobs(jobs: Sequence[Job], run: Callable[[Path, Path], None], workers: int) -> int:
    """Runs a task for every job, and returns how many failed.

    What goes wrong with one file is told at once and stops no other.
    """
    failed = 0
    progress = _progress(len(jobs))
    executor = ThreadPoolExecutor(workers)
    try:
        futures = {executor.submit(run, *job): job[0] for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                failed += 1
                with progress.external_write_mode():
                    report(_described(futures[future], error))
            progress.update()
    finally:  # of an interrupt, too: what is under way ends with the connection
        progress.close()
        executor.shutdown(wait=False, cancel_futures=True)
    return failed


def _described(path: Path, error: BaseException) -> str:
    """Returns an error with the name of the file; raises faults of this program."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, StnClientError | MemoryError | OSError):
        return f"{path}: {error or type(error).__name__}"
    raise error


def _found(source: str) -> Iterator[tuple[Path, Path]]:
    """Returns the files that an argument stands for, with their names below an output folder."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_visible(file.relative_to(path)))
        found = [(file, file.relative_to(path)) for file in files if is_image(file)]
        expected = "images in the folder"
    elif not _is_pattern(source):
        yield path, Path(path.name)  # if it is none, that is an error of this file alone
        return
    else:
        files = sorted(set(_matches(path)))
        found = [(file, Path(file.name)) for file in files if is_image(file)]
        expected = "images that match"
    found = [(file, name) for file, name in found if file.is_file()]
    if not found:
        raise ImageError(f"{source}: expected {expected}, got none.")
    yield from found


def _matches(pattern: Path) -> Iterator[Path]:
    """Returns the matches of a pattern, as `glob` does, but `**` follows no links to folders.

    They may lead in circles, or to one file by many ways.
    """
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.iglob(str(pattern)))  # noqa: PTH207 - absolute ones, too
        return
    at = parts.index("**")
    for top in glob.iglob(str(Path(*parts[:at]))):  # noqa: PTH207
        for folder, folders, _ in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _matches(Path(glob.escape(folder), *(parts[at + 1 :] or ["*"])))


def _real(path: Path) -> Path:
    """Returns the target of a path; `Path.resolve` would raise if links form a circle."""
    return Path(os.path.realpath(path))


def _is_pattern(source: str) -> bool:
    return glob.has_magic(source) and not Path(source).exists()


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _progress(total: int) -> Any:
    """Returns a bar on standard error, if that is a terminal and there are several files."""
    try:
        from tqdm import tqdm  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImageError(f"tqdm: expected it, got none. {INSTALL}") from error
    return tqdm(total=total, unit="file", disable=True if total == 1 else None)
