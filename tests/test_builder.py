"""The builder that makes the pages: what it runs again, what it refuses, and what it leaves untouched."""

import ast
import contextlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

import build  # noqa: E402
import rendering  # noqa: E402
import running  # noqa: E402
import shared  # noqa: E402
import staleness  # noqa: E402


@pytest.fixture
def project(tmp_path):
    """A book of one page and one notebook, with a library and a book that was built before."""
    for folder in ("book", "notebooks", "nbvae", "_build/html"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_toc.yml").write_text("root: book/index\nchapters: [{file: book/executed/tiny}]\n")
    (tmp_path / "_config.yml").write_text("title: Tiny\n")
    (tmp_path / "constraints.txt").write_text("nbformat==5\n")
    (tmp_path / "book" / "index.md").write_text("# Tiny\n")
    (tmp_path / "nbvae" / "__init__.py").write_text("answer = 42\n")
    (tmp_path / "_build" / "html" / "index.html").write_text("the previous book")
    store(tmp_path, "import nbvae\nprint(nbvae.answer, rate)")
    return tmp_path


def store(project: Path, code: str) -> running.Notebook:
    """Write the project's notebook, whose last cell is `code`."""
    cells = [
        nbformat.v4.new_markdown_cell("# Tiny", id="t"),
        nbformat.v4.new_code_cell("rate: float = 0.5  # nats", id="a", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code, id="b"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = running.Notebook(project, "tiny")
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), notebook.source)
    return notebook


@contextlib.contextmanager
def edited(notebook: running.Notebook):
    """The notebook's source, to be changed and stored again."""
    source = nbformat.read(notebook.source, as_version=4)
    yield source
    nbformat.write(source, notebook.source)


def test_a_second_build_executes_nothing(project, capsys):
    (notebook,) = running.listed_notebooks(project)
    assert notebook.parameters() == {"rate": 0.5}
    assert running.execute_stale([notebook]) == 1
    executed = nbformat.read(notebook.executed, as_version=4)
    assert executed.cells[-1].outputs[0].text == "42 0.5\n"
    assert "papermill" not in executed.metadata
    assert str(project) not in notebook.executed.read_text()
    before = notebook.executed.stat().st_mtime_ns

    running.write_manifest([notebook])
    page = (project / "book" / "executed" / "manifest.md").read_text()
    assert "`rate`" in page
    whole = rendering.book_key(project)
    capsys.readouterr()
    assert running.execute_stale([notebook]) == 0
    running.write_manifest([notebook])
    assert capsys.readouterr().out == "tiny: up to date\n"
    assert notebook.executed.stat().st_mtime_ns == before
    assert rendering.book_key(project) == whole

    notebook.executed.write_text(notebook.executed.read_text().replace("42", "43"))
    assert not notebook.is_current()


def test_a_failing_notebook_leaves_the_previous_book_untouched(project, capsys):
    store(project, "import warnings\nraise ValueError('beta must be > 0')")
    assert build.main(["--root", str(project)]) == 1
    message = capsys.readouterr().err
    assert "tiny" in message
    assert "ValueError: beta must be > 0" in message
    assert len(message.splitlines()) <= 5
    assert [path.name for path in (project / "_build").rglob("*")] == ["html", "index.html"]
    assert (project / "_build" / "html" / "index.html").read_text() == "the previous book"
    assert list((project / "book" / "executed").iterdir()) == []


def test_a_cell_that_takes_too_long_fails(project, monkeypatch):
    monkeypatch.setattr(running, "CELL_TIMEOUT", 1)
    notebook = store(project, "import time\ntime.sleep(60)")
    notebook.executed.parent.mkdir()
    with pytest.raises(shared.BuildError, match="tiny failed"):
        running.execute(notebook)
    assert not notebook.executed.exists()


# What makes a chapter stale -----------------------------------------------------------------------------------------


def change(**edits):
    """An edit of the notebook's cells, by id; what is given as a dict goes into the cell's metadata."""

    def apply(project):
        with edited(running.Notebook(project, "tiny")) as source:
            for cell in source.cells:
                edit = edits.get(cell.id)
                if isinstance(edit, dict):
                    cell.metadata.update(edit)
                elif edit is not None:
                    cell.source = edit

    return apply


def file(name: str, text: str):
    """An edit of one of the project's files."""

    def apply(project):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)

    return apply


def remove_cell(project):
    with edited(running.Notebook(project, "tiny")) as source:
        del source.cells[-1]


def swap_cells(project):
    with edited(running.Notebook(project, "tiny")) as source:
        source.cells[1:3] = source.cells[2:0:-1]


def add_prose(project):
    with edited(running.Notebook(project, "tiny")) as source:
        source.cells.insert(2, nbformat.v4.new_markdown_cell("A *new* paragraph.", id="p"))


