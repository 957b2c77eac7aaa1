"""The notebooks are stored as sources: no results, no traces of a run, no code that belongs in the library."""

import ast
import builtins
import copy
import dis
import re
import types
from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import pytest

import editions
import staleness

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
        if shows_nothing(cell.source):
            found.append(f"cell {number} makes what nothing shows: only the last value of a cell is shown without display()")
    return found + exercise_faults(notebook.cells) + dependencies(notebook.cells)


def defines(source: str) -> bool:
    """Whether code holds a `def` or `class`, at any depth; lines of magic are left out."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in ast.walk(ast.parse(staleness.plain(source))))


def shows_nothing(source: str) -> bool:
    """Whether code makes a table or a live element, by `notebook`, neither as its last value nor for another use."""
    tree = ast.parse(staleness.plain(source))
    dropped = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and node is not tree.body[-1]]
    called = [ast.unparse(node.func) for node in dropped if isinstance(node, ast.Call)]
    return any(name in ("notebook.table", "notebook.live") for name in called)


# Exercises -----------------------------------------------------------------------------------------------------------


def rank(cell: nbformat.NotebookNode) -> int:
    """2 for a teacher's cell, 1 for one of a solution, 0 for what every edition shows."""
    held = editions.tags(cell)
    return 2 if "teacher" in held else int("solution" in held)


def exercise_faults(cells: list[nbformat.NotebookNode]) -> list[str]:
    """What an exercise lacks: its metadata, and after it a solution that checks itself, or a teacher's cell."""
    found = []
    for number, cell in enumerate(cells):
        before = rank(cells[number - 1]) if number else 0
        if "exercise" in cell.metadata and "exercise" not in editions.tags(cell):
            found.append(f"cell {number} has metadata of an exercise and is none")
        if rank(cell) and not before and not (number and "exercise" in editions.tags(cells[number - 1])):
            found.append(f"cell {number} follows no exercise")
        if before > rank(cell) > 0:
            found.append(f"cell {number} is of a solution and follows a teacher's cell")
        if rank(cell) == 1 and ("hide-cell" in editions.tags(cell)) != (cell.cell_type == "code"):
            found.append(f"cell {number} is of a solution: code has the tag hide-cell, text the class dropdown")
        if "exercise" not in editions.tags(cell):
            continue
        label = re.search(r"^:label: (\S+)$", cell.source, re.MULTILINE)
        name = label[1] if label else f"the exercise of cell {number}"
        exercise = cell.metadata.get("exercise")
        found += [f"{name}: {fault}" for fault in editions.faults(exercise)] + ([] if label else [f"{name} has no label"])
        kind = exercise.get("kind") if isinstance(exercise, dict) else None
        after = cells[number + 1 :]
        own = after[: next((k for k, each in enumerate(after) if not rank(each)), len(after))]
        solution = [each for each in own if rank(each) == 1]
        text = "\n".join(each.source for each in solution if each.cell_type == "markdown")
        if text and (f"{{solution}} {name}\n" not in text or ":class: dropdown" not in text):
            found.append(f"{name}: its solution is not folded, or names another exercise")
        if kind in editions.CHECKED and not (text and any(checks(each) for each in solution)):
            found.append(f"{name}: to {kind} needs a solution, and an assertion in a code cell of it")
        if kind not in editions.CHECKED and not any(rank(each) == 2 for each in own):
            found.append(f"{name}: to {kind} needs a teacher's cell")
    return found


def checks(cell: nbformat.NotebookNode) -> bool:
    """Whether code asserts something about its names."""
    if cell.cell_type != "code":
        return False
    for node in ast.walk(ast.parse(staleness.plain(cell.source))):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("assert_")
        if called or isinstance(node, ast.Assert):
            held = node.test if isinstance(node, ast.Assert) else node
            if sum(isinstance(each, ast.Name) for each in ast.walk(held)) > called:
                return True
    return False


