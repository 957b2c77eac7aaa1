"""A book on other data than its own: `build.py --dataset mine.npz`, or a name that `nbvae.data.load` knows.

The sources are copied to `_build/NAME/source`, where each notebook's parameter `dataset` is set to these data, and the book is
built from there into `_build/NAME/html`: what was executed, and what studies keep, stay apart from the book's own. A notebook
that ends in a `ValueError`, the one line that says what is allowed, is put back to its own data. Every page says in a box what
it is of. Live examples that train on all examples take fewer passes over more than the digits have: as many steps, about.
"""

import ast
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import nbformat

PARAMETERS = "parameters"  # the page that lists them
FILE = "book/given.json"  # what a copy of the sources was given, and which notebooks refuse it
SOURCES = ("nbvae", "studies", "notebooks", "_config.yml", "_toc.yml", "constraints.txt", "genindex.md")
MADE = ("executed", "__pycache__")  # in `book`, by a build
# Notebooks that train on all examples, and the number that they are made for; the others take a part of a large data set.
ON_ALL = ("02_four_terms", "03_rate_distortion", "04_sigma_and_beta", "07_alignment")
ON_ALL = (*ON_ALL, "howto_data", "howto_model", "howto_objective", "howto_rate")
MADE_FOR = 1200
TOP = re.compile(r'<article\b[^>]*>|<div class="bd-search-container">')  # what a page has to say begins behind it
MISSING = re.compile(r'<code class="xref std std-numref[^"]*">.*?</code>', re.DOTALL)  # a figure that was not drawn
OF_RECORDS = (
    "Sentences about results are about the book's records, of the digits unless another data set is named. So are captions and"
    " descriptions of figures where they say what is seen."
)
WHAT = f"Tables, figures and numbers that this page computes are of these data. {OF_RECORDS}"
ALL = f"The notebooks of this copy of the book were run on these data. {OF_RECORDS}"


def accepted(dataset: str) -> tuple[str, Path | None, int]:
    """What pages call a data set, its file, None for a named one, and how many training examples it has.

    Raises `ValueError` or `OSError`, in one line, for data that the library does not load or train on.
    """
    from nbvae import data

    ds = data.load(dataset)
    ds.check_scale()
    if dataset.lower().endswith(".npz"):
        file = Path(os.path.expanduser(dataset)).resolve()
        return file.name, file, len(ds.train)
    return dataset, None, len(ds.train)


def stage(root: Path, dataset: str) -> Path:
    """Copy the sources under `root` to `_build/NAME/source`, with `dataset` in the notebooks; what was made there stays."""
    name, file, examples = accepted(dataset)
    copy = root / "_build" / name / "source"
    (copy / "book").mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        _replace(root / source, copy / source)
    inside = {path.name for place in (root, copy) for path in (place / "book").iterdir()} - {*MADE, Path(FILE).name}
    for part in inside:
        _replace(root / "book" / part, copy / "book" / part)
    if file:
        (copy / name).unlink(missing_ok=True)
        try:
            (copy / name).symlink_to(file)
        except OSError:  # where links need a permission
            shutil.copy2(file, copy / name)
    for notebook in sorted((copy / "notebooks").glob("*.ipynb")):
        _set(notebook, name, examples if notebook.stem in ON_ALL else 0)
    if not (copy / FILE).is_file():
        write(copy, name, {})
    return copy