def remove_prose(project):
    with edited(running.Notebook(project, "tiny")) as source:
        del source.cells[0]


LIBRARY = "answer = 42\n\n\ndef double(x):\n    return 2 * x\n"
READS = 'import nbvae\nfrom nbvae import notebook\nprint(nbvae.answer, rate, notebook.recorded("race")["value"])'
STALE = {
    "a number in the code": change(b=READS.replace("rate,", "rate + 1,")),
    "a parameter's value": change(a="rate: float = 0.6  # nats"),
    "a parameter's type": change(a="rate = 0.5  # nats"),
    "a display silenced": change(b=READS + ";"),
    "a display": change(b=READS + '\n"a string that ends a cell is shown"'),
    "a tag that lets errors pass": change(b={"tags": ["hide-input", "raises-exception"]}),
    "a tag that skips the cell": change(b={"tags": ["skip-execution"]}),
    "parameters that are none": change(a={"tags": []}),
    "a magic": change(b="%precision 3\n" + READS),
    "a removed cell": remove_cell,
    "cells in another order": swap_cells,
    "a number in the library": file("nbvae/__init__.py", LIBRARY.replace("42", "41")),
    "a number in a room": file("nbvae/room/inside.py", "answer = 41\n"),
    "a new module": file("nbvae/new.py", ""),
    "a file that the library holds": file("nbvae/table.csv", "1,2\n"),
    "a pin": file("constraints.txt", "nbformat==6\n"),
    "a record that is named": file("book/recorded/race.json", '{"value": 2}'),
}
CURRENT = {
    "a heading": change(t="# Tiny, and no more"),
    "a new paragraph": add_prose,
    "a paragraph less": remove_prose,
    "a caption": change(b={"mystnb": {"figure": {"caption": "Falling."}, "image": {"alt": "A falling curve."}}}),
    "a tag that hides": change(b={"tags": ["hide-input", "remove-output"]}),
    "a comment": change(b="# What everything comes to.\n" + READS.replace("\nprint", "\n\n\nprint") + "  # nats"),
    "a parameter's comment": change(a="rate: float = 0.5  # in nats, for each image"),
    "a formatter's work": change(b=READS.replace('"', "'").replace("(nbvae.answer", "(\n    nbvae.answer")),
    "a comment in the library": file("nbvae/__init__.py", "# To everything.\n" + LIBRARY),
    "a docstring in the library": file("nbvae/__init__.py", '"""All."""\n' + LIBRARY.replace(":\n", ':\n    """Twice."""\n')),
    "a comment among the pins": file("constraints.txt", "# Exact.\nnbformat==5\n"),
    "a record that is not named": file("book/recorded/race_on_gpu.json", '{"value": 2}'),
    "a page of prose": file("book/index.md", "# Changed\n"),
}


@pytest.fixture
def reading(project):
    """The project, with a room in its library and a notebook that reads a record."""
    for name, text in {"__init__": LIBRARY, "room/__init__": "", "room/inside": "answer = 42\n"}.items():
        file(f"nbvae/{name}.py", text)(project)
    for name in ("race", "race_on_gpu"):
        file(f"book/recorded/{name}.json", '{"value": 1}')(project)
    return store(project, READS)


@pytest.mark.parametrize("edit", STALE.values(), ids=STALE)
def test_what_decides_the_results_changes_the_key(reading, edit):
    before = reading.key()
    assert running.Notebook(reading.root, "tiny").key() == before
    edit(reading.root)
    assert reading.key() != before


@pytest.mark.parametrize("edit", CURRENT.values(), ids=CURRENT)
def test_what_decides_no_result_leaves_the_key(reading, edit):
    before = reading.key()
    edit(reading.root)
    assert reading.key() == before


def test_a_changed_data_file_changes_the_key(project):
    data = project / "mine.npz"
    data.write_bytes(b"1")
    notebook = running.Notebook(project, "tiny")
    change(a='dataset: str = "mine.npz"')(project)
    before = notebook.key()
    data.write_bytes(b"2")
    assert notebook.key() != before


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("x = 1", set()),
        ('x = "race"', set()),
        ('notebook.recorded("race")', {"race.json"}),
        ("nb.recorded(name='race')", {"race.json"}),
        ('a, b = recorded("race"), notebook.recorded("other")', {"race.json", "other.json"}),
        ('%matplotlib inline\nnotebook.recorded("race")', {"race.json"}),
        ('import studies\nstudies.load("race", dataset="digits")', {"race.json", "race.npz", "race_on_gpu.json"}),
        ('import studies as s\ns.load("race").frame', {"race.json", "race.npz", "race_on_gpu.json"}),
        ('data.load("race")', set()),
        # Which record is meant is known only by running it: each counts.
        ("notebook.recorded(name)", None),
        ('notebook.recorded(f"race_{dataset}")', None),
        ("[each for each in map(notebook.recorded, names)]", None),
        ("from studies import load", None),
        ("from nbvae.notebook import recorded as read", None),
        ('json.loads(Path("book/recorded/race.json").read_text())', None),
        ("what = notebook.recorded?", None),
    ],
)
def test_the_records_that_code_names_are_found(tmp_path, code, named):
    names = {"race.json", "race.npz", "race_on_gpu.json", "racer.json", "other.json"}
    for name in names:
        (tmp_path / name).write_text("{}")
    assert {path.name for path in staleness.records([code], tmp_path)} == (names if named is None else named)


