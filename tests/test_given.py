"""A book on other data: what is executed on them, what each page says of that, and that the book's own stays as it is."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

pytest.importorskip("sphinx")

import build
import given
import running
import shared

ROOT = Path(__file__).resolve().parent.parent
REASON = "dataset mine.npz needs <labels>"


def own(path: Path, **arrays: np.ndarray) -> Path:
    """An .npz of a reader's own."""
    rng = np.random.default_rng(0)
    np.savez(path, train=rng.random((20, 2, 2), "float32"), test=rng.random((10, 2, 2), "float32"), **arrays)
    return path


def notebook(root: Path, name: str, parameters: str, code: str) -> None:
    """A notebook with two cells of code."""
    cells = [
        nbformat.v4.new_markdown_cell(f"# Of {name}\n\nAs in {{numref}}`fig-of-records`.", id="t"),
        nbformat.v4.new_code_cell(parameters, id="a", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code, id="b"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(content, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def project(tmp_path):
    """A book of a page and three notebooks: one takes any data, one needs labels, one takes none."""
    root = tmp_path / "copy"
    for folder in ("book", "notebooks", "nbvae"):
        (root / folder).mkdir(parents=True)
    executed = ("howto_data", "labelled", "none", "parameters")
    chapters = "".join(f"  - file: book/executed/{name}\n" for name in executed)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{chapters}")
    (root / "book" / "index.md").write_text("# Tiny\n")
    (root / "nbvae" / "__init__.py").write_text("answer = 42\n")
    notebook(root, "howto_data", 'dataset: str = "digits"  # any', "print('run on', dataset)")
    notebook(root, "labelled", 'dataset: str = "digits"  # with labels', "print('run on', dataset)")
    notebook(root, "none", "n: int = 1  # a number", "print(n)")
    return root


# Without kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def executions(monkeypatch):
    """Runs in this process, in the place of papermill: the names and data sets of all that were made."""
    made = []

    def execute(found: running.Notebook) -> float:
        page, dataset = found.read(), found.parameters().get("dataset")
        made.append((found.name, dataset))
        arrays = np.load(found.root / str(dataset)) if str(dataset).endswith(".npz") else {}
        if found.name == "labelled" and arrays and "train_labels" not in arrays:
            raise running.Refused("labelled failed", REASON)
        page.cells[-1].outputs = [nbformat.v4.new_output("stream", text=f"run on {dataset}\n")]
        page.metadata["language_info"] = {"name": "python"}
        nbformat.write(page, found.executed)
        return 0.0

    monkeypatch.setattr(running, "execute", execute)
    monkeypatch.setattr(running, "write_record", write_record)
    return made


def write_record(found: running.Notebook, key: str, seconds: float) -> None:
    """What is noted of a run, without looking at this machine."""
    facts = dict.fromkeys(("commit", "data", "device", "python", "system"), "") | {"packages": {}}
    noted = {"key": key, "output": found.output(), "parameters": found.parameters(), "seconds": seconds}
    found.record.write_text(json.dumps(noted | facts))


def run(root: Path, dataset: Path | str) -> dict[str, str]:
    """What the notebooks print in a copy of the book on a data set."""
    copy = given.stage(root, str(dataset))
    notebooks = running.listed_notebooks(copy)
    running.execute_given(root, notebooks)
    executed = {each.name: nbformat.read(each.executed, as_version=4) for each in notebooks}
    return {name: page.cells[-1].outputs[0].text for name, page in executed.items()}


def test_notebooks_run_on_the_data_and_those_that_refuse_them_on_their_own(project, tmp_path, executions):
    mine = own(tmp_path / "mine.npz")
    expected = {"howto_data": "run on mine.npz\n", "labelled": "run on digits\n", "none": "run on None\n"}
    assert run(project, mine) == expected
    assert sorted(executions) == [("howto_data", "mine.npz"), ("labelled", "digits"), ("labelled", "mine.npz"), ("none", None)]
    copy = project / "_build" / "mine.npz" / "source"
    dataset, refused = given.read(copy)
    assert dataset == "mine.npz"
    assert {name: each["reason"] for name, each in refused.items()} == {"labelled": REASON}
    assert not (project / "book" / "executed").exists()
    executions.clear()
    assert run(project, mine) == expected
    assert executions == []


def test_other_content_under_the_same_name_is_run(project, tmp_path, executions):
    run(project, own(tmp_path / "mine.npz"))
    executions.clear()
    found = run(project, own(tmp_path / "mine.npz", train_labels=np.arange(20) % 2, test_labels=np.arange(10) % 2))
    assert found["labelled"] == "run on mine.npz\n"
    assert sorted(executions) == [("howto_data", "mine.npz"), ("labelled", "mine.npz")]
    assert given.read(project / "_build" / "mine.npz" / "source")[1] == {}


def test_what_the_book_has_executed_is_taken_over_where_it_is_the_same(project, tmp_path, executions):
    running.execute_stale(running.listed_notebooks(project))
    before = {path: path.read_bytes() for path in (project / "book" / "executed").iterdir()}
    assert len(before) == 6
    executions.clear()
    run(project, own(tmp_path / "mine.npz"))
    assert sorted(executions) == [("howto_data", "mine.npz"), ("labelled", "mine.npz")]
    assert {path: path.read_bytes() for path in (project / "book" / "executed").iterdir()} == before
    assert all(each.is_current() for each in running.listed_notebooks(project))


def test_a_refusal_is_remembered_when_another_notebook_fails(project, tmp_path, executions, monkeypatch):
    execute = running.execute

    def fail(found):
        if found.name == "howto_data":
            raise shared.BuildError("howto_data failed")
        return execute(found)

    monkeypatch.setattr(running, "execute", fail)
    with pytest.raises(shared.BuildError, match="howto_data failed"):
        run(project, own(tmp_path / "mine.npz"))
    assert set(given.read(project / "_build" / "mine.npz" / "source")[1]) == {"labelled"}


def test_what_is_gone_from_the_sources_is_gone_from_the_copy(project, tmp_path):
    mine = own(tmp_path / "mine.npz")
    (project / "book" / "old.md").write_text("# Old\n")
    (project / "nbvae" / "old.py").write_text("")
    copy = given.stage(project, str(mine))
    (copy / "book" / "executed").mkdir()
    (copy / "book" / "executed" / "howto_data.ipynb").write_text("made")
    assert (copy / "book" / "old.md").is_file()
    (project / "book" / "old.md").unlink()
    (project / "nbvae" / "old.py").unlink()
    assert given.stage(project, str(mine)) == copy
    assert not (copy / "book" / "old.md").exists()
    assert not (copy / "nbvae" / "old.py").exists()
    assert (copy / "book" / "executed" / "howto_data.ipynb").read_text() == "made"
    assert (copy / "mine.npz").read_bytes() == mine.read_bytes()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nowhere.npz", "no file"),
        ("mnits", "dataset must be one of digits"),
        ("mine.csv", "dataset must be one of digits"),
        ("text.npz", "text.npz"),
        ("names.npz", "names.npz"),
        ("large.npz", "scale it to about 1"),
    ],
)
def test_bad_data_end_the_build_at_once_in_one_line(project, tmp_path, capsys, executions, monkeypatch, dataset, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("1,2\n")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "names.npz", training=np.zeros((3, 2)))
    np.savez(tmp_path / "large.npz", train=np.full((9, 2), 1e4), test=np.full((9, 2), 1e4))
    assert build.main(["--root", str(project), "--dataset", dataset]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert executions == []
    assert not (project / "_build").exists()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ('dataset: str = "digits"  # a "name"\nn: int = 3  # of them', True),
        ("n = 3\ndataset = 'ä' 'digits'  # ünd mehr", True),
        ('ä = "dataset"; dataset = ""', True),
        ('datasets: list = ["digits"]\nother = "dataset"', False),
    ],
)
def test_the_value_of_the_parameter_is_changed_and_nothing_else(code, changes):
    name = 'ein "Name" mit \\ und ß.npz'
    before, after = {}, {}
    new = given.with_value(code, "dataset", lambda _: name)
    exec(code, before)
    exec(new, after)
    assert (new != code) == changes
    assert {key: each for key, each in after.items() if key != "__builtins__"} == {
        key: name if key == "dataset" else each for key, each in before.items() if key != "__builtins__"
    }
    assert re.findall(r"  # .*", new) == re.findall(r"  # .*", code)


