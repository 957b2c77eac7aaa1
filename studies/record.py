"""What an experiment found, as the book reads it: a tidy frame, arrays and models, with the plan and how each part was made.

`book/recorded/NAME.json` holds the records of a study, one for each data set, each with a hash of what it says. Arrays are in
`NAME_DATASET.npz` beside it, models in folders `NAME/DATASET/…`, as `training.Run.save` writes them.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbvae import checks, results, training
from studies import provenance
from studies.convergence import Check, plain

RECORDED = Path(__file__).resolve().parents[1] / "book" / "recorded"
LARGEST = 1_000_000  # bytes of a recorded model
_FORMAT = 1
NOTE = {"what", "cell", "commit", "modified", "date", "seconds", "device", "threads", "cores", "versions"}


@dataclass(frozen=True, eq=False)
class Record:
    """What an experiment found.

    - `study`: its name.
    - `plan`: the settings, as `Plan.settings` has them.
    - `hash`: the plan's hash.
    - `frame`: a tidy frame, one row for each seed and quantity.
    - `checks`: the convergence checks, each with its outcome.
    - `said`: the result in words.
    - `data`: SHA-256 of the data set.
    - `code`: a hash of the code that trained and measured.
    - `notes`: for each training or measurement commit, date, seconds, device, threads, cores and versions.
    - `arrays`: what pages draw, by name.
    - `runs`: trained models, by name.
    - `live`: whether this was computed now, and not read from the book's records.
    """

    study: str
    plan: dict[str, Any]
    hash: str
    frame: pd.DataFrame
    checks: Sequence[Check]
    said: str
    data: str
    code: str
    notes: Sequence[dict[str, Any]]
    arrays: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, training.Run] = field(default_factory=dict)
    live: bool = True

    @classmethod
    def of(
        cls,
        module: str,
        plan: Any,
        lab: Any,
        rows: Sequence[dict[str, Any]],
        checks: Sequence[Check],
        said: str,
        arrays: Mapping[str, Any] | None = None,
        runs: Mapping[str, training.Run] | None = None,
    ) -> "Record":
        """What a study's `module` has found with a `plan`, in a `lab`: `rows` of its frame, its checks, and what it says."""
        name = module.rpartition(".")[2]
        return cls(
            study=name,
            plan=plan.settings,
            hash=plan.hash,
            frame=results.frame_of(rows, study=name, dataset=plan.dataset),
            checks=checks,
            said=said,
            data=plan.data().sha256,
            code=provenance.code(module),
            notes=lab.notes,
            arrays=arrays or {},
            runs=runs or {},
        )

    @property
    def passed(self) -> bool:
        """Whether every convergence check passed."""
        return all(check.passed for check in self.checks)

    @property
    def convergence(self) -> pd.DataFrame:
        """The convergence checks as a table for a page: what was checked, the outcome and what was found."""
        said = [tuple(map(plain, (check.name, check.found))) for check in self.checks]
        rows = [
            (name, "passed" if check.passed else "failed", found)
            for check, (name, found) in zip(self.checks, said, strict=True)
        ]
        return pd.DataFrame(rows, columns=pd.Index(["check", "outcome", "found"]))

    @property
    def seconds(self) -> float:
        """Seconds of compute behind it."""
        return math.fsum(note["seconds"] for note in self.notes)

    @property
    def date(self) -> str:
        """The day (UTC) of the last training or measurement."""
        return max((note["date"][:10] for note in self.notes), default="")

    @property
    def note(self) -> str:
        """One sentence for a page: where these numbers come from."""
        seeds = f"{len(self.plan['seeds'])} seed{'s' if len(self.plan['seeds']) > 1 else ''}"
        if not self.live:
            return f"Recorded on {self.date}: {self.plan['dataset']}, {seeds}."
        few = ", too few and trained too briefly for a claim" if len(self.plan["seeds"]) < 3 else ""
        state = "" if self.passed else "; not converged"
        return f"Computed now: {self.plan['dataset']}, {seeds}{few}{state}."

    def model(self, name: str) -> Any:
        """A trained model by its `name`; `ValueError` if there is none of that name."""
        checks.choice("model", name, self.runs)
        return self.runs[name].model


