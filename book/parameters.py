"""The page of parameters: what each page with code can be run with, read from the notebooks' cells of parameters."""

from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat

from records import plain, table

NAME = "parameters"  # the page in book/executed
ABOUT = """# The parameters of the pages

Each page with code is a notebook that can be run again with other parameters: other data, longer trainings, another seed.

```text
.venv/bin/papermill notebooks/03_rate_distortion.ipynb out.ipynb \\
    -p dataset mine.npz -p epochs 100 -y "betas: [0.1, 1]"
```

This command, in a shell in the repository, runs one page into `out.ipynb`; `-p` takes a number or a text, `-y` a list. A wrong
value is answered with one line that says what is allowed. To run and build the whole book on your data, give make their name
or the path of [a file of yours](howto_data.ipynb):

```text
make book DATASET=mine.npz
```

The pages are then in `_build/mine.npz/html`, each with a label, and the book that was built before stays as it is. Studies that
have a record for these data are read, and the others run their quick plan, once. A page that refuses the data, for want of
labels or of pixels that are 0 and 1, says why and is shown on its own data.

Below are the parameters of each page, with their defaults.
"""


def write(notebooks: Iterable[Path], folder: Path, replace: Callable[[Path, str], object]) -> None:
    """Write the page into `folder`, by `replace(file, text)`, with a table for each of the `notebooks`, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / f"{NAME}.md", "\n".join([ABOUT, *(line for notebook in notebooks for line in section(notebook))]))


def section(notebook: Path) -> list[str]:
    """What the page says of one notebook, in lines."""
    from papermill.inspection import inspect_notebook

    first = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0]
    found = inspect_notebook(str(notebook)).values()
    rows = [(f"`{each['name']}`", f"`{each['default']}`", plain(each["help"])) for each in found]
    title = plain(first.removeprefix("# "))
    lines = [f"## {title}", "", f"`notebooks/{notebook.name}` makes [this page]({notebook.name}).", ""]
    return lines + (table(("parameter", "default", "meaning"), rows) if rows else ["It has none.", ""])
