"""The first cells of every chapter, run as a reader would with good and with bad parameters, in IPython without a kernel."""

import ast
import json
import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from errors import one_line
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from nbvae import notebook, results

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def opening(chapter: Path) -> tuple[str, str]:
    """The parameters cell and the one after it, which validates them."""
    cells = [cell for cell in json.loads(chapter.read_text())["cells"] if cell["cell_type"] == "code"]
    first = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    return "".join(cells[first]["source"]), "".join(cells[first + 1]["source"])


@pytest.fixture
def shell():
    main = sys.modules["__main__"]  # of which a shell makes another one
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()
    sys.modules["__main__"] = main


def run(shell, chapter, injected=""):
    """Run the opening as papermill does, with `injected` in a cell of its own; return the error and what was shown."""
    parameters, validation = opening(chapter)
    shell.reset()
    log = logging.getLogger("nbvae.training")  # a chapter may silence it in a process of its own, and this is none
    level = log.level
    try:
        with capture_output() as shown:
            for source in (parameters, f"# Parameters\n{injected}\n"):
                assert shell.run_cell(source, store_history=True).success
            result = shell.run_cell(validation, store_history=True)
    finally:
        log.setLevel(level)
    return result.error_in_exec, shown.stdout + shown.stderr


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_table_is_shown(chapter):
    """IPython shows what the last line of a cell is worth, and nothing of the lines before it."""
    for cell in json.loads(chapter.read_text())["cells"]:
        if cell["cell_type"] == "code":
            for line in ast.parse("".join(cell["source"])).body[:-1]:
                lost = isinstance(line, ast.Expr) and ast.unparse(line).startswith("notebook.table(")
                assert not lost, f"a table of the cell {cell['id']} is not shown: give it a cell of its own"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_defaults_are_good(shell, chapter):
    error, _ = run(shell, chapter)
    assert error is None


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("dataset = 'mnits'", "digits, patches, gaussian, mnist"),
        ("dataset = 'mine.npz'", "mine.npz"),
        ("epohcs = 2", "unknown parameter epohcs; this notebook has:"),
        ("epochs = 'abc'", "epochs must be a whole number >= 1"),
        ("epochs = 0", "epochs must be a whole number >= 1"),
        ("seed = 'x'", "seed must be"),
        ("device = 'gpu'", "auto, cpu, cuda, mps"),
        ("betas = [0.5, 0]", "beta must be a finite number > 0"),
        ("betas = '[0.1, 1]'", "betas must be a list"),
        ("latent_dim = 0", "latent_dim must be a whole number >= 1"),
        ("n_seeds = 1", "n_seeds must be a whole number >= 2"),
    ],
)
def test_a_bad_parameter_gets_one_line(shell, chapter, injected, message):
    name = injected.split(" ")[0]
    if not re.search(rf"^{name}\b", opening(chapter)[0], flags=re.M) and name != "epohcs":
        pytest.skip(f"{chapter.stem} has no parameter {name}")
    error, shown = run(shell, chapter, injected)
    assert isinstance(error, ValueError | OSError)
    assert message in str(error)
    assert "\n" not in str(error)
    assert message in shown
    assert len(shown.strip().splitlines()) <= 3, "the reader sees more than the message"


def test_later_cells_show_whole_tracebacks(shell):
    run(shell, CHAPTERS[0], "epochs = 0")
    with capture_output() as shown:
        shell.run_cell("def f():\n    raise RuntimeError('later')\nf()", store_history=True)
    assert "in f()" in re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)


def test_unknown_names_are_found_wherever_papermill_puts_its_cell():
    cells = ["", "a: int = 1  # one\nb = 2", "# Parameters\na = 3\n", "import os\nc = a + b"]
    notebook.check_parameters(cells)
    with pytest.raises(ValueError, match="unknown parameter d, e; this notebook has: a, b"):
        notebook.check_parameters([*cells[:2], "# Parameters\nd = 3\ne = [1]\na = 0\n", *cells[2:]])
    notebook.check_parameters(["%config x", "a = 1", "b = 2"])  # run by hand: nothing was injected