@pytest.mark.parametrize(("examples", "epochs"), [(20, 60), (1200, 60), (1201, 60), (1300, 56), (2400, 30), (72001, 1)])
def test_live_examples_on_more_data_take_about_as_many_steps(project, tmp_path, monkeypatch, examples, epochs):
    monkeypatch.setattr(given, "accepted", lambda dataset: ("digits", None, examples))
    for name in ("03_rate_distortion", "06_aggregated_posterior"):
        notebook(project, name, 'dataset: str = "digits"\nepochs: int = 60  # passes', "")
    copy = given.stage(project, "digits")
    assert running.Notebook(copy, "03_rate_distortion").parameters() == {"dataset": "digits", "epochs": epochs}
    assert running.Notebook(copy, "06_aggregated_posterior").parameters() == {"dataset": "digits", "epochs": 60}


def test_notebooks_that_train_on_all_examples_have_passes():
    for name in given.ON_ALL:
        assert {"dataset", "epochs"} <= set(running.Notebook(ROOT, name).parameters()), name


def test_a_run_that_ends_in_a_value_error_is_a_refusal_with_its_line(project):
    notebook(project, "labelled", "n = 1", f"if n == 1:\n    raise ValueError({REASON!r})")
    found = running.Notebook(project, "labelled")
    found.executed.parent.mkdir()
    with pytest.raises(running.Refused) as refused:
        running.execute(found)
    assert refused.value.reason == REASON
    assert list(found.executed.parent.iterdir()) == []


