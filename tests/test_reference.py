"""The reference: what its pages are made of, what they must not leave out, and that each name leads to its entry."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

import docstrings  # noqa: E402
import rendering  # noqa: E402
import shared  # noqa: E402

pytest.importorskip("sphinx")

import public  # noqa: E402
import reference  # noqa: E402

NAMES = [entry for room in public.rooms() for entry in public.entries(room)]


# Docstrings ---------------------------------------------------------------------------------------------------------


def rendered(text: str):
    """A docstring as docutils reads it after the conversion, and every complaint that it has."""
    import io

    from docutils.core import publish_doctree

    complaints = io.StringIO()
    tree = publish_doctree(
        "\n".join(docstrings.rest(text)), settings_overrides={"warning_stream": complaints, "report_level": 1}
    )
    return tree, complaints.getvalue()


def found(tree, kind: str) -> list[str]:
    return [node.astext() for node in tree.findall() if node.tagname == kind]


def test_code_emphasis_and_signs_of_formulas_are_told_apart():
    tree, complaints = rendered("Draws `n`s of *summed* z_ (N, *shape), mean |x|, a* and `b|c`, D* = 2 * 3, λ_od, ``.")
    assert complaints == ""
    assert found(tree, "literal") == ["n", "b|c"]
    assert found(tree, "emphasis") == ["summed"]
    assert tree.astext() == "Draws ns of summed z_ (N, *shape), mean |x|, a* and b|c, D* = 2 * 3, λ_od, ``."


def test_lists_tables_formulas_and_examples_are_told_apart():
    text = """One sentence, with `code that
goes on`:
- `a`: the first, whose text
  goes on.
- `b`: the second.

    R = ½ log λ
        MSE

| name | what |
|---|---|
| `x` | p(`z|x`) |

>>> 1 + 1
2
>>> for a in "b":
...     print(a)
b