def test_nothing_that_is_run_reads_a_docstring_or_source():
    """The key leaves docstrings and comments of the library out, and comments of the notebooks."""
    readers = {"help", "__doc__", "getdoc", "getsource", "getsourcelines", "getcomments", "cleandoc"}
    code = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "nbvae").rglob("*.py"))}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code[path] = "\n".join(staleness.plain(cell.source) for cell in cells if cell.cell_type == "code")
    for path, text in code.items():
        nodes = list(ast.walk(ast.parse(text)))
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not used & readers, f"{path.name} reads documentation: let `staleness.meaning` keep docstrings"


@pytest.fixture
def built(reading):
    """The project after a build of its notebook."""
    file("nbvae/notebook.py", "import json\ndef recorded(name):\n    return json.load(open(f'book/recorded/{name}.json'))\n")(
        reading.root
    )
    assert running.execute_stale([reading]) == 1
    return reading


def test_prose_captions_and_comments_reach_the_page_without_a_run(built, capsys):
    whole = rendering.book_key(built.root)
    record = built.record.read_bytes()
    for name in ("a heading", "a new paragraph", "a caption", "a tag that hides", "a comment", "a parameter's comment"):
        CURRENT[name](built.root)
    capsys.readouterr()
    assert running.execute_stale([built]) == 0
    assert capsys.readouterr().out == "tiny: up to date, its prose renewed\n"
    page = nbformat.read(built.executed, as_version=4)
    source = nbformat.read(built.source, as_version=4)
    assert page.cells[-1].outputs[0].text == "42 0.5 1\n"
    assert page.cells[-1].execution_count == 2
    assert "A *new* paragraph." in [cell.source for cell in page.cells]
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    assert page.cells == source.cells
    assert built.record.read_bytes() == record
    assert rendering.book_key(built.root) != whole
    assert running.execute_stale([built]) == 0
    assert capsys.readouterr().out == "tiny: up to date\n"


def test_a_renewed_page_is_the_one_that_a_run_gives(built):
    CURRENT["a heading"](built.root)
    CURRENT["a caption"](built.root)
    running.execute_stale([built])
    renewed = built.executed.read_bytes()
    built.executed.unlink()
    assert running.execute_stale([built]) == 1
    assert built.executed.read_bytes() == renewed


def test_results_and_prose_changed_together_run(built):
    CURRENT["a heading"](built.root)
    STALE["a record that is named"](built.root)
    assert running.execute_stale([built]) == 1
    page = nbformat.read(built.executed, as_version=4)
    assert page.cells[0].source == "# Tiny, and no more"
    assert page.cells[-1].outputs[0].text == "42 0.5 2\n"


def test_an_executed_notebook_that_lost_a_cell_is_run_again(built):
    page = nbformat.read(built.executed, as_version=4)
    del page.cells[1]
    nbformat.write(page, built.executed)
    assert not built.is_current()
    assert running.execute_stale([built]) == 1


def test_a_source_that_is_no_notebook_ends_the_build_in_one_line(built, capsys):
    built.source.write_text("{")
    assert build.main(["--root", str(built.root)]) == 1
    message = capsys.readouterr().err
    assert "tiny" in message
    assert len(message.splitlines()) == 1


def test_a_page_of_prose_changes_the_book(project):
    whole = rendering.book_key(project)
    (project / "book" / "index.md").write_text("# Changed\n")
    assert rendering.book_key(project) != whole


def test_errors_and_stray_messages_in_outputs_are_found():
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="fine"),
        nbformat.v4.new_output("stream", name="stderr", text="UserWarning: careful"),
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a = 1\nb = 2", outputs=outputs)])
    assert running.output_problems(notebook) == [
        "cell `a = 1` writes to stderr: UserWarning: careful",
        "cell `a = 1` ends in ValueError: no",
    ]


SVG = {"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'/>"}


