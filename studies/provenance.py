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
def code(module: str, function: str = "run") -> str:
    """A hash of what the library does, and a function of a module that uses it: without comments, documentation and drawing.

    Of the module and of other studies it has the definitions that the function needs, directly or by another: a check that is
    edited leaves the hash of what trains as it is.
    """
    digest = hashlib.sha256()
    for name, meaning in (_library() | _needed(module, function)).items():
        digest.update(f"{name} {meaning}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _library() -> dict[str, str]:
    """What each file of the library says, by its place in it."""
    library = Path(nbvae.__file__).parent
    files = {file.relative_to(library).as_posix(): file for file in sorted(library.rglob("*.py")) if file.name not in _SHOWS}
    return {name: _meaning(ast.parse(file.read_text(encoding="utf-8"))) for name, file in files.items()}


def _needed(module: str, function: str) -> dict[str, str]:
    """What the definitions say that a function needs, by their names, in the function's module and in other studies."""
    found, todo = {}, {(module, function)}
    definitions = functools.cache(_definitions)
    while todo:
        place, name = todo.pop()
        node = definitions(place).get(name)
        if node is None or f"{place}.{name}" in found:  # of the library, or of another package
            continue
        if isinstance(node, tuple):  # imported from another study
            if node[1] is not None:
                todo.add(node)
            continue
        found[f"{place}.{name}"] = _meaning(node)
        # Of a study that is imported whole, what is read from it.
        for each in ast.walk(node):
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
                whole = definitions(place).get(each.value.id)
                if isinstance(whole, tuple) and whole[1] is None:
                    todo.add((whole[0], each.attr))
        # An argument or a variable of a definition hides what the module has of that name.
        inside = [*ast.walk(node)]
        names = [each for each in inside if isinstance(each, ast.Name)]
        own = set()
        if isinstance(node, ast.FunctionDef):
            own = {each.arg for each in inside if isinstance(each, ast.arg)}
            own |= {each.id for each in names if isinstance(each.ctx, ast.Store)}
        read = {each.id for each in names if isinstance(each.ctx, ast.Load)}
        todo |= {(place, each) for each in read - own}
    return dict(sorted(found.items()))


def _definitions(module: str) -> dict[str, Any]:
    """What the names of a module stand for: a definition, as a tree, or the module and the name that one is imported from.

    The name is None where it is the whole module.
    """
    found: dict[str, Any] = {}
    for node in ast.parse(Path(sys.modules[module].__file__ or "").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("studies."):
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "studies":
            found |= {alias.asname or alias.name: (f"studies.{alias.name}", None) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id: node for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return found


def _meaning(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)
