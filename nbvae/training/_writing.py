"""Files that are there whole or not at all, whoever is killed while writing and whoever else writes at the same time.

What is being written has a name of its own that ends in ".part". Who begins to work in a folder removes such files: their
writers are dead or, where one is not, it finds that out and writes once more.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

PART = ".part"
_TRIES = 10


def write(path: Path, *content: bytes | memoryview) -> None:
    """Write a file, in a folder that is made if need be. `OSError` where that cannot be done; an older file is then left."""
    for attempt in range(_TRIES):
        part = _part(path.parent)
        try:
            _write(part, *content)
            os.replace(part, path)
            break
        except FileNotFoundError:  # the folder is new, or someone has cleared it
            if attempt == _TRIES - 1:
                raise
            path.parent.mkdir(parents=True, exist_ok=True)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    _sync(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes], beside: Path) -> None:
    """Make a folder with these files, by way of the folder `beside` on the same disk. One that is there already is left."""
    for attempt in range(_TRIES):
        part = _part(beside)
        try:
            part.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                _write(part / name, content)
            _sync(part)
            os.rename(part, path)
            break
        except OSError as problem:
            shutil.rmtree(part, ignore_errors=True)
            if path.is_dir():  # another process was first
                break
            if attempt == _TRIES - 1 or not isinstance(problem, FileNotFoundError):
                raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    _sync(path.parent)


def clear(folder: Path) -> None:
    """Remove what writers have left that were killed."""
    for part in folder.glob(f"*{PART}"):
        if part.is_dir():
            remove(part)
        else:
            part.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder, at once for all who look for it, so that none of them goes on with a part of what it held."""
    part = _part(folder.parent)
    with contextlib.suppress(FileNotFoundError):  # someone else has
        os.rename(folder, part)
        shutil.rmtree(part, ignore_errors=True)


class Unusable(ValueError):
    """A file or a folder that is not as it must be, in one line; names of files may have line breaks in them."""

    def __init__(self, reason: str):
        super().__init__(" ".join(reason.splitlines()))


def _part(folder: Path) -> Path:
    return folder / f"{uuid.uuid4().hex}{PART}"


def _write(path: Path, *content: bytes | memoryview) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for each in content:
            left = memoryview(each)
            while len(left):  # the system may take less than all
                left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """Let the names in a folder outlast a loss of power, where the system can do that."""
    if os.name == "posix":
        try:
            place = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # someone has cleared it
            return
        try:
            os.fsync(place)
        finally:
            os.close(place)
