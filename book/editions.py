"""The editions of the book: which cells and pages each leaves out, and what an exercise says of itself.

A tag of a cell says whom it is for: `solution` is not for students, `teacher` for teachers alone. Pages under `book/teaching`
are not for students; only they and the README link to them. The metadata `exercise` of an exercise's cell holds its kind, its
difficulty and the minutes that it takes.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
import yaml

# The folder of each edition under `_build`, and the tags of the cells that it leaves out.
LEFT_OUT = {"html": {"teacher"}, "student": {"solution", "teacher"}, "teacher": set[str]()}
# The folder whose pages the edition for students does not have.
TEACHING = "book/teaching"
CHECKED = ("compute", "predict", "prove")  # kinds whose solutions check themselves
KINDS = (*CHECKED, "measure", "research")  # for the last two a teacher's cell has hints and what a good answer contains
DIFFICULTIES = {1: "easy", 2: "medium", 3: "hard"}
_OPENING = re.compile(r"\A(`{3,}\{exercise\})[ \t]*$", re.MULTILINE)


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def faults(exercise: Any) -> list[str]:
    """What is wrong with the metadata of an exercise, one line for each fault."""
    if not isinstance(exercise, dict) or set(exercise) != {"kind", "difficulty", "minutes"}:
        return [f"metadata exercise is {exercise}: it holds kind, difficulty and minutes"]
    kind, difficulty, minutes = exercise["kind"], exercise["difficulty"], exercise["minutes"]
    found = [] if kind in KINDS else [f"kind is {kind!r}: allowed are {', '.join(KINDS)}"]
    if type(difficulty) is not int or difficulty not in DIFFICULTIES:
        found.append(f"difficulty is {difficulty!r}: allowed are 1 (easy), 2 (medium) and 3 (hard)")
    if type(minutes) is not int or minutes < 5 or minutes % (60 if minutes > 120 else 5):
        found.append(f"minutes is {minutes!r}: allowed are multiples of 5, and whole hours above 120")
    return found


def badge(exercise: dict[str, Any]) -> str:
    """What a reader is told of an exercise.

    >>> badge({"kind": "prove", "difficulty": 2, "minutes": 20}), badge({"kind": "research", "difficulty": 3, "minutes": 480})
    ('prove, medium, 20 minutes', 'research, hard, 8 hours')
    """
    minutes = exercise["minutes"]
    time = f"{minutes} minutes" if minutes <= 120 else f"{minutes // 60} hours"
    return f"{exercise['kind']}, {DIFFICULTIES[exercise['difficulty']]}, {time}"


def edit(notebook: nbformat.NotebookNode, edition: str) -> nbformat.NotebookNode:
    """A notebook as an edition shows it: without the cells that it leaves out, the badges of exercises in their titles."""
    cells = [cell.copy() for cell in notebook.cells if not tags(cell) & LEFT_OUT[edition]]
    for cell in cells:
        if exercise := cell.metadata.get("exercise"):
            cell.source = _OPENING.sub(rf"\1 {badge(exercise)}", cell.source)
    return nbformat.NotebookNode({**notebook, "cells": cells})


def has(edition: str, page: str) -> bool:
    """Whether an edition has a page of `_toc.yml`.

    >>> has("student", "book/glossary"), has("student", "book/teaching/exam"), has("teacher", "book/teaching/exam")
    (True, False, True)
    """
    return edition != "student" or not page.startswith(f"{TEACHING}/")


def contents(toc: Any, edition: str) -> Any:
    """What an edition keeps of the table of contents, or of a part of it; a part without a page goes, too."""
    if isinstance(toc, list):
        kept = [contents(each, edition) for each in toc if has(edition, str(each.get("file", "")))]
        return [each for each in kept if {"file", "chapters", "glob", "url"} & set(each)]
    if isinstance(toc, dict):
        kept = {key: contents(value, edition) for key, value in toc.items()}
        return {key: value for key, value in kept.items() if value != []}
    return toc


def stage(root: Path, listed: Iterable[str], edition: str, folder: Path) -> None:
    """Copy all that Sphinx reads of the book at `root` into `folder`, with the notebooks and the pages of an edition.

    The sources under `notebooks` go with it as they are: they make no page, and the reference looks there who uses what.
    """
    shutil.copytree(root / "book", folder / "book", ignore=shutil.ignore_patterns("recorded", "__pycache__", ".*"))
    if (root / "notebooks").is_dir():
        shutil.copytree(root / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    pages = [file for page in listed if "/" not in page for file in root.glob(f"{page}.*")]
    for file in (root / "_config.yml", root / "_toc.yml", *pages):
        shutil.copy(file, folder / file.name)
    if not has(edition, f"{TEACHING}/"):
        shutil.rmtree(folder / TEACHING, ignore_errors=True)
        toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
        kept = yaml.safe_dump(contents(toc, edition), sort_keys=False, allow_unicode=True)
        (folder / "_toc.yml").write_text(kept, encoding="utf-8")
    for file in (folder / "book").rglob("*.ipynb"):
        file.write_text(f"{nbformat.writes(edit(nbformat.read(file, as_version=4), edition))}\n", encoding="utf-8")
