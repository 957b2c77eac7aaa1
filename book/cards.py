"""The pictures of the landing page's cards: of each chapter the figure in the cell with the tag `card`, as it was executed."""

from pathlib import Path
from typing import Any

import nbformat

FOLDER = "book/executed/cards"


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """The SVG of each cell with the tag."""
    tagged = [cell for cell in notebook.cells if "card" in cell.metadata.get("tags", [])]
    outputs = [output.get("data", {}) for cell in tagged for output in cell.get("outputs", [])]
    return ["".join(data["image/svg+xml"]) for data in outputs if "image/svg+xml" in data]


def write(root: Path, notebooks: dict[str, Path], replace: Any) -> None:
    """Write the picture of each executed notebook that has one under `root`, by `replace(file, text)`.

    - `notebooks`: executed notebooks by the names of their pages.

    Raises `ValueError` for a notebook with more than one.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, path in notebooks.items():
        found = pictures(nbformat.read(path, as_version=4))
        if len(found) > 1:
            raise ValueError(f"{name}: one cell has the tag card, and one picture; found {len(found)} pictures")
        for picture in found:
            replace(root / FOLDER / f"{name}.svg", picture)