@pytest.mark.parametrize(
    ("metadata", "data", "found"),
    [
        ({}, SVG, True),
        ({}, {"image/png": "", "text/plain": "<Figure>"}, True),
        ({"mystnb": {"figure": {"caption": "Loss."}}}, SVG, True),
        ({"mystnb": {"image": {"alt": " "}}}, SVG, True),
        ({"mystnb": {"image": {"alt": "loss.png"}}}, SVG, True),
        ({"tags": ["hide-cell"]}, SVG, True),
        ({"mystnb": {"image": {"alt": "A falling line."}}}, SVG, False),
        ({"tags": ["remove-cell"]}, SVG, False),
        ({"tags": ["remove-output"]}, SVG, False),
        ({}, {"text/plain": "image"}, False),
    ],
)
def test_a_picture_needs_its_text_and_the_message_says_where(metadata, data, found):
    output = nbformat.v4.new_output("display_data", data=data)
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("plot(loss)\nshow()", metadata=metadata)]
    cells[1].outputs = [nbformat.v4.new_output("stream", text="1"), output]
    problems = running.picture_problems(nbformat.v4.new_notebook(cells=cells))
    assert len(problems) == found
    assert all("cell `plot(loss)`" in problem and '{"mystnb": {"image": {"alt": "…"}}}' in problem for problem in problems)


def test_a_picture_without_text_ends_the_build_before_the_pages_and_is_mended_without_a_run(project, capsys, monkeypatch):
    monkeypatch.setattr(build, "render", lambda *options: shared.say("rendered"))
    store(project, f"from IPython.display import display\ndisplay({SVG}, raw=True)")
    assert build.main(["--root", str(project)]) == 1
    shown = capsys.readouterr()
    assert "rendered" not in shown.out
    assert shown.err.startswith("error: tiny: ")
    assert len(shown.err.splitlines()) == 1
    change(b={"mystnb": {"image": {"alt": "Nothing."}}})(project)
    assert build.main(["--root", str(project)]) == 0
    assert capsys.readouterr().out == "tiny: up to date, its prose renewed\nrendered\n"


def test_every_notebook_is_a_page_and_named_on_the_first_page():
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    listed = {notebook.name for notebook in running.listed_notebooks(ROOT)}
    assert notebooks == listed, "each notebook needs its line `- file: book/executed/NAME` in _toc.yml"
    first = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    missing = [name for name in sorted(listed) if f"(executed/{name}.ipynb)" not in first]
    assert missing == [], "book/index.md links to every notebook: [title](executed/NAME.ipynb)"


def test_the_contributors_map_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = [
        place for place in re.findall(r"`([\w./-]+)`", text) if "/" in place and "NAME" not in place and ".venv" not in place
    ]
    assert len(places) > 30
    made = {"book/executed", "_build"}
    assert [place for place in places if not (ROOT / place).exists() and place not in made] == [], "files that have moved"
    rooms = [path.parent.name for path in (ROOT / "nbvae").glob("*/__init__.py")]
    assert [room for room in rooms if f"`nbvae/{room}/" not in text] == [], "rooms without a row under What goes where"


def test_a_listed_notebook_must_exist(project):
    running.Notebook(project, "tiny").source.unlink()
    with pytest.raises(shared.BuildError, match="book/executed/tiny"):
        running.listed_notebooks(project)


@pytest.mark.parametrize(
    ("status", "page", "accepted"),
    [(0, "<html>new</html>", True), (0, '<html><img src="https://example.com/x.png" alt="x"></html>', False),
     (1, "<html>new</html>", False)],
)  # fmt: skip
def test_only_checked_pages_replace_the_previous_book(project, monkeypatch, status, page, accepted):
    def fake(command, **options):
        for name in ("book/index.html", "book/executed/tiny.html"):
            file = project / "_build" / "fresh" / "_build" / "html" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(page)
        return subprocess.CompletedProcess(command, status, stdout="WARNING: something", stderr="")

    monkeypatch.setattr(rendering.subprocess, "run", fake)
    previous = project / "_build" / "html" / "index.html"
    if accepted:
        rendering.render(project, verbose=False)
        assert not previous.exists()
        assert (project / "_build" / "html" / "book" / "index.html").read_text() == page
        monkeypatch.setattr(rendering.subprocess, "run", None)  # a second call must not get that far
        rendering.render(project, verbose=False)
    else:
        with pytest.raises(shared.BuildError, match="previous book is untouched"):
            rendering.render(project, verbose=False)
        assert previous.read_text() == "the previous book"


def test_the_configuration_names_only_options_that_exist():
    """Jupyter Book passes over a misspelt key in silence."""
    defaults = pytest.importorskip("jupyter_book.config").PATH_YAML_DEFAULT
    known = yaml.safe_load(defaults.read_text(encoding="utf-8"))
    given = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert set(given) <= {*known, "bibtex_bibfiles"}
    for section in ("execute", "parse", "sphinx"):
        assert set(given.get(section, {})) <= set(known[section])


def test_constraints_pin_every_package_exactly():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins
