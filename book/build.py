"""Build the book: execute the notebooks that are out of date, then turn notebooks and prose into checked HTML.

    python book/build.py [-v] [--edition student] [--dataset NAME_OR_PATH]

1. Each notebook that `_toc.yml` names as `book/executed/NAME` is executed by papermill, in a process of its own with one
   thread, if anything that decides its results has changed. A notebook that fails ends the build. Where only prose,
   captions or comments have changed, they are put around the results that are there.
2. `editions.py` copies the pages, without the cells and pages that the edition leaves out, and Jupyter Book renders them into a
   temporary folder. They are checked by `pages.py`, and only then renamed to `_build/html`, or `_build/student` and
   `_build/teacher` for those editions: whatever goes wrong, the previous book stays as it was.

With a data set, the book is built on it in `_build/NAME`, as `given.py` describes, and this one stays as it is.
"""

import argparse
import ast
import concurrent.futures
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import yaml

import cards
import editions
import given
import mend
import pages
import parameters
import records
import search
import staleness

CELL_TIMEOUT = 900  # seconds for one cell; papermill has no limit of its own
# One thread per notebook: as many notebooks run at once as there are cores. The rest makes equal results equal bytes.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1767225600",
    "JUPYTER_PREFER_ENV_PATH": "1",
}
GENERATED = "manifest"  # the page in book/executed that is written here, from the records of the runs
WRITTEN = (GENERATED, records.NAME, parameters.NAME)  # all that no notebook stands behind
FACTS = """
import json, sys
from nbvae import data, training
dataset, device = sys.argv[1:]
place = training.device(device).type if device else ""
print(json.dumps({"data": data.load(dataset).sha256 if dataset else "", "device": place}))
"""


class BuildError(Exception):
    """A failure that is explained by its message alone."""


class Refused(BuildError):
    """A notebook that ended in a `ValueError`, which says in one line, the `reason`, what is allowed."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Notebook:
    """A chapter or how-to page: its source in `notebooks/`, what its run left behind in `book/executed/`."""

    root: Path
    name: str

    @property
    def source(self) -> Path:
        return self.root / "notebooks" / f"{self.name}.ipynb"

    @property
    def executed(self) -> Path:
        return self.root / "book" / "executed" / f"{self.name}.ipynb"

    @property
    def record(self) -> Path:
        return self.executed.with_suffix(".json")

    def parameters(self) -> dict[str, object]:
        """The defaults set in the cell tagged `parameters`, as the literals that they are written as."""
        from papermill.inspection import inspect_notebook

        found = inspect_notebook(str(self.source))
        return {name: literal(str(entry["default"])) for name, entry in found.items()}

    def read(self) -> nbformat.NotebookNode:
        """The source; `BuildError` if it is no notebook."""
        try:
            return nbformat.read(self.source, as_version=4)
        except (OSError, ValueError, AttributeError) as error:
            raise BuildError(f"{self.source.name} cannot be read as a notebook: {str(error).splitlines()[0][:200]}") from error

    def key(self) -> str:
        """Changes exactly when the results may change: code, library, records, pinned packages, data, way of execution.

        Prose, captions, comments and the library's docstrings decide no result.
        """
        cells = staleness.code_cells(self.read())
        code = [cell.source for cell in cells]
        packages = ["nbvae", *(["studies"] if any("studies" in each for each in code) else [])]
        library = [each for name in packages for each in staleness.package_meaning(self.root / name)]
        records = staleness.records(code, self.root / "book" / "recorded")
        # Named data sets come with pinned packages or are verified by the library; only a reader's own file can change.
        own = self.root / str(self.parameters().get("dataset", ""))
        return hash_text(
            *map(staleness.cell_meaning, cells), *library, *pins(self.root),
            hash_files([*records, *([own] if own.is_file() else [])]),
            staleness.meaning(inspect.getsource(execute), False), json.dumps(KERNEL_ENVIRONMENT), platform.python_version(),
        )  # fmt: skip

    def is_current(self) -> bool:
        """Whether the executed notebook is there, its results unaltered, and those of what would be run now."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            return record["key"] == self.key() and record["output"] == self.output()
        except (OSError, ValueError, KeyError, AttributeError):
            return False

    def output(self) -> str:
        """A hash of the results in the executed notebook, cell by cell."""
        executed = nbformat.read(self.executed, as_version=4)
        return hash_text(*(json.dumps([cell.execution_count, cell.outputs]) for cell in staleness.code_cells(executed)))

    def renew(self) -> bool:
        """Put all that is shown, and decides no result, into the executed notebook anew; whether that changed anything."""
        executed, page = nbformat.read(self.executed, as_version=4), self.read()
        for cell, run in zip(staleness.code_cells(page), staleness.code_cells(executed), strict=True):
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
        page.metadata["language_info"] = executed.metadata.get("language_info", {})  # what the kernel said of itself
        return replace_text(self.executed, f"{nbformat.writes(page)}\n")


def literal(code: str) -> object:
    """The value that a piece of Python code stands for, or the code itself where it has to be run to know."""
    try:
        return ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return code


def hash_files(files: list[Path]) -> str:
    """One hash of the names and contents of `files`; a missing file counts as empty."""
    parts = (f"{file.name} {hashlib.sha256(file.read_bytes() if file.is_file() else b'').hexdigest()}" for file in files)
    return hash_text(*parts)


def hash_text(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def listed_pages(root: Path) -> list[str]:
    """Every page of `_toc.yml`, in order, without its suffix."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))

    def walk(entry: object) -> list[str]:
        if isinstance(entry, list):
            return [page for item in entry for page in walk(item)]
        if isinstance(entry, dict):
            own = [str(value) for key, value in entry.items() if key in ("root", "file")]
            return own + [page for key, value in entry.items() if key not in ("root", "file") for page in walk(value)]
        return []

    return walk(toc)


def listed_notebooks(root: Path) -> list[Notebook]:
    """The notebooks among the pages of `_toc.yml`; `BuildError` for one that has no source."""
    staged = [Path(page).name for page in listed_pages(root) if page.startswith("book/executed/")]
    notebooks = [Notebook(root, name) for name in staged if name not in WRITTEN]
    for notebook in notebooks:
        if not notebook.source.is_file():
            raise BuildError(f"_toc.yml names book/executed/{notebook.name}, but there is no {notebook.source}")
    return notebooks


def execute(notebook: Notebook) -> float:
    """Run a notebook with papermill and put the result in its place; seconds, or `BuildError` with the last error."""
    partial = notebook.executed.with_name(f".{notebook.name}.partial.ipynb")
    command = [sys.executable, "-m", "papermill", str(notebook.source), str(partial), "--kernel", "python3",
               "--execution-timeout", str(CELL_TIMEOUT), "--no-progress-bar"]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(notebook.root), os.environ.get("PYTHONPATH")]))
    environment = os.environ | KERNEL_ENVIRONMENT | {"PYTHONPATH": path}
    start = time.monotonic()
    try:
        run = subprocess.run(command, cwd=notebook.root, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - start
        # After a time-out or a dead kernel the notebook itself looks complete: only the exit status can be trusted.
        if run.returncode:
            raise failure(notebook.name, partial, run.stderr)
        result = nbformat.read(partial, as_version=4)
        problems = output_problems(result)
        if problems:
            raise BuildError(f"{notebook.name} ran, but:\n" + "\n".join(f"  {problem}" for problem in problems))
        # papermill notes paths of this machine and times of day; readers download this file.
        for holder in (result, *result.cells):
            for note in ("papermill", "execution"):
                holder.metadata.pop(note, None)
        nbformat.write(result, partial)
        partial.replace(notebook.executed)
    finally:
        partial.unlink(missing_ok=True)
    return seconds


def output_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Errors and stray messages among the stored outputs: Jupyter Book would print them without complaint."""
    problems = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                problems.append(f"{_name(cell)} ends in {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                problems.append(f"{_name(cell)} writes to stderr: {output.text.strip()[:300]}")
    return problems


def picture_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Pictures that the page would show without a text for those who cannot see them."""
    problems = []
    for cell in staleness.code_cells(notebook):
        kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
        removed = {"remove-cell", "remove-output"} & set(cell.metadata.get("tags", []))
        fault = pages.alt_fault(cell.metadata.get("mystnb", {}).get("image", {}).get("alt"))
        if fault and not removed and any(kind.startswith("image/") for kind in kinds):
            cure = 'say what it shows in the cell\'s metadata, {"mystnb": {"image": {"alt": "…"}}}'
            problems.append(f"{_name(cell)} shows a picture, with {fault}: {cure}")
    return problems


def check_pictures(notebooks: list[Notebook]) -> None:
    """`BuildError` for executed notebooks with a picture that has no text; here, and not when all pages are rendered."""
    problems = [
        f"{notebook.name}: {problem}"
        for notebook in notebooks
        for problem in picture_problems(nbformat.read(notebook.executed, as_version=4))
    ]
    if problems:
        raise BuildError("\n".join(problems))


def _name(cell: nbformat.NotebookNode) -> str:
    """A cell by its first line: papermill adds cells to a notebook that fails, so that numbers would mislead."""
    return f"cell `{cell.source.strip().partition(chr(10))[0][:60]}`"


def failure(name: str, partial: Path, log: str) -> BuildError:
    """What a failed run ended with, in a few lines."""
    if partial.is_file():
        result = nbformat.read(partial, as_version=4)
        problems = [line for line in output_problems(result) if " ends in " in line]
        errors = [each for cell in result.cells for each in cell.get("outputs", []) if each.output_type == "error"]
        if problems and errors[-1].ename == "ValueError":
            return Refused(f"{name} failed\n  {problems[-1]}", errors[-1].evalue.partition("\n")[0])
        if problems:
            return BuildError(f"{name} failed\n  {problems[-1]}")
    return BuildError("\n".join([f"{name} failed", *(f"  {line}" for line in log.strip().splitlines()[-3:])]))


def write_record(notebook: Notebook, key: str, seconds: float) -> None:
    """Note beside an executed notebook what it was run with."""
    parameters = notebook.parameters()
    asked = [str(parameters.get(name, "")) for name in ("dataset", "device")]
    facts = output_of([sys.executable, "-c", FACTS, *asked], notebook.root) if any(asked) else ""
    dirty = "-modified" if output_of(["git", "status", "--porcelain"], notebook.root) else ""
    commit = output_of(["git", "rev-parse", "--short", "HEAD"], notebook.root)
    record = {
        "key": key,
        "output": notebook.output(),
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "commit": f"{commit}{dirty}" if commit else "unknown",
        **(json.loads(facts) if facts else {"data": "unknown", "device": "unknown"}),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {package: importlib.metadata.version(package) for package in pinned(notebook.root)},
    }
    replace_text(notebook.record, json.dumps(record, indent=1, ensure_ascii=False))


def output_of(command: list[str], root: Path) -> str:
    """What a command prints, or nothing if it fails."""
    try:
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | KERNEL_ENVIRONMENT)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def pins(root: Path) -> list[str]:
    """The lines of `constraints.txt`, each a package and its version."""
    file = root / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.strip() for line in lines if "==" in line and not line.startswith("#")]


def pinned(root: Path) -> list[str]:
    """The packages of `constraints.txt` that are installed."""
    names = [line.split("==")[0] for line in pins(root)]
    here = {str(found.metadata["Name"]).lower().replace("_", "-") for found in importlib.metadata.distributions()}
    return [name for name in names if name.lower().replace("_", "-") in here]


def replace_text(file: Path, text: str) -> bool:
    """Write a file whole or not at all, and leave it alone if it already says so; whether it was written."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
    return True


def write_manifest(notebooks: list[Notebook]) -> None:
    """The page that says how the results on the other pages came about; it depends on the records alone."""
    records = {notebook.name: json.loads(notebook.record.read_text(encoding="utf-8")) for notebook in notebooks}
    lines = ["# How this book was built", "", "Each page that holds code was executed from start to end by `make book`.", ""]
    if records:
        lines += ["```{list-table} Run times", ":header-rows: 1", ""]
        rows = [("page", "seconds", "device", "commit")]
        rows += [
            (_words(name), str(run["seconds"]), run["device"] or "unknown", run["commit"]) for name, run in records.items()
        ]
        lines += [f"{'* -' if n == 0 else '  -'} {cell}" for row in rows for n, cell in enumerate(row)] + ["```", ""]
    for name, run in records.items():
        lines += [f"## {_words(name)}", "", "```{list-table}", ":header-rows: 1", "", "* - parameter", "  - value"]
        lines += [f"* - `{key}`\n  - `{value}`" for key, value in run["parameters"].items()] + ["```", ""]
        lines += [f"Data, SHA-256 of the arrays: `{run['data']}`.", ""] if run["data"] else []
    for system in sorted({(run["python"], run["system"], json.dumps(run["packages"])) for run in records.values()}):
        packages = [f"{name}=={version}" for name, version in json.loads(system[2]).items()]
        lines += ["## Environment", "", f"Python {system[0]} on {system[1]}, with", ""]
        lines += ["````{dropdown} Packages", "```text", *packages, "```", "````", ""]
    executed = notebooks[0].root / "book" / "executed" if notebooks else Path("book/executed")
    replace_text(executed / "manifest.json", json.dumps(records, indent=1, ensure_ascii=False))
    replace_text(executed / f"{GENERATED}.md", "\n".join(lines))


def _words(name: str) -> str:
    """A page's name with spaces, where a phone may break it."""
    return name.replace("_", " ")


def execute_stale(notebooks: list[Notebook], refused: dict[str, str] | None = None) -> int:
    """Execute what is out of date, one notebook per core at a time; how many that were. The others' prose is renewed.

    Where `refused` is given, notebooks that refuse their data are no failure: their reasons are noted there, by their names.
    """
    stale = [notebook for notebook in notebooks if not notebook.is_current()]
    for notebook in notebooks:
        if notebook in stale:
            say(f"executing {notebook.name}")
        else:
            say(f"{notebook.name}: up to date{', its prose renewed' if notebook.renew() else ''}")

    def run(notebook: Notebook) -> str:
        notebook.executed.parent.mkdir(parents=True, exist_ok=True)
        try:
            key = notebook.key()  # before the run: an edit during it makes the result stale, not wrongly current
            seconds = execute(notebook)
        except BuildError as error:
            if refused is None or not isinstance(error, Refused):
                return str(error)
            refused[notebook.name] = error.reason
            return ""
        write_record(notebook, key, seconds)
        if notebook.is_current():
            notebook.renew()
        say(f"executed {notebook.name} in {seconds:.0f} s")
        return ""

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        failures = [message for message in pool.map(run, stale) if message]
    if failures:
        raise BuildError("\n".join(failures))
    return len(stale)


def execute_given(root: Path, notebooks: list[Notebook]) -> None:
    """Execute notebooks on data that their copy was given; those that refuse them as the sources under `root` have them."""
    home = notebooks[0].root
    dataset, known = given.read(home)
    keys = {notebook.name: notebook.key() for notebook in notebooks}
    refused = {name: each["reason"] for name, each in known.items() if each["key"] == keys.get(name)}
    rest = [notebook for notebook in notebooks if notebook.name not in refused]
    try:
        borrow(root, rest)
        execute_stale(rest, refused)
    finally:  # also where one of them failed
        given.write(home, dataset, {name: {"key": keys[name], "reason": reason} for name, reason in refused.items()})
    again = [notebook for notebook in notebooks if notebook.name in refused]
    for notebook in again:
        say(f"{notebook.name} refuses {dataset}, and is shown on its own data: {refused[notebook.name]}")
        shutil.copy2(Notebook(root, notebook.name).source, notebook.source)
    borrow(root, again)
    execute_stale(again)


def borrow(root: Path, notebooks: list[Notebook]) -> None:
    """Take over what was executed under `root`, where a run of these notebooks would be the same."""
    for notebook in notebooks:
        theirs = Notebook(root, notebook.name)
        if not notebook.is_current() and theirs.is_current() and theirs.key() == notebook.key():
            notebook.executed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(theirs.executed, notebook.executed)
            shutil.copy2(theirs.record, notebook.record)


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


def say(line: str) -> None:
    print(line, flush=True)


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
