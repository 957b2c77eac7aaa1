"""What every step of a build needs: the pages that are listed, one way to fail, to hash and to write."""

import hashlib
from pathlib import Path

import yaml

# One thread per notebook: as many notebooks run at once as there are cores. The rest makes equal results equal bytes.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1767225600",
    "JUPYTER_PREFER_ENV_PATH": "1",
}


class BuildError(Exception):
    """A failure that is explained by its message alone."""


def listed_pages(root: Path) -> list[str]:
    """Every page of `_toc.yml`, in order, without its suffix."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))

    def walk(entry: object) -> list[str]:
        if isinstance(entry, list):
            return [page for item in entry for page in walk(item)]
        if isinstance(entry, dict):
            own = [str(value) for key, value in entry.items() if key in ("root", "file")]
            return own + [page for key, value in entry.items() if key not in ("root", "file") for page in walk(value)]
        return []

    return walk(toc)


def hash_files(files: list[Path]) -> str:
    """One hash of the names and contents of `files`; a missing file counts as empty."""
    parts = (f"{file.name} {hashlib.sha256(file.read_bytes() if file.is_file() else b'').hexdigest()}" for file in files)
    return hash_text(*parts)


def hash_text(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def replace_text(file: Path, text: str) -> bool:
    """Write a file whole or not at all, and leave it alone if it already says so; whether it was written."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
    return True


def say(line: str) -> None:
    print(line, flush=True)
