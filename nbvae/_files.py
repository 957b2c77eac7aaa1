"""Tables of numbers in CSV and JSON files, exact, and what is wrong with such a file in one line that names it."""

import csv
import json
import math
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

Path_ = str | os.PathLike
Record = dict[str, Any]


def write_csv(path: Path_, records: Sequence[Record]) -> None:
    """One row for each record, under the names of the first; None is "nan"."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(records[0])
        for record in records:
            writer.writerow(["nan" if value is None else repr(value) for value in record.values()])


def read_csv(path: Path_, known: Collection[str], needed: Collection[str]) -> list[tuple[str, Record]]:
    """Each row as a record of texts, with what to call it; `ValueError` unless all names are known, and those needed there."""
    try:
        rows = list(csv.reader(_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    header = [name.strip() for name in rows[0]] if rows else []
    records = []
    for number, row in enumerate(rows[1:], 1):
        if row:
            if len(row) != len(header):
                raise ValueError(f"{path}, row {number}: {len(row)} values under {len(header)} names")
            records.append((f"row {number}", dict(zip(header, row, strict=True))))
    _check_names(path, header, known, needed)
    return records


def write_json(path: Path_, records: Sequence[Record]) -> None:
    """The records as the list "points" of an object with the unit nats; None is null."""
    text = json.dumps({"unit": "nats", "points": records}, indent=1, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_json(path: Path_, known: Collection[str], needed: Collection[str]) -> list[tuple[str, Record]]:
    """What `write_json` wrote, as `read_csv`."""
    try:
        content = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    points = content.get("points") if isinstance(content, dict) else None
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise ValueError(f'{path} has no list "points" of objects')
    if content.get("unit") != "nats":
        raise ValueError(f'{path} has the unit {content.get("unit")!r}, expected "nats"')
    for point in points:
        _check_names(path, list(point), known, needed)
    return [(f"point {number}", point) for number, point in enumerate(points, 1)]


def number(what: str, value: object, whole: bool = False) -> Any:
    """A number from its text (CSV) or its JSON value; one that is not known is nan, a whole one None."""
    if value is None or (whole and value == "nan"):
        return None if whole else math.nan
    try:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError
        return int(value) if whole and not isinstance(value, float) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{what} must be a {'whole ' if whole else ''}number, got {str(value)[:60]!r}") from None


def _check_names(path: Path_, names: Sequence[str], known: Collection[str], needed: Iterable[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(names) or 'nothing'}")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{path} has unknown names {', '.join(unknown)}; known are {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has a name twice: {', '.join(names)}")


def _text(path: Path_) -> str:
    if not Path(path).exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