def _replace(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`; nothing where there is no source."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.is_file():
        shutil.copy2(source, target)


def _set(notebook: Path, dataset: str, examples: int) -> None:
    """Write `dataset` into a notebook's cell of parameters, and the passes over so many `examples`, where it has these."""
    try:
        content = nbformat.read(notebook, as_version=4)
    except (ValueError, AttributeError):  # no notebook: the builder says so
        return
    for cell in content.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = with_value(cell.source, "dataset", lambda _: dataset)
            if examples > MADE_FOR:
                cell.source = with_value(cell.source, "epochs", lambda epochs: math.ceil(epochs * MADE_FOR / examples))
    nbformat.write(content, notebook)


def with_value(code: str, name: str, change: Callable[[Any], Any]) -> str:
    """The code of a cell of parameters with another value of the parameter `name`, if it has one: `change` of its own.

    >>> with_value('dataset: str = "digits"  # a name', "dataset", lambda value: f"my {value}")
    'dataset: str = "my digits"  # a name'
    """
    lines = code.splitlines()
    for node in ast.parse(code).body:
        names = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
        if value and any(isinstance(each, ast.Name) and each.id == name for each in names):
            line = lines[value.lineno - 1].encode()
            new = json.dumps(change(ast.literal_eval(value)), ensure_ascii=False).encode()
            lines[value.lineno - 1] = (line[: value.col_offset] + new + line[value.end_col_offset :]).decode()
    return "\n".join(lines)


def read(root: Path) -> tuple[str, dict[str, dict[str, str]]]:
    """The data set that the sources under `root` were given, and the notebooks that refuse it, each with `key` and `reason`."""
    content = json.loads((root / FILE).read_text(encoding="utf-8"))
    return content["dataset"], content["refused"]


def write(root: Path, dataset: str, refused: Mapping[str, Mapping[str, str]]) -> None:
    content = {"dataset": dataset, "refused": dict(sorted(refused.items()))}
    (root / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def label(root: Path, html: Path, own: Mapping[str, str], without: Sequence[str]) -> None:
    """Put a box at the top of each page under `html` that says which data it is of, and words for figures that it has not.

    - `own`: the names of the notebooks, with their own data set, "" where they make theirs.
    - `without`: the names of those without a parameter for a data set.
    """
    dataset, refused = read(root)
    for path in sorted(html.rglob("*.html")):
        page = path.relative_to(html)
        text = path.read_text(encoding="utf-8")
        if "_static" in page.parts or not TOP.search(text):  # the page that only forwards to another one
            continue
        name = page.stem if page.parent.as_posix() == "book/executed" else ""
        if name in refused:
            shown = f"on its own data, {escape(own[name])}" if own[name] else "on data that it makes itself"
            said = [
                f"These data are refused: {escape(refused[name]['reason'], quote=False)}",
                f"So the page is shown {shown}. Perhaps other parameters help: {_link(html, page, PARAMETERS)}.",
            ]
        elif name in without:
            said = ["It has no parameter for a data set, and is shown as it is."]
        else:
            listed = [_link(html, page, each) for each in refused] if page.as_posix() == "book/index.html" else []
            said = [WHAT if name in own else ALL]
            said += [f"Pages that refuse these data, and say why: {', '.join(listed)}."] if listed else []
        is_of = name not in refused and name not in without
        box = _box("note" if is_of else "warning", f"Built on {dataset}" if is_of else f"This page is not of {dataset}", said)
        text = MISSING.sub("a figure that these data do not have", text)
        path.write_text(TOP.sub(lambda found, box=box: found[0] + box, text, count=1), encoding="utf-8")


def _box(kind: str, title: str, paragraphs: Iterable[str]) -> str:
    """A box as the theme has them, of paragraphs of HTML."""
    name, body = escape(title), "".join(f"<p>{each}</p>" for each in paragraphs)
    title = f'<p class="admonition-title">{name}</p>'
    return f'\n<div class="admonition {kind} given" role="note" aria-label="{name}">{title}{body}</div>'


def _link(html: Path, page: Path, name: str) -> str:
    """A link from `page` to another one, of `book/executed`; its name alone if it is not there."""
    target = Path("book/executed") / f"{name}.html"
    if not (html / target).is_file():
        return escape(name)
    title = re.search(r"<title>\s*(.*?)\s*(?:&#8212;|—|</title>)", (html / target).read_text(encoding="utf-8"), re.DOTALL)
    return (
        f'<a href="{escape(Path(os.path.relpath(target, page.parent)).as_posix())}">{title[1] if title else escape(name)}</a>'
    )
