"""Docstrings, which are written as they are read in a terminal, as reStructuredText."""

import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
EMPHASIS = re.compile(r"(?<![\w*])\*(\w[\w -]*)(?<! )\*(?![\w*])")
ITEM = re.compile(r"- ")


def rest(text: str) -> list[str]:
    """The lines of a docstring, of which `inspect.cleandoc` has taken the indentation, as reStructuredText.

    Backticks are code, `- ` begins an item of a list, `|` a row of a table, four spaces a formula, `>>>` an example.
    """
    lines: list[str] = []
    for kind, block in blocks(text.splitlines()):
        lines += [*{"list": listed, "table": table, "formula": formula, "example": example, "text": prose}[kind](block), ""]
    return lines


def blocks(lines: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """A docstring cut where its kind of text changes, each piece with its kind."""
    kind, block = "", []
    for line in [*lines, ""]:
        now = _kind(line, kind, gap=bool(block) and not block[-1].strip())
        if now != kind:
            if kind:
                yield kind, _trimmed(block)
            kind, block = now, []
        block.append(line)
    if kind:
        yield kind, _trimmed(block)


def _kind(line: str, before: str, gap: bool) -> str:
    """What a line is, after one of the kind `before`, perhaps with a `gap` between them, which ends no formula and no list."""
    if not line.strip():
        return before if before in ("formula", "list") else ""
    if line.startswith(">>> ") or (before == "example"):
        return "example"
    if ITEM.match(line) or (before == "list" and line.startswith("  ") and not (gap and line.startswith("    "))):
        return "list"
    if line.startswith("|"):
        return "table"
    return "formula" if line.startswith("    ") else "text"


def _trimmed(block: list[str]) -> list[str]:
    while block and not block[-1].strip():
        block = block[:-1]
    return block


def prose(block: Sequence[str]) -> list[str]:
    """A paragraph in one line, so that code which goes on in the next line is whole."""
    return [inline(" ".join(line.strip() for line in block))]


def listed(block: Sequence[str]) -> list[str]:
    """A list; an item goes on in lines that are indented by two, as reStructuredText has it too."""
    items: list[list[str]] = []
    for line in block:
        if ITEM.match(line):
            items.append([line[2:].strip()])
        elif line.strip():
            items[-1].append(line.strip())
    return [f"- {inline(' '.join(item))}" for item in items]


def table(block: Sequence[str]) -> list[str]:
    """A table of Markdown, the second of whose rows is a rule."""
    rows = [[cell.strip() for cell in CELL.split(line.strip().strip("|"))] for line in block]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        lines += [f"   {'* -' if number == 0 else '  -'} {inline(cell)}" for number, cell in enumerate(row)]
    return lines


CELL = re.compile(r"\|(?=(?:[^`]*`[^`]*`)*[^`]*$)")  # not inside code


def formula(block: Sequence[str]) -> list[str]:
    """Lines that stand as they are, in a font that keeps their columns."""
    return [".. code-block:: text", "   :class: formula", "", *(f"   {line[4:]}" for line in block)]


def example(block: Sequence[str]) -> list[str]:
    """An example as it is, but for the line by which the tests know that an error is expected."""
    return [line for line in block if line != EXPECTED]


EXPECTED = "Traceback (most recent call last):"


def inline(text: str) -> str:
    """A text whose backticks are code, *stars* around words emphasis, and all else is meant as it is written."""
    parts: list[str] = []
    end = 0
    for found in CODE.finditer(text):
        parts += [_plain(text[end : found.start()]), rf"\ ``{found[1]}``\ "]
        end = found.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    """A text without code: the characters that mark things up are escaped, but where they mean emphasis."""
    parts: list[str] = []
    end = 0
    for found in EMPHASIS.finditer(text):
        parts += [_escaped(text[end : found.start()]), rf"\ *{_escaped(found[1])}*\ "]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\*|_`])", r"\\\1", text)