def names(code: str) -> tuple[set[str], set[str]]:
    """The global names that code needs before it sets them itself, and those that it sets."""
    needed: set[str] = set()
    bound: set[str] = set()

    def walk(block: types.CodeType, top: bool) -> None:
        for step in dis.get_instructions(block):
            if isinstance(step.argval, types.CodeType):
                walk(step.argval, False)
            elif step.opname == "STORE_GLOBAL" or (top and step.opname == "STORE_NAME"):
                bound.add(step.argval)
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval not in bound:
                needed.add(step.argval)

    walk(compile(staleness.plain(code), "cell", "exec"), True)
    return needed, bound


def dependencies(cells: list[nbformat.NotebookNode]) -> list[str]:
    """The names that a cell would not have, or not the same, without the cells that some editions leave out."""
    found, setter = [], {}
    for number, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        needed, bound = names(cell.source)
        found += [f"cell {number} uses {name} of a solution" for name in sorted(needed) if setter.get(name, 0) > rank(cell)]
        setter |= dict.fromkeys(bound, rank(cell))
    return found


LABEL = re.compile(r"^:(?:label|name): (\S+)$|^\(([\w-]+)\)=$|^\$\$ \(([\w-]+)\)$|\bglue\(\s*\"([^\"]+)\"", re.MULTILINE)
ROLE = re.compile(r"\{(?:eq|ref|numref|prf:ref|glue:\w+)\}`(?:[^`<]*<)?([^`>:]+)|\]\(#([^)]+)\)")


