"""Build the book: execute the notebooks that are out of date, then turn notebooks and prose into checked HTML.

    python book/build.py [-v] [--edition student] [--dataset NAME_OR_PATH]

`running.py` executes each notebook that `_toc.yml` names as `book/executed/NAME`; one that fails ends the build.
`rendering.py` makes the pages, in `_build/html`, or in `_build/student` and `_build/teacher` for those editions.

With a data set, the book is built on it in `_build/NAME`, as `given.py` describes, and this one stays as it is.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import cards
import editions
import given
import parameters
import records
from rendering import render
from running import Notebook, check_pictures, execute_given, execute_stale, listed_notebooks, write_manifest
from shared import BuildError, listed_pages, replace_text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Execute what changed and build the book into _build.")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Jupyter Book's own output")
    parser.add_argument("--edition", choices=[*editions.LEFT_OUT], default="html", help="the folder in _build; default: html")
    parser.add_argument("--dataset", metavar="NAME_OR_PATH", help="build it on these data, into `_build/NAME`")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        build(options.root.resolve(), options.dataset, options.verbose, options.edition)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build(root: Path, dataset: str | None, verbose: bool, edition: str = "html") -> None:
    """Build an edition of the book under `root`, or of a copy of it on a data set."""
    if dataset:
        try:
            home = given.stage(root, dataset)
        except (ValueError, OSError) as error:
            raise BuildError(str(error)) from error
        notebooks = listed_notebooks(home)
        execute_given(root, notebooks)
    else:
        home, notebooks = root, listed_notebooks(root)
        execute_stale(notebooks)
    check_pictures(notebooks)
    write_manifest(notebooks)
    try:
        cards.write(home, {notebook.name: notebook.executed for notebook in notebooks}, replace_text)
    except ValueError as error:
        raise BuildError(str(error)) from None
    listed, executed = listed_pages(home), home / "book" / "executed"
    if f"book/executed/{records.NAME}" in listed:
        records.write(home, replace_text)
    if f"book/executed/{parameters.NAME}" in listed:
        parameters.write([root / "notebooks" / f"{notebook.name}.ipynb" for notebook in notebooks], executed, replace_text)

    if not dataset:
        return render(root, verbose, edition)
    theirs = {name: Notebook(root, name).parameters() for name in (notebook.name for notebook in notebooks)}
    own = {name: str(found.get("dataset", "")) for name, found in theirs.items()}
    without = [name for name, found in theirs.items() if "dataset" not in found]
    render(home, verbose, edition, home.parent, partial(given.label, home, own=own, without=without))


if __name__ == "__main__":
    sys.exit(main())
