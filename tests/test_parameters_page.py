"""The page of parameters says what the notebooks' cells of parameters say."""

import ast
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

import parameters

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executed")
    parameters.write(NOTEBOOKS, folder, lambda file, text: file.write_text(text, encoding="utf-8"))
    about, *parts = (folder / "parameters.md").read_text(encoding="utf-8").split("\n## ")
    assert about.startswith("# The parameters of the pages\n")
    return dict(zip((path.stem for path in NOTEBOOKS), parts, strict=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_parameter_has_its_default_and_its_comment(sections, path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    values, comments = {}, re.findall(r"^(\w+)\b[^#]*# (.*)$", code, flags=re.M)
    exec(code, values)
    lines = sections[path.stem].splitlines()
    assert f"({path.name})" in "".join(lines[:5])
    rows = [line for line in lines if re.match(r"(\* -|  -) ", line)][3:]
    names, defaults, meanings = ([row[4:] for row in rows[k::3]] for k in range(3))
    assert names == [f"`{name}`" for name, _ in comments]
    assert [re.sub(r"\\", "", each) for each in meanings] == [comment for _, comment in comments]
    assert [ast.literal_eval(each.strip("`")) for each in defaults] == [values[name] for name, _ in comments]
    assert {name for name in values if not name.startswith("__")} == {name for name, _ in comments}


def test_a_notebook_without_parameters_has_no_table(tmp_path):
    import nbformat

    cells = [nbformat.v4.new_markdown_cell("# A_b"), nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "a.ipynb")
    assert parameters.section(tmp_path / "a.ipynb")[0] == "## A\\_b"
    assert "It has none." in parameters.section(tmp_path / "a.ipynb")