The end."""
    tree, complaints = rendered(text)
    assert complaints == ""
    assert found(tree, "list_item") == ["a: the first, whose text goes on.", "b: the second."]
    assert "code that goes on" in found(tree, "literal")
    assert found(tree, "literal_block") == ["R = ½ log λ\n    MSE"]
    assert found(tree, "entry") == ["name", "what", "x", "p(z|x)"]
    assert found(tree, "doctest_block") == ['>>> 1 + 1\n2\n>>> for a in "b":\n...     print(a)\nb']
    assert found(tree, "paragraph")[-1] == "The end."


@pytest.mark.parametrize("entry", NAMES, ids=[entry.short for entry in NAMES])
def test_every_docstring_is_read_without_complaint_and_without_loss(entry):
    texts = [entry.text]
    if entry.kind == "class":
        texts += [function.__doc__ or "" for _, function in public.members(entry.value)]
    for text in texts:
        tree, complaints = rendered(text := inspect.cleandoc(text))
        assert complaints == ""
        # Every word is there, in its order: signs of lists, tables and code aside.
        signs = re.compile(r"^ *\|[-:|]+\|$|^- |[`*|\s]", re.MULTILINE)
        assert signs.sub("", tree.astext()) == signs.sub("", text.replace(docstrings.EXPECTED, ""))


# What must not be missing -------------------------------------------------------------------------------------------


def test_the_reference_is_complete():
    assert public.faults(NAMES) == []


def test_every_room_has_its_page_and_every_page_its_line():
    listed = shared.listed_pages(ROOT)
    pages = [reference.page_of(room) for room in public.rooms()]
    assert [page for page in listed if page.startswith(f"{reference.FOLDER}/")] == [f"{reference.FOLDER}/index", *sorted(pages)]
    here = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / reference.FOLDER).glob("*.rst")}
    assert here == set(pages)


def good(points, x):
    """Doubles `points` of x.

    >>> 1
    1
    """


def silent(points):
    pass


def without_argument(points):
    """Doubles.

    >>> 1
    1
    """


def without_example(points):
    """Doubles `points`."""


@dataclasses.dataclass
class Record:
    """What `makes` returns."""

    value: float  # in nats
    value_stderr: float
    other: float


class Tuple(NamedTuple):
    """What nobody returns."""

    value: float  # in nats


def makes() -> list[Record]:
    """A record.

    >>> 1
    1
    """
    return []


class Thing:
    """A thing.

    >>> 1
    1
    """

    def method(self, number):
        """Without a word of what it takes."""

    @property
    def silent(self):
        return 1


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ([good], []),
        ([silent], ["silent has no docstring"]),
        ([without_argument], ["without_argument does not say what its argument points is"]),
        ([without_example], ["without_example has no example, and no example of another name returns one"]),
        ([Record, makes], ["Record does not say what its argument other is"]),
        ([Tuple, makes], ["Tuple has no example, and no example of another name returns one"]),
        ([Thing], ["Thing.method does not say what its argument number is", "Thing.silent has no docstring"]),
    ],
)
def test_what_is_missing_is_said_in_one_line(values, missing):
    assert public.faults([public.Entry("nbvae.room", value.__name__, value) for value in values]) == [
        f"room.{each}" for each in missing
    ]


def test_a_constant_is_explained_by_the_comment_at_its_assignment():
    assert public.assigned("nbvae.data", "SPLITS")[0] == "('train', 'validation', 'test')"
    assert public.assigned("nbvae.data", "SPLITS")[1].startswith("the parts of a data set")
    assert public.assigned("nbvae.data", "BINARIZE")[1].startswith("How grey values")
    nowhere = public.Entry("nbvae.data", "NOWHERE", 1)
    assert public.faults([nowhere]) == ["data.NOWHERE has no comment at its assignment"]


def test_signatures_are_in_the_words_of_the_source():
    from nbvae import analytic, estimators, models

    assert public.signature(estimators.moments) == ("(model: objectives.Model, x: Float[Tensor, 'batch ...'])", "Moments")
    assert public.signature(analytic.LinearGaussian) == ("(cov: Array, latent_dim: int)", "")
    assert public.signature(models.VAE)[0].startswith("(shape: Sequence[int], latent_dim: int = 8, network: str | None = None")
    assert ", *, sigma: float | str | None = None" in public.signature(models.VAE)[0]
    assert all("nbvae." not in "".join(public.signature(entry.value)) for entry in NAMES if entry.kind == "function")


# Links --------------------------------------------------------------------------------------------------------------

KNOWN = dict.fromkeys(
    ["nbvae.posterior", "nbvae.models.VAE", "nbvae.objectives.VAE", "nbvae.objectives.BetaVAE", "nbvae.curves.RDCurve",
     "studies.load", "nbvae.curves.RDCurve.regret", "nbvae.training.fit", "nbvae.training.calibration.calibrate",
     "nbvae.posterior.Coupling.fit"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "room", "full"),
    [
        ("objectives.BetaVAE", "", "nbvae.objectives.BetaVAE"),
        ("nbvae.objectives.BetaVAE", "", "nbvae.objectives.BetaVAE"),
        ("objectives.BetaVAE(beta=2.0)", "", "nbvae.objectives.BetaVAE"),
        ('studies.load(…, budget="quick")', "", "studies.load"),
        ("RDCurve.regret", "", "nbvae.curves.RDCurve.regret"),
        ("calibration.calibrate", "", "nbvae.training.calibration.calibrate"),
        ("curve.regret(other)", "", ""),
        ("fit", "", ""),
        ("BetaVAE", "", ""),
        ("fit", "nbvae.training", "nbvae.training.fit"),
        ("RDCurve", "nbvae.training", "nbvae.curves.RDCurve"),
        ("VAE", "nbvae.training", ""),  # which of two?
        ("VAE", "nbvae.models", "nbvae.models.VAE"),
        ("regret", "nbvae.training", ""),
        ("models.VAE + 1", "", ""),
        ("posterior(x)", "", ""),  # a method, not the room
        ("posterior(x)", "nbvae.models", ""),
        ("nbvae.posterior", "", "nbvae.posterior"),
    ],
)
def test_code_in_a_text_leads_to_the_one_entry_that_it_names(code, room, full):
    assert reference.target_of(code, KNOWN, room) == full


def test_an_entry_names_the_chapters_that_use_it(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").write_text(
        "root: index\nchapters: [{file: book/executed/02_b}, {file: book/executed/01_a}, {file: book/executed/manifest}]\n"
    )
    cells = {"01_a": ["estimators.iwae(model, x)", "own.estimators.gap"], "02_b": ["nbvae.estimators.iwae", "models.VAEs"]}
    for name, sources in cells.items():
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    uses = reference.used(tmp_path)
    entry = public.Entry("nbvae.estimators", "iwae", None)
    assert reference.used_in(entry, uses) == (
        "Used in chapters :doc:`2 </book/executed/02_b>`, :doc:`1 </book/executed/01_a>`."
    )
    assert reference.used_in(public.Entry("nbvae.estimators", "gap", None), uses) == ""
    assert reference.used_in(public.Entry("nbvae.models", "VAE", None), uses) == ""


# The pages ----------------------------------------------------------------------------------------------------------

CONF = """
import sys
extensions = ["reference"]
exclude_patterns = ["_build"]
nitpicky = True
import public
public.rooms = lambda: ["nbvae.tiny"]
"""
TINY = '''"""A room."""

{comment}
KINDS = ("one", "two")


def double({arguments}):
    """Twice `x`.

    {example}
    """
    return 2 * x
'''


def site(folder: Path, **gaps: str) -> subprocess.CompletedProcess:
    """Sphinx over a room of two names, whose text has gaps."""
    whole = {"comment": "# The kinds that there are.", "arguments": "x", "example": ">>> double(1)\n    2"}
    files = {
        "nbvae/__init__.py": "__all__ = ['tiny']",
        "nbvae/tiny.py": TINY.format(**whole | gaps) + '\n\n__all__ = ["KINDS", "double"]\n',
        "_toc.yml": "root: index\nchapters: [{file: book/executed/03_c}]\n",
        "notebooks/03_c.ipynb": '{"cells": [{"source": ["tiny.double(2)"]}]}',
        "index.rst": "Book\n====\n\n.. toctree::\n   :glob:\n\n   book/*/*\n\nCall ``tiny.double`` and ``tiny.treble``.\n",
        "book/executed/03_c.rst": "Three\n=====\n\nSee ``nbvae.tiny.double(4)``.\n",
        "book/reference/tiny.rst": "tiny\n====\n\n.. room:: nbvae.tiny\n",
        "conf.py": CONF,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    path = os.pathsep.join([str(folder), str(ROOT / "book")])
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(folder), str(folder / "_build")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def test_pages_are_made_and_linked_both_ways(tmp_path):
    run = site(tmp_path)
    assert run.stderr == ""
    page = (tmp_path / "_build" / "book" / "reference" / "tiny.html").read_text()
    assert 'id="nbvae.tiny.double"' in page
    assert 'id="nbvae.tiny.KINDS"' in page
    assert "The kinds that there are." in page
    assert 'Used in chapter <a class="reference internal" href="../executed/03_c.html">' in page
    index = (tmp_path / "_build" / "index.html").read_text()
    assert 'href="book/reference/tiny.html#nbvae.tiny.double"' in index
    assert "tiny.treble" not in "".join(re.findall(r"<a [^>]*>.*?</a>", index))
    chapter = (tmp_path / "_build" / "book" / "executed" / "03_c.html").read_text()
    assert 'href="../reference/tiny.html#nbvae.tiny.double"' in chapter


@pytest.mark.parametrize(
    ("gap", "complaint"),
    [
        ({"comment": ""}, "tiny.KINDS has no comment at its assignment"),
        ({"arguments": "x, times"}, "tiny.double does not say what its argument times is"),
        ({"example": ""}, "tiny.double has no example, and no example of another name returns one"),
    ],
)
def test_a_gap_ends_the_build_with_one_line(tmp_path, gap, complaint):
    run = site(tmp_path, **gap)
    assert run.returncode
    assert not (tmp_path / "_build" / "index.html").exists()
    assert rendering.warnings_in(run.stderr) == f"  ERROR: {complaint}"


@pytest.mark.parametrize("room", public.rooms())
def test_the_built_page_of_a_room_has_all_its_names_and_links_back_to_the_chapters(html, room):
    text = (html / f"{reference.page_of(room)}.html").read_text(encoding="utf-8")
    uses = reference.used(ROOT)
    for entry in (each for each in NAMES if each.room == room):
        anchor = f'id="module-{entry.path}"' if entry.kind == "module" else f'id="{entry.path}"'
        assert anchor in text
        body = re.split(
            r'<dt class="sig[^>]* id="nbvae\.[a-z]+\.\w+"|<dt class="sig[^>]* id="studies\.\w+"', text.split(anchor)[1]
        )[0]
        linked = re.findall(r'href="\.\./executed/(\w+)\.html"', body.split("Used in chapter")[-1].split("</p>")[0])
        assert linked == uses.get(entry.short, []), entry.short


def test_the_built_chapters_lead_to_entries_and_the_sidebar_to_the_index(html):
    for chapter in reference.chapters(ROOT):
        text = (html / "book" / "executed" / f"{chapter}.html").read_text(encoding="utf-8")
        links = re.findall(r'<a class="to-reference[^"]*" href="([^"#]*)#([\w.]+)"', text)
        assert links, f"{chapter} names nothing of the library in its text"
        for address, anchor in links:
            target = (html / "book" / "executed" / address).resolve()
            assert f'id="{anchor}"' in target.read_text(encoding="utf-8")
        assert 'href="../../genindex.html"' in text.split("</nav>")[0]
    index = (html / "genindex.html").read_text(encoding="utf-8")
    missing = [entry.path for entry in NAMES if entry.kind != "module" and f"#{entry.path}" not in index]
    assert missing == []
