"""The page of notation is the authority: what it lists is in the chapters, what they use is listed, and its code is there."""

import dataclasses
import functools
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

import nbvae  # noqa: E402

PAGE = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+?)\$", re.DOTALL)
# Signs, operators and layout, which are no symbols of the book's own.
SIGNS = re.findall(
    r"\w+",
    "approx bar begin Big Bigl Bigr bigl bigr bmod cdot cdots cos det dots end exp frac ge gt hat in infty int lVert le ldots "
    "left lfloor log lt max mid min nabla ne partial pm prime prod propto qquad quad rVert rfloor right sim sqrt star sum sup "
    "textstyle tfrac tilde times to top underbrace",
)


def plain(formula: str) -> str:
    """A formula without what only sets it: spaces, sizes, and the ways to write a bar."""
    formula = re.sub(r"\\mid(?![A-Za-z])", "|", formula)
    formula = re.sub(r"\\Vert(?![A-Za-z])", r"\\|", formula)
    formula = re.sub(r"\\(?:bigl|bigr|Bigl|Bigr|left|right)(?![A-Za-z])|\\[,;!]|~", "", formula)
    formula = re.sub(r"\\mathbb *E", r"\\mathbb{E}", re.sub(r"\\mathcal *\{?([A-Z])\}?", r"\\mathcal \1", formula))
    return re.sub(r"(?<!mathcal)\s+", "", formula)


def formulas(path: Path) -> list[str]:
    """The formulas of the text of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return [one or two for one, two in MATH.findall(text)]


@functools.cache
def chapters() -> dict[int, list[str]]:
    """The formulas of each chapter, whose file begins with its number."""
    return {int(path.name[:2]): formulas(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, without its head."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]


def symbols(cell: str) -> list[str]:
    return [formula for _, formula in MATH.findall(cell)]


def occurs(symbol: str, chapter: int) -> bool:
    """Whether a chapter's formulas have a symbol: as a whole, and not as a part of a longer name."""
    mark = plain(symbol)
    if len(mark) == 1:
        return any(mark in plain(names_out(formula)) for formula in chapters()[chapter])
    start = "" if mark.startswith("\\") else r"(?<![A-Za-z\\])"
    end = r"(?![A-Za-z])" if mark[-1].isalpha() else ""
    return any(re.search(start + re.escape(mark) + end, plain(formula)) for formula in chapters()[chapter])


def names_out(formula: str) -> str:
    """A formula without words and operators, where a single letter is looked for."""
    return re.sub(r"\\(?:text|mathrm|operatorname|mathbb|mathcal|begin|end)\s*(?:\{[^}]*\}|[A-Z])|\\[A-Za-z]+", " ; ", formula)


MAIN = [
    (symbol, int(re.findall(r"\d", chapter)[0]), chapter, code)
    for cell, _, chapter, code in rows("Throughout the book")
    for symbol in symbols(cell)
]
LOCAL = {
    (symbol, chapter)
    for cell, where, _ in rows("In one place only")
    for symbol in symbols(cell)
    for chapter in (chapters() if where == "all" else map(int, re.findall(r"\[(\d+)\]", where)))
}


@pytest.mark.parametrize(("symbol", "chapter", "link"), [each[:3] for each in MAIN], ids=[each[0] for each in MAIN])
def test_a_symbol_is_introduced_where_the_page_says(symbol, chapter, link):
    (target,) = re.findall(r"\(executed/(\d\d)_\w+\.ipynb\)", link)
    assert int(target) == chapter
    assert occurs(symbol, chapter)
    # Before that it may stand for something else only, which the second table says.
    assert [number for number in chapters() if number < chapter and occurs(symbol, number)] == [
        number for number in chapters() if number < chapter and (symbol, number) in LOCAL
    ]


def test_a_symbol_of_the_whole_book_is_listed_once():
    names = [each[0] for each in MAIN]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(("symbol", "chapter"), sorted(LOCAL), ids=str)
def test_a_letter_of_one_derivation_is_in_its_chapter(symbol, chapter):
    everywhere = all((symbol, number) in LOCAL for number in chapters())
    assert occurs(symbol, chapter) or everywhere
    assert any(occurs(symbol, number) for number in chapters())


def letters(formula: str) -> set[str]:
    """The letters of a formula that stand for something: without words, operators and units of layout."""
    formula = re.sub(r"\\(?:text|label|tag|begin|end|mathrm|operatorname)\s*\{[^}]*\}", " ", formula)
    formula = re.sub(r"\\(?:mathbb|mathcal)\s*(\{[A-Z]\}|[A-Z])", " ", formula)
    formula = re.sub(r"\\mathrm\s*[a-zA-Z]", " ", formula)
    for symbol, *_ in MAIN:
        if re.search(r"[_^=]", symbol):
            formula = re.sub((r"(?<![A-Za-z\\])" if symbol[0].isalpha() else "") + re.escape(symbol), " ", formula)
    return {each for each in re.findall(r"\\[A-Za-z]+|[A-Za-z]", formula) if each.lstrip("\\") not in SIGNS or len(each) == 1}


@pytest.mark.parametrize("chapter", chapters())
def test_every_letter_of_a_chapter_is_listed(chapter):
    main = {letter for symbol, *_ in MAIN for letter in re.findall(r"\\[A-Za-z]+|[A-Za-z]", symbol)}
    local = {symbol for symbol, where in LOCAL if where == chapter}
    used = {letter for formula in chapters()[chapter] for letter in letters(formula)}
    assert sorted(used - main - local) == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("howto_*.ipynb")), ids=lambda path: path.stem)
def test_a_how_to_page_has_no_letters_of_its_own(path):
    main = {letter for symbol, *_ in MAIN for letter in re.findall(r"\\[A-Za-z]+|[A-Za-z]", symbol)}
    used = {letter for formula in formulas(path) for letter in letters(formula)}
    everywhere = {symbol for symbol, _ in LOCAL if all((symbol, number) in LOCAL for number in chapters())}
    assert sorted(used - main - everywhere) == []


def words() -> set[str]:
    """The names of arguments, fields, properties and methods of what is public."""
    found: set[str] = set()
    for room in nbvae.__all__:
        module = importlib.import_module(f"nbvae.{room}")
        for value in vars(module).values():
            if not (inspect.isclass(value) or inspect.isfunction(value)) or not value.__module__.startswith("nbvae"):
                continue
            for each in [value, *(vars(value).values() if inspect.isclass(value) else [])]:
                if inspect.isfunction(each) or (inspect.isclass(each) and not issubclass(each, BaseException)):
                    found |= set(inspect.signature(each).parameters)
            found |= set(vars(value)) if inspect.isclass(value) else set()
            found |= {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    return found


def test_the_names_in_code_are_those_of_the_library():
    known = words()
    for symbol, _, _, cell in MAIN:
        for code in re.findall(r"`([^`]+)`", cell):
            path = re.sub(r"\(.*", "", code)
            if "." in path:
                functools.reduce(getattr, path.split("."), nbvae)
            else:
                assert path in known, f"{symbol} is {code}"
    assert re.findall(r"`[^`]+`", " ".join(each[3] for each in MAIN)) != []