def test_glue_writes_what_myst_nb_reads(shell):
    """The same message as that of myst_nb, which the book is rendered with."""
    import myst_nb

    written = []
    for glue in (notebook.glue, lambda name, value: myst_nb.glue(name, value, display=False)):
        for value in (0.25, 7):
            with capture_output() as shown:
                glue("key", value)
            written.append([(output.data, output.metadata) for output in shown.outputs])
    assert written[:2] == written[2:]
    assert written[0][0][0] == {"application/papermill.record/text/plain": "0.25"}


def rendered(shell, source: str, text: str) -> str:
    """What myst-nb makes of `text` in a notebook with the outputs of `source`."""
    import nbformat
    from docutils.core import publish_string
    from myst_nb.docutils_ import Parser

    with capture_output() as shown:
        assert shell.run_cell(source).success
    outputs = [nbformat.v4.new_output("display_data", data=output.data, metadata=output.metadata) for output in shown.outputs]
    cells = [nbformat.v4.new_code_cell(source, outputs=outputs), nbformat.v4.new_markdown_cell(text)]
    book = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}},
    )
    settings = {"nb_execution_mode": "off", "output_encoding": "unicode", "report_level": 1, "halt_level": 2}
    page = publish_string(nbformat.writes(book), parser=Parser(), writer_name="pseudoxml", settings_overrides=settings)
    return " ".join(page.split())


def test_what_is_glued_stands_in_the_text_as_it_should(shell):
    source = """
import numpy as np, torch
from nbvae import notebook, results
from nbvae.results import Estimate
regret = Estimate(-0.3234, 0.0213, 6, "runs")
notebook.glue("regret", regret)
notebook.glue("lost", -regret, "+")
notebook.glue("fine", regret, ".3f")
notebook.glue("single", Estimate(0.25))
notebook.glue("number", np.float64(1.23456))
notebook.glue("tensor", torch.tensor(7))
notebook.glue("kind", "film")
notebook.glue("digits", {"film": {"mean": regret, "most": np.float32(0.5)}, 4: 4}, "+.1f")
"""
    written = {
        "regret": "-0.32 ± 0.02",
        "regret.value:+.3f": "-0.323",
        "regret.stderr:.3f": "0.021",
        "lost": "+0.32 ± 0.02",
        "fine": "-0.323 ± 0.021",
        "single": "0.25",
        "number:+.2f": "+1.23",
        "number:.2g": "1.2",
        "tensor": "7",
        "tensor:.1f": "7.0",
        "kind": "film",
        "digits.film.mean": "-0.3 ± 0.0",
        "digits.film.mean.value:+.2f": "-0.32",
        "digits.film.most:.2f": "0.50",
        "digits.4": "4",
    }
    page = rendered(shell, source, "\n\n".join(f"Here {{glue:text}}`{key}` nats." for key in written))
    assert re.findall(r'Here <inline classes="pasted-text"> (.+?) nats\.', page) == list(written.values())


@pytest.mark.parametrize("name", ["a:b", "", 3, None])
def test_a_name_that_the_text_cannot_write_is_refused(name):
    one_line(lambda: notebook.glue(name, 1.0), "name must be a string without a colon")


