"""The pages for teachers: their times are those of the exercises, and what they refer to is in the chapters."""

import json
import re
from pathlib import Path

import pytest

import editions

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / editions.TEACHING).glob("*.md"))
NAMES = [path.stem for path in PAGES]
CHAPTERS = [json.loads(path.read_text(encoding="utf-8"))["cells"] for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
LABEL = re.compile(r":label: *(ex-[\w-]+)")


def exercises(cells: list) -> dict[str, dict]:
    told = [("".join(cell["source"]), cell["metadata"].get("exercise")) for cell in cells]
    return {LABEL.findall(source)[0]: exercise for source, exercise in told if exercise}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_a_page_refers_to_what_there_is(path):
    cells = [cell for chapter in CHAPTERS for cell in chapter]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    figures = {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells}
    known = {"numref": figures | set(LABEL.findall(text)), "eq": set(re.findall(r"\$\$ \((eq-[\w-]+)\)", text))}
    for role, label in re.findall(r"\{(numref|eq)\}`([^`]+)`", path.read_text(encoding="utf-8")):
        assert label in known[role], f"{path.name}: no {label} in the chapters"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_minutes_behind_an_exercise_are_its_own(path):
    minutes = {label: told["minutes"] for cells in CHAPTERS for label, told in exercises(cells).items()}
    for label, said in re.findall(r"\{numref\}`(ex-[\w-]+)` \((\d+) min\)", path.read_text(encoding="utf-8")):
        assert minutes[label] == int(said), label


def test_the_table_of_times_adds_up_the_exercises():
    text = (ROOT / editions.TEACHING / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[\d\]\(.*?\) \| \d+ min \| (\d+) min \| (\d+) min \| (\d+) h \|$", text, re.MULTILINE)
    sums = []
    for cells in CHAPTERS:
        by_kind = [(told["kind"], told["minutes"]) for told in exercises(cells).values()]
        kinds = editions.CHECKED, ("measure",), ("research",)
        sums.append([sum(minutes for kind, minutes in by_kind if kind in each) for each in kinds])
    assert [[int(paper), int(measured), 60 * int(hours)] for paper, measured, hours in rows] == sums


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_no_other_page_of_the_book_leads_to_what_students_do_not_have(path):
    others = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    assert [other.name for other in others if f"teaching/{path.stem}" in other.read_text(encoding="utf-8")] == []
