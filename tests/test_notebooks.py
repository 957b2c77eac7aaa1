"""The notebooks are stored as sources: no results, no traces of a run, no code that belongs in the library."""

import ast
import copy
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """What keeps a notebook from being stored, one line for each fault."""
    found = []
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"kernelspec is {kernel}, not python3")
    if "papermill" in notebook.metadata or any("papermill" in cell.metadata for cell in notebook.cells):
        found.append("metadata of papermill")
    identities = [cell.get("id") for cell in notebook.cells]
    if None in identities or len(set(identities)) < len(identities):
        found.append("cell ids are missing or repeated")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells tagged parameters, not one")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            held = [kind for kind in ("exercise", "solution") for _ in range(cell.source.count(f"{{{kind}}}"))]
            tags = [tag for tag in cell.metadata.get("tags", []) if tag in ("exercise", "solution")]
            if held != tags:
                found.append(f"cell {number} holds {held} and is tagged {tags}: each exercise and solution has its own cell")
            continue
        if cell.outputs:
            found.append(f"cell {number} has outputs")
        if cell.execution_count is not None:
            found.append(f"cell {number} has an execution count")
        if "derivation" not in cell.metadata.get("tags", []) and defines(cell.source):
            found.append(f"cell {number} defines a function or a class")
    return found


def defines(source: str) -> bool:
    """Whether code holds a `def` or `class`, at any depth; lines of magic are left out."""
    plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in ast.walk(ast.parse(plain)))


PROSE = [*NOTEBOOKS, *sorted((Path(__file__).parent.parent / "book").glob("*.md"))]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_a_mention_of_a_chapter_is_a_link(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.findall(r"(?<!\[)\b[Cc]hapter \d.{20}", text) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert faults(notebook) == []


def clean() -> nbformat.NotebookNode:
    cells = [
        nbformat.v4.new_markdown_cell("# Title", id="a"),
        nbformat.v4.new_code_cell("epochs = 1", id="b", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("%config InlineBackend.figure_formats = ['png']\nprint(epochs)", id="c"),
        nbformat.v4.new_code_cell("def by_hand(x):\n    return x", id="d", metadata={"tags": ["derivation"]}),
    ]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def test_a_clean_notebook_has_no_faults():
    assert faults(clean()) == []


def two_exercises(notebook):
    notebook.cells[0].source = "```{exercise}\nOne.\n```\n```{exercise}\nTwo.\n```"
    notebook.cells[0].metadata["tags"] = ["exercise"]


def untagged_solution(notebook):
    notebook.cells[0].source = "````{solution} ex-one\nYes.\n````"


def no_kernel(notebook):
    del notebook.metadata["kernelspec"]


def other_kernel(notebook):
    notebook.metadata.kernelspec.name = "nbvae"


def papermill_notebook(notebook):
    notebook.metadata["papermill"] = {}


def papermill_cell(notebook):
    notebook.cells[2].metadata["papermill"] = {}


def repeated_id(notebook):
    notebook.cells[2].id = "a"


def no_parameters(notebook):
    notebook.cells[1].metadata["tags"] = []


def two_parameters(notebook):
    notebook.cells[2].metadata["tags"] = ["parameters"]


def output(notebook):
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]


def count(notebook):
    notebook.cells[2].execution_count = 3


def function(notebook):
    notebook.cells[2].source = "if True:\n    def f():\n        return 1"


def a_class(notebook):
    notebook.cells[3].metadata["tags"] = []
    notebook.cells[3].source = "%time\nclass A:\n    pass"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (two_exercises, "its own cell"),
        (untagged_solution, "its own cell"),
        (no_kernel, "kernelspec"),
        (other_kernel, "kernelspec"),
        (papermill_notebook, "papermill"),
        (papermill_cell, "papermill"),
        (repeated_id, "ids"),
        (no_parameters, "0 cells tagged"),
        (two_parameters, "2 cells tagged"),
        (output, "cell 2 has outputs"),
        (count, "cell 2 has an execution count"),
        (function, "cell 2 defines"),
        (a_class, "cell 3 defines"),
    ],
)
def test_each_fault_is_found(spoil, complaint):
    notebook = copy.deepcopy(clean())
    spoil(notebook)
    assert [complaint in fault for fault in faults(notebook)] == [True]