class Structure(HTMLParser):
    """The rows of a table as lists of (tag, scope, text), its caption, and what it has styles of."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self.caption, self.styles, self.open = [], "", [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        attributes = dict(attrs)
        self.styles.append(attributes.get("style", ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append([tag, attributes.get("scope"), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1][2] += data


def test_a_table_is_accessible_and_has_no_colours_of_its_own(shell):
    means = results.over_seeds(
        pd.concat(
            results.tidy([[0.1, 0.3], [0.14, 0.5]], {"seed": [0, 1], "beta": [0.05, 1.0]}, "regret", kind=kind)
            for kind in ("film <1>", "a|b & c")
        ),
        by=["kind", "beta"],
    )
    frame = means.unstack("beta", sort=False)
    frame.insert(0, "mean", [1.23456, None])
    frame["epochs"] = [24, 8]
    made = notebook.table(frame, "Regret of <one> model, nats.", "+")
    page = Structure(made.html)
    assert page.caption == "Regret of <one> model, nats."
    head, *rows = page.rows
    assert head == [["th", "col", text] for text in ("kind", "mean", "β = 0.05", "β = 1", "epochs")]
    assert rows[0] == [
        ["th", "row", "film <1>"],
        *(["td", None, text] for text in ("+1.235", "+0.12 ± 0.02", "+0.40 ± 0.10", "+24")),
    ]
    assert rows[1][0] == ["th", "row", "a|b & c"]
    assert rows[1][1] == ["td", None, "–"]
    assert not any("color" in style or "background" in style for style in page.styles)
    assert "http" not in made.html
    assert "<script" not in made.html
    assert made.markdown.splitlines()[0] == "Regret of <one> model, nats."
    assert made.markdown.splitlines()[3] == "|---|---:|---:|---:|---:|"
    assert made.markdown.splitlines()[-1].startswith("| a\\|b & c | – | +0.12 ± 0.02 |")
    assert len(made.markdown.splitlines()) == 6
    data, _ = shell.display_formatter.format(made)
    assert set(data) == {"text/html", "text/markdown", "text/plain"}
    assert data["text/plain"] == data["text/markdown"] == made.markdown


def test_a_table_takes_what_chapters_have():
    plain = pd.DataFrame({"race": ["one", "two"], "epochs": [8, 24], "loss": [1.5, float("nan")]})
    page = Structure(notebook.table(plain, "Races.", {"loss": ".2f"}).html)
    assert page.rows[0] == [["th", "col", text] for text in ("race", "epochs", "loss")]
    assert page.rows[1] == [["th", "row", "one"], ["td", None, "8"], ["td", None, "1.50"]]
    assert page.rows[2][2] == ["td", None, "–"]
    series = results.over_seeds(results.tidy([[1.0], [3.0]], {"seed": [0, 1], "beta": [0.1]}, "rate"), by="beta")
    page = Structure(notebook.table(series, "Rates.").html)
    assert page.rows == [
        [["th", "col", "β"], ["th", "col", "mean ± standard error"]],
        [["th", "row", "0.1"], ["td", None, "2.0 ± 1.0"]],
    ]
    two = series.to_frame("rate").set_index(pd.MultiIndex.from_tuples([("digits", 3)], names=["dataset", "seed"]))
    page = Structure(notebook.table(two).html)
    assert "<caption" not in notebook.table(two).html
    assert notebook.table(two).markdown.startswith("| dataset | seed | rate |")
    assert page.rows[1][:2] == [["th", "row", "digits"], ["th", "row", "3"]]
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"], index=["x"])
    assert [cell[2] for cell in Structure(notebook.table(twice, "Twice.").html).rows[1]] == ["x", "1", "2"]
    deep = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("rate", 0.1), ("rate", 1.0)]), index=["x"])
    assert [cell[2] for cell in Structure(notebook.table(deep, "Deep.").html).rows[0]] == ["", "rate, 0.1", "rate, 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((pd.DataFrame(), "Nothing."), "a table is made of a frame with rows and columns"),
        (([1, 2], "A list."), "a table is made of a frame with rows and columns, got [1, 2]"),
        ((pd.DataFrame({"a": [1]}), None), "caption must be a string that says what the table shows, got None"),
        ((pd.DataFrame({"a": [1]}), {"a": ".2f"}), "caption must be a string that says what the table shows"),
    ],
)
def test_tables_of_nothing_are_refused(arguments, message):
    one_line(lambda: notebook.table(*arguments), message)


def test_a_slider_shows_one_frame_at_a_time_without_a_network():
    import matplotlib.pyplot as plt

    figures = {value: plt.figure(figsize=(1, 1)) for value in ("0.1", "1", '<"10">')}
    page = notebook.slider(figures, "β", "Digits at").data
    assert not plt.get_fignums()
    images = re.findall(r"<img [^>]*>", page)
    assert [" hidden" in image for image in images] == [False, True, True]
    assert 'alt="Digits at β = 0.1."' in images[0]
    assert 'alt="Digits at β = &lt;&quot;10&quot;&gt;."' in images[2]
    assert re.findall(r'min="0" max="2" value="0"', page)
    assert page.count("<label>") == 1 == page.count("<output>0.1</output>")
    assert "http" not in page
    assert '<"10">' not in page


def test_a_slider_takes_numbers_and_refuses_to_show_nothing():
    import matplotlib.pyplot as plt

    page = notebook.slider({0.1: plt.figure(), 1: plt.figure()}, "β", "Digits at").data
    assert "<output>0.1</output>" in page
    assert 'data-values="[&quot;0.1&quot;, &quot;1&quot;]"' in page
    for frames in ({}, [plt.figure()], None):
        one_line(
            lambda frames=frames: notebook.slider(frames, "β", "Digits at"),
            "frames must be a figure for each value, at least one",
        )
    plt.close("all")


@pytest.mark.parametrize(
    ("stem", "injected", "message"),
    [
        ("05_one_model_many_betas", "binarize = 'half'", "binarize must be one of"),
        ("05_one_model_many_betas", "binarize = 'threshold'; dataset = 'gaussian'", "gaussian"),
        ("05_one_model_many_betas", "network = 'conv'; dataset = 'gaussian'", "needs images (channels, height, width)"),
        ("05_one_model_many_betas", "network = 'deep'", "network must be one of"),
        ("05_one_model_many_betas", "lr = 0", "lr must be"),
        ("05_one_model_many_betas", "batch_size = 0", "batch_size must be"),
        ("05_one_model_many_betas", "budget = 'half'", "budget must be one of"),
        ("06_aggregated_posterior", "dataset = 'gaussian'", "dataset gaussian needs labels"),
        ("06_aggregated_posterior", "beta = 0", "beta must be a finite number > 0"),
        ("06_aggregated_posterior", "budget = 'none'", "budget must be one of"),
        ("07_alignment", "betas = [0.2, 0.2, 2]", "betas needs three different values, got [0.2, 2.0]"),
        ("07_alignment", "dataset = 'gaussian'", "put both into the .npz, or use digits, mnist or glyphs; got 'gaussian'"),
        ("07_alignment", "budget = 'half'", "budget must be one of"),
        ("07_alignment", "n_seeds = 1", "n_seeds must be"),
        ("07_alignment", "latent_dim = 0", "latent_dim must be"),
        ("07_alignment", "latent_dim = 200", "densities and distances need at least"),
        ("09_bytes", "dataset = 'gaussian'", "images of one channel"),
        ("09_bytes", "binarize = 'none'", "give binarize, or an .npz of such images"),
        ("09_bytes", "binarize = 'half'", "binarize must be one of"),
        ("09_bytes", "budget = 'half'", "budget must be one of"),
        ("09_bytes", "latent_dim = 0", "latent_dim must be"),
        ("howto_data", "binarize = 'grey'", "binarize must be one of"),
        ("howto_model", "dataset = 'patches'", "pixels that are 0 or 1"),
        ("howto_objective", "beta = 0", "beta must be a finite number > 0"),
        ("howto_rate", "rate = -1", "rate must be a finite number > 0"),
        ("howto_rate", "gammas = '10'", "gammas must be a list"),
        ("howto_rate", "gammas = [-1]", "gamma must be"),
    ],
)
def test_chapters_say_what_they_need(shell, stem, injected, message):
    chapter = next(each for each in CHAPTERS if each.stem == stem)
    error, _ = run(shell, chapter, injected)
    assert isinstance(error, ValueError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_a_table_that_cannot_be_made_is_refused_and_odd_cells_are_shown():
    twice = notebook.table(pd.DataFrame([["x", 1.0, 2.0]], columns=["a", "a", "b"]))
    assert str(twice).splitlines()[-1] == "| x | 1 | 2 |"
    with pytest.raises(ValueError, match="spec must be a format of numbers"):
        notebook.table(pd.DataFrame({"a": [1.0]}, index=["x"]), spec="z!")
    shown = notebook.table(pd.DataFrame({"a": ["two\nlines", pd.NaT]}, index=["x", "y"]))
    assert str(shown).splitlines()[-2:] == ["| x | two lines |", "| y | – |"]
