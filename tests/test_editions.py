"""The editions of the book: what each leaves out leaves no trace, and exercises say what they are."""

import shutil
import zlib
from pathlib import Path

import nbformat
import pytest
import yaml

import editions
import rendering
import shared

ROOT = Path(__file__).resolve().parent.parent
EXERCISE = {"kind": "predict", "difficulty": 2, "minutes": 15}


def test_an_exercise_says_what_it_is_in_its_title():
    source = "```{exercise}\n:label: ex-one\nDoes it rise?\n```"
    cell = nbformat.v4.new_markdown_cell(source, metadata={"tags": ["exercise"], "exercise": EXERCISE})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    for edition in editions.LEFT_OUT:
        assert editions.edit(notebook, edition).cells[0].source == source.replace("}\n", "} predict, medium, 15 minutes\n", 1)
    assert notebook.cells[0].source == source
    assert editions.badge({"kind": "research", "difficulty": 3, "minutes": 180}) == "research, hard, 3 hours"


def test_each_edition_leaves_out_its_cells_and_no_others():
    tags = {"text": [], "figure": ["hide-input"], "asked": ["exercise"], "solved": ["solution"], "told": ["teacher"]}
    cells = [nbformat.v4.new_markdown_cell(name, metadata={"tags": each}) for name, each in tags.items()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    kept = {edition: [cell.source for cell in editions.edit(notebook, edition).cells] for edition in editions.LEFT_OUT}
    shared = ["text", "figure", "asked"]
    assert kept == {"html": [*shared, "solved"], "student": shared, "teacher": [*shared, "solved", "told"]}
    assert len(notebook.cells) == len(tags)


# Words that no stemmer changes, one for each thing that an edition leaves out.
PLANTED = {
    "solution": ("zoqabo", "zoqaco", "zoqado", "zoqafo", "zoqago"),
    "teacher": ("zoqalo", "zoqamo", "zoqano"),
}


@pytest.fixture
def book(tmp_path):
    """A book of a page, a chapter that was executed and an exam; planted words in solutions and in what is for teachers."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "executed").mkdir(parents=True)
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static")
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    del (
        settings["sphinx"]["local_extensions"],
        settings["bibtex_bibfiles"],
        settings["sphinx"]["config"]["bibtex_reference_style"],
    )
    settings["sphinx"]["config"]["extensions"].remove("reference")
    settings["sphinx"]["config"]["extensions"].remove("sphinxcontrib.bibtex")
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(settings))
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n"
        "- {caption: Chapters, chapters: [{file: book/executed/tiny}]}\n"
        "- {caption: For teachers, chapters: [{file: book/teaching/exam}]}\n"
    )
    (tmp_path / "book" / "index.md").write_text("# Tiny\n\nSee {numref}`ex-one`.\n")
    text, code, figure, more, raw = PLANTED["solution"]
    hint, said, page = PLANTED["teacher"]
    (tmp_path / "book" / "teaching").mkdir()
    (tmp_path / "book" / "teaching" / "exam.md").write_text(f"# An exam\n\nIt is {page}, by {{numref}}`ex-one`.\n")
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><text>{raw}</text></svg>"
    outputs = [
        nbformat.v4.new_output("stream", text=f"found {figure}\n"),
        nbformat.v4.new_output("display_data", data={"image/svg+xml": svg}),
    ]
    solution = f"````{{solution}} ex-one\n:class: dropdown\nIt is {text}, by $a = b$.\n````"
    image = {"image": {"alt": f"A curve, {more}."}, "figure": {"caption": "A curve.", "name": "fig-own"}}
    cells = [
        nbformat.v4.new_markdown_cell("# A chapter\n\nA sentence.\n\n## Exercises"),
        nbformat.v4.new_code_cell("x = 1", outputs=[], execution_count=1),
        nbformat.v4.new_markdown_cell(
            "```{exercise}\n:label: ex-one\nDoes it rise?\n```", metadata={"tags": ["exercise"], "exercise": EXERCISE}
        ),
        nbformat.v4.new_markdown_cell(solution, metadata={"tags": ["solution"]}),
        nbformat.v4.new_code_cell(
            f"{code} = x + 1", outputs=outputs, execution_count=2,
            metadata={"tags": ["solution", "hide-cell"], "mystnb": image},
        ),
        nbformat.v4.new_markdown_cell(
            f"```{{admonition}} For teachers\n**Hint.** Ask {hint}, {{numref}}`fig-own`.\n```", metadata={"tags": ["teacher"]}
        ),
        nbformat.v4.new_code_cell(f"y = '{said}'", outputs=[], execution_count=3, metadata={"tags": ["teacher"]}),
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for folder in ("notebooks", "book/executed"):
        nbformat.write(notebook, tmp_path / folder / "tiny.ipynb")
    return tmp_path


def traces(folder: Path) -> dict[str, set[str]]:
    """The planted words in the files under `folder`, in text, in what is packed, and in names, with the files' suffixes."""
    found = {}
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        if file.suffix == ".inv":
            content = zlib.decompress(content.split(b"zlib.\n", 1)[1])
        text = f"{file.name} {content.decode(errors='replace')}".lower()
        for words in PLANTED.values():
            for word in words:
                if word in text:
                    found.setdefault(word, set()).add(file.suffix)
    return found


def test_the_students_edition_has_no_trace_of_solutions_and_the_teachers_has_all(book):
    planted = set(PLANTED["solution"]), set(PLANTED["teacher"])
    rendering.render(book, verbose=False, edition="student")
    student = book / "_build" / "student"
    assert traces(student) == {}
    page = (student / "book" / "executed" / "tiny.html").read_text(encoding="utf-8")
    assert "(predict, medium, 15 minutes)" in page
    assert "Does it rise?" in page
    assert (student / "_static" / "sections.js").is_file()
    assert (student / "_sources" / "book" / "executed" / "tiny.ipynb").is_file()

    rendering.render(book, verbose=False, edition="teacher")
    teacher = traces(book / "_build" / "teacher")
    assert set(teacher) == planted[0] | planted[1]  # the search looks where they are
    for word in (PLANTED["solution"][0], PLANTED["teacher"][0]):
        assert {".html", ".ipynb", ".js"} <= teacher[word]
    assert traces(student) == {}
    assert not (book / "_build" / "html").exists()


def test_what_the_standard_edition_gives_to_sphinx_has_solutions_and_nothing_of_teachers(book):
    editions.stage(book, shared.listed_pages(book), "html", book / "staged")
    shown = (book / "staged" / "book" / "executed" / "tiny.ipynb").read_text(encoding="utf-8")
    assert all(word in shown for word in PLANTED["solution"])
    assert not any(word in shown for word in PLANTED["teacher"])
    assert {path.name for path in (book / "staged").iterdir()} == {"_config.yml", "_toc.yml", "book", "notebooks"}


def test_the_pages_for_teachers_and_their_part_of_the_contents_are_not_staged_for_students(book):
    toc = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    for edition in editions.LEFT_OUT:
        staged = book / edition
        editions.stage(book, shared.listed_pages(book), edition, staged)
        found = yaml.safe_load((staged / "_toc.yml").read_text(encoding="utf-8"))
        if edition == "student":
            assert found == {**toc, "parts": toc["parts"][:1]}
            assert not (staged / "book" / "teaching").exists()
            assert traces(staged / "book") == {}
        else:
            assert found == toc
            assert (staged / "book" / "teaching" / "exam.md").is_file()


def test_what_an_edition_keeps_of_the_contents_of_the_book():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert editions.contents(toc, "html") == editions.contents(toc, "teacher") == toc
    kept = editions.contents(toc, "student")
    assert kept["parts"] == [part for part in toc["parts"] if part["caption"] != "For teachers"]
    assert len(kept["parts"]) == len(toc["parts"]) - 1
