"""The first cells of every chapter, run as a reader would with good and with bad parameters, in IPython without a kernel."""

import json
import re
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from nbvae import notebook

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def opening(chapter: Path) -> tuple[str, str]:
    """The parameters cell and the one after it, which validates them."""
    cells = [cell for cell in json.loads(chapter.read_text())["cells"] if cell["cell_type"] == "code"]
    first = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    return "".join(cells[first]["source"]), "".join(cells[first + 1]["source"])


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def run(shell, chapter, injected=""):
    """Run the opening as papermill does, with `injected` in a cell of its own; return the error and what was shown."""
    parameters, validation = opening(chapter)
    shell.reset()
    with capture_output() as shown:
        for source in (parameters, f"# Parameters\n{injected}\n"):
            assert shell.run_cell(source, store_history=True).success
        result = shell.run_cell(validation, store_history=True)
    return result.error_in_exec, shown.stdout + shown.stderr


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
    if name not in opening(chapter)[0] and name != "epohcs":
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


def test_recorded_results_are_found_and_missing_ones_named():
    assert notebook.recorded("multi_beta_digits")["budget"] == "digits"
    with pytest.raises(FileNotFoundError, match=r"nosuch\.json is missing") as error:
        notebook.recorded("nosuch")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stem", ["06_aggregated_posterior", "07_alignment"])
@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("betas = [0.2, 0.2, 2]", "betas needs three different values, got [0.2, 2.0]"),
        ("dataset = 'gaussian'", "examples of 0 and 1, train_labels and test_labels; got 'gaussian'"),
    ],
)
def test_chapters_with_labels_say_what_they_need(shell, stem, injected, message):
    chapter = next(each for each in CHAPTERS if each.stem == stem)
    error, _ = run(shell, chapter, injected)
    assert isinstance(error, ValueError)
    assert message in str(error)
    assert "\n" not in str(error)
