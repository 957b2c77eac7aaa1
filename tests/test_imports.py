"""The layers of the library: a module imports only from the rows above it."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nbvae

# Rooms from the ones that know least, and the modules of each in the same order.
ROWS = [
    "checks",
    "_files",
    "_frames",
    "results",
    "_tensors",
    "_sameness",
    "_measuring",
    "data.dataset",
    "data.files",
    "data.gaussian",
    "data.idx",
    "data.patches",
    "data.glyphs",
    "data.named",
    "data",
    "_randomness",
    "curves",
    "analytic._checked",
    "analytic.linear",
    "analytic.shannon",
    "analytic.finite",
    "analytic",
    "limits.discrete",
    "limits.codebook",
    "limits.dual",
    "limits",
    "models.networks",
    "models.likelihoods",
    "models.vae",
    "models.multi_beta",
    "models",
    "posterior.mixture",
    "posterior._fused",
    "posterior.minibatch",
    "posterior._mmd",
    "posterior.coupling",
    "posterior",
    "objectives.protocol",
    "objectives.weighted",
    "objectives.penalties",
    "objectives.adversarial",
    "objectives.log_mse",
    "objectives.multi_beta",
    "objectives",
    "training._config",
    "training.stacking",
    "training._record",
    "training.store",
    "training._writing",
    "training._digest",
    "training._key",
    "training._progress",
    "training._checkpoint",
    "training._keeping",
    "training.calibration",
    "training.mapping",
    "training._loop",
    "training._fit",
    "training._sweep",
    "training",
    "estimators._annealing",
    "estimators.evidence",
    "estimators.decoder",
    "estimators.decomposition",
    "estimators.rd",
    "estimators._moments",
    "estimators",
    "metrics._alignment",
    "metrics._disentanglement",
    "metrics.features",
    "metrics.distances",
    "metrics",
    "samplers._base",
    "samplers._mixtures",
    "samplers.ladders",
    "samplers.densities",
    "samplers.priors",
    "samplers",
    "coding._bits",
    "coding._stream",
    "coding.lossless",
    "coding.embedded",
    "coding",
    "coding.__main__",
    "plotting",
    "notebook",
]
FOLDER = Path(nbvae.__file__).parent


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in FOLDER.rglob("*.py") if path != FOLDER / "__init__.py"}


def imported(module: str) -> set[str]:
    """The modules of nbvae that a module imports, by their names without "nbvae."."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "absolute imports only"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nbvae":
            room = node.module.removeprefix("nbvae").removeprefix(".")
            inside = {f"{room}.{alias.name}".removeprefix(".") for alias in node.names}
            names |= {each if each in FILES else room for each in inside} - {""}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("nbvae.") for alias in node.names if alias.name.startswith("nbvae.")}
    return names


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_rows_above_it(module):
    assert module in ROWS, f"{module} has no row: give it one"
    assert imported(module) <= set(ROWS[: ROWS.index(module)])


def test_every_row_is_a_module():
    assert set(ROWS) == set(FILES)


def test_the_oracle_imports_nothing_that_it_checks():
    for module in (row for row in ROWS if row.startswith("analytic")):
        assert {each for each in imported(module) if not each.startswith("analytic")} <= {"checks"}
        assert "torch" not in FILES[module].read_text()


def test_every_room_loads_on_first_use_and_is_described():
    rooms = {row for row in ROWS if "." not in row and not row.startswith("_")} - {"checks"}
    assert set(nbvae.__all__) == rooms
    assert all(f"`{room}`" in inspect.getdoc(nbvae) for room in rooms)
    script = "import sys, nbvae; assert 'torch' not in sys.modules; print(nbvae.models.VAE.__name__)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "VAE"
    with pytest.raises(AttributeError, match="it has analytic"):
        nbvae.nonsense  # noqa: B018