def test_only_a_value_error_is_a_refusal(tmp_path):
    errors = {}
    for kind in ("ValueError", "KeyError"):
        output = nbformat.v4.new_output("error", ename=kind, evalue="no labels\nand more", traceback=[])
        cells = [nbformat.v4.new_code_cell("x = 1", outputs=[output])]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{kind}.ipynb")
        errors[kind] = running.failure("tiny", tmp_path / f"{kind}.ipynb", "")
    refused = errors["ValueError"]
    assert isinstance(refused, running.Refused)
    assert refused.reason == "no labels"
    assert not isinstance(errors["KeyError"], running.Refused)
    assert all(str(error).startswith("tiny failed\n  cell `x = 1` ends in") for error in errors.values())
    dead = running.failure("tiny", tmp_path / "none.ipynb", "a\nb\nc\nThe kernel died")
    assert not isinstance(dead, running.Refused)
    assert str(dead) == "tiny failed\n  b\n  c\n  The kernel died"


def test_texts_of_figures_speak_of_digits_only_as_of_one_data_set():
    """On other data the figures are of these, and their texts stay."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            shown = cell.metadata.get("mystnb", {})
            for text in (shown.get("figure", {}).get("caption", ""), shown.get("image", {}).get("alt", "")):
                rest = re.sub(r"[Oo]n the digits|on the book's pages digits", "", text)
                assert not re.search(r"\bdigits?\b", rest, re.IGNORECASE), f"{path.name}: {text}"


# With Jupyter Book --------------------------------------------------------------------------------------


@pytest.fixture
def rendered(project, tmp_path, executions):
    """The pages of the project on a file without labels, built as a reader would."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    del settings["bibtex_bibfiles"], settings["sphinx"]["local_extensions"]
    settings["sphinx"]["config"]["extensions"].remove("reference")
    settings["sphinx"]["config"]["extensions"].remove("sphinxcontrib.bibtex")
    del settings["sphinx"]["config"]["bibtex_reference_style"]
    (project / "_config.yml").write_text(yaml.safe_dump(settings))
    shutil.copytree(ROOT / "book" / "_static", project / "book" / "_static")
    folder = tmp_path / "of the reader"
    folder.mkdir()
    assert build.main(["--root", str(project), "--dataset", str(own(folder / "mine.npz"))]) == 0
    return project / "_build" / "mine.npz" / "html"


def test_every_page_of_a_book_on_other_data_says_what_it_is_of(project, tmp_path, rendered, capsys):
    text = {path.relative_to(rendered).as_posix(): path.read_text(encoding="utf-8") for path in rendered.rglob("*.html")}
    text = {name: page for name, page in text.items() if not name.startswith("_static")}
    pages = {"howto_data", "labelled", "none", "parameters"}
    assert {name for name in text if "<article" in name or "book/" in name} == {
        "book/index.html", *(f"book/executed/{name}.html" for name in pages)
    }  # fmt: skip
    for name, page in text.items():
        boxes = re.findall(r'<div class="admonition (\w+) given" role="note" aria-label="([^"]*)">', page)
        other = name in ("book/executed/labelled.html", "book/executed/none.html")
        title = "This page is not of mine.npz" if other else "Built on mine.npz"
        forwards = name == "index.html"
        assert boxes == ([] if forwards else [("warning" if other else "note", title)]), name
        if not forwards:
            top = max(page.find("<article"), page.find("bd-search-container"))
            assert top < page.index(f'admonition-title">{title}') < page.index("<h1", top), "the box is not at the top"
            assert ("the book's records, of the digits unless another data set is named" in page) == (not other)
        assert "of the reader" not in page, "a page names a folder of this machine"
    assert "As in a figure that these data do not have." in text["book/executed/howto_data.html"]
    assert "run on mine.npz" in text["book/executed/howto_data.html"]
    assert "run on digits" in text["book/executed/labelled.html"]
    assert "These data are refused: dataset mine.npz needs &lt;labels&gt;" in text["book/executed/labelled.html"]
    assert "is shown on its own data, digits." in text["book/executed/labelled.html"]
    assert '<a href="executed/labelled.html">Of labelled</a>' in text["book/index.html"]
    assert '<a href="parameters.html">The parameters of the pages</a>' in text["book/executed/labelled.html"]
    assert not (project / "book" / "executed").exists()
    assert not (project / "_build" / "html").exists()

    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*")}
    capsys.readouterr()
    again = tmp_path / "of the reader" / "mine.npz"
    assert build.main(["--root", str(project), "--dataset", str(again)]) == 0
    assert "executing" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*")} == before
