"""Where a result comes from: the commit of the code and its hash, the machine, the versions."""

import ast
import functools
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import nbvae

ROOT = Path(__file__).resolve().parents[1]
CODE = ("nbvae", "studies", "pyproject.toml", "constraints.txt")  # what decides a result; a record that grows does not
_SHOWS = {"plotting.py", "notebook.py"}  # what is drawn changes no result
_FRAME = {f"studies.{name}" for name in ("convergence", "lab", "plan", "provenance", "record")}  # what uses results makes none
_PACKAGES = ("nbvae", "torch", "numpy", "scikit-learn")


def commit() -> dict[str, Any]:
    """The commit of the code, and whether it was modified since; None where git cannot say."""

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    found = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--", *CODE) if found else None
    return {"commit": found, "modified": None if changes is None else bool(changes)}


def machine(device: torch.device) -> dict[str, Any]:
    """Where this runs: device, threads, cores, versions."""
    kind = f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
    return {
        "device": kind,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
    }


@functools.cache
def code(module: str) -> str:
    """A hash of what the library and a module that uses it do: without comments, documentation and what only draws.

    Functions and classes that the module has from other studies count with the whole of their modules.
    """
    library = Path(nbvae.__file__).parent
    files = {file.relative_to(library).as_posix(): file for file in sorted(library.rglob("*.py")) if file.name not in _SHOWS}
    files |= {name: Path(sys.modules[name].__file__ or "") for name in sorted(_used(module))}
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name} {_meaning(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def _used(module: str) -> set[str]:
    """The module and the studies that it has functions or classes from, directly or by another."""
    found, todo = set(), {module}
    while todo:
        found.add(name := todo.pop())
        owners = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
        todo |= {owner for owner in owners if str(owner).startswith("studies.") and owner not in _FRAME} - found
    return found


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)
