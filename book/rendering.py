"""Turn executed notebooks and prose into checked HTML, and put it in the place of the previous pages.

`editions.py` copies the pages, without the cells and pages that the edition leaves out, and Jupyter Book renders them into
a temporary folder. They are checked by `pages.py`, and only then renamed: whatever goes wrong, the previous pages stay as they
were.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import editions
import mend
import pages
import search
from shared import KERNEL_ENVIRONMENT, BuildError, hash_files, listed_pages, say


def book_key(root: Path) -> str:
    """Changes exactly when the pages may change."""
    prose = [file for file in sorted((root / "book").rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    prose = [file for file in prose if "executed" not in file.parts or file.suffix in (".ipynb", ".md")]
    library = [file for package in ("nbvae", "studies") for file in sorted((root / package).rglob("*.py"))]  # its docstrings
    settings = [root / name for name in ("_config.yml", "_toc.yml", "constraints.txt", "genindex.md")]
    return hash_files([*settings, *prose, *library])


def render(
    root: Path, verbose: bool, edition: str = "html", built: Path | None = None, finish: Callable[[Path], None] | None = None
) -> None:
    """Render the pages of an edition of `root`, check them, and put them in the place of the previous ones, `_build/EDITION`.

    For a copy on other data, they are put into `built/EDITION`, after `finish` has changed them. Its text may refer to figures
    that these data do not have: warnings are said, and end nothing.
    """
    built = root / "_build" if built is None else built
    key, target = book_key(root), built / edition
    place = target.relative_to(next(folder for folder in target.parents if folder.name == "_build").parent)
    listed = [page for page in listed_pages(root) if editions.has(edition, page)]
    stamp = target / ".key"
    there = all((target / f"{page}.html").is_file() for page in listed)
    if there and stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        say(f"{place}: up to date")
        return
    say("rendering the pages" if edition == "html" else f"rendering the {edition} edition")
    # Always from nothing: Sphinx does not repeat the warnings of pages that it read before, and -W would miss them.
    fresh = built / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    editions.stage(root, listed, edition, fresh / "source")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(fresh / "source"),
               "--path-output", str(fresh), "-n", *([] if finish else ["-W"]), "--keep-going"]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))  # the reference imports the library
    run = subprocess.run(
        command, cwd=root, text=True, stdout=None if verbose else subprocess.PIPE,
        stderr=None if verbose else subprocess.STDOUT, env=os.environ | KERNEL_ENVIRONMENT | {"PYTHONPATH": path},
    )  # fmt: skip
    html = fresh / "_build" / "html"
    if run.returncode or not html.is_dir():
        raise BuildError(f"Jupyter Book failed; the previous book is untouched.\n{warnings_in(run.stdout or '')}")
    if finish and "WARNING" in (run.stdout or ""):
        say(f"places of the text that do not fit these data:\n{warnings_in(run.stdout)}")
    pages.strip_unused(html)
    mend.mend(html)
    search.add(html, listed)
    if finish:
        finish(html)
    problems = pages.check(html, listed)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:40])
        raise BuildError(f"{len(problems)} problems in the pages; the previous book is untouched.\n{shown}")
    (html / ".key").write_text(key, encoding="utf-8")
    swap(html, target)
    shutil.rmtree(fresh, ignore_errors=True)
    say(f"built {place}/index.html")


def warnings_in(log: str) -> str:
    """The lines of Jupyter Book's output that say what is wrong, or its end."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log).splitlines()  # it colours them for a terminal in any case
    marked = [line for line in lines if "WARNING" in line or "ERROR" in line]
    return "\n".join(f"  {line}" for line in (marked or lines[-15:]))


def swap(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`: two renames, the first undone if the second fails."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
