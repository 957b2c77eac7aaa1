"""The README's Python code runs as it stands, from an empty folder, with nothing but the installed library."""

import json
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_code_of_the_readme_runs_in_an_empty_folder(tmp_path):
    first, own, test = BLOCKS
    # As long as it needs to be for a reader, and an epoch here.
    first = re.sub(r"epochs=\d+", "epochs=1", first)
    own = re.sub(r"epochs=\d+", "epochs=1", own)
    (tmp_path / "one.py").write_text(first)
    called = "test_free_bits_without_free_bits_is_the_beta_vae()\nprint(again.objective)"
    (tmp_path / "two.py").write_text(f"{own}\n{test}\n{called}")
    for script in ("one.py", "two.py"):
        run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert not run.stderr, run.stderr  # all four models were trained as one
    assert "β 0.3: R" in subprocess.run([sys.executable, "one.py"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert run.stdout.rstrip().endswith("FreeBits(beta=1.0, free=2.0)")


def test_the_table_of_the_readme_has_every_chapter():
    for path in NOTEBOOKS:
        if number := re.match(r"0*(\d+)_", path.name):
            first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0]
            row = f"| {number[1]} {first.removeprefix('# ').split(',')[0]}"
            assert f"\n{row}" in README, f"README.md: the table of chapters has no row that begins '{row}'"