def lost_references(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Labels, figures and glued numbers of cells that some editions leave out, and that others refer to."""
    held = {}
    for cell in cells:
        given = [next(filter(None, each)) for each in LABEL.findall(cell.source)]
        given.append(cell.metadata.get("mystnb", {}).get("figure", {}).get("name"))
        held |= dict.fromkeys(filter(None, given), rank(cell))
    used = [(next(filter(None, each)), rank(cell)) for cell in cells for each in ROLE.findall(cell.source)]
    return sorted({label for label, place in used if held.get(label, 0) > place})


def test_no_page_refers_to_what_an_edition_leaves_out():
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    pages = [path.read_text(encoding="utf-8") for path in PROSE if path.suffix == ".md"]
    assert lost_references([*cells, *map(nbformat.v4.new_markdown_cell, pages)]) == []


@pytest.mark.parametrize(
    "held",
    ["````{solution} ex-one\n:label: there\n````", "$$\na\n$$ (there)", "(there)=\n## Why", 'notebook.glue("there", 1)'],
)
@pytest.mark.parametrize("use", ["{ref}`there`", "{eq}`there`", "see {numref}`Fig. %s <there>`", "{glue:text}`there:.2f`"])
def test_a_reference_to_what_is_left_out_is_found(held, use):
    cells = [nbformat.v4.new_markdown_cell(held), nbformat.v4.new_markdown_cell(use)]
    assert lost_references(cells) == []
    cells[0].metadata["tags"] = ["solution"]
    assert lost_references(cells) == ["there"]
    cells[1].metadata["tags"] = ["teacher"]
    assert lost_references(cells) == []


GIVEN = {*dir(builtins), "__annotations__", "In", "display", "get_ipython"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_without_solutions_compiles_and_has_all_its_names(path):
    student = editions.edit(nbformat.read(path, as_version=4), "student")
    assert not any(map(rank, student.cells))
    known = set(GIVEN)
    for cell in student.cells:
        if cell.cell_type == "code":
            needed, bound = names(cell.source)
            assert needed <= known, f"{sorted(needed - known)} are set nowhere before `{cell.source[:60]}`"
            known |= bound


def test_a_chapter_without_solutions_runs():
    path = Path(__file__).parent.parent / "notebooks" / "08_limits.ipynb"
    student = editions.edit(nbformat.read(path, as_version=4), "student")
    nbclient.NotebookClient(student, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert all(cell.execution_count for cell in student.cells if cell.cell_type == "code")


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


def exercise(label: str, kind: str, id: str) -> nbformat.NotebookNode:
    told = {"kind": kind, "difficulty": 1, "minutes": 10}
    source = f"```{{exercise}}\n:label: {label}\nIs it?\n```"
    return nbformat.v4.new_markdown_cell(source, id=id, metadata={"tags": ["exercise"], "exercise": told})


def clean() -> nbformat.NotebookNode:
    cells = [
        nbformat.v4.new_markdown_cell("# Title", id="a"),
        nbformat.v4.new_code_cell("epochs = 1", id="b", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("%config InlineBackend.figure_formats = ['png']\nprint(epochs)", id="c"),
        nbformat.v4.new_code_cell("def by_hand(x):\n    return x", id="d", metadata={"tags": ["derivation"]}),
        exercise("ex-one", "prove", id="e"),
        nbformat.v4.new_markdown_cell(
            "````{solution} ex-one\n:class: dropdown\nYes.\n````", id="f", metadata={"tags": ["solution"]}
        ),
        nbformat.v4.new_code_cell(
            "three = by_hand(3)\nassert three == 3", id="g", metadata={"tags": ["solution", "hide-cell"]}
        ),
        exercise("ex-two", "research", id="h"),
        nbformat.v4.new_markdown_cell("A hint.", id="i", metadata={"tags": ["teacher"]}),
    ]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def test_a_clean_notebook_has_no_faults():
    assert faults(clean()) == []


def two_exercises(notebook):
    notebook.cells[4].source += "\n```{exercise}\n:label: ex-more\nTwo.\n```"


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


def unseen(notebook):
    notebook.cells[2].source = "for frame in ():\n    notebook.table(frame)"


def cell(number: int, **changes) -> Callable[[nbformat.NotebookNode], None]:
    """A change of a cell's source, or of its metadata."""

    def spoil(notebook):
        source = changes.get("source", notebook.cells[number].source)
        notebook.cells[number].source = source
        notebook.cells[number].metadata.update({key: value for key, value in changes.items() if key != "source"})

    return spoil


def told(**changes) -> Callable[[nbformat.NotebookNode], None]:
    """A change of what the first exercise says of itself."""
    return cell(4, exercise={"kind": "prove", "difficulty": 1, "minutes": 10} | changes)


def no_teacher(notebook):
    del notebook.cells[8]


def no_solution(notebook):
    del notebook.cells[5:7]


def used_outside(notebook):
    notebook.cells.append(nbformat.v4.new_code_cell("[three for _ in range(2)]", id="z"))


def overwritten(notebook):
    notebook.cells[6].source = "epochs = 2\nassert epochs == 2"
    notebook.cells.append(nbformat.v4.new_code_cell("f = lambda: epochs", id="z"))


EXERCISES = [
    (told(kind="derive"), "kind is 'derive': allowed are compute"),
    (told(difficulty=4), "difficulty is 4"),
    (told(difficulty=True), "difficulty is True"),
    (told(minutes=12), "minutes is 12"),
    (told(minutes=130), "minutes is 130"),
    (told(stars=3), "it holds kind, difficulty and minutes"),
    (told(kind="measure"), "ex-one: to measure needs a teacher's cell"),
    (cell(0, exercise={}), "is none"),
    (cell(4, source="```{exercise}\nIs it?\n```"), "names another"),
    (cell(5, source="````{solution} ex-two\n:class: dropdown\nYes.\n````"), "names another"),
    (cell(5, source="````{solution} ex-one\nYes.\n````"), "not folded"),
    (cell(6, source="three = by_hand(3)"), "needs a solution, and an assertion"),
    (cell(6, source="assert True"), "needs a solution, and an assertion"),
    (cell(6, tags=["solution"]), "hide-cell"),
    (no_solution, "needs a solution, and an assertion"),
    (no_teacher, "ex-two: to research needs a teacher's cell"),
    (used_outside, "uses three of a solution"),
    (overwritten, "uses epochs of a solution"),
]


@pytest.mark.parametrize(("spoil", "complaint"), EXERCISES)
def test_each_fault_of_an_exercise_is_found(spoil, complaint):
    notebook = copy.deepcopy(clean())
    spoil(notebook)
    assert any(complaint in fault for fault in faults(notebook)), faults(notebook)


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
        (unseen, "cell 2 makes what nothing shows"),
    ],
)
def test_each_fault_is_found(spoil, complaint):
    notebook = copy.deepcopy(clean())
    spoil(notebook)
    assert [complaint in fault for fault in faults(notebook)] == [True]
