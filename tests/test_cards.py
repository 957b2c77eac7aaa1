"""The cards of the landing page: each chapter has one picture for its card, which is the chapter's own."""

import re
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("sphinx")

import cards
import shared

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def figure(tags=(), svg="<svg>one</svg>"):
    output = nbformat.v4.new_output("display_data", {"image/svg+xml": svg})
    return nbformat.v4.new_code_cell("plt.show()", metadata={"tags": list(tags)}, outputs=[output])


def written(folder, *cells):
    path = folder / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    cards.write(folder, {"page": path}, shared.replace_text)
    return folder / cards.FOLDER / "page.svg"


def test_the_picture_of_the_tagged_cell_is_written_and_no_other(tmp_path):
    found = written(
        tmp_path, figure(svg="<svg>two</svg>"), figure(["card", "hide-input"]), nbformat.v4.new_markdown_cell("Text.")
    )
    assert found.read_text(encoding="utf-8") == "<svg>one</svg>"
    (tmp_path / "other").mkdir()
    assert not written(tmp_path / "other", figure()).exists()


def test_two_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="page: one cell has the tag card, and one picture; found 2"):
        written(tmp_path, figure(["card"]), figure(["card"]))


def test_every_chapter_has_a_card_with_its_picture_and_a_text_for_it():
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    found = re.findall(r":link: executed/(\w+)\n:link-type: doc\n:img-top: executed/cards/(\w+)\.svg\n:img-alt: (.+)\n", text)
    assert [(link, picture) for link, picture, _ in found] == [(name, name) for name in CHAPTERS]
    assert all(len(alt) > 20 for _, _, alt in found)
    for name in CHAPTERS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        tagged = [cell for cell in notebook.cells if "card" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1, name
        assert tagged[0].metadata["mystnb"]["figure"]["name"].startswith("fig-")