def write(record: Record, folder: Path = RECORDED) -> None:
    """Write a record beside those of the study's other data sets; each file is written whole or not at all."""
    name, dataset = record.study, record.plan["dataset"]
    part = {
        "plan": record.plan,
        "plan_hash": record.hash,
        "code": record.code,
        "data": record.data,
        "said": record.said,
        "convergence": [check.as_json() for check in record.checks],
        "notes": list(record.notes),
        "columns": list(record.frame.columns),
        "rows": _rows(record.frame),
        "runs": sorted(record.runs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if record.arrays:
        _replace(folder / f"{name}_{dataset}.npz", lambda file: np.savez_compressed(file, **record.arrays))
        part["arrays"] = hashlib.sha256((folder / f"{name}_{dataset}.npz").read_bytes()).hexdigest()
    for key, run in record.runs.items():
        run.save(folder / name / dataset / key)
        size = sum(file.stat().st_size for file in (folder / name / dataset / key).iterdir())
        if size > LARGEST:
            raise ValueError(f"the model {key} of {name} takes {size / 1e6:.1f} MB, at most {LARGEST / 1e6:g} are recorded")
    path = folder / f"{name}.json"
    parts = _parts(path) if path.exists() else {}
    parts[dataset] = part | {"sha256": _digest(part)}
    whole = {"format": _FORMAT, "study": name, "datasets": {key: parts[key] for key in sorted(parts)}}
    _replace(path, lambda file: file.write((json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()))


def read(name: str, dataset: str, folder: Path = RECORDED) -> Record | None:
    """The record of a study for a data set; None if there is none. `ValueError` for one that is damaged."""
    path = folder / f"{name}.json"
    parts = _parts(path) if path.exists() else {}
    if dataset not in parts:
        return None
    part = parts[dataset]
    said = {key: value for key, value in part.items() if key != "sha256"}
    if part.get("sha256") != _digest(said):
        raise ValueError(
            f"{path} was changed after it was written, in what it says of {dataset}: python -m studies {name} --record"
        )
    arrays: dict[str, np.ndarray] = {}
    if "arrays" in part:
        file = folder / f"{name}_{dataset}.npz"
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != part["arrays"]:
            raise ValueError(f"{file} is missing or damaged: restore it, or python -m studies {name} --record")
        with np.load(file, allow_pickle=False) as packed:
            arrays = {key: packed[key] for key in packed.files}
    return Record(
        study=name,
        plan=part["plan"],
        hash=part["plan_hash"],
        frame=_frame(part["columns"], part["rows"]),
        checks=[Check(**check) for check in part["convergence"]],
        said=part["said"],
        data=part["data"],
        code=part["code"],
        notes=part["notes"],
        arrays=arrays,
        runs=_Runs({key: folder / name / dataset / key for key in part["runs"]}),
        live=False,
    )


class _Runs(dict):
    """Runs that are read when they are asked for."""

    def __getitem__(self, name: str) -> training.Run:
        return training.load(super().__getitem__(name))


def recorded(name: str, folder: Path = RECORDED) -> list[str]:
    """The data sets for which a study has a record."""
    path = folder / f"{name}.json"
    return list(_parts(path)) if path.exists() else []


def _parts(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if whole["format"] != _FORMAT or not isinstance(whole["datasets"], dict):
            raise ValueError("another format")
        return whole["datasets"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record, or damaged ({checks.line(error)}): restore it") from None


def _digest(part: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def _rows(frame: pd.DataFrame) -> list[list[Any]]:
    """The rows as JSON has them: None for what is missing."""
    return json.loads(json.dumps(frame.astype(object).where(frame.notna(), None).to_numpy().tolist()))


def _frame(columns: list[str], rows: list[list[Any]]) -> pd.DataFrame:
    frame: Any = pd.DataFrame(rows, columns=pd.Index(columns))
    for name in {"seed", "n"} & set(columns):
        frame[name] = frame[name].astype("Int64" if frame[name].isna().any() else "int64")
    return frame.astype({name: "float64" for name in ("value", "stderr", "beta") if name in columns})


def _replace(path: Path, fill: Any) -> None:
    """Fill a new file and put it in the place of the old one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        fill(file)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
