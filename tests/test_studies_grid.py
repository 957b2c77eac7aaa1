"""A notebook over a grid of parameters."""

from pathlib import Path

import nbformat
import pytest

from studies import grid


@pytest.fixture
def notebook(tmp_path):
    """A notebook that adds its parameters, and fails for n = 3."""
    cells = [
        nbformat.v4.new_code_cell("n: int = 1  # a number\nbetas: list = [1.0]", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("if n == 3:\n    raise ValueError('three is not\\nallowed')\nprint(n + sum(betas))"),
    ]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "add.ipynb")
    return tmp_path / "add.ipynb"


def printed(path) -> float:
    return float(nbformat.read(path, as_version=4).cells[-1].outputs[0]["text"])


def test_every_combination_is_run_once_and_an_error_takes_no_other_with_it(notebook, tmp_path, capsys):
    command = [str(notebook), "--grid", "n=1,2", "betas=[0.5,1],[4]", "--out", str(tmp_path / "runs"), "--workers", "1"]
    grid.main(command)
    found = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(map(printed, found)) == [2.5, 3.5, 5.0, 6.0]
    before = {path: path.stat().st_mtime_ns for path in found}
    grid.main(command)
    assert before == {path: path.stat().st_mtime_ns for path in found}
    found[0].unlink()
    grid.main(command)
    changed = [path for path in found if before[path] != path.stat().st_mtime_ns]
    assert changed == found[:1]


def test_an_error_is_one_line_and_takes_no_other_run_with_it(notebook, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        grid.main([str(notebook), "--grid", "n=3,4", "--out", str(tmp_path / "runs"), "--workers", "1"])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "three is not; the 1 others are kept" in said
    assert said.count("\n") == 1
    assert printed(tmp_path / "runs" / "add_n=4.ipynb") == 5.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["n"], "--grid takes NAME=VALUE,VALUE"),
        (["n="], "--grid takes NAME=VALUE,VALUE"),
        (["m=1"], "has no parameter 'm'; it has n, betas"),
        (["n=1,1"], "would have one name"),
    ],
)
def test_a_grid_that_is_none_is_refused(notebook, tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        grid.cells(notebook, given, tmp_path)
    with pytest.raises(ValueError, match="no notebook"):
        grid.cells(tmp_path / "nosuch.ipynb", ["n=1"], tmp_path)
