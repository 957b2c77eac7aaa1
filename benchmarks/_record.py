"""A file of results that a benchmark fills entry by entry, each beside a note of how it was made. No benchmark itself."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nbvae import training

ROOT = Path(__file__).resolve().parents[1]
CODE = ("nbvae", "benchmarks", "pyproject.toml", "constraints.txt")  # what decides a result; a record that grows does not
PACKAGES = ("nbvae", "torch", "numpy", "scikit-learn")


class Record:
    """The results in a JSON file: `known[section][entry]`, and in `known["provenance"][section][entry]` how that was made.

    A note holds the command, the commit, whether the code was modified since, the date (UTC) at the entry's end, its seconds
    by the clock, device, threads, cores and versions; None is for what is not known. An entry that is there is not made again
    and keeps its note. Notes written before there was one for each entry have under "recorded" the commit that stored the
    entry, beside what the file said of its last run at that commit.

    out: the file; it is written whole or not at all, after each entry.
    command: what was called, without paths of this machine.
    shared: what every entry has in common, such as the plan.

    SystemExit, in one line, if the file is there and has other shared values.
    """

    def __init__(self, out: Path, command: str, **shared: Any):
        self.out = out
        self.known: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        self.provenance: dict[str, Any] = self.known.setdefault("provenance", {})
        self.share(self.known, **shared)
        # Now, not when an entry ends: this is the code that is loaded.
        self.session = {"command": command} | code(ROOT) | machine()

    def share(self, holder: dict[str, Any], rounding: float = 0.0, **values: Any) -> None:
        """Keep values that belong to all entries in `holder`, `known` or a part of it, where they have to stay the same.

        `rounding` is the share by which numbers that are computed again may be off.
        """
        for name, value in json.loads(json.dumps(values)).items():
            if not _alike(holder.setdefault(name, value), value, rounding):
                raise SystemExit(f"{self.out} was made with another {name}: give another --out, or remove it")

    def entry(self, make: Callable[[], Any], *path: str) -> Any:
        """The entry at `path`, made and written if it is not there."""
        holder = self._holder(self.known, path)
        if path[-1] not in holder:
            start = time.perf_counter()
            self.put(make(), *path, seconds=time.perf_counter() - start)
        return holder[path[-1]]

    def put(self, value: Any, *path: str, seconds: float | None = None) -> None:
        """Write a value that is made anew by every call; its note stays while the value does."""
        value = json.loads(json.dumps(value))
        holder, notes = self._holder(self.known, path), self._holder(self.provenance, path)
        if json.dumps(holder.get(path[-1])) != json.dumps(value) or path[-1] not in notes:  # as text: nan is equal to nan
            date = datetime.now(UTC).isoformat(timespec="seconds")
            notes[path[-1]] = self.session | {"date": date, "seconds": seconds if seconds is None else round(seconds, 1)}
        holder[path[-1]] = value
        self.save()

    def save(self) -> None:
        partial = self.out.with_name(f".{self.out.name}.partial")
        partial.write_text(json.dumps(self.known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.out)

    @staticmethod
    def _holder(top: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        for name in path[:-1]:
            top = top.setdefault(name, {})
        return top


def _alike(a: Any, b: Any, rounding: float) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], rounding) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=rounding)
    return a == b


def code(root: Path) -> dict[str, Any]:
    """The commit of the code under `root`, and whether it was modified since; None where git cannot say."""

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--", *CODE) if commit else None
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def machine() -> dict[str, Any]:
    """Where this runs: device, threads, cores, versions."""
    device = training.device("auto").type
    return {
        "device": f"cuda, {torch.cuda.get_device_name()}" if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("nbvae", "torch", "numpy")},
    }
