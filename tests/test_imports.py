"""The layers of the library: a module imports only from the rows above it."""

import ast
from pathlib import Path

import pytest

import nbvae

ROWS = [
    "checks",
    "nn",
    "likelihoods",
    "data",
    "stacking",
    "analytic",
    "curves",
    "aggregate",
    "elbo",
    "models",
    "objectives",
    "calibration",
    "evidence",
    "decomposition",
    "estimators",
    "runs",
    "training",
    "samplers",
    "features",
    "metrics",
    "plotting",
    "notebook",
]
FOLDER = Path(nbvae.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def imported(module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "nbvae":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbvae."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nbvae.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "absolute imports only"
    return names


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rows_above_it(module):
    assert module in ROWS, f"{module} has no row: give it one"
    assert imported(module) <= set(ROWS[: ROWS.index(module)])


def test_the_oracle_imports_nothing_that_it_checks():
    assert imported("analytic") <= {"checks"}
    assert "torch" not in (FOLDER / "analytic.py").read_text().split("import", 1)[1].split("class")[0].replace(
        "CPU tensors", ""
    )
